// SPDX-License-Identifier: Apache-2.0
// Between arrays, one per system, and registers, one lane per system.
#pragma once

#include "core/solve.hpp"
#include "core/solve_simd.hpp"

namespace fubini::detail {

// Without the count of `rest` GCC 12 loses track of the tails below, and warns.

/// to[k] = element k of each source, for k < count.
inline void interleave(const double* const (&from)[lanes], std::ptrdiff_t count, Vec* to) {
    std::ptrdiff_t k = 0;
    for (; k + lanes <= count; k += lanes) {
        Vec v[lanes];
        for (int l = 0; l < lanes; ++l) v[l] = load(from[l] + k);
        transpose(v);
        for (int l = 0; l < lanes; ++l) to[k + l] = v[l];
    }
    for (int rest = 0; rest < lanes && k < count; ++rest, ++k) {
        double values[lanes];
        for (int l = 0; l < lanes; ++l) values[l] = from[l][k];
        to[k] = load(values);
    }
}

/// The way back: element k of each target = from[k].
inline void deinterleave(const Vec* from, std::ptrdiff_t count, double* const (&to)[lanes]) {
    std::ptrdiff_t k = 0;
    for (; k + lanes <= count; k += lanes) {
        Vec v[lanes];
        for (int l = 0; l < lanes; ++l) v[l] = from[k + l];
        transpose(v);
        for (int l = 0; l < lanes; ++l) store(to[l] + k, v[l]);
    }
    for (int rest = 0; rest < lanes && k < count; ++rest, ++k) {
        for (int l = 0; l < lanes; ++l) to[l][k] = from[k][l];
    }
}

/// What a pack of 1 <= count <= lanes systems is made of; lanes to spare repeat the first system.
struct Operands {
    const double* matrices[lanes];
    const double* rhs[lanes];
    Vec damping;

    Operands(const SolveBlock* blocks, int count) {
        double lams[lanes];
        for (int l = 0; l < lanes; ++l) {
            const SolveBlock& block = blocks[l < count ? l : 0];
            matrices[l] = block.matrix;
            rhs[l] = block.rhs;
            lams[l] = block.damping;
        }
        damping = load(lams);
    }
};

/// A bit for each of the first `count` lanes that is zero; NaN is not.
inline unsigned zero_lanes(Vec v, int count) {
    unsigned bits = 0;
    for (int l = 0; l < count; ++l) bits |= (v[l] == 0.0 ? 1U : 0U) << l;
    return bits;
}

/// Writes column c of the solutions, whose elements are y[0..n), for the systems whose bit is set.
inline void store_column(const SolveBlock* blocks, unsigned solved, std::ptrdiff_t c, const Vec* y) {
    const std::ptrdiff_t n = blocks[0].n;
    const std::ptrdiff_t columns = blocks[0].columns;
    if (columns == 1 && solved == (1U << lanes) - 1U) {
        double* targets[lanes];
        for (int l = 0; l < lanes; ++l) targets[l] = blocks[l].x;
        deinterleave(y, n, targets);
        return;
    }
    for (int l = 0; l < lanes; ++l) {
        if ((solved >> l & 1U) == 0U) continue;
        for (std::ptrdiff_t i = 0; i < n; ++i) blocks[l].x[i * columns + c] = y[i][l];
    }
}

}  // namespace fubini::detail
