// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <complex>

#include "core/sweep.hpp"

namespace fubini {

/// values (size, outputs), row-major.
void expval(const Program& program, const Batch& batch, double* values);

/// states (size, 2^qubits), row-major; the last wire is the least significant bit.
void state(const Program& program, const Batch& batch, std::complex<double>* states);

/// Writes the outputs of one tile's samples from its moments.
void store_outputs(const Tile& tile, double* values);

}  // namespace fubini
