// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "core/solve.hpp"

namespace fubini {

/// out = operator(in); both have n entries and do not overlap.
using Operator = std::function<void(const double* in, double* out)>;

struct CgResult {
    SolveStatus status = SolveStatus::ok;
    std::int64_t iterations = 0;
    double residual = 0.0;  ///< |b - A x| / |b|, computed anew at the end
};

/// Preconditioned conjugate gradients for a positive semi-definite operator; x (n) holds the start and gets
/// the solution. Stops at |b - A x| <= tolerance |b|, or when rounding leaves nothing to gain, or after
/// max_iterations (0: 10 n, at least 100): not_converged. Negative curvature is not_positive_definite, NaN or
/// infinity not_finite.
CgResult conjugate_gradient(std::ptrdiff_t n, const Operator& apply, const Operator& precondition,
                            const double* b, double* x, double tolerance, std::int64_t max_iterations);

}  // namespace fubini
