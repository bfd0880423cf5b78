// SPDX-License-Identifier: Apache-2.0
// Which tangents walk together, from where to where.
#pragma once

#include <cstddef>
#include <vector>

#include "core/metric.hpp"
#include "core/sweep.hpp"

namespace fubini {

/// Eight tangents, and the steps that contribute to them: before the middle frame, and after it.
struct Group {
    std::vector<int> early;
    std::vector<int> late;
};

/// The frame in which tangents meet: where their ways are shortest, or behind the last step, where the
/// observables are.
enum class Frame { middle, end };

/// Which tangent, one for each direction, goes where. Tangents are sorted by the first step that contributes
/// to them.
struct Schedule {
    const Directions& directions;
    std::vector<int> position;  ///< sorted tangent -> number of its direction
    std::vector<Group> groups;
    /// Where each tangent has a sweep of its own, with its amplitudes in the lanes: the steps of each, and
    /// none where a group has fewer than eight tangents. Empty: the tangents of a group share a sweep.
    std::vector<Group> singles;
    int middle = 0;  ///< the common frame: after so many steps
    Layout narrow;   ///< of one state, with amplitudes in all lanes
    std::vector<Geometry> narrow_geometries;

    /// The directions must outlive it.
    Schedule(const Program& program, const Directions& directions, Frame frame = Frame::middle);

  private:
    /// Gives every tangent a sweep of its own where that is predicted to be faster: where weights have many
    /// gates.
    template <typename Steps>
    void split(const Program& program, const Steps& steps_of);
};

/// Adds one row of 8 x 8 tiles of a Gram matrix to a (k, k) matrix, and what mirrors it: tangents of group
/// `row`, and of `columns` groups from `first` on.
void scatter(const Schedule& schedule, std::size_t row, std::size_t first, std::size_t columns,
             const double* sums, std::size_t k, double* matrix);

}  // namespace fubini
