// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/batch.hpp"

namespace fubini {

// The Gauss-Newton part of the Hessian of an energy E = <psi|H|psi>, with H = sum over m of weights[m] O_m:
//   B_ij = 2 Re <d_i psi| P (H - E) P |d_j psi>,   P = 1 - |psi><psi|,
// which does not depend on the phase of psi, unlike the same without P. It has negative eigenvalues away from
// a minimum. All outputs must be expectation values, not variances. The same bits come out for any number of
// threads.

/// Where the results of energy_curvature go.
struct EnergyModel {
    double* value;      ///< (size)
    double* gradient;   ///< (size, angles)
    double* curvature;  ///< (size, angles, angles)
    double* metric;     ///< null, or (size, angles, angles), the Fubini-Study metric
};

/// All of it from the derivative states of all angles, behind the last step. batch.repeat must be 1. Throws
/// MemoryLimit, Interrupted.
void energy_curvature(const Program& program, const Batch& batch, const double* weights,
                      const EnergyModel& out);

/// out[b] = B_{b / repeat} vectors[b], by one forward and one reverse sweep; vectors, out (size, angles).
void energy_curvature_product(const Program& program, const Batch& batch, const double* weights,
                              const double* vectors, double* out);

}  // namespace fubini
