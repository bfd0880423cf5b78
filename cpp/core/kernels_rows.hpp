// SPDX-License-Identifier: Apache-2.0
// What kernels*.cpp share: one row's coefficients with its signs, and the choice of a kernel.
#pragma once

#include <cstdint>

#include "core/constants.hpp"
#include "core/kernels.hpp"

namespace fubini::rows {

constexpr std::int64_t sign_bit = std::int64_t{1} << 63;

// Row signs are looked up instead of computed: index 0 keeps, index 1 flips.
alignas(64) inline constexpr std::int64_t sign_rows[2][lanes] = {
    {}, {sign_bit, sign_bit, sign_bit, sign_bit, sign_bit, sign_bit, sign_bit, sign_bit}};

template <int width>
inline const IntPart<width>& row_sign(std::size_t bits) {
    return reinterpret_cast<const IntPart<width>&>(sign_rows[std::popcount(bits) & 1]);
}

/// How much of a row a kernel takes at a time; lanes that trade places have to stay together.
template <int lane_x>
constexpr int width_of = lane_x == 0 ? register_lanes : lanes;

/// What one row of a Mix does, with that row's signs.
template <Flavor kind, bool signs, int width>
struct RowMix {
    using Real = RealPart<width>;
    using Int = IntPart<width>;
    Real ar, ai, br, bi;

    RowMix(const Mix& m, int row, int lane)
        : ar(part<width>(m.ar[row], lane)),
          ai(part<width>(m.ai[row], lane)),
          br(part<width>(m.br[row], lane)),
          bi(part<width>(m.bi[row], lane)) {}

    /// (re, im) = (ar + i ai) a + (br + i bi) b.
    inline void apply(const Real& a_re, const Real& a_im, const Real& b_re, const Real& b_im, const Int& sa,
                      const Int& sr, const Int& si, Real& re, Real& im) const {
        if constexpr (kind == Flavor::general) {  // two short chains instead of a long one
            const Real ai_r = signs ? flipped(ai, sa) : ai;
            const Real br_r = signs ? flipped(br, sr) : br;
            const Real bi_r = signs ? flipped(bi, si) : bi;
            re = (ar * a_re - ai_r * a_im) + (br_r * b_re - bi_r * b_im);
            im = (ar * a_im + ai_r * a_re) + (br_r * b_im + bi_r * b_re);
        } else {
            Real x = ar * a_re, y = ar * a_im;
            add(a_re, a_im, b_re, b_im, sa, sr, si, x, y);
            re = x;
            im = y;
        }
    }

    /// (re, im) += i ai a + (br + i bi) b: all of it for a generator, which has no real diagonal part.
    inline void add(const Real& a_re, const Real& a_im, const Real& b_re, const Real& b_im, const Int& sa,
                    const Int& sr, const Int& si, Real& re, Real& im) const {
        if constexpr (kind == Flavor::diagonal || kind == Flavor::general) {
            const Real ai_r = signs ? flipped(ai, sa) : ai;
            re -= ai_r * a_im;
            im += ai_r * a_re;
        }
        if constexpr (kind == Flavor::y_like || kind == Flavor::general) {
            const Real br_r = signs ? flipped(br, sr) : br;
            re += br_r * b_re;
            im += br_r * b_im;
        }
        if constexpr (kind == Flavor::x_like || kind == Flavor::general) {
            const Real bi_r = signs ? flipped(bi, si) : bi;
            re -= bi_r * b_im;
            im += bi_r * b_re;
        }
    }
};

/// Calls body with (lane_x, same_row) as compile-time constants.
template <typename Body>
inline void with_lane_x(const Geometry& where, const Body& body) {
    with_constant<lanes>(where.lane_x, [&]<int lane_x>() {
        if (where.x == 0) {
            body.template operator()<lane_x, true>();
        } else {
            body.template operator()<lane_x, false>();
        }
    });
}

/// Calls body with (flavor, signs, lane_x, same_row) as compile-time constants. Fewer combinations are
/// compiled for amplitudes in lanes: there the general kernel serves all.
template <typename Body>
inline void with_kernel(const Geometry& where, Flavor kind, const Body& body) {
    if (where.lane_x != 0) {
        with_lane_x(where, [&]<int lane_x, bool same_row>() {
            if constexpr (lane_x != 0) body.template operator()<Flavor::general, true, lane_x, same_row>();
        });
        return;
    }
    const auto at = [&]<Flavor flavor, bool same_row>() {
        if (where.signs) {
            body.template operator()<flavor, true, 0, same_row>();
        } else {
            body.template operator()<flavor, false, 0, same_row>();
        }
    };
    switch (kind) {
        case Flavor::diagonal:
            return at.template operator()<Flavor::diagonal, true>();
        case Flavor::x_like:
            return at.template operator()<Flavor::x_like, false>();
        case Flavor::y_like:
            return at.template operator()<Flavor::y_like, false>();
        case Flavor::general:
            return at.template operator()<Flavor::general, false>();
    }
}

}  // namespace fubini::rows
