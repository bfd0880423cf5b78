// SPDX-License-Identifier: Apache-2.0
// What the processor could do at most: the line that benchmarks are compared with.
#pragma once

#include <cstdint>

namespace fubini {

/// Makes `rounds` rounds of fused multiply-adds in registers, on each of the threads of parallel_for. Returns
/// the number of floating-point operations, two for each multiply-add of each lane.
[[nodiscard]] double multiply_add(std::int64_t rounds);

}  // namespace fubini
