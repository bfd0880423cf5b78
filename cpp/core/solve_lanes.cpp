// SPDX-License-Identifier: Apache-2.0
// Cholesky with one system per lane: element (i, j) of all systems is one register. The matrix is worked
// through in tiles of T x T registers (left-looking), so that each register loaded is used T times; the
// right-hand sides are further rows of the matrix, whose "factor" is the forward substitution.
#include "core/solve_lanes.hpp"

#include <algorithm>
#include <vector>

#include "core/constants.hpp"
#include "core/solve_dense.hpp"
#include "core/solve_fixed.hpp"
#include "core/solve_interleave.hpp"

namespace fubini::detail {
namespace {

// T*T accumulators and 2 T operands have to fit the registers: 32 with AVX-512, else 16.
constexpr int tile = lanes == 8 ? 4 : 3;

struct Pack {
    Vec* a;              // rows 0..n-1: matrix, then factor; rows n..n+columns-1: right-hand sides
    std::ptrdiff_t ld;   // registers per row
    Vec* inverse_pivot;  // (n): reciprocal diagonal of the factor
    std::ptrdiff_t n;
    Vec threshold;  // pivots must be larger: absolute (automatic), or times the diagonal element (cholesky)
    bool own_scale;
    Vec bad;  // not zero where a pivot is too small
};

/// acc(r, c) = a(i0 + r, j0 + c) - sum over k < j0 of a(i0 + r, k) a(j0 + c, k).
template <int R, int C>
inline void accumulate(const Pack& p, std::ptrdiff_t i0, std::ptrdiff_t j0, Vec (&acc)[R][C]) {
    const Vec* rows = p.a + i0 * p.ld;
    const Vec* columns = p.a + j0 * p.ld;
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) acc[r][c] = rows[r * p.ld + j0 + c];
    }
    for (std::ptrdiff_t k = 0; k < j0; ++k) {
        Vec right[C];
        for (int c = 0; c < C; ++c) right[c] = columns[c * p.ld + k];
        for (int r = 0; r < R; ++r) {
            const Vec left = rows[r * p.ld + k];
            for (int c = 0; c < C; ++c) acc[r][c] -= left * right[c];
        }
    }
}

template <int R, int C>
inline void off_diagonal(Pack& p, std::ptrdiff_t i0, std::ptrdiff_t j0) {
    Vec acc[R][C];
    accumulate<R, C>(p, i0, j0, acc);
    for (int c = 0; c < C; ++c) {
        for (int before = 0; before < c; ++before) {
            const Vec l = p.a[(j0 + c) * p.ld + j0 + before];
            for (int r = 0; r < R; ++r) acc[r][c] -= acc[r][before] * l;
        }
        for (int r = 0; r < R; ++r) acc[r][c] *= p.inverse_pivot[j0 + c];
    }
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) p.a[(i0 + r) * p.ld + j0 + c] = acc[r][c];
    }
}

template <int R>
inline void diagonal(Pack& p, std::ptrdiff_t i0) {
    Vec acc[R][R];
    Vec* rows = p.a + i0 * p.ld;
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c <= r; ++c) acc[r][c] = rows[r * p.ld + i0 + c];
    }
    for (std::ptrdiff_t k = 0; k < i0; ++k) {
        Vec column[R];
        for (int r = 0; r < R; ++r) column[r] = rows[r * p.ld + k];
        for (int r = 0; r < R; ++r) {
            for (int c = 0; c <= r; ++c) acc[r][c] -= column[r] * column[c];
        }
    }
    for (int c = 0; c < R; ++c) {
        const Vec limit = p.own_scale ? p.threshold * rows[c * p.ld + i0 + c] : p.threshold;
        // A pivot that fails becomes 1, so that the lane stays finite and costs no more time than the others.
        const Vec pivot = select_greater(acc[c][c], limit, acc[c][c], splat(1.0));
        p.bad += select_greater(acc[c][c], limit, splat(0.0), splat(1.0));
        const Vec inverse = inverse_root(pivot);
        p.inverse_pivot[i0 + c] = inverse;
        for (int r = c + 1; r < R; ++r) {
            acc[r][c] *= inverse;
            for (int later = c + 1; later <= r; ++later) acc[r][later] -= acc[r][c] * acc[later][c];
            rows[r * p.ld + i0 + c] = acc[r][c];
        }
    }
}

template <int R>
void factor_rows(Pack& p, std::ptrdiff_t i0) {
    for (std::ptrdiff_t j0 = 0; j0 < i0; j0 += tile) off_diagonal<R, tile>(p, i0, j0);
    diagonal<R>(p, i0);
}

template <int R>
void substitute_rows(Pack& p, std::ptrdiff_t i0) {
    std::ptrdiff_t j0 = 0;
    for (; j0 + tile <= p.n; j0 += tile) off_diagonal<R, tile>(p, i0, j0);
    with_constant<tile>(static_cast<int>(p.n - j0), [&]<int rest>() {
        if constexpr (rest > 0) off_diagonal<R, rest>(p, i0, j0);
    });
}

void factor(Pack& p) {
    std::ptrdiff_t i0 = 0;
    for (; i0 + tile <= p.n; i0 += tile) factor_rows<tile>(p, i0);
    with_constant<tile>(static_cast<int>(p.n - i0), [&]<int rest>() {
        if constexpr (rest > 0) factor_rows<rest>(p, i0);
    });
}

/// Row i of the right-hand sides becomes the solution of L^T x = y, in place.
void back_substitute(const Pack& p, Vec* y) {
    std::ptrdiff_t i = p.n - 1;
    for (; i >= 1; i -= 2) {  // two rows of the factor per pass over y
        const Vec* last = p.a + i * p.ld;
        const Vec* before = last - p.ld;
        const Vec x1 = y[i] * p.inverse_pivot[i];
        const Vec x0 = (y[i - 1] - last[i - 1] * x1) * p.inverse_pivot[i - 1];
        y[i] = x1;
        y[i - 1] = x0;
        for (std::ptrdiff_t k = 0; k < i - 1; ++k) y[k] = y[k] - last[k] * x1 - before[k] * x0;
    }
    if (i == 0) y[0] *= p.inverse_pivot[0];
}

/// The lower triangle becomes (G + G^T) / 2. Returns the largest |G - G^T|; `bad` is NaN where something is
/// not finite.
Vec symmetrise(Vec* a, std::ptrdiff_t n, std::ptrdiff_t ld, Vec& bad) {
    Vec worst = splat(0.0);
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        Vec* row = a + i * ld;
        for (std::ptrdiff_t j = 0; j < i; ++j) {
            const Vec lower = row[j];
            const Vec upper = a[j * ld + i];
            const Vec gap = lower - upper;
            bad += gap - gap;  // 0 for numbers, NaN when either is not one
            worst = larger(magnitude(gap), worst);
            row[j] = 0.5 * lower + 0.5 * upper;
        }
        bad += row[i] - row[i];
    }
    return worst;
}

}  // namespace

unsigned solve_pack(const SolveBlock* blocks, int count, const SolveOptions& options,
                    LaneWorkspace& workspace) {
    const std::ptrdiff_t n = blocks[0].n;
    const std::ptrdiff_t columns = blocks[0].columns;
    if (n <= largest_fixed_size && columns == 1) return solve_fixed(blocks, count, options);
    const Operands operands(blocks, count);

    // Small matrices are packed in one go; rows of larger ones get an odd stride, which spreads them over
    // cache sets.
    Pack p{};
    p.n = n;
    p.ld = n <= 16 ? n : (n | 1);
    const auto needed = static_cast<std::size_t>((n + columns) * p.ld + n);
    p.a = reinterpret_cast<Vec*>(workspace.storage.reserve(needed * lanes));
    p.inverse_pivot = p.a + (n + columns) * p.ld;
    if (p.ld == n) {
        interleave(operands.matrices, n * n, p.a);
    } else {
        const double* rows[lanes];
        std::copy_n(operands.matrices, lanes, rows);
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            interleave(rows, n, p.a + i * p.ld);
            for (const double*& row : rows) row += n;
        }
    }
    Vec* y = p.a + n * p.ld;
    if (columns == 1) {
        interleave(operands.rhs, n, y);
    } else {
        for (std::ptrdiff_t c = 0; c < columns; ++c) {
            for (std::ptrdiff_t i = 0; i < n; ++i) {
                double values[lanes];
                for (int l = 0; l < lanes; ++l) values[l] = operands.rhs[l][i * columns + c];
                y[c * p.ld + i] = load(values);
            }
        }
    }

    p.bad = splat(0.0);
    const Vec tilt = symmetrise(p.a, n, p.ld, p.bad);
    Vec largest = splat(0.0);
    Vec trace = splat(0.0);
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        const Vec d = p.a[i * p.ld + i];
        trace += d;
        largest = larger(d, largest);
    }
    // The bound of solve_one uses all entries; for a positive definite matrix the largest is on the diagonal.
    p.bad += select_greater(tilt, options.symmetry_tolerance * largest, splat(1.0), splat(0.0));
    const Vec lam = operands.damping;
    Vec added = lam;
    if (options.damping == DampingKind::relative) added = lam * trace / splat(static_cast<double>(n));
    largest = splat(0.0);
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        Vec& d = p.a[i * p.ld + i];
        d += options.damping == DampingKind::diagonal ? lam * d : added;
        largest = larger(d, largest);
    }
    const double tolerance = pivot_tolerance * static_cast<double>(n);
    p.own_scale = options.method == SolveMethod::cholesky;
    p.threshold = p.own_scale ? splat(tolerance) : tolerance * largest;

    Vec before[1];  // the largest right-hand side of the first column; further columns below
    std::vector<Vec> more(columns > 1 ? static_cast<std::size_t>(columns) : 0U);
    Vec* sizes = columns > 1 ? more.data() : before;
    for (std::ptrdiff_t c = 0; c < columns; ++c) {
        Vec size = splat(0.0);
        for (std::ptrdiff_t i = 0; i < n; ++i) size = larger(magnitude(y[c * p.ld + i]), size);
        for (std::ptrdiff_t i = 0; i < n; ++i) p.bad += y[c * p.ld + i] - y[c * p.ld + i];
        sizes[c] = size;
    }

    factor(p);
    std::ptrdiff_t c0 = 0;
    for (; c0 + tile <= columns; c0 += tile) substitute_rows<tile>(p, n + c0);
    for (; c0 < columns; ++c0) substitute_rows<1>(p, n + c0);
    for (std::ptrdiff_t c = 0; c < columns; ++c) {
        Vec* x = y + c * p.ld;
        back_substitute(p, x);
        Vec size = splat(0.0);
        for (std::ptrdiff_t i = 0; i < n; ++i) {
            size = larger(magnitude(x[i]), size);
            p.bad += x[i] - x[i];
        }
        if (!p.own_scale) {
            p.bad += select_greater(size * largest, suspicious_growth * sizes[c], splat(1.0), splat(0.0));
        }
    }

    const unsigned solved = zero_lanes(p.bad, count);
    for (std::ptrdiff_t c = 0; c < columns; ++c) store_column(blocks, solved, c, y + c * p.ld);
    return solved;
}

}  // namespace fubini::detail
