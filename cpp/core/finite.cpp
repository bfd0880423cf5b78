// SPDX-License-Identifier: Apache-2.0
#include "core/finite.hpp"

namespace fubini {
namespace {

template <typename Real>
bool finite(const Real* values, std::ptrdiff_t count) {
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

}  // namespace

bool all_finite(const double* values, std::ptrdiff_t count) { return finite(values, count); }
bool all_finite(const float* values, std::ptrdiff_t count) { return finite(values, count); }

}  // namespace fubini
