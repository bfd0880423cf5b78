// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <complex>

#include "core/batch.hpp"

namespace fubini {

/// out[b, m] = sum over a of d value[b, m] / d angle[b, a] * tangents[b, a], by one forward sweep of (psi, d
/// psi).
///   tangents (size, angles), out (size, outputs)
///   state_tangents: null, or (size, 2^qubits), the derivative of the initial states; takes_state() only
void jvp(const Program& program, const Batch& batch, const double* tangents,
         const std::complex<double>* state_tangents, double* out);

/// out (size, angles): the derivative of vjp's gradient along the tangents at fixed cotangents, that is, the
/// Hessian of sum over m of cotangents[b, m] value[b, m], times tangents[b]. Forward over reverse, exact.
void hessian_product(const Program& program, const Batch& batch, const double* cotangents,
                     const double* tangents, double* out);

}  // namespace fubini
