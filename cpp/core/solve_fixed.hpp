// SPDX-License-Identifier: Apache-2.0
// The smallest systems, whose size the compiler knows.
#pragma once

#include "core/solve_lanes.hpp"

namespace fubini::detail {

/// Largest n with a kernel of its own: above, the matrix is much larger than the registers, and loops over
/// tiles do as well.
inline constexpr std::ptrdiff_t largest_fixed_size = 8;

/// What solve_pack does, for 1 <= n <= largest_fixed_size and one column.
unsigned solve_fixed(const SolveBlock* blocks, int count, const SolveOptions& options);

}  // namespace fubini::detail
