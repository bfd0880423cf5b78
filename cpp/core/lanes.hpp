// SPDX-License-Identifier: Apache-2.0
// Eight doubles that every kernel works on at once. GCC and Clang lower them to whatever registers there are.
#pragma once

#if defined(FUBINI_FOR_EVERY_CPU)
#error "vectors of registers differ between instruction sets: not in what is compiled once"
#endif

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace fubini {

constexpr int lanes = 8;

typedef double Vec __attribute__((vector_size(64)));
typedef std::int64_t IntVec __attribute__((vector_size(64)));

/// Part of a Vec that fits one register. A kernel that holds a dozen values at a time goes over the rows once
/// for each part: whole Vecs would spill.
template <int width>
struct Part;
template <>
struct Part<8> {
    typedef Vec Real;
    typedef IntVec Int;
};
template <>
struct Part<4> {
    typedef double Real __attribute__((vector_size(32)));
    typedef std::int64_t Int __attribute__((vector_size(32)));
};
template <>
struct Part<2> {
    typedef double Real __attribute__((vector_size(16)));
    typedef std::int64_t Int __attribute__((vector_size(16)));
};
#if defined(__AVX512F__)
constexpr int register_lanes = 8;
#elif defined(__AVX__)
constexpr int register_lanes = 4;
#else
constexpr int register_lanes = 2;
#endif

template <int width>
using RealPart = typename Part<width>::Real;
template <int width>
using IntPart = typename Part<width>::Int;

template <int width>
[[nodiscard]] inline RealPart<width>& part(double* p) {
    return *reinterpret_cast<RealPart<width>*>(p);
}
template <int width>
[[nodiscard]] inline const RealPart<width>& part(const double* p) {
    return *reinterpret_cast<const RealPart<width>*>(p);
}
/// The part of v that begins at a lane.
template <int width>
[[nodiscard]] inline const RealPart<width>& part(const Vec& v, int lane) {
    return part<width>(reinterpret_cast<const double*>(&v) + lane);
}
template <int width>
[[nodiscard]] inline RealPart<width>& part(Vec& v, int lane) {
    return part<width>(reinterpret_cast<double*>(&v) + lane);
}
template <int width>
[[nodiscard]] inline const IntPart<width>& int_part(const IntVec& v, int lane) {
    return *reinterpret_cast<const IntPart<width>*>(reinterpret_cast<const std::int64_t*>(&v) + lane);
}

[[nodiscard]] inline Vec splat(double value) { return value - Vec{}; }

[[nodiscard]] inline Vec& vec(double* p) { return *reinterpret_cast<Vec*>(p); }
[[nodiscard]] inline const Vec& vec(const double* p) { return *reinterpret_cast<const Vec*>(p); }

/// v[l ^ x] in lane l.
template <int x, typename V>
[[nodiscard]] inline V permuted(const V& v) {
    if constexpr (x == 0) {
        return v;
    } else {
        return __builtin_shufflevector(v, v, 0 ^ x, 1 ^ x, 2 ^ x, 3 ^ x, 4 ^ x, 5 ^ x, 6 ^ x, 7 ^ x);
    }
}

/// v with the sign bits of `mask` (0 or the sign bit in each lane) flipped.
template <typename V, typename Mask>
[[nodiscard]] inline V flipped(const V& v, const Mask& mask) {
    static_assert(sizeof(V) == sizeof(Mask));
    return std::bit_cast<V>(std::bit_cast<Mask>(v) ^ mask);
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
