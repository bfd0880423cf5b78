// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

namespace fubini {

// Blocks of the generalised Gauss-Newton matrix G = sum_n J_n^T H_n J_n of small layers. The Hessian of the
// loss by the layer's outputs for datum n is H_n = S_n^T S_n with a factor S_n of `rows` rows, one for each
// column of the outputs' Fisher information that is carried back. All arrays are row-major. Matrices are
// symmetric to the bit. Everything runs on the calling thread, so that results do not depend on the number of
// threads.

/// The factors S_n of all data.
struct CurvatureFactor {
    const double* values = nullptr;  ///< (data, rows, width)
    std::ptrdiff_t data = 0;
    std::ptrdiff_t rows = 0;
    std::ptrdiff_t width = 0;  ///< number of the layer's outputs
};

/// outputs (data, width) = inputs (data, count) W^T + b for W (width, count); bias b (width) or null.
void linear_layer(const double* inputs, std::ptrdiff_t data, std::ptrdiff_t count, const double* weight,
                  const double* bias, std::ptrdiff_t width, double* outputs);

/// What the outputs are to the loss: natural parameters of classes, of independent events, or means of normal
/// distributions of variance 1/2.
enum class OutputFamily : std::int8_t { categorical, bernoulli, gaussian };

/// factor (data, width, width): S_n with share * (Hessian of -log p at the outputs of datum n) = S_n^T S_n,
/// for outputs (data, width).
void output_factor(OutputFamily family, const double* outputs, std::ptrdiff_t data, std::ptrdiff_t width,
                   double share, double* factor);

/// pulled (data, rows, inputs) = S_n J_n: the factors by a layer's inputs, for its Jacobians (data, width,
/// inputs).
void pull_factor(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t inputs,
                 double* pulled);

/// The same for one Jacobian (width, inputs) that all data share, as a linear layer's weight is.
void pull_factor_shared(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t inputs,
                        double* pulled);

/// combined (data, width): the sum of the rows of S_n with random signs, whose square is H_n in the mean over
/// the signs (Hutchinson 1990, doi:10.1080/03610919008812866). Equal seeds give equal signs, on every
/// machine.
void combine_rows(const CurvatureFactor& factor, std::uint64_t seed, double* combined);

/// reduced (data, rank, width): factors of the same H_n in fewer rows, for H_n of at most this rank, by
/// Cholesky decomposition with pivots.
void reduce_rows(const CurvatureFactor& factor, std::ptrdiff_t rank, double* reduced);

/// matrix (parameters, parameters) = R^T R for rows R (count, parameters).
void rows_block(const double* rows, std::ptrdiff_t count, std::ptrdiff_t parameters, double* matrix);

/// matrix (parameters, parameters) = sum_n J_n^T S_n^T S_n J_n for Jacobians (data, width, parameters).
void jacobian_block(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t parameters,
                    double* matrix);

/// values (parameters): the diagonal of rows_block.
void rows_diagonal(const double* rows, std::ptrdiff_t count, std::ptrdiff_t parameters, double* values);

/// values (parameters): the diagonal of jacobian_block.
void jacobian_diagonal(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t parameters,
                       double* values);

/// The block of z = W a (+ b): sum_n H_n kron a_n a_n^T for inputs a (data, inputs). The parameters are W,
/// row-major, and then b. matrix has width * (inputs + bias) rows.
void linear_block(const CurvatureFactor& factor, const double* inputs, std::ptrdiff_t count, bool bias,
                  double* matrix);

/// values (width * (inputs + bias)): the diagonal of linear_block.
void linear_diagonal(const CurvatureFactor& factor, const double* inputs, std::ptrdiff_t count, bool bias,
                     double* values);

/// The factors of K-FAC's approximation of the same block: outer (width, width) = sum_n H_n, and inner
/// (inputs
/// + bias) squared = mean of a_n a_n^T, where a_n has a 1 appended for the bias.
void kronecker_factors(const CurvatureFactor& factor, const double* inputs, std::ptrdiff_t count, bool bias,
                       double* outer, double* inner);

/// bounds (data): the largest eigenvalue of S_n C_n S_n^T for covariances C (data, width, width), symmetric
/// and positive semi-definite up to rounding; at least 0.
void largest_eigenvalues(const CurvatureFactor& factor, const double* covariances, double* bounds);

}  // namespace fubini
