// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <complex>

#include "core/batch.hpp"

namespace fubini {

class Tile;

/// gradient[b, a] = sum over m of cotangents[b, m] d value[b, m] / d angle[b, a], by one reverse sweep.
///   cotangents (size, outputs), gradient (size, angles)
///   values: null, or (size, outputs), which come for free
///   state_gradient: null, or (size, 2^qubits): d / d Re + i d / d Im of the initial state; takes_state()
///   only
///   kept: null, or what expval kept for this batch
void vjp(const Program& program, const Batch& batch, const double* cotangents, double* gradient,
         double* values = nullptr, std::complex<double>* state_gradient = nullptr,
         const double* kept = nullptr);

/// Weights of the moments in tile.weights(), from the cotangents of the outputs. Needs tile.moments() for
/// variances.
void set_weights(const Tile& tile, const double* cotangents);

/// Takes both states back through every step. tile.slots() <- the sums of Im <bra|K|ket> times the
/// coefficient, where K is the generator of each rotation: the derivative of 2 Re <bra|ket> by the angles of
/// ket.
void run_back(const Tile& tile, double* ket, double* bra);

/// gradient[(first..) * every, a] = tile.slots()[a], summed over the lanes of each sample.
void store_slots(const Tile& tile, double* gradient, std::size_t every = 1);

/// The same for half of tile.slots(): reverse sweeps leave 2 Re <d_a psi|bra>, as expectation values want it.
void store_halved_slots(const Tile& tile, double* out);

/// jacobian (size, outputs, angles); batch.repeat must be 1.
///   values: null, or (size, outputs)
void jacobian(const Program& program, const Batch& batch, double* jacobian, double* values = nullptr);

}  // namespace fubini
