// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include "core/solve.hpp"

namespace fubini {

/// A metric L kron R over matrices (rows, columns), several of them on a diagonal: `groups` independent
/// systems.
struct KroneckerSystem {
    const double* left =
        nullptr;  ///< L, (groups, rows, rows), symmetric, positive semi-definite up to rounding
    const double* right = nullptr;  ///< R, (groups, columns, columns), likewise
    std::ptrdiff_t groups = 1;
    std::ptrdiff_t rows = 0;
    std::ptrdiff_t columns = 0;
};

/// Solves (L kron R + damping I) x = rhs exactly, for few rows: in the eigenvectors of L every row is a
/// system v R + damping of its own, which is solved by Cholesky decomposition. Eigenvalues v below zero are
/// rounding and count as zero. rhs and x (groups, rows, columns) may be the same. Anything but ok: x is not a
/// solution.
[[nodiscard]] SolveStatus solve_kronecker(const KroneckerSystem& system, double damping, const double* rhs,
                                          double* x);

}  // namespace fubini
