// SPDX-License-Identifier: Apache-2.0
// What forward sweeps with tangents share.
#pragma once

#include "core/sweep.hpp"

namespace fubini {

/// w with d U U^dagger = -(i/2) w.Q for the block, from the tangents of the angles in tile.slots().
void block_tangent(const Tile& tile, const Step& step, Vec w[4]);

/// Tangents of the angles, from (size, angles), into tile.slots().
void load_slots(const Tile& tile, const double* tangents);

/// ket <- U ket for every step, and tangent <- its derivative along tile.slots().
void run_forward(const Tile& tile, double* ket, double* tangent);

/// ket <- the final state, and tangent <- its derivative along tangents of the angles (size, angles).
void run_along(const Tile& tile, const double* tangents, double* ket, double* tangent);

/// The reverse sweep of <bra|psi> and its derivative along tile.slots(), from states = {ket, its tangent,
/// bra, its tangent} behind the last step: tile.slots() <- the derivative of the gradient that run_back
/// leaves there.
void run_back_twice(const Tile& tile, double* const states[4]);

/// The sum over the lanes of one sample.
[[nodiscard]] double over_sample(const Vec& v, const Layout& layout, int sample);

/// bra <- bra - ket <ket|bra> for every sample.
void project_out(const Layout& layout, const double* ket, double* bra);

}  // namespace fubini
