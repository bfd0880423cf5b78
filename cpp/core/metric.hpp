// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "core/batch.hpp"

namespace fubini {

// The Fubini-Study metric over the angles: g_ij = Re[<d_i psi|d_j psi> - <d_i psi|psi><psi|d_j psi>], per
// batch element, or the mean over the batch. Results do not depend on the number of threads.

/// Directions in the space of the angles, such as the weights that several angles share: number i is the sum
/// of coefficient[e] times angle slot[e] for e from start[i] to start[i + 1], distinct angles in range.
struct Directions {
    std::vector<int> start{0};
    std::vector<int> slot;
    std::vector<double> coefficient;

    [[nodiscard]] std::size_t size() const { return start.size() - 1; }

    /// Every angle of a list is a direction.
    static Directions of(std::span<const int> angles) {
        Directions made;
        made.slot.assign(angles.begin(), angles.end());
        made.coefficient.assign(angles.size(), 1.0);
        for (std::size_t i = 0; i < angles.size(); ++i) made.start.push_back(static_cast<int>(i) + 1);
        return made;
    }
};

/// out (size, k, k), or (k, k) if `mean`, for the k directions, in their order: the metric is J^T g J for the
/// directions in the columns of J. batch.repeat must be 1. The tangents of all directions are brought to one
/// frame in the middle of the circuit. For any number of directions they take at most 1 GiB, or what
/// memory_limit() leaves if that is less; tangents that do not fit together are computed again. Throws
/// MemoryLimit, Interrupted. Not `centred`: without the term of <d_i psi|psi>, for states that are weighted
/// parts of an ensemble.
void metric_full(const Program& program, const Batch& batch, const Directions& directions, bool mean,
                 bool centred, double* out);

/// out (k, size * 2 * 2^qubits), a factor X of the mean metric: g = X X^T. An element's columns are the real
/// parts, then the imaginary parts, of its derivative states without their part along psi, divided by
/// sqrt(size), in the frame in which metric_full compares them.
void metric_factor(const Program& program, const Batch& batch, const Directions& directions, double* out);

/// out (size, angles): Im <psi|d_a psi>, the Berry connection i <psi|d_a psi> with the other sign, by one
/// forward and one reverse sweep.
void berry_connection(const Program& program, const Batch& batch, double* out);

/// out[b] = g_{b / repeat} vectors[b], by one forward and one reverse sweep; vectors (size, angles), out
/// (size, angles). Several vectors for one element's angles (batch.repeat) share a tile. Memory is that of a
/// few states per thread.
void metric_vector_product(const Program& program, const Batch& batch, const double* vectors, double* out);

/// Covariances of each stage's generators, by one forward sweep. A stage with k generators has the moments
/// <K_i> for i < k, then <K_i K_j> for j <= i, row by row, or only <K_i K_i> if `diagonal`.
///   counts: k of each stage; out: for each stage (size, k, k), or (size, k) if diagonal
void stage_covariances(const Program& program, const Batch& batch, std::span<const int> counts, bool diagonal,
                       std::span<double* const> out);

/// Their means over the batch; out: for each stage (k, k), or (k) if diagonal.
void mean_stage_covariances(const Program& program, const Batch& batch, std::span<const int> counts,
                            bool diagonal, std::span<double* const> out);

}  // namespace fubini
