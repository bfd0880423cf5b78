// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

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
    /// How the columns are cut into blocks, which lie one after the other among the unknowns.
    std::vector<std::ptrdiff_t> widths;

    [[nodiscard]] std::ptrdiff_t size() const { return groups * rows * columns; }
    /// Whether an unknown moves nothing: its entry on the diagonal is zero.
    [[nodiscard]] bool still(std::ptrdiff_t line, std::ptrdiff_t column) const {
        const double* block = right + line / rows * columns * columns;
        return left[line * rows + line % rows] * block[column * columns + column] == 0.0;
    }
    /// Calls body(unknown, line, column) for every unknown: the number of the unknown, and where it is in the
    /// matrices (groups * rows, columns).
    template <class Body>
    void for_unknowns(const Body& body) const {
        std::ptrdiff_t start = 0, number = 0;
        for (const std::ptrdiff_t width : widths) {
            for (std::ptrdiff_t line = 0; line < groups * rows; ++line) {
                for (std::ptrdiff_t c = start; c < start + width; ++c) body(number++, line, c);
            }
            start += width;
        }
    }
};

/// Solves (L kron R + damping I) x = rhs exactly, for few rows: in the eigenvectors of L every row is a
/// system v R + damping of its own, which is solved by Cholesky decomposition. Eigenvalues v below zero are
/// rounding and count as zero. rhs and x (size) may be the same. Anything but ok: x is not a
/// solution.
[[nodiscard]] SolveStatus solve_kronecker(const KroneckerSystem& system, double damping, const double* rhs,
                                          double* x);

}  // namespace fubini
