// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace fubini {

constexpr std::size_t gram_doubles = 64;  ///< an 8 x 8 tile of a Gram matrix, row-major

/// sums[c, i, j] += sum over r of x[r, i] y[c, r, j], for tiles x and y[0..columns) of (rows, 8) doubles
/// each, which follow one another. All pointers are 64-byte aligned.
void gram_row(const double* x, const double* y, std::size_t columns, std::size_t rows, double* sums);

}  // namespace fubini
