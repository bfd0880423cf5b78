// SPDX-License-Identifier: Apache-2.0
// Two steps in one pass over the state: half the traffic with memory of two calls of mix.
#include <array>

#include "core/kernels_rows.hpp"

namespace fubini {
namespace {

constexpr int width = register_lanes;
using Real = RealPart<width>;
using Int = IntPart<width>;

inline const Int& row_sign(std::size_t bits) { return rows::row_sign<width>(bits); }

/// The coefficients of one row; ai, br and bi with that row's signs relative to the first row of its four.
struct RowCoefficients {
    Real ai, br, bi;
};

/// What one step does to four rows, in the lanes from `lane` on; the row signs of the first row are `a`, `r`
/// and `i`.
struct FourRows {
    Real ar;
    std::array<RowCoefficients, 4> rows;
    std::size_t sign_a, sign_r, sign_i;

    FourRows(const Geometry& where, const Mix& m, const std::array<std::size_t, 4>& offsets, int lane)
        : ar(part<width>(m.ar[0], lane)), sign_a(where.sign_a), sign_r(where.sign_r), sign_i(where.sign_i) {
        for (std::size_t j = 0; j < 4; ++j) {
            rows[j] = {flipped(part<width>(m.ai[0], lane), row_sign(offsets[j] & sign_a)),
                       flipped(part<width>(m.br[0], lane), row_sign(offsets[j] & sign_r)),
                       flipped(part<width>(m.bi[0], lane), row_sign(offsets[j] & sign_i))};
        }
    }

    /// Rows j and j ^ partner are a pair.
    template <int partner>
    [[gnu::always_inline]] inline void apply(std::size_t first, Real* re, Real* im) const {
        const Int a = row_sign(first & sign_a);
        const Int r = row_sign(first & sign_r);
        const Int i = row_sign(first & sign_i);
        Real new_re[4], new_im[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const RowCoefficients& row = rows[static_cast<std::size_t>(j)];
            const Real ai = flipped(row.ai, a);
            const Real br = flipped(row.br, r);
            const Real bi = flipped(row.bi, i);
            Real x = ar * re[j];
            Real y = ar * im[j];
            x -= ai * im[j];
            y += ai * re[j];
            x += br * re[j ^ partner];
            y += br * im[j ^ partner];
            x -= bi * im[j ^ partner];
            y += bi * re[j ^ partner];
            new_re[j] = x;
            new_im[j] = y;
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            re[j] = new_re[j];
            im[j] = new_im[j];
        }
    }
};

}  // namespace

bool can_mix_two(const Layout& layout, const Geometry& first, const Geometry& second) {
    const auto whole = [&](const Geometry& where) {
        return where.x != 0 && where.lane_x == 0 && where.all_active && where.count == layout.rows() / 2;
    };
    return whole(first) && whole(second) && first.x != second.x;
}

void mix_two(const Geometry& first, const Mix& m, const Geometry& second, const Mix& then, double* state,
             std::size_t begin, std::size_t end) {
    // Four rows are a coset of {0, x, x', x ^ x'}; the one without two pivot bits stands for it.
    const std::size_t pivot = std::bit_floor(first.x);
    const std::size_t rest = (second.x & pivot) != 0 ? second.x ^ first.x : second.x;
    Geometry fours;
    fours.fixed = pivot | std::bit_floor(rest);
    const std::array<std::size_t, 4> offsets = {0, first.x, second.x, first.x ^ second.x};
    for (int lane = 0; lane < lanes; lane += width) {
        const FourRows one(first, m, offsets, lane), two(second, then, offsets, lane);
        std::size_t r = fours.row(begin);
        for (std::size_t index = begin; index < end; ++index, r = fours.next(r)) {
            Real re[4], im[4];
#pragma GCC unroll 4
            for (std::size_t j = 0; j < 4; ++j) {
                const double* row = state + (r ^ offsets[j]) * row_doubles + lane;
                re[j] = part<width>(row);
                im[j] = part<width>(row + lanes);
            }
            one.apply<1>(r, re, im);
            two.apply<2>(r, re, im);
#pragma GCC unroll 4
            for (std::size_t j = 0; j < 4; ++j) {
                double* row = state + (r ^ offsets[j]) * row_doubles + lane;
                part<width>(row) = re[j];
                part<width>(row + lanes) = im[j];
            }
        }
    }
}

}  // namespace fubini
