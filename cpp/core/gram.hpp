// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace fubini {

constexpr std::size_t gram_doubles = 64;  ///< an 8 x 8 tile of a Gram matrix, row-major

/// Rows of a tile that are worked through together: 16 KiB, so that one tile's stay in the first-level cache
/// and those of gram_block tiles in the second-level one.
constexpr std::size_t gram_chunk = 256;
constexpr std::size_t gram_block = 24;

/// sums[c, i, j] += sum over r of x[r, i] y[c, r, j], for tiles x and y[0..columns) of (rows, 8) doubles
/// each, the latter `stride` doubles apart. All pointers are 64-byte aligned.
void gram_row(const double* x, const double* y, std::size_t columns, std::size_t stride, std::size_t rows,
              double* sums);

}  // namespace fubini
