// SPDX-License-Identifier: Apache-2.0
// One larger system: blocked Cholesky over packed panels, threaded.
#pragma once

#include <vector>

#include "core/solve.hpp"
#include "core/workspace.hpp"

namespace fubini::detail {

struct BlockedWorkspace {
    Workspace panels;
    std::vector<double> inverse_pivots;
    std::vector<double> results;
};

/// Solves one block (n and columns at least 1) by Cholesky; uses parallel_for where that pays.
/// False, with x untouched, when anything is not beyond doubt (not finite, not symmetric, not positive
/// definite, singular, suspiciously large solution): solve_one then finds out. The same bits come out for any
/// number of threads.
bool solve_blocked(const SolveBlock& block, const SolveOptions& options, BlockedWorkspace& workspace);

/// Cholesky's factor of the damped matrix (n, n) alone, kept in `factor`; its limits are those of
/// SolveMethod::cholesky. False when anything is not beyond doubt, as for solve_blocked.
bool factor_blocked(const double* matrix, std::ptrdiff_t n, double damping, BlockedWorkspace& factor);

/// y, padded with zeros to factored_rows(n) entries, becomes the solution for it.
void solve_factored(const BlockedWorkspace& factor, double* y);
[[nodiscard]] std::ptrdiff_t factored_rows(std::ptrdiff_t n);

}  // namespace fubini::detail
