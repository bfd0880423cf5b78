// SPDX-License-Identifier: Apache-2.0
// Products and eigenvalues of dense matrices, all of them contiguous and row-major. Eigen's templates for
// them are large: they are compiled here and nowhere else.
#pragma once

#include <cstddef>

namespace fubini {

/// out (rows, columns) = left (rows, inner) right (inner, columns); out must not overlap the factors.
void product(const double* left, const double* right, std::ptrdiff_t rows, std::ptrdiff_t inner,
             std::ptrdiff_t columns, double* out);

/// The same with left given as its transpose (inner, rows).
void product_of_transpose(const double* left, const double* right, std::ptrdiff_t rows, std::ptrdiff_t inner,
                          std::ptrdiff_t columns, double* out);

/// The same with right given as its transpose (columns, inner).
void product_with_transpose(const double* left, const double* right, std::ptrdiff_t rows,
                            std::ptrdiff_t inner, std::ptrdiff_t columns, double* out);

/// The eigenvalues of a symmetric matrix (n, n) in rising order and, unless null, its eigenvectors (n, n),
/// one in each row. False where they were not found, as for NaN.
[[nodiscard]] bool symmetric_eigen(const double* matrix, std::ptrdiff_t n, double* values, double* vectors);

}  // namespace fubini
