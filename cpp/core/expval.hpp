// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <complex>

#include "core/batch.hpp"

namespace fubini {

class Tile;

/// How many doubles `kept` holds below, for a batch of this size.
[[nodiscard]] std::size_t kept_doubles(const Program& program, std::ptrdiff_t size);

/// values (size, outputs), row-major.
///   kept: null, or kept_doubles(...) of memory, 64-byte aligned, that receive the states before the
///   observables; vjp takes them over and so saves its own forward sweep
void expval(const Program& program, const Batch& batch, double* values, double* kept = nullptr);

/// states (size, 2^qubits), row-major; the last wire is the least significant bit.
void state(const Program& program, const Batch& batch, std::complex<double>* states);

/// Writes the outputs of one tile's samples from its moments.
void store_outputs(const Tile& tile, double* values);

}  // namespace fubini
