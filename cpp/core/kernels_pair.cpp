// SPDX-License-Identifier: Apache-2.0
// Two steps in one pass over the state: half the traffic with memory of two calls of mix.
#include <array>

#include "core/kernels.hpp"

namespace fubini {
namespace {

constexpr std::int64_t sign_bit = std::int64_t{1} << 63;
alignas(64) constexpr std::int64_t sign_rows[2][lanes] = {
    {}, {sign_bit, sign_bit, sign_bit, sign_bit, sign_bit, sign_bit, sign_bit, sign_bit}};

inline const IntVec& row_sign(std::size_t bits) {
    return reinterpret_cast<const IntVec&>(sign_rows[std::popcount(bits) & 1]);
}

/// The coefficients of one row; ai, br and bi with that row's signs relative to the first row of its four.
struct RowCoefficients {
    Vec ai, br, bi;
};

/// What one step does to four rows; the row signs of the first row are `a`, `r` and `i`.
struct FourRows {
    Vec ar;
    std::array<RowCoefficients, 4> rows;
    std::size_t sign_a, sign_r, sign_i;

    FourRows(const Geometry& where, const Mix& m, const std::array<std::size_t, 4>& offsets)
        : ar(m.ar[0]), sign_a(where.sign_a), sign_r(where.sign_r), sign_i(where.sign_i) {
        for (std::size_t j = 0; j < 4; ++j) {
            rows[j] = {flipped(m.ai[0], row_sign(offsets[j] & sign_a)),
                       flipped(m.br[0], row_sign(offsets[j] & sign_r)),
                       flipped(m.bi[0], row_sign(offsets[j] & sign_i))};
        }
    }

    /// Rows j and j ^ partner are a pair.
    template <int partner>
    [[gnu::always_inline]] inline void apply(std::size_t first, Vec* re, Vec* im) const {
        const IntVec a = row_sign(first & sign_a);
        const IntVec r = row_sign(first & sign_r);
        const IntVec i = row_sign(first & sign_i);
        Vec new_re[4], new_im[4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const RowCoefficients& row = rows[static_cast<std::size_t>(j)];
            const Vec ai = flipped(row.ai, a);
            const Vec br = flipped(row.br, r);
            const Vec bi = flipped(row.bi, i);
            Vec x = ar * re[j];
            Vec y = ar * im[j];
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

void mix_two(const Layout& layout, const Geometry& first, const Mix& m, const Geometry& second,
             const Mix& then, double* state) {
    // Four rows are a coset of {0, x, x', x ^ x'}; the one without two pivot bits stands for it.
    const std::size_t pivot = std::bit_floor(first.x);
    const std::size_t rest = (second.x & pivot) != 0 ? second.x ^ first.x : second.x;
    const std::size_t blocked = pivot | std::bit_floor(rest);
    const std::array<std::size_t, 4> offsets = {0, first.x, second.x, first.x ^ second.x};
    const FourRows one(first, m, offsets), two(second, then, offsets);
    const std::size_t rows = layout.rows();
    for (std::size_t r = 0; r < rows; r = ((r | blocked) + 1) & ~blocked) {
        Vec re[4], im[4];
#pragma GCC unroll 4
        for (std::size_t j = 0; j < 4; ++j) {
            const double* row = state + (r ^ offsets[j]) * row_doubles;
            re[j] = vec(row);
            im[j] = vec(row + lanes);
        }
        one.apply<1>(r, re, im);
        two.apply<2>(r, re, im);
#pragma GCC unroll 4
        for (std::size_t j = 0; j < 4; ++j) {
            double* row = state + (r ^ offsets[j]) * row_doubles;
            vec(row) = re[j];
            vec(row + lanes) = im[j];
        }
    }
}

}  // namespace fubini
