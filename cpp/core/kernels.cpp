// SPDX-License-Identifier: Apache-2.0
#include "core/kernels.hpp"

#include <array>

#include "core/plan.hpp"

namespace fubini {
namespace {

constexpr std::int64_t sign_bit = std::int64_t{1} << 63;

// Row signs are looked up instead of computed: index 0 keeps, index 1 flips.
alignas(64) constexpr std::int64_t sign_rows[2][lanes] = {
    {}, {sign_bit, sign_bit, sign_bit, sign_bit, sign_bit, sign_bit, sign_bit, sign_bit}};

template <int width>
inline const IntPart<width>& row_sign(std::size_t bits) {
    return reinterpret_cast<const IntPart<width>&>(sign_rows[std::popcount(bits) & 1]);
}

/// How much of a row a kernel takes at a time; lanes that trade places have to stay together.
template <int lane_x>
constexpr int width_of = lane_x == 0 ? register_lanes : lanes;

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

/// The coefficients of one row, with that row's signs.
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

    /// (ar + i ai) a + (br + i bi) b with the signs of row r.
    inline void apply(const Real& a_re, const Real& a_im, const Real& b_re, const Real& b_im, const Int& sa,
                      const Int& sr, const Int& si, Real& re, Real& im) const {
        if constexpr (kind == Flavor::diagonal) {
            const Real ai_r = signs ? flipped(ai, sa) : ai;
            re = ar * a_re - ai_r * a_im;
            im = ar * a_im + ai_r * a_re;
        } else if constexpr (kind == Flavor::x_like) {
            const Real bi_r = signs ? flipped(bi, si) : bi;
            re = ar * a_re - bi_r * b_im;
            im = ar * a_im + bi_r * b_re;
        } else if constexpr (kind == Flavor::y_like) {
            const Real br_r = signs ? flipped(br, sr) : br;
            re = ar * a_re + br_r * b_re;
            im = ar * a_im + br_r * b_im;
        } else {
            const Real ai_r = signs ? flipped(ai, sa) : ai;
            const Real br_r = signs ? flipped(br, sr) : br;
            const Real bi_r = signs ? flipped(bi, si) : bi;
            re = (ar * a_re - ai_r * a_im) + (br_r * b_re - bi_r * b_im);
            im = (ar * a_im + ai_r * a_re) + (br_r * b_im + bi_r * b_re);
        }
    }
};

/// The same for a generator, which has no real diagonal part.
template <Flavor kind, bool signs, int width>
struct RowGenerator {
    using Real = RealPart<width>;
    using Int = IntPart<width>;
    Real ai, br, bi;

    RowGenerator(const Mix& m, int row, int lane)
        : ai(part<width>(m.ai[row], lane)),
          br(part<width>(m.br[row], lane)),
          bi(part<width>(m.bi[row], lane)) {}

    /// Adds i ai a + (br + i bi) b with the signs of row r.
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

template <int lane_x, bool same_row>
void run_mix_add(const Geometry& where, const Mix& m, int lane, const double* source, double* target,
                 std::size_t begin, std::size_t end) {
    constexpr int width = width_of<lane_x>;
    using Real = RealPart<width>;
    const RowMix<Flavor::general, true, width> first(m, 0, lane);
    const RowMix<Flavor::general, true, width> second(m, 1, lane);
    std::size_t r = where.row(begin);
    for (std::size_t index = begin; index < end; ++index, r = where.next(r)) {
        const IntPart<width>& sa = row_sign<width>(r & where.sign_a);
        const IntPart<width>& sr = row_sign<width>(r & where.sign_r);
        const IntPart<width>& si = row_sign<width>(r & where.sign_i);
        const std::size_t other = same_row ? r : r ^ where.x;
        const double* from0 = source + r * row_doubles;
        const double* from1 = source + other * row_doubles;
        const Real re0 = part<width>(from0), im0 = part<width>(from0 + lanes), re1 = part<width>(from1),
                   im1 = part<width>(from1 + lanes);
        double* to0 = target + r * row_doubles;
        Real re, im;
        first.apply(re0, im0, permuted<lane_x>(re1), permuted<lane_x>(im1), sa, sr, si, re, im);
        part<width>(to0) += re;
        part<width>(to0 + lanes) += im;
        if constexpr (!same_row) {
            double* to1 = target + other * row_doubles;
            second.apply(re1, im1, permuted<lane_x>(re0), permuted<lane_x>(im0), sa, sr, si, re, im);
            part<width>(to1) += re;
            part<width>(to1 + lanes) += im;
        }
    }
}

template <Flavor kind, bool signs, int lane_x, bool same_row>
void run_mix_tangent(const Geometry& where, const Mix& m, const Mix& d, int lane, double* state,
                     double* tangent, std::size_t begin, std::size_t end) {
    constexpr int width = width_of<lane_x>;
    using Real = RealPart<width>;
    const RowMix<kind, signs, width> first(m, 0, lane), second(m, 1, lane);
    const RowGenerator<kind, signs, width> first_d(d, 0, lane), second_d(d, 1, lane);
    std::size_t r = where.row(begin);
    for (std::size_t index = begin; index < end; ++index, r = where.next(r)) {
        const IntPart<width>& sa = row_sign<width>(signs ? r & where.sign_a : 0);
        const IntPart<width>& sr = row_sign<width>(signs ? r & where.sign_r : 0);
        const IntPart<width>& si = row_sign<width>(signs ? r & where.sign_i : 0);
        const auto turn = [&](double* row0, double* row1, Real& re0, Real& im0, Real& re1, Real& im1) {
            const Real a_re = part<width>(row0), a_im = part<width>(row0 + lanes);
            if constexpr (same_row) {
                first.apply(a_re, a_im, permuted<lane_x>(a_re), permuted<lane_x>(a_im), sa, sr, si, re0, im0);
            } else {
                const Real b_re = part<width>(row1), b_im = part<width>(row1 + lanes);
                first.apply(a_re, a_im, permuted<lane_x>(b_re), permuted<lane_x>(b_im), sa, sr, si, re0, im0);
                second.apply(b_re, b_im, permuted<lane_x>(a_re), permuted<lane_x>(a_im), sa, sr, si, re1,
                             im1);
            }
        };
        const std::size_t other = same_row ? r : r ^ where.x;
        double *row0 = state + r * row_doubles, *row1 = state + other * row_doubles;
        double *tangent0 = tangent + r * row_doubles, *tangent1 = tangent + other * row_doubles;
        Real re0, im0, re1{}, im1{}, dre0, dim0, dre1{}, dim1{};
        turn(row0, row1, re0, im0, re1, im1);
        turn(tangent0, tangent1, dre0, dim0, dre1, dim1);
        part<width>(row0) = re0;
        part<width>(row0 + lanes) = im0;
        if constexpr (same_row) {
            first_d.add(re0, im0, permuted<lane_x>(re0), permuted<lane_x>(im0), sa, sr, si, dre0, dim0);
        } else {
            part<width>(row1) = re1;
            part<width>(row1 + lanes) = im1;
            first_d.add(re0, im0, permuted<lane_x>(re1), permuted<lane_x>(im1), sa, sr, si, dre0, dim0);
            second_d.add(re1, im1, permuted<lane_x>(re0), permuted<lane_x>(im0), sa, sr, si, dre1, dim1);
            part<width>(tangent1) = dre1;
            part<width>(tangent1 + lanes) = dim1;
        }
        part<width>(tangent0) = dre0;
        part<width>(tangent0 + lanes) = dim0;
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
        if constexpr (has1) {
            const Real t0 = br0 * pki1 - bi0 * pkr1;
            sum1[0] += signs ? flipped(t0, si) : t0;
            if constexpr (!same_row) {
                const Real t1 = br1 * pki0 - bi1 * pkr0;
                sum1[1] += signs ? flipped(t1, si) : t1;
            }
        }
        if constexpr (has2) {
            const Real t0 = br0 * pkr1 + bi0 * pki1;
            sum2[0] += signs ? flipped(t0, sr) : t0;
            if constexpr (!same_row) {
                const Real t1 = br1 * pkr0 + bi1 * pki0;
                sum2[1] += signs ? flipped(t1, sr) : t1;
            }
        }
        if constexpr (has3) {
            const Real t0 = br0 * ki0 - bi0 * kr0;
            sum3[0] += signs ? flipped(t0, sa) : t0;
            if constexpr (!same_row) {
                const Real t1 = br1 * ki1 - bi1 * kr1;
                sum3[1] += signs ? flipped(t1, sa) : t1;
            }
        }
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

/// Calls body with (lane_x, same_row) as compile-time constants.
template <typename Body>
void with_lane_x(const Geometry& where, const Body& body) {
    const auto at = [&]<int lane_x>() {
        if (where.x == 0) {
            body.template operator()<lane_x, true>();
        } else {
            body.template operator()<lane_x, false>();
        }
    };
    switch (where.lane_x) {
        case 0:
            return at.template operator()<0>();
        case 1:
            return at.template operator()<1>();
        case 2:
            return at.template operator()<2>();
        case 3:
            return at.template operator()<3>();
        case 4:
            return at.template operator()<4>();
        case 5:
            return at.template operator()<5>();
        case 6:
            return at.template operator()<6>();
        default:
            return at.template operator()<7>();
    }
}

/// Calls body with (flavor, signs, lane_x, same_row) as compile-time constants. Fewer combinations are
/// compiled for amplitudes in lanes: there the general kernel serves all.
template <typename Body>
void with_kernel(const Geometry& where, Flavor kind, const Body& body) {
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

void mix_add(const Geometry& where, const Mix& m, const double* source, double* target, std::size_t begin,
             std::size_t end) {
    if (begin >= end) return;
    with_lane_x(where, [&]<int lane_x, bool same_row>() {
        for (int lane = 0; lane < lanes; lane += width_of<lane_x>) {
            run_mix_add<lane_x, same_row>(where, m, lane, source + lane, target + lane, begin, end);
        }
    });
}

void mix_tangent(const Geometry& where, Flavor kind, const Mix& m, const Mix& d, double* state,
                 double* tangent, std::size_t begin, std::size_t end) {
    if (begin >= end) return;
    with_kernel(where, kind, [&]<Flavor flavor, bool signs, int lane_x, bool same_row>() {
        for (int lane = 0; lane < lanes; lane += width_of<lane_x>) {
            run_mix_tangent<flavor, signs, lane_x, same_row>(where, m, d, lane, state + lane, tangent + lane,
                                                             begin, end);
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
