// SPDX-License-Identifier: Apache-2.0
#include "core/solve_dense.hpp"

#include <Eigen/Cholesky>
#include <algorithm>
#include <cmath>
#include <limits>

#include "core/finite.hpp"
#include "core/linear_algebra.hpp"
#include "core/solve_cg.hpp"

namespace fubini::detail {
namespace {

using Matrix = Eigen::MatrixXd;
using MatrixMap = Eigen::Map<Matrix>;
using ConstMatrixMap = Eigen::Map<const Matrix>;
using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr double epsilon = std::numeric_limits<double>::epsilon();
constexpr double nan = std::numeric_limits<double>::quiet_NaN();

double* resized(std::vector<double>& storage, std::ptrdiff_t size) {
    const auto needed = static_cast<std::size_t>(std::max<std::ptrdiff_t>(size, 1));
    if (storage.size() < needed) storage.resize(needed);
    return storage.data();
}

double largest_magnitude(const double* values, std::ptrdiff_t count) {
    double largest = 0.0;
    for (std::ptrdiff_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(values[i]));
    return largest;
}

SolveStatus fail(const SolveBlock& block, SolveStatus status) {
    std::fill_n(block.x, block.n * block.columns, nan);
    return status;
}

MatrixMap load_rhs(const SolveBlock& block, DenseWorkspace& workspace) {
    MatrixMap v(resized(workspace.vectors, block.n * block.columns), block.n, block.columns);
    v = Eigen::Map<const RowMatrix>(block.rhs, block.n, block.columns);
    return v;
}

/// Writes the solution, or NaN where it overflowed.
template <class Solution>
SolveStatus store(const SolveBlock& block, const Solution& v, SolveStatus status) {
    if (!v.allFinite()) return fail(block, SolveStatus::not_finite);
    Eigen::Map<RowMatrix>(block.x, block.n, block.columns) = v;
    return status;
}

/// The e with largest |value| = m 2^e, 1/2 <= m < 1; 0 if all are zero.
int exponent_of(const double* values, std::ptrdiff_t count) {
    int exponent = 0;
    std::frexp(largest_magnitude(values, count), &exponent);
    return exponent;
}

void scale_by_power(double* values, std::ptrdiff_t count, int exponent) {
    if (exponent == 0) return;
    for (std::ptrdiff_t i = 0; i < count; ++i) values[i] = std::ldexp(values[i], exponent);
}

double residual_of(const SolveBlock& block, const ConstMatrixMap& a) {
    const Eigen::Map<const RowMatrix> x(block.x, block.n, block.columns);
    const Eigen::Map<const RowMatrix> b(block.rhs, block.n, block.columns);
    const double norm = a.cwiseAbs().rowwise().sum().maxCoeff();
    double worst = 0.0;
    for (std::ptrdiff_t c = 0; c < block.columns; ++c) {
        const Eigen::VectorXd r = a * x.col(c) - b.col(c);
        const double scale = norm * x.col(c).cwiseAbs().maxCoeff() + b.col(c).cwiseAbs().maxCoeff();
        if (scale > 0.0) worst = std::max(worst, r.cwiseAbs().maxCoeff() / scale);
    }
    return worst;
}

/// The condition number of a (n, n) in the 1-norm, the inverse's norm estimated by Hager's method: maximise
/// |A^-1 v|_1 over |v|_1 = 1 by following the subgradient.
template <class Solve>
double condition_estimate(const ConstMatrixMap& a, const Solve& solve) {
    const std::ptrdiff_t n = a.rows();
    Eigen::VectorXd v = Eigen::VectorXd::Constant(n, 1.0 / static_cast<double>(n));
    double estimate = 0.0;
    for (int round = 0; round < 5; ++round) {
        Eigen::VectorXd y = v;
        solve(y);
        const double norm = y.lpNorm<1>();
        if (round > 0 && norm <= estimate) break;
        estimate = norm;
        Eigen::VectorXd z = (y.array() < 0.0).select(-Eigen::VectorXd::Ones(n), Eigen::VectorXd::Ones(n));
        solve(z);
        Eigen::Index best = 0;
        if (z.cwiseAbs().maxCoeff(&best) <= z.dot(v)) break;
        v.setZero();
        v[best] = 1.0;
    }
    return estimate * a.cwiseAbs().colwise().sum().maxCoeff();
}

/// Cholesky in workspace.factor; false when a pivot is zero or negative to working precision.
bool cholesky_factor(std::ptrdiff_t n, bool own_scale, DenseWorkspace& workspace) {
    const ConstMatrixMap a(workspace.damped.data(), n, n);
    MatrixMap l(resized(workspace.factor, n * n), n, n);
    l = a;
    const double largest = a.diagonal().maxCoeff();
    const Eigen::LLT<Eigen::Ref<Matrix>> llt(l);
    if (llt.info() != Eigen::Success) return false;
    const double tolerance = pivot_tolerance * static_cast<double>(n);
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        const double pivot = l(i, i) * l(i, i);
        if (!(pivot > tolerance * (own_scale ? a(i, i) : largest))) return false;
    }
    return true;
}

void cholesky_solve(std::ptrdiff_t n, const DenseWorkspace& workspace, Eigen::Ref<Matrix> v) {
    const ConstMatrixMap l(workspace.factor.data(), n, n);
    l.triangularView<Eigen::Lower>().solveInPlace(v);
    l.triangularView<Eigen::Lower>().transpose().solveInPlace(v);
}

bool grew_suspiciously(const Eigen::Ref<const Matrix>& x, const Eigen::Ref<const Matrix>& b, double scale) {
    for (std::ptrdiff_t c = 0; c < x.cols(); ++c) {
        const double size = x.col(c).cwiseAbs().maxCoeff();
        if (!(size * scale <= suspicious_growth * b.col(c).cwiseAbs().maxCoeff())) return true;
    }
    return false;
}

SolveStatus spectral_solve(const SolveBlock& block, const SolveOptions& options, SolveStatus when_good,
                           DenseWorkspace& workspace, SolveInfo* info) {
    const std::ptrdiff_t n = block.n;
    Eigen::VectorXd values(n);
    double* vectors = resized(workspace.factor, n * n);  // in rows
    if (!symmetric_eigen(workspace.damped.data(), n, values.data(), vectors)) {
        return fail(block, SolveStatus::not_converged);
    }
    const double largest = values.cwiseAbs().maxCoeff();
    const double rcond = options.rcond < 0.0 ? static_cast<double>(n) * epsilon : options.rcond;
    const double cut = rcond * largest;
    const bool power = options.method == SolveMethod::power;
    Eigen::VectorXd weights(n);
    std::ptrdiff_t rank = 0;
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        const double value = values[i];
        const bool kept = std::abs(value) > cut;
        rank += kept ? 1 : 0;
        if (power) {
            // Non-integer powers of a negative eigenvalue are not real; the cut-off forgives rounding.
            if (kept && value < 0.0) return fail(block, SolveStatus::not_positive_definite);
            weights[i] = kept ? std::pow(value, -options.exponent) : 0.0;
        } else if (options.smooth) {
            const double ratio = value == 0.0 ? 0.0 : cut / value;
            weights[i] = value == 0.0 ? 0.0 : 1.0 / (value * (1.0 + std::pow(ratio, 6)));
        } else {
            weights[i] = kept ? 1.0 / value : 0.0;
        }
    }
    RowMatrix rotated(n, block.columns);
    product(vectors, block.rhs, n, n, block.columns, rotated.data());
    rotated.array().colwise() *= weights.array();
    RowMatrix x(n, block.columns);
    product_of_transpose(vectors, rotated.data(), n, n, block.columns, x.data());
    if (info != nullptr) {
        info->method = power ? SolveMethod::power : SolveMethod::pinv;
        info->rank = rank;
        info->smallest = values.minCoeff();
        info->largest = values.maxCoeff();
        info->condition = largest / values.cwiseAbs().minCoeff();
    }
    return store(block, x, when_good);
}

SolveStatus ldlt_solve(const SolveBlock& block, DenseWorkspace& workspace, SolveInfo* info) {
    const std::ptrdiff_t n = block.n;
    const ConstMatrixMap a(workspace.damped.data(), n, n);
    MatrixMap f(resized(workspace.factor, n * n), n, n);
    f = a;
    workspace.pivots.resize(static_cast<std::size_t>(n));
    if (!factorise_ldlt(f.data(), n, workspace.pivots.data())) return fail(block, SolveStatus::singular);
    MatrixMap v = load_rhs(block, workspace);
    const double noise = static_cast<double>(n) * epsilon * largest_magnitude(a.data(), n * n);
    for (std::ptrdiff_t c = 0; c < block.columns; ++c) {
        const double size = v.col(c).cwiseAbs().maxCoeff();
        solve_ldlt(f.data(), n, workspace.pivots.data(), v.col(c).data());
        // The last pivot of a singular matrix is rounding, which is sometimes just above the tolerance.
        if (v.col(c).cwiseAbs().maxCoeff() * noise > size) return fail(block, SolveStatus::singular);
    }
    if (info != nullptr) {
        info->method = SolveMethod::ldlt;
        info->rank = n;
        info->smallest = std::numeric_limits<double>::infinity();
        info->largest = -info->smallest;
        for (std::ptrdiff_t k = 0; k < n; ++k) {
            double low = f(k, k);
            double high = low;
            if (workspace.pivots[static_cast<std::size_t>(k)] < 0) {  // eigenvalues of the 2x2 block
                const double mean = 0.5 * (f(k, k) + f(k + 1, k + 1));
                const double spread = std::hypot(0.5 * (f(k, k) - f(k + 1, k + 1)), f(k, k + 1));
                low = mean - spread;
                high = mean + spread;
                ++k;
            }
            info->smallest = std::min(info->smallest, low);
            info->largest = std::max(info->largest, high);
        }
        info->condition = condition_estimate(
            a, [&](Eigen::VectorXd& y) { solve_ldlt(f.data(), n, workspace.pivots.data(), y.data()); });
    }
    return store(block, v, SolveStatus::ok);
}

SolveStatus cg_solve(const SolveBlock& block, const SolveOptions& options, DenseWorkspace& workspace,
                     SolveInfo* info) {
    const std::ptrdiff_t n = block.n;
    // Squares of norms leave the range of double long before the numbers do: iterate with a matrix and
    // right-hand sides whose largest entry is near 1. Powers of two change no digits.
    const int matrix_exponent = exponent_of(workspace.damped.data(), n * n);
    MatrixMap a(resized(workspace.factor, n * n), n, n);
    a = ConstMatrixMap(workspace.damped.data(), n, n);
    scale_by_power(a.data(), n * n, -matrix_exponent);
    MatrixMap b = load_rhs(block, workspace);
    Eigen::VectorXd inverse_diagonal = a.diagonal();
    for (double& d : inverse_diagonal) d = d >= std::numeric_limits<double>::min() ? 1.0 / d : 1.0;
    const Operator apply = [&](const double* in, double* out) {
        Eigen::Map<Eigen::VectorXd>(out, n).noalias() = a * Eigen::Map<const Eigen::VectorXd>(in, n);
    };
    const Operator precondition = [&](const double* in, double* out) {
        Eigen::Map<Eigen::VectorXd>(out, n) =
            Eigen::Map<const Eigen::VectorXd>(in, n).cwiseProduct(inverse_diagonal);
    };
    Matrix x = Matrix::Zero(n, block.columns);
    if (options.warm_start) {
        x = Eigen::Map<const RowMatrix>(block.x, n, block.columns);
        if (!x.allFinite()) return fail(block, SolveStatus::not_finite);
    }
    SolveStatus status = SolveStatus::ok;
    std::int64_t iterations = 0;
    for (std::ptrdiff_t c = 0; c < block.columns; ++c) {
        const int exponent = exponent_of(b.col(c).data(), n);
        scale_by_power(b.col(c).data(), n, -exponent);
        scale_by_power(x.col(c).data(), n, matrix_exponent - exponent);
        const CgResult result = conjugate_gradient(n, apply, precondition, b.col(c).data(), x.col(c).data(),
                                                   options.tolerance, options.max_iterations);
        scale_by_power(x.col(c).data(), n, exponent - matrix_exponent);
        iterations = std::max(iterations, result.iterations);
        if (result.status != SolveStatus::ok) status = result.status;
    }
    if (info != nullptr) {
        info->method = SolveMethod::cg;
        info->rank = n;
        info->iterations = iterations;
        info->condition = info->smallest = info->largest = nan;  // CG sees no eigenvalues
    }
    if (is_failure(status) && status != SolveStatus::not_converged) return fail(block, status);
    return store(block, x, status);
}

void fill_cholesky_info(const SolveBlock& block, const DenseWorkspace& workspace, SolveInfo& info) {
    const std::ptrdiff_t n = block.n;
    const ConstMatrixMap a(workspace.damped.data(), n, n);
    const ConstMatrixMap l(workspace.factor.data(), n, n);
    info.method = SolveMethod::cholesky;
    info.rank = n;
    info.smallest = l.diagonal().cwiseAbs2().minCoeff();
    info.largest = l.diagonal().cwiseAbs2().maxCoeff();
    info.condition = condition_estimate(a, [&](Eigen::VectorXd& y) { cholesky_solve(n, workspace, y); });
}

/// Everything after the checks; workspace.damped holds the matrix.
SolveStatus solve_damped(const SolveBlock& block, const SolveOptions& options, DenseWorkspace& workspace,
                         SolveInfo* info) {
    switch (options.method) {
        case SolveMethod::pinv:
        case SolveMethod::power:
            return spectral_solve(block, options, SolveStatus::ok, workspace, info);
        case SolveMethod::ldlt:
            return ldlt_solve(block, workspace, info);
        case SolveMethod::cg:
            return cg_solve(block, options, workspace, info);
        case SolveMethod::automatic:
        case SolveMethod::cholesky:
            break;
    }
    const std::ptrdiff_t n = block.n;
    const bool automatic = options.method == SolveMethod::automatic;
    if (cholesky_factor(n, !automatic, workspace)) {
        const MatrixMap b = load_rhs(block, workspace);
        Matrix x = b;
        cholesky_solve(n, workspace, x);
        const double scale = ConstMatrixMap(workspace.damped.data(), n, n).diagonal().maxCoeff();
        if (!automatic || !grew_suspiciously(x, b, scale)) {
            if (info != nullptr) fill_cholesky_info(block, workspace, *info);
            return store(block, x, SolveStatus::ok);
        }
    } else if (!automatic) {
        return fail(block, SolveStatus::not_positive_definite);
    }
    return spectral_solve(block, options, SolveStatus::used_pinv, workspace, info);
}

}  // namespace

SolveStatus build_damped(const SolveBlock& block, const SolveOptions& options, DenseWorkspace& workspace) {
    const std::ptrdiff_t n = block.n;
    const double* g = block.matrix;
    if (!all_finite(g, n * n) || !all_finite(block.rhs, n * block.columns)) return SolveStatus::not_finite;
    double* a = resized(workspace.damped, n * n);
    const double allowed = options.symmetry_tolerance * largest_magnitude(g, n * n);
    double worst = 0.0;
    constexpr std::ptrdiff_t tile = 32;  // both triangles of a large matrix are walked in cache
    for (std::ptrdiff_t i0 = 0; i0 < n; i0 += tile) {
        for (std::ptrdiff_t j0 = 0; j0 <= i0; j0 += tile) {
            for (std::ptrdiff_t i = i0; i < std::min(n, i0 + tile); ++i) {
                for (std::ptrdiff_t j = j0; j < std::min(i + 1, j0 + tile); ++j) {
                    const double lower = g[i * n + j];
                    const double upper = g[j * n + i];
                    worst = std::max(worst, std::abs(lower - upper));
                    a[i * n + j] = a[j * n + i] = 0.5 * lower + 0.5 * upper;
                }
            }
        }
    }
    if (!(worst <= allowed)) return SolveStatus::not_symmetric;
    double trace = 0.0;
    for (std::ptrdiff_t i = 0; i < n; ++i) trace += a[i * n + i];
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        double& d = a[i * n + i];
        d += added(block, options, d, trace);
        if (!std::isfinite(d)) return SolveStatus::not_finite;
    }
    return SolveStatus::ok;
}

SolveStatus solve_one(const SolveBlock& block, const SolveOptions& options, DenseWorkspace& workspace,
                      SolveInfo* info) {
    if (info != nullptr) {
        *info = SolveInfo{.method = options.method, .condition = nan, .smallest = nan, .largest = nan};
    }
    if (block.n == 0) {
        if (info != nullptr) info->condition = 1.0;
        return SolveStatus::ok;
    }
    const SolveStatus built = build_damped(block, options, workspace);
    if (is_failure(built)) {
        if (info != nullptr) info->residual = nan;
        return fail(block, built);
    }
    const SolveStatus status = solve_damped(block, options, workspace, info);
    if (info != nullptr) {
        info->residual = residual_of(block, ConstMatrixMap(workspace.damped.data(), block.n, block.n));
        if (is_failure(status) && status != SolveStatus::not_converged) info->residual = nan;
    }
    return status;
}

void describe_cholesky(const SolveBlock& block, const SolveOptions& options, DenseWorkspace& workspace,
                       SolveInfo& info) {
    // Of a matrix that is singular but for rounding, this factorisation may fail where the other did not.
    info = SolveInfo{.method = SolveMethod::cholesky,
                     .rank = block.n,
                     .condition = std::numeric_limits<double>::infinity(),
                     .smallest = nan,
                     .largest = nan};
    if (is_failure(build_damped(block, options, workspace))) return;
    if (cholesky_factor(block.n, options.method == SolveMethod::cholesky, workspace)) {
        fill_cholesky_info(block, workspace, info);
    }
    info.residual = residual_of(block, ConstMatrixMap(workspace.damped.data(), block.n, block.n));
}

}  // namespace fubini::detail
