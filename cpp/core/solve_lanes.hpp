// SPDX-License-Identifier: Apache-2.0
// Small systems of one size, a register's width of them at once.
#pragma once

#include <cstdint>

#include "core/solve.hpp"
#include "core/solve_simd.hpp"
#include "core/workspace.hpp"

namespace fubini::detail {

/// Largest n for which solve_pack is the fastest way: above, one pack outgrows the caches.
inline constexpr std::ptrdiff_t largest_pack_size = 80;

struct LaneWorkspace {
    Workspace storage;
};

/// Solves 1 <= count <= lanes blocks of equal n (1 to largest_pack_size) and equal columns (at least 1) by
/// Cholesky. Returns a bit for each block that was solved beyond doubt. The others (not finite, not
/// symmetric, not positive definite, singular, suspiciously large solution) are left to solve_one, and their
/// x is not written. Each block's arithmetic is its own: neighbours change neither bits nor time.
unsigned solve_pack(const SolveBlock* blocks, int count, const SolveOptions& options,
                    LaneWorkspace& workspace);

}  // namespace fubini::detail
