// SPDX-License-Identifier: Apache-2.0
// L D L^T with one system per lane and every loop unrolled. It needs one division per column, where Cholesky
// has a root and a division one behind the other: these chains, not the arithmetic, take the time of small
// systems. For positive definite matrices both are equally stable (Higham, Accuracy and Stability of
// Numerical Algorithms, section 10.3), and D holds the squares of Cholesky's pivots.
#include "core/solve_fixed.hpp"

#include "core/solve_dense.hpp"
#include "core/solve_interleave.hpp"

// Registers are reached by constant indices only, so that the arrays below need not be memory.
#define FUBINI_UNROLL _Pragma("GCC unroll 16")

namespace fubini::detail {
namespace {

template <int N>
unsigned solve_size(const SolveBlock* blocks, int count, const SolveOptions& options) {
    const Operands operands(blocks, count);
    Vec g[N * N];
    Vec a[N + 1][N];  // lower triangle; the last row is the right-hand side
    interleave(operands.matrices, N * N, g);
    interleave(operands.rhs, N, a[N]);

    // (G + G^T) / 2 into the lower triangle. Zero times a number is 0, and NaN when it is not finite. Two
    // accumulators of each kind, since each addition waits for the one before.
    Vec bad[2] = {splat(0.0), splat(0.0)};
    Vec tilt[2] = {splat(0.0), splat(0.0)};
    Vec largest = splat(0.0);
    Vec trace = splat(0.0);
    FUBINI_UNROLL
    for (int i = 0; i < N; ++i) {
        FUBINI_UNROLL
        for (int j = 0; j < i; ++j) {
            const Vec gap = g[i * N + j] - g[j * N + i];
            bad[j % 2] += 0.0 * gap;
            tilt[j % 2] = larger(magnitude(gap), tilt[j % 2]);
            a[i][j] = g[i * N + j] - 0.5 * gap;
        }
        const Vec d = g[i * N + i];
        bad[i % 2] += 0.0 * d;
        trace += d;
        largest = larger(d, largest);
        a[i][i] = d;
    }
    bad[0] += select_greater(larger(tilt[0], tilt[1]), options.symmetry_tolerance * largest, splat(1.0),
                             splat(0.0));

    const Vec lam = operands.damping;
    const Vec added =
        options.damping == DampingKind::relative ? lam * trace * (1.0 / static_cast<double>(N)) : lam;
    const Vec scaled = options.damping == DampingKind::diagonal ? lam : splat(0.0);
    const Vec constant = options.damping == DampingKind::diagonal ? splat(0.0) : added;
    largest = splat(0.0);
    Vec size_of_rhs = splat(0.0);
    FUBINI_UNROLL
    for (int i = 0; i < N; ++i) {
        a[i][i] += scaled * a[i][i] + constant;
        largest = larger(a[i][i], largest);
        size_of_rhs = larger(magnitude(a[N][i]), size_of_rhs);
        bad[i % 2] += 0.0 * a[N][i];
    }

    // Pivots must be larger than the tolerance times the largest diagonal element (automatic) or times their
    // own (cholesky).
    const double tolerance = pivot_tolerance * static_cast<double>(N);
    const bool own_scale = options.method == SolveMethod::cholesky;
    const Vec threshold = own_scale ? splat(0.0) : tolerance * largest;
    const double own = own_scale ? tolerance : 0.0;
    Vec limit[N];
    FUBINI_UNROLL
    for (int c = 0; c < N; ++c) limit[c] = own * a[c][c] + threshold;

    FUBINI_UNROLL
    for (int c = 0; c < N; ++c) {
        const Vec pivot = a[c][c];
        // A lane whose pivot fails goes on with whatever comes: it is reported, and not used.
        bad[c % 2] += select_greater(pivot, limit[c], splat(0.0), splat(1.0));
        const Vec inverse = 1.0 / pivot;
        FUBINI_UNROLL
        for (int r = c + 1; r <= N; ++r) {
            const Vec entry = a[r][c];
            a[r][c] *= inverse;
            // Row r of what remains, with the column's rows up to r before their division.
            FUBINI_UNROLL
            for (int k = c + 1; k < r; ++k) a[r][k] -= entry * a[k][c];
            if (r < N) a[r][r] -= entry * a[r][c];
        }
    }

    Vec(&x)[N] = a[N];
    FUBINI_UNROLL
    for (int i = N - 1; i > 0; --i) {
        FUBINI_UNROLL
        for (int k = 0; k < i; ++k) x[k] -= a[i][k] * x[i];
    }
    Vec size = splat(0.0);
    FUBINI_UNROLL
    for (int i = 0; i < N; ++i) {
        size = larger(magnitude(x[i]), size);
        bad[i % 2] += 0.0 * x[i];
    }
    bad[0] += bad[1];
    if (!own_scale) {
        bad[0] += select_greater(size * largest, suspicious_growth * size_of_rhs, splat(1.0), splat(0.0));
    }

    const unsigned solved = zero_lanes(bad[0], count);
    store_column(blocks, solved, 0, x);
    return solved;
}

}  // namespace

unsigned solve_fixed(const SolveBlock* blocks, int count, const SolveOptions& options) {
    using Kernel = unsigned (*)(const SolveBlock*, int, const SolveOptions&);
    static constexpr Kernel kernels[largest_fixed_size] = {
        solve_size<1>, solve_size<2>, solve_size<3>, solve_size<4>,
        solve_size<5>, solve_size<6>, solve_size<7>, solve_size<8>,
    };
    return kernels[blocks[0].n - 1](blocks, count, options);
}

}  // namespace fubini::detail
