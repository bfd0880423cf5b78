// SPDX-License-Identifier: Apache-2.0
// Damped symmetric systems (G + D) x = b, a status for each.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fubini {

/// How a system is solved. `automatic` is Cholesky, and where the matrix is not positive definite to working
/// precision, `pinv`.
enum class SolveMethod : std::int8_t { automatic, cholesky, ldlt, pinv, power, cg };

/// What became of a system. Everything after `used_pinv` is a failure.
enum class SolveStatus : std::int8_t {
    ok,
    used_pinv,
    not_positive_definite,
    singular,
    not_finite,
    not_symmetric,
    not_converged
};

/// What is added to G: lam I, lam mean(diag G) I, or lam diag(G) (Marquardt).
enum class DampingKind : std::int8_t { absolute, relative, diagonal };

struct SolveOptions {
    SolveMethod method = SolveMethod::automatic;
    DampingKind damping = DampingKind::absolute;
    /// pinv: eigenvalues of G + D with |eigenvalue| <= rcond * largest count as zero; negative: n * 2.2e-16.
    double rcond = -1.0;
    /// pinv: weigh eigenvalues by 1 / (1 + (cut-off / eigenvalue)^6) instead of cutting them off.
    bool smooth = false;
    /// power: x = (G + D)^-exponent b.
    double exponent = 1.0;
    /// |G - G^T| may reach this times the largest |entry|; then (G + G^T) / 2 is solved.
    double symmetry_tolerance = 1e-9;
    /// cg: stop when |b - A x| <= tolerance |b|, or after max_iterations (0: 10 n, at least 100).
    double tolerance = 1e-12;
    std::int64_t max_iterations = 0;
    /// cg: start from what x holds instead of from zero.
    bool warm_start = false;
};

/// One system. Arrays are row-major and need no alignment; x must not overlap matrix or rhs.
struct SolveBlock {
    const double* matrix = nullptr;  ///< (n, n)
    const double* rhs = nullptr;     ///< (n, columns)
    double* x = nullptr;             ///< (n, columns)
    std::ptrdiff_t n = 0;
    std::ptrdiff_t columns = 1;
    double damping = 0.0;
};

struct SolveInfo {
    SolveMethod method = SolveMethod::automatic;  ///< the one that gave x
    std::int64_t rank = 0;
    std::int64_t iterations = 0;
    double condition = 0.0;  ///< of G + D: from eigenvalues (2-norm), or estimated from factors (1-norm)
    double smallest = 0.0;   ///< eigenvalue (pinv, power) or pivot (cholesky, ldlt) by value
    double largest = 0.0;
    double residual = 0.0;  ///< max |(G + D) x - b| / (|G + D| |x| + |b|), norms are maxima of row sums
};

/// One sentence that says what happened and what to do.
[[nodiscard]] const char* status_text(SolveStatus status);
[[nodiscard]] const char* method_name(SolveMethod method);
[[nodiscard]] inline bool is_failure(SolveStatus status) { return status > SolveStatus::used_pinv; }

/// Solves `batch` systems of one shape: matrix (batch, n, n), rhs and x (batch, n, columns), damping one
/// value for all (damping_stride 0) or one per system (damping_stride 1). status (batch) is always written,
/// info (batch) unless null. A failed system's x is NaN (cg: the last iterate) and does not touch its
/// neighbours. The same bits come out for any number of threads. Throws std::invalid_argument for negative
/// sizes and for damping, rcond, tolerance or exponent that are not numbers in their range.
void solve(const double* matrix, const double* rhs, double* x, std::ptrdiff_t batch, std::ptrdiff_t n,
           std::ptrdiff_t columns, const double* damping, std::ptrdiff_t damping_stride,
           const SolveOptions& options, SolveStatus* status, SolveInfo* info);

/// The same for systems of mixed sizes.
void solve_blocks(const SolveBlock* blocks, std::ptrdiff_t count, const SolveOptions& options,
                  SolveStatus* status, SolveInfo* info);

}  // namespace fubini
