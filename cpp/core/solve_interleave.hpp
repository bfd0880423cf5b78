// SPDX-License-Identifier: Apache-2.0
// Between arrays, one per system, and registers, one lane per system.
#pragma once

#include "core/solve.hpp"
#include "core/solve_simd.hpp"

namespace fubini::detail {

#if defined(FUBINI_HAVE_SHUFFLE) && defined(__AVX512F__)

using Half = double __attribute__((vector_size(4 * sizeof(double))));

/// to[k] = element k of each source, for k < 4: half the loads of a full transpose.
inline void interleave_four(const double* const (&from)[lanes], std::ptrdiff_t at, Vec* to) {
    Vec v[4];
    for (int l = 0; l < 4; ++l) {
        Half low, high;
        std::memcpy(&low, from[l] + at, sizeof(low));
        std::memcpy(&high, from[l + 4] + at, sizeof(high));
        v[l] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7);
    }
    const Vec a = __builtin_shufflevector(v[0], v[1], 0, 8, 2, 10, 4, 12, 6, 14);
    const Vec b = __builtin_shufflevector(v[0], v[1], 1, 9, 3, 11, 5, 13, 7, 15);
    const Vec c = __builtin_shufflevector(v[2], v[3], 0, 8, 2, 10, 4, 12, 6, 14);
    const Vec d = __builtin_shufflevector(v[2], v[3], 1, 9, 3, 11, 5, 13, 7, 15);
    to[0] = __builtin_shufflevector(a, c, 0, 1, 8, 9, 4, 5, 12, 13);
    to[1] = __builtin_shufflevector(b, d, 0, 1, 8, 9, 4, 5, 12, 13);
    to[2] = __builtin_shufflevector(a, c, 2, 3, 10, 11, 6, 7, 14, 15);
    to[3] = __builtin_shufflevector(b, d, 2, 3, 10, 11, 6, 7, 14, 15);
}
inline constexpr bool have_four = true;

#else

inline void interleave_four(const double* const (&)[lanes], std::ptrdiff_t, Vec*) {}
inline constexpr bool have_four = false;

#endif

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
    if (have_four && k + 4 <= count) {
        interleave_four(from, k, to + k);
        k += 4;
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
