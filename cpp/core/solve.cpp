// SPDX-License-Identifier: Apache-2.0
#include "core/solve.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "core/parallel.hpp"
#include "core/solve_dense.hpp"

namespace fubini {
namespace {

using detail::DenseWorkspace;

void check_options(const SolveOptions& options) {
    if (std::isnan(options.rcond) || options.rcond >= 1.0) {
        throw std::invalid_argument("rcond: expected a number in [0, 1), got " +
                                    std::to_string(options.rcond) + "; leave it out for n * 2.2e-16");
    }
    if (!std::isfinite(options.exponent)) {
        throw std::invalid_argument("exponent: expected a finite number, got " +
                                    std::to_string(options.exponent));
    }
    if (!(options.tolerance >= 0.0) || options.max_iterations < 0) {
        throw std::invalid_argument("tolerance, max_iterations: expected numbers >= 0, got " +
                                    std::to_string(options.tolerance) + " and " +
                                    std::to_string(options.max_iterations));
    }
}

void check_damping(double damping) {
    if (!(damping >= 0.0) || !std::isfinite(damping)) {
        throw std::invalid_argument("damping: expected finite numbers >= 0, got " + std::to_string(damping));
    }
}

/// Systems per part of parallel_for, such that a part outweighs waking a thread.
std::ptrdiff_t grain_of(std::ptrdiff_t n) {
    const double work = static_cast<double>(n) * static_cast<double>(n) * static_cast<double>(n + 12);
    return std::max<std::ptrdiff_t>(1, static_cast<std::ptrdiff_t>(1e6 / std::max(work, 1.0)));
}

}  // namespace

const char* status_text(SolveStatus status) {
    switch (status) {
        case SolveStatus::ok:
            return "The system was solved.";
        case SolveStatus::used_pinv:
            return "The matrix is singular or indefinite to working precision, so the eigenvalue "
                   "pseudo-inverse was "
                   "used; add damping if the smallest possible step is not what you want.";
        case SolveStatus::not_positive_definite:
            return "The damped matrix is not positive definite to working precision; increase the damping, "
                   "or use "
                   "method='pinv' or method='auto'.";
        case SolveStatus::singular:
            return "The damped matrix is singular to working precision; increase the damping, or use "
                   "method='pinv'.";
        case SolveStatus::not_finite:
            return "The matrix, the right-hand side or the solution contains NaN or infinity; look for the "
                   "first "
                   "operation that produced it, a smaller learning rate often helps.";
        case SolveStatus::not_symmetric:
            return "The matrix is not symmetric; pass (matrix + matrix.T) / 2 if the difference is rounding.";
        case SolveStatus::not_converged:
            return "The iteration did not converge; allow more iterations, loosen the tolerance, increase "
                   "the damping "
                   "or pass a preconditioner.";
    }
    return "Unknown status.";
}

const char* method_name(SolveMethod method) {
    switch (method) {
        case SolveMethod::automatic:
            return "auto";
        case SolveMethod::cholesky:
            return "cholesky";
        case SolveMethod::ldlt:
            return "ldlt";
        case SolveMethod::pinv:
            return "pinv";
        case SolveMethod::power:
            return "power";
        case SolveMethod::cg:
            return "cg";
    }
    return "unknown";
}

void solve(const double* matrix, const double* rhs, double* x, std::ptrdiff_t batch, std::ptrdiff_t n,
           std::ptrdiff_t columns, const double* damping, std::ptrdiff_t damping_stride,
           const SolveOptions& options, SolveStatus* status, SolveInfo* info) {
    if (batch < 0 || n < 0 || columns < 0) {
        throw std::invalid_argument("batch, n, columns: expected numbers >= 0, got " + std::to_string(batch) +
                                    ", " + std::to_string(n) + " and " + std::to_string(columns));
    }
    check_options(options);
    if (batch > 0) {
        for (std::ptrdiff_t i = 0; i < (damping_stride == 0 ? 1 : batch); ++i) check_damping(damping[i]);
    }
    parallel_for(batch, grain_of(n), [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        DenseWorkspace workspace;
        for (std::ptrdiff_t i = begin; i < end; ++i) {
            const SolveBlock block{
                matrix + i * n * n,         rhs + i * n * columns, x + i * n * columns, n, columns,
                damping[i * damping_stride]};
            status[i] = detail::solve_one(block, options, workspace, info == nullptr ? nullptr : info + i);
        }
    });
}

void solve_blocks(const SolveBlock* blocks, std::ptrdiff_t count, const SolveOptions& options,
                  SolveStatus* status, SolveInfo* info) {
    check_options(options);
    std::ptrdiff_t largest = 1;
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        if (blocks[i].n < 0 || blocks[i].columns < 0) {
            throw std::invalid_argument("blocks: expected sizes >= 0, got " + std::to_string(blocks[i].n) +
                                        " and " + std::to_string(blocks[i].columns));
        }
        check_damping(blocks[i].damping);
        largest = std::max(largest, blocks[i].n);
    }
    parallel_for(count, grain_of(largest), [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        DenseWorkspace workspace;
        for (std::ptrdiff_t i = begin; i < end; ++i) {
            status[i] =
                detail::solve_one(blocks[i], options, workspace, info == nullptr ? nullptr : info + i);
        }
    });
}

}  // namespace fubini
