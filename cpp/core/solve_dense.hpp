// SPDX-License-Identifier: Apache-2.0
// One system at a time, with every check; the fast paths hand over to this whatever looks unusual.
#pragma once

#include <vector>

#include "core/solve.hpp"

namespace fubini::detail {

/// Scratch memory that one thread reuses from system to system.
struct DenseWorkspace {
    std::vector<double> damped;   // (n, n), symmetric, so that row-major and column-major agree
    std::vector<double> factor;   // (n, n)
    std::vector<double> vectors;  // (n, columns), column-major
    std::vector<std::ptrdiff_t> pivots;
};

/// A solution this many times larger than |b| / max |diagonal| says that the condition number is at least as
/// large: the automatic method then asks the eigenvalues whether the matrix is singular.
inline constexpr double suspicious_growth = 1e11;

/// Cholesky's pivots at or below this times n count as zero, relative to the largest diagonal element
/// (automatic) or to the pivot's own diagonal element (cholesky, which thus accepts badly scaled matrices).
inline constexpr double pivot_tolerance = 2.220446049250313e-16;

/// What damping adds to the entry d of the diagonal of a matrix with this trace.
inline double added(const SolveBlock& block, const SolveOptions& options, double d, double trace) {
    switch (options.damping) {
        case DampingKind::relative:
            return block.damping * (trace / static_cast<double>(block.n));
        case DampingKind::diagonal:
            return block.damping * d;
        default:
            return block.damping;
    }
}

/// Solves one system; `info` may be null. A failed system's x is NaN.
SolveStatus solve_one(const SolveBlock& block, const SolveOptions& options, DenseWorkspace& workspace,
                      SolveInfo* info);

/// Fills `info` for an x that was found by Cholesky elsewhere.
void describe_cholesky(const SolveBlock& block, const SolveOptions& options, DenseWorkspace& workspace,
                       SolveInfo& info);

/// Writes (G + G^T) / 2 + D into workspace.damped. Returns ok, not_finite or not_symmetric.
SolveStatus build_damped(const SolveBlock& block, const SolveOptions& options, DenseWorkspace& workspace);

/// Factorises the symmetric indefinite matrix a (n, n), full storage, in place as P L D L^T P^T with 1x1 and
/// 2x2 blocks in D (Bunch and Kaufman's partial pivoting). pivots has n entries; p[k] >= 0: row swapped with
/// k; p[k] = p[k+1] = -1 - row: the 2x2 block at k, whose second row was swapped with `row`. Returns false
/// when a pivot block is zero to working precision.
bool factorise_ldlt(double* a, std::ptrdiff_t n, std::ptrdiff_t* pivots);

/// Solves with what factorise_ldlt left, in place; v has n entries.
void solve_ldlt(const double* a, std::ptrdiff_t n, const std::ptrdiff_t* pivots, double* v);

}  // namespace fubini::detail
