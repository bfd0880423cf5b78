// SPDX-License-Identifier: Apache-2.0
#include "core/kernels.hpp"

#include "core/kernels_rows.hpp"
#include "core/plan.hpp"

namespace fubini {

using namespace rows;

namespace {

IntVec lane_signs(Mask mask, int lane_bits, bool negative) {
    IntVec signs{};
    for (int l = 0; l < lanes; ++l) {
        const auto low = static_cast<Mask>(l) & ((Mask{1} << lane_bits) - 1);
        if ((parity(low & mask) != 0) != negative) signs[l] = sign_bit;
    }
    return signs;
}

template <typename V, typename Int>
V masked(const V& value, const Int& mask) {
    return std::bit_cast<V>(std::bit_cast<Int>(value) & mask);
}

template <Flavor kind, bool signs, int lane_x, bool same_row>
void run_mix(const Geometry& where, const Mix& m, int lane, double* state, std::size_t begin,
             std::size_t end) {
    constexpr int width = width_of<lane_x>;
    using Real = RealPart<width>;
    const RowMix<kind, signs, width> first(m, 0, lane);
    const RowMix<kind, signs, width> second(m, 1, lane);
    std::size_t r = where.row(begin);
    for (std::size_t index = begin; index < end; ++index, r = where.next(r)) {
        const IntPart<width>& sa = row_sign<width>(signs ? r & where.sign_a : 0);
        const IntPart<width>& sr = row_sign<width>(signs ? r & where.sign_r : 0);
        const IntPart<width>& si = row_sign<width>(signs ? r & where.sign_i : 0);
        double* row0 = state + r * row_doubles;
        const Real re0 = part<width>(row0);
        const Real im0 = part<width>(row0 + lanes);
        if constexpr (same_row) {
            first.apply(re0, im0, permuted<lane_x>(re0), permuted<lane_x>(im0), sa, sr, si, part<width>(row0),
                        part<width>(row0 + lanes));
        } else {
            double* row1 = state + (r ^ where.x) * row_doubles;
            const Real re1 = part<width>(row1);
            const Real im1 = part<width>(row1 + lanes);
            first.apply(re0, im0, permuted<lane_x>(re1), permuted<lane_x>(im1), sa, sr, si, part<width>(row0),
                        part<width>(row0 + lanes));
            second.apply(re1, im1, permuted<lane_x>(re0), permuted<lane_x>(im0), sa, sr, si,
                         part<width>(row1), part<width>(row1 + lanes));
        }
    }
}

template <Flavor kind, bool signs, int lane_x, bool same_row>
void run_overlap_mix(const Geometry& where, const Mix& m, int lane, double* ket, double* bra, Vec overlap[4],
                     std::size_t begin, std::size_t end) {
    constexpr int width = width_of<lane_x>;
    using Real = RealPart<width>;
    constexpr bool has1 = kind == Flavor::general || kind == Flavor::x_like;
    constexpr bool has2 = kind == Flavor::general || kind == Flavor::y_like;
    constexpr bool has3 = kind == Flavor::general || kind == Flavor::diagonal;
    const RowMix<kind, signs, width> first(m, 0, lane);
    const RowMix<kind, signs, width> second(m, 1, lane);
    Real sum1[2] = {}, sum2[2] = {}, sum3[2] = {};
    std::size_t r = where.row(begin);
    for (std::size_t index = begin; index < end; ++index, r = where.next(r)) {
        const IntPart<width>& sa = row_sign<width>(signs ? r & where.sign_a : 0);
        const IntPart<width>& sr = row_sign<width>(signs ? r & where.sign_r : 0);
        const IntPart<width>& si = row_sign<width>(signs ? r & where.sign_i : 0);
        const std::size_t other = same_row ? r : r ^ where.x;
        double* k0 = ket + r * row_doubles;
        double* b0 = bra + r * row_doubles;
        double* k1 = ket + other * row_doubles;
        double* b1 = bra + other * row_doubles;
        const Real kr0 = part<width>(k0), ki0 = part<width>(k0 + lanes), br0 = part<width>(b0),
                   bi0 = part<width>(b0 + lanes);
        const Real kr1 = part<width>(k1), ki1 = part<width>(k1 + lanes), br1 = part<width>(b1),
                   bi1 = part<width>(b1 + lanes);
        const Real pkr0 = permuted<lane_x>(kr0), pki0 = permuted<lane_x>(ki0);
        const Real pkr1 = permuted<lane_x>(kr1), pki1 = permuted<lane_x>(ki1);
        const auto overlap_of = [&](int row, const Real& br, const Real& bi, const Real& kr, const Real& ki,
                                    const Real& pkr, const Real& pki) {
            if constexpr (has1) {
                const Real t = br * pki - bi * pkr;
                sum1[row] += signs ? flipped(t, si) : t;
            }
            if constexpr (has2) {
                const Real t = br * pkr + bi * pki;
                sum2[row] += signs ? flipped(t, sr) : t;
            }
            if constexpr (has3) {
                const Real t = br * ki - bi * kr;
                sum3[row] += signs ? flipped(t, sa) : t;
            }
        };
        overlap_of(0, br0, bi0, kr0, ki0, pkr1, pki1);
        if constexpr (!same_row) overlap_of(1, br1, bi1, kr1, ki1, pkr0, pki0);
        first.apply(kr0, ki0, pkr1, pki1, sa, sr, si, part<width>(k0), part<width>(k0 + lanes));
        first.apply(br0, bi0, permuted<lane_x>(br1), permuted<lane_x>(bi1), sa, sr, si, part<width>(b0),
                    part<width>(b0 + lanes));
        if constexpr (!same_row) {
            second.apply(kr1, ki1, pkr0, pki0, sa, sr, si, part<width>(k1), part<width>(k1 + lanes));
            second.apply(br1, bi1, permuted<lane_x>(br0), permuted<lane_x>(bi0), sa, sr, si, part<width>(b1),
                         part<width>(b1 + lanes));
        }
    }
    for (int row = 0; row < (same_row ? 1 : 2); ++row) {
        const auto add = [&](Vec& to, const Real& sum, const IntVec& signs_of_lanes, double factor) {
            const Real signed_sum = flipped(sum, int_part<width>(signs_of_lanes, lane));
            part<width>(to, lane) += factor * masked(signed_sum, int_part<width>(where.active[row], lane));
        };
        if constexpr (has1) add(overlap[1], sum1[row], where.lane_i[row], 1);
        if constexpr (has2) add(overlap[2], sum2[row], where.lane_r[row], -1);
        if constexpr (has3) add(overlap[3], sum3[row], where.lane_a[row], 1);
    }
}

/// Applies lane signs and, on inactive lanes, the coefficients of the identity (or of zero).
Mix placed(const Geometry& where, const Vec& ar, const Vec& ai, const Vec& br, const Vec& bi,
           double outside) {
    Mix m;
    for (int row = 0; row < 2; ++row) {
        m.ar[row] = ar;
        m.ai[row] = flipped(ai, where.lane_a[row]);
        m.br[row] = flipped(br, where.lane_r[row]);
        m.bi[row] = flipped(bi, where.lane_i[row]);
        if (!where.all_active) {
            m.ar[row] = masked(ar, where.active[row]) + masked(splat(outside), ~where.active[row]);
            m.ai[row] = masked(m.ai[row], where.active[row]);
            m.br[row] = masked(m.br[row], where.active[row]);
            m.bi[row] = masked(m.bi[row], where.active[row]);
        }
    }
    return m;
}

}  // namespace

std::size_t Geometry::row(std::size_t index) const {
    std::size_t r = 0;
    for (std::size_t at = 0; index != 0; ++at) {
        if ((fixed >> at & 1) != 0) continue;
        r |= (index & 1) << at;
        index >>= 1;
    }
    return r | value;
}

Geometry geometry(const Step& step, const Layout& layout) {
    const int k = layout.lane_bits;
    const Mask lane_mask = layout.lane_mask();
    Geometry g;
    g.x = step.x >> k;
    g.lane_x = static_cast<int>(step.x & lane_mask);
    g.sign_a = step.z3 >> k;
    g.sign_r = (step.z1 ^ step.z3) >> k;
    g.sign_i = step.z1 >> k;
    g.fixed = (step.fixed | step.idle) >> k;
    g.value = step.value >> k;
    bool empty = ((step.value & step.idle) >> k) != 0;
    if ((g.x & ~(step.fixed >> k)) == g.x && g.x != 0) {
        g.fixed |= std::bit_floor(g.x);  // one row stands for the pair
    }
    const std::size_t free_rows = (layout.rows() - 1) & ~g.fixed;
    g.count = empty ? 0 : std::size_t{1} << std::popcount(free_rows);
    const auto varies = [&](std::size_t mask) {
        return (mask & free_rows) != 0 || parity(mask & g.value) != 0;
    };
    g.signs = varies(g.sign_a) || varies(g.sign_r) || varies(g.sign_i);
    for (int row = 0; row < 2; ++row) {
        const auto crossed = [&](std::size_t mask) { return row == 1 && parity(mask & g.x) != 0; };
        g.lane_a[row] = lane_signs(step.z3 & lane_mask, k, crossed(g.sign_a));
        g.lane_r[row] = lane_signs((step.z1 ^ step.z3) & lane_mask, k, crossed(g.sign_r));
        g.lane_i[row] = lane_signs(step.z1 & lane_mask, k, crossed(g.sign_i));
        const Mask fixed = step.fixed & lane_mask;
        const Mask value = step.value & lane_mask;
        for (int l = 0; l < lanes; ++l) {
            const auto low = static_cast<Mask>(l) & lane_mask;
            // The rows decide which of the two patterns applies unless all flipped fixed qubits are in lanes.
            const bool direct = (low & fixed) == value;
            const bool flipped_pattern = (low & fixed) == (value ^ (step.x & fixed));
            const bool rows_decide = (g.x & (step.fixed >> k)) != 0;
            const bool active =
                rows_decide ? (row == 0 ? direct : flipped_pattern) : (direct || flipped_pattern);
            g.active[row][l] = active ? -1 : 0;
            g.all_active = g.all_active && active;
        }
    }
    return g;
}

Flavor flavor(const Step& step) {
    if (step.x == 0) return Flavor::diagonal;
    if (step.kind == Step::Kind::flip) return step.flip_real != 0 ? Flavor::y_like : Flavor::x_like;
    if (step.uses[1] && !step.uses[2] && !step.uses[3]) return Flavor::x_like;
    if (step.uses[2] && !step.uses[1] && !step.uses[3]) return Flavor::y_like;
    return Flavor::general;
}

Mix unitary(const Geometry& where, const Vec q[4]) { return placed(where, q[0], -q[3], -q[2], -q[1], 1); }
Mix inverse(const Geometry& where, const Vec q[4]) { return placed(where, q[0], q[3], q[2], q[1], 1); }
Mix generator(const Geometry& where, const Vec q[4]) { return placed(where, Vec{}, -q[3], -q[2], -q[1], 0); }
Mix flip(const Geometry& where, const Step& step) {
    return placed(where, Vec{}, Vec{}, splat(step.flip_real), splat(step.flip_imaginary), 1);
}

void mix(const Geometry& where, Flavor kind, const Mix& m, double* state, std::size_t begin,
         std::size_t end) {
    if (begin >= end) return;
    with_kernel(where, kind, [&]<Flavor flavor, bool signs, int lane_x, bool same_row>() {
        for (int lane = 0; lane < lanes; lane += width_of<lane_x>) {
            run_mix<flavor, signs, lane_x, same_row>(where, m, lane, state + lane, begin, end);
        }
    });
}

void overlap_mix(const Geometry& where, Flavor kind, const Mix& m, double* ket, double* bra, Vec overlap[4],
                 std::size_t begin, std::size_t end) {
    if (begin >= end) return;
    with_kernel(where, kind, [&]<Flavor flavor, bool signs, int lane_x, bool same_row>() {
        for (int lane = 0; lane < lanes; lane += width_of<lane_x>) {
            run_overlap_mix<flavor, signs, lane_x, same_row>(where, m, lane, ket + lane, bra + lane, overlap,
                                                             begin, end);
        }
    });
}

}  // namespace fubini
