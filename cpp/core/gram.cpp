// SPDX-License-Identifier: Apache-2.0
#include "core/gram.hpp"

#include <algorithm>

#include "core/lanes.hpp"

namespace fubini {
namespace {

/// x times `width` tiles of y, `stride` doubles apart; the sums stay in registers.
template <int width>
void multiply(const double* x, const double* y, std::size_t stride, std::size_t rows, double* sums) {
    Vec acc[width][lanes];
    for (int c = 0; c < width; ++c) {
        for (int i = 0; i < lanes; ++i) acc[c][i] = vec(sums + (c * lanes + i) * lanes);
    }
    for (std::size_t r = 0; r < rows; ++r) {
        Vec right[width];
        for (int c = 0; c < width; ++c) right[c] = vec(y + static_cast<std::size_t>(c) * stride + r * lanes);
        for (int i = 0; i < lanes; ++i) {
            const Vec left = splat(x[r * lanes + static_cast<std::size_t>(i)]);
            for (int c = 0; c < width; ++c) acc[c][i] += left * right[c];
        }
    }
    for (int c = 0; c < width; ++c) {
        for (int i = 0; i < lanes; ++i) vec(sums + (c * lanes + i) * lanes) = acc[c][i];
    }
}

}  // namespace

void gram_row(const double* x, const double* y, std::size_t columns, std::size_t stride, std::size_t rows,
              double* sums) {
    for (std::size_t first = 0; first < rows; first += gram_chunk) {
        const std::size_t count = std::min(gram_chunk, rows - first);
        const double* left = x + first * lanes;
        std::size_t c = 0;
        // How a column is grouped does not change the order of its sum.
        for (; c + 3 <= columns; c += 3) {
            multiply<3>(left, y + c * stride + first * lanes, stride, count, sums + c * gram_doubles);
        }
        for (; c < columns; ++c) {
            multiply<1>(left, y + c * stride + first * lanes, stride, count, sums + c * gram_doubles);
        }
    }
}

}  // namespace fubini
