// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstddef>

namespace fubini {

/// Whether there is neither NaN nor infinity among the values.
template <typename Real>
[[nodiscard]] bool all_finite(const Real* values, std::ptrdiff_t count) {
    constexpr std::ptrdiff_t width = 16;  // several sums, so that none waits for the one before
    Real sums[width] = {};
    std::ptrdiff_t i = 0;
    // a - a is 0 for a number and NaN for everything else
    for (; i + width <= count; i += width) {
        for (std::ptrdiff_t j = 0; j < width; ++j) sums[j] += values[i + j] - values[i + j];
    }
    for (; i < count; ++i) sums[0] += values[i] - values[i];
    Real sum = 0;
    for (const Real one : sums) sum += one;
    return sum == 0;
}

}  // namespace fubini
