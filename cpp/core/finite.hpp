// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace fubini {

/// Whether there is neither NaN nor infinity among the values.
[[nodiscard]] bool all_finite(const double* values, std::ptrdiff_t count);
[[nodiscard]] bool all_finite(const float* values, std::ptrdiff_t count);

}  // namespace fubini
