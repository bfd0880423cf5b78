// SPDX-License-Identifier: Apache-2.0
// Derivative states of all angles in one frame, in a layout that a Gram matrix can be made from.
#pragma once

#include <complex>
#include <cstddef>
#include <span>
#include <vector>

#include "core/metric.hpp"
#include "core/sweep.hpp"

namespace fubini {

constexpr std::size_t amplitude_doubles = 16;  ///< of a panel's tile: 8 real parts, 8 imaginary parts
constexpr double serial_work = 2e4;            ///< block rows below which work is not split among threads

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

/// Tangents [first, last) of the groups, for consecutive batch elements. Element b's group g is a tile of
/// (2^qubits, 16) doubles: real and imaginary parts of one amplitude of eight tangents.
struct Panel {
    double* data = nullptr;
    std::size_t first = 0;
    std::size_t last = 0;
    std::size_t tile = 0;  ///< doubles
    /// Where tangents have sweeps of their own, in the frame at the end: a tile is eight states one behind
    /// the other, each with its amplitudes in the lanes, as the sweeps leave them.
    bool apart = false;

    [[nodiscard]] std::size_t groups() const { return last - first; }
    [[nodiscard]] double* of(std::size_t element, std::size_t group) const {
        return data + (element * groups() + group - first) * tile;
    }
};

/// Adds one row of 8 x 8 tiles of a Gram matrix to a (k, k) matrix, and what mirrors it: tangents of group
/// `row`, and of `columns` groups from `first` on.
void scatter(const Schedule& schedule, std::size_t row, std::size_t first, std::size_t columns,
             const double* sums, std::size_t k, double* matrix);

/// Computes the tangents of a panel's groups for every element of the batch, without their part along psi
/// where `centred`; psi (size, 2^qubits) becomes the states in the same frame. The groups of an element may
/// be shared among so many threads.
void fill_panel(const Program& program, const Batch& batch, const Schedule& schedule, const Panel& panel,
                int threads, bool centred, std::complex<double>* psi);

}  // namespace fubini
