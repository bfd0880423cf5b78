// SPDX-License-Identifier: Apache-2.0
#include "core/solve_cg.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>

namespace fubini {

namespace {
constexpr double epsilon = std::numeric_limits<double>::epsilon();
constexpr double largest_attainable = 1e-3;
}  // namespace

CgResult conjugate_gradient(std::ptrdiff_t n, const Operator& apply, const Operator& precondition,
                            const double* b, double* x, double tolerance, std::int64_t max_iterations) {
    using Vector = Eigen::VectorXd;
    const Eigen::Map<const Vector> rhs(b, n);
    Eigen::Map<Vector> solution(x, n);
    CgResult result;
    const double size = rhs.stableNorm();
    if (!std::isfinite(size)) return {SolveStatus::not_finite, 0, size};
    if (size == 0.0) {
        solution.setZero();
        return result;
    }
    if (max_iterations == 0) max_iterations = std::max<std::int64_t>(100, 10 * n);
    Vector product(n);
    Vector residual = rhs;
    if (!solution.isZero(0.0)) {
        apply(x, product.data());
        residual -= product;
    }
    Vector z(n);
    Vector direction(n);
    double before = 0.0;
    double reached = residual.norm() / size;
    bool restarted = false;
    double norm = 0.0;  // of the operator, a lower bound that grows
    while (result.iterations < max_iterations) {
        if (!std::isfinite(reached)) return {SolveStatus::not_finite, result.iterations, reached};
        if (reached <= tolerance) {
            // The recursive residual drifts from the true one: believe only the latter, and restart once from
            // it.
            apply(x, product.data());
            residual = rhs - product;
            reached = residual.norm() / size;
            if (reached <= tolerance || restarted) break;
            restarted = true;
            before = 0.0;
        }
        precondition(residual.data(), z.data());
        const double now = residual.dot(z);
        if (!std::isfinite(now)) return {SolveStatus::not_finite, result.iterations, reached};
        if (now < 0.0) return {SolveStatus::not_positive_definite, result.iterations, reached};
        if (before == 0.0) {
            direction = z;
        } else {
            direction = z + (now / before) * direction;
        }
        apply(direction.data(), product.data());
        const double curvature = direction.dot(product);
        if (!std::isfinite(curvature)) return {SolveStatus::not_finite, result.iterations, reached};
        // Curvature within rounding of zero: the right-hand side has a part outside the operator's range.
        const double length_in = direction.norm();
        const double length_out = product.norm();
        norm = std::max(norm, length_out / length_in);
        const double rounding = 4.0 * epsilon * length_in * length_out;
        if (curvature < -rounding) return {SolveStatus::not_positive_definite, result.iterations, reached};
        if (curvature <= rounding) break;
        const double length = now / curvature;
        solution += length * direction;
        residual -= length * product;
        before = now;
        reached = residual.norm() / size;
        ++result.iterations;
    }
    apply(x, product.data());
    result.residual = (rhs - product).norm() / size;
    if (!std::isfinite(result.residual)) return {SolveStatus::not_finite, result.iterations, result.residual};
    // Below the rounding of one product with x there is nothing to reach. A huge x of a singular operator
    // must not excuse a residual of any size.
    const double rounding = epsilon * (8.0 + std::sqrt(static_cast<double>(n)));
    const double attainable = std::min(rounding * (norm * solution.norm() / size + 1.0), largest_attainable);
    if (result.residual > std::max(tolerance, attainable)) result.status = SolveStatus::not_converged;
    return result;
}

}  // namespace fubini
