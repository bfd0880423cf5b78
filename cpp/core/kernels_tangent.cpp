// SPDX-License-Identifier: Apache-2.0
// Derivatives of a step, added to a tangent.
#include "core/kernels_rows.hpp"

namespace fubini {

using namespace rows;

namespace {

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
        first.add(re0, im0, permuted<lane_x>(re1), permuted<lane_x>(im1), sa, sr, si, part<width>(to0),
                  part<width>(to0 + lanes));
        if constexpr (!same_row) {
            double* to1 = target + other * row_doubles;
            second.add(re1, im1, permuted<lane_x>(re0), permuted<lane_x>(im0), sa, sr, si, part<width>(to1),
                       part<width>(to1 + lanes));
        }
    }
}

template <Flavor kind, bool signs, int lane_x, bool same_row>
void run_mix_tangent(const Geometry& where, const Mix& m, const Mix& d, int lane, double* state,
                     double* tangent, std::size_t begin, std::size_t end) {
    constexpr int width = width_of<lane_x>;
    using Real = RealPart<width>;
    const RowMix<kind, signs, width> first(m, 0, lane), second(m, 1, lane);
    const RowMix<kind, signs, width> first_d(d, 0, lane), second_d(d, 1, lane);
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

}  // namespace

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

}  // namespace fubini
