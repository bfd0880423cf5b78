// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

namespace fubini {

/// How the damping of singular metrics is chosen, see variational_velocities.
struct Cutoff {
    double allowed = 0;  ///< what the damping may add to the residual, in quadrature
    double share = 0;    ///< the same in units of the residual
    double least = 0;    ///< in units of the metric's trace: what is added to the damping
    double largest = 0;  ///< likewise: where the damping ends, smoothly
};

/// The velocity v of the weights that makes |T^T v - h| small, by McLachlan's principle, for each element:
/// the Tikhonov solution (T T^T + damping) v = T h with the largest damping that adds no more than
///   sum_i (d / (s_i^2 + d))^2 c_i^2 s_i^2 / (s_i^2 + least) = allowed^2 + share^2 |T^T v - h|^2
/// to the residual's square, where s_i are T's singular values, and c_i is h along its singular vectors.
/// Elements whose eigenvalues are not found (NaN) get NaN.
///   tangents T (size, weights, width); states h (size, width)
///   velocities (size, weights); residuals and dampings (size)
void variational_velocities(const double* tangents, const double* states, std::ptrdiff_t size,
                            std::ptrdiff_t weights, std::ptrdiff_t width, const Cutoff& cutoff,
                            double* velocities, double* residuals, double* dampings);

}  // namespace fubini
