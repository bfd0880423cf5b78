// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <complex>

#include "core/batch.hpp"

namespace fubini {

// Derivatives of the state itself, from which derivatives of the metric are made. psi is the state in the
// sweeps' own frame: without the constant Clifford at the end and without the global phase, neither of which
// changes the metric. batch.repeat > 1 gives one row of angles several rows of the other arguments.

/// out (size, 2^qubits): d psi along the tangents (size, angles), or psi itself where they are null.
void derivative_states(const Program& program, const Batch& batch, const double* tangents,
                       std::complex<double>* out);

/// out (size, angles) = Re <d_a psi|phi> for covectors phi (size, 2^qubits).
void overlap_gradient(const Program& program, const Batch& batch, const std::complex<double>* covectors,
                      double* out);

/// out (size, angles) = Re <d_a d_v psi|phi>: the derivative of overlap_gradient along the tangents v (size,
/// angles) for fixed covectors phi (size, 2^qubits).
void overlap_hessian(const Program& program, const Batch& batch, const std::complex<double>* covectors,
                     const double* tangents, double* out);

}  // namespace fubini
