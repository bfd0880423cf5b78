// SPDX-License-Identifier: Apache-2.0
// A register of doubles and the little arithmetic that the small solves need.
#pragma once

#if defined(FUBINI_FOR_EVERY_CPU)
#error "vectors of registers differ between instruction sets: not in what is compiled once"
#endif

#include <cmath>
#include <cstddef>
#include <cstring>
#include <initializer_list>

namespace fubini::detail {

#if defined(__AVX512F__)
inline constexpr int lanes = 8;
#elif defined(__AVX__)
inline constexpr int lanes = 4;
#else
inline constexpr int lanes = 2;  // SSE2 and NEON
#endif

using Vec = double __attribute__((vector_size(lanes * sizeof(double))));

inline Vec splat(double value) { return value - Vec{}; }
inline Vec select_greater(Vec a, Vec b, Vec yes, Vec no) { return a > b ? yes : no; }

inline Vec load(const double* from) {  // needs no alignment
    Vec v;
    std::memcpy(&v, from, sizeof(v));
    return v;
}
inline void store(double* to, Vec v) { std::memcpy(to, &v, sizeof(v)); }

/// b where a is NaN.
inline Vec larger(Vec a, Vec b) { return select_greater(a, b, a, b); }
inline Vec magnitude(Vec a) { return select_greater(splat(0.0), a, splat(0.0) - a, a); }

inline Vec inverse_root(Vec a) {
    double values[lanes];
    store(values, a);
    for (int i = 0; i < lanes; ++i) values[i] = std::sqrt(values[i]);
    return 1.0 / load(values);
}

/// Element j of v[i] trades places with element i of v[j].
inline void transpose(Vec (&v)[lanes]) {
#if defined(__AVX512F__)
    for (int i = 0; i < 8; i += 2) {
        const Vec a = v[i];
        const Vec b = v[i + 1];
        v[i] = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
        v[i + 1] = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    }
    for (const int i : {0, 1, 4, 5}) {
        const Vec a = v[i];
        const Vec b = v[i + 2];
        v[i] = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
        v[i + 2] = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    }
    for (int i = 0; i < 4; ++i) {
        const Vec a = v[i];
        const Vec b = v[i + 4];
        v[i] = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
        v[i + 4] = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
#elif defined(__AVX__)
    const Vec a = __builtin_shufflevector(v[0], v[1], 0, 4, 2, 6);
    const Vec b = __builtin_shufflevector(v[0], v[1], 1, 5, 3, 7);
    const Vec c = __builtin_shufflevector(v[2], v[3], 0, 4, 2, 6);
    const Vec d = __builtin_shufflevector(v[2], v[3], 1, 5, 3, 7);
    v[0] = __builtin_shufflevector(a, c, 0, 1, 4, 5);
    v[1] = __builtin_shufflevector(b, d, 0, 1, 4, 5);
    v[2] = __builtin_shufflevector(a, c, 2, 3, 6, 7);
    v[3] = __builtin_shufflevector(b, d, 2, 3, 6, 7);
#else
    for (int i = 0; i < lanes; ++i) {
        for (int j = 0; j < i; ++j) {
            const double upper = v[j][i];
            v[j][i] = v[i][j];
            v[i][j] = upper;
        }
    }
#endif
}

}  // namespace fubini::detail
