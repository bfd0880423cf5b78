// SPDX-License-Identifier: Apache-2.0
// Eight doubles that every kernel works on at once. GCC and Clang lower them to whatever registers there are.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace fubini {

constexpr int lanes = 8;

// Vectors never cross a border between differently compiled code: each instruction set is its own library.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wpsabi"
#endif

typedef double Vec __attribute__((vector_size(64)));
typedef std::int64_t IntVec __attribute__((vector_size(64)));

[[nodiscard]] inline Vec splat(double value) { return value - Vec{}; }

[[nodiscard]] inline Vec& vec(double* p) { return *reinterpret_cast<Vec*>(p); }
[[nodiscard]] inline const Vec& vec(const double* p) { return *reinterpret_cast<const Vec*>(p); }

/// v[l ^ x] in lane l.
template <int x>
[[nodiscard]] inline Vec permuted(const Vec& v) {
    if constexpr (x == 0) {
        return v;
    } else {
        return __builtin_shufflevector(v, v, 0 ^ x, 1 ^ x, 2 ^ x, 3 ^ x, 4 ^ x, 5 ^ x, 6 ^ x, 7 ^ x);
    }
}

/// v with the sign bits of `mask` (0 or the sign bit in each lane) flipped.
[[nodiscard]] inline Vec flipped(const Vec& v, const IntVec& mask) {
    return std::bit_cast<Vec>(std::bit_cast<IntVec>(v) ^ mask);
}

/// sine and cosine to about one unit in the last place; lanes beyond 1e5 in modulus take the library's.
inline void sincos(const Vec& angle, Vec& sine, Vec& cosine) {
    // Reduction by a pi/2 of three parts: the first two have 33 significant bits, so quarter * part is exact.
    const double half_pi_1 = 0x1.921fb544p+0;
    const double half_pi_2 = 0x1.0b4611a6p-34;
    const double half_pi_3 = 0x1.3198a2e037073p-69;
    const double shifter = 0x1.8p52;  // adding it rounds to an integer, which then sits in the low bits
    const Vec shifted = angle * 0.63661977236758134308 + shifter;
    const Vec quarter = shifted - shifter;
    const IntVec count = std::bit_cast<IntVec>(shifted);
    const Vec r = ((angle - quarter * half_pi_1) - quarter * half_pi_2) - quarter * half_pi_3;
    const Vec r2 = r * r;
    // Taylor polynomials: on |r| <= pi/4 the first omitted terms are below 1e-19 and 3e-18.
    Vec s = splat(1.0 / 355687428096000.0);
    s = s * r2 - 1.0 / 1307674368000.0;
    s = s * r2 + 1.0 / 6227020800.0;
    s = s * r2 - 1.0 / 39916800.0;
    s = s * r2 + 1.0 / 362880.0;
    s = s * r2 - 1.0 / 5040.0;
    s = s * r2 + 1.0 / 120.0;
    s = s * r2 - 1.0 / 6.0;
    s = r + r * r2 * s;
    Vec c = splat(1.0 / 20922789888000.0);
    c = c * r2 - 1.0 / 87178291200.0;
    c = c * r2 + 1.0 / 479001600.0;
    c = c * r2 - 1.0 / 3628800.0;
    c = c * r2 + 1.0 / 40320.0;
    c = c * r2 - 1.0 / 720.0;
    c = c * r2 + 1.0 / 24.0;
    c = 1.0 - 0.5 * r2 + r2 * r2 * c;
    const IntVec swap = -(count & 1);
    const IntVec sv = std::bit_cast<IntVec>(s);
    const IntVec cv = std::bit_cast<IntVec>(c);
    sine = std::bit_cast<Vec>(((sv & ~swap) | (cv & swap)) ^ ((count & 2) << 62));
    cosine = std::bit_cast<Vec>(((cv & ~swap) | (sv & swap)) ^ (((count + 1) & 2) << 62));
    for (int l = 0; l < lanes; ++l) {
        if (!(std::abs(angle[l]) < 1e5)) {
            sine[l] = std::sin(angle[l]);
            cosine[l] = std::cos(angle[l]);
        }
    }
}

}  // namespace fubini
