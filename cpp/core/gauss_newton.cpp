// SPDX-License-Identifier: Apache-2.0
#include "core/gauss_newton.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/linear_algebra.hpp"

namespace fubini {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Map = Eigen::Map<Matrix>;
using ConstMap = Eigen::Map<const Matrix>;

void mirror(double* matrix, std::ptrdiff_t n) {
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        for (std::ptrdiff_t j = 0; j < i; ++j) matrix[j * n + i] = matrix[i * n + j];
    }
}

/// hessian (width, width) = S_n^T S_n.
void hessian_of(const CurvatureFactor& factor, std::ptrdiff_t datum, Matrix& hessian) {
    hessian.setZero();
    const double* row = factor.values + datum * factor.rows * factor.width;
    for (std::ptrdiff_t k = 0; k < factor.rows; ++k, row += factor.width) {
        for (std::ptrdiff_t i = 0; i < factor.width; ++i) {
            const double left = row[i];
            double* to = hessian.data() + i * factor.width;
            for (std::ptrdiff_t j = 0; j < factor.width; ++j) to[j] += left * row[j];
        }
    }
}

/// to (rows, columns) = left (rows, inner) right (inner, columns), for a few rows.
void small_product(const double* left, std::ptrdiff_t rows, std::ptrdiff_t inner, const double* right,
                   std::ptrdiff_t columns, double* to) {
    std::fill_n(to, rows * columns, 0.0);
    for (std::ptrdiff_t i = 0; i < rows; ++i, to += columns) {
        for (std::ptrdiff_t k = 0; k < inner; ++k) {
            const double factor = left[i * inner + k];
            const double* from = right + k * columns;
            for (std::ptrdiff_t j = 0; j < columns; ++j) to[j] += factor * from[j];
        }
    }
}

/// G (n, n) with G^T G = H for a positive semi-definite H (n, n), by Cholesky with pivots from the diagonal;
/// H is used up.
void semidefinite_root(Matrix& h, double* g) {
    const Eigen::Index n = h.rows();
    std::fill_n(g, n * n, 0.0);
    std::vector<Eigen::Index> left(static_cast<std::size_t>(n));
    for (Eigen::Index i = 0; i < n; ++i) left[static_cast<std::size_t>(i)] = i;
    const double rounding = std::numeric_limits<double>::epsilon() * h.diagonal().cwiseAbs().maxCoeff();
    for (double* row = g; !left.empty(); row += n) {
        const auto pivot = std::max_element(
            left.begin(), left.end(), [&](Eigen::Index i, Eigen::Index j) { return h(i, i) < h(j, j); });
        const Eigen::Index p = *pivot;
        if (!(h(p, p) > rounding)) return;
        const double inverse = 1.0 / std::sqrt(h(p, p));
        for (const Eigen::Index j : left) row[j] = inverse * h(p, j);
        left.erase(pivot);
        for (const Eigen::Index i : left) {
            for (const Eigen::Index j : left) h(i, j) -= row[i] * row[j];
        }
    }
}

/// (data, count + bias), a 1 appended for the bias.
Matrix augmented(const double* inputs, std::ptrdiff_t data, std::ptrdiff_t count, bool bias) {
    Matrix result = Matrix::Ones(data, count + (bias ? 1 : 0));
    result.leftCols(count) = ConstMap(inputs, data, count);
    return result;
}

void categorical_factor(const double* f, std::ptrdiff_t width, double share, double* factor) {
    // diag(p) - p p^T = sum_k p_k (e_k - p)(e_k - p)^T
    const double largest = *std::max_element(f, f + width);
    Eigen::VectorXd p(width);
    for (std::ptrdiff_t k = 0; k < width; ++k) p[k] = std::exp(f[k] - largest);
    p /= p.sum();
    for (std::ptrdiff_t k = 0; k < width; ++k) {
        const double root = std::sqrt(p[k] * share);
        double* row = factor + k * width;
        for (std::ptrdiff_t c = 0; c < width; ++c) row[c] = -root * p[c];
        row[k] = root * (1.0 - p[k]);
    }
}

double variance(OutputFamily family, double f) {
    if (family == OutputFamily::gaussian) return 2.0;
    const double small = std::exp(-std::abs(f));  // sigmoid(f) sigmoid(-f), without overflow
    return small / ((1.0 + small) * (1.0 + small));
}

}  // namespace

void output_factor(OutputFamily family, const double* outputs, std::ptrdiff_t data, std::ptrdiff_t width,
                   double share, double* factor) {
    for (std::ptrdiff_t n = 0; n < data; ++n) {
        const double* f = outputs + n * width;
        double* mine = factor + n * width * width;
        if (family == OutputFamily::categorical) {
            categorical_factor(f, width, share, mine);
            continue;
        }
        std::fill_n(mine, width * width, 0.0);
        for (std::ptrdiff_t k = 0; k < width; ++k)
            mine[k * width + k] = std::sqrt(variance(family, f[k]) * share);
    }
}

void linear_layer(const double* inputs, std::ptrdiff_t data, std::ptrdiff_t count, const double* weight,
                  const double* bias, std::ptrdiff_t width, double* outputs) {
    product_with_transpose(inputs, weight, data, count, width, outputs);
    if (bias == nullptr) return;
    for (std::ptrdiff_t n = 0; n < data; ++n) {
        for (std::ptrdiff_t k = 0; k < width; ++k) outputs[n * width + k] += bias[k];
    }
}

void pull_factor(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t inputs,
                 double* pulled) {
    for (std::ptrdiff_t n = 0; n < factor.data; ++n) {
        small_product(factor.values + n * factor.rows * factor.width, factor.rows, factor.width,
                      jacobian + n * factor.width * inputs, inputs, pulled + n * factor.rows * inputs);
    }
}

void pull_factor_shared(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t inputs,
                        double* pulled) {
    product(factor.values, jacobian, factor.data * factor.rows, factor.width, inputs, pulled);
}

void combine_rows(const CurvatureFactor& factor, std::uint64_t seed, double* combined) {
    std::uint64_t state = seed, bits = 0;
    int left = 0;
    const auto negative = [&] {
        if (left == 0) {  // SplitMix64, Steele, Lea and Flood 2014
            state += 0x9E3779B97F4A7C15U;
            bits = state;
            bits = (bits ^ (bits >> 30U)) * 0xBF58476D1CE4E5B9U;
            bits = (bits ^ (bits >> 27U)) * 0x94D049BB133111EBU;
            bits ^= bits >> 31U;
            left = 64;
        }
        const bool one = (bits & 1U) != 0;
        bits >>= 1U;
        --left;
        return one;
    };
    std::fill_n(combined, factor.data * factor.width, 0.0);
    if (factor.width == 0) return;  // there may be more rows of no numbers than anyone can wait for
    for (std::ptrdiff_t n = 0; n < factor.data; ++n) {
        double* to = combined + n * factor.width;
        for (std::ptrdiff_t k = 0; k < factor.rows; ++k) {
            const double* row = factor.values + (n * factor.rows + k) * factor.width;
            const double sign = negative() ? -1.0 : 1.0;
            for (std::ptrdiff_t j = 0; j < factor.width; ++j) to[j] += sign * row[j];
        }
    }
}

void reduce_rows(const CurvatureFactor& factor, std::ptrdiff_t rank, double* reduced) {
    Matrix hessian(factor.width, factor.width), root(factor.width, factor.width);
    for (std::ptrdiff_t n = 0; n < factor.data; ++n) {
        hessian_of(factor, n, hessian);
        semidefinite_root(hessian, root.data());
        std::copy_n(root.data(), rank * factor.width, reduced + n * rank * factor.width);
    }
}

void rows_block(const double* rows, std::ptrdiff_t count, std::ptrdiff_t parameters, double* matrix) {
    product_of_transpose(rows, rows, parameters, count, parameters, matrix);
    mirror(matrix, parameters);
}

void jacobian_block(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t parameters,
                    double* matrix) {
    if (factor.rows <= factor.width) {
        Matrix rows(factor.data * factor.rows, parameters);
        pull_factor(factor, jacobian, parameters, rows.data());
        rows_block(rows.data(), rows.rows(), parameters, matrix);
        return;
    }
    // H J is smaller than S J.
    Matrix weighted(factor.data * factor.width, parameters);
    Matrix hessian(factor.width, factor.width);
    for (std::ptrdiff_t n = 0; n < factor.data; ++n) {
        hessian_of(factor, n, hessian);
        const std::ptrdiff_t first = n * factor.width * parameters;
        small_product(hessian.data(), factor.width, factor.width, jacobian + first, parameters,
                      weighted.data() + first);
    }
    product_of_transpose(jacobian, weighted.data(), parameters, weighted.rows(), parameters, matrix);
    mirror(matrix, parameters);
}

void rows_diagonal(const double* rows, std::ptrdiff_t count, std::ptrdiff_t parameters, double* values) {
    std::fill_n(values, parameters, 0.0);
    for (std::ptrdiff_t k = 0; k < count; ++k, rows += parameters) {
        for (std::ptrdiff_t p = 0; p < parameters; ++p) values[p] += rows[p] * rows[p];
    }
}

void jacobian_diagonal(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t parameters,
                       double* values) {
    Matrix rows(factor.data * factor.rows, parameters);
    pull_factor(factor, jacobian, parameters, rows.data());
    rows_diagonal(rows.data(), rows.rows(), parameters, values);
}

void linear_block(const CurvatureFactor& factor, const double* inputs, std::ptrdiff_t count, bool bias,
                  double* matrix) {
    const std::ptrdiff_t width = count + (bias ? 1 : 0), out = factor.width;
    const Matrix a = augmented(inputs, factor.data, count, bias);
    const std::ptrdiff_t pairs = out * (out + 1) / 2;
    // Data along the contiguous direction: each entry of all H_n is a product of two columns of S.
    Matrix columns(factor.rows * out, factor.data);
    for (std::ptrdiff_t n = 0; n < factor.data; ++n) {
        const double* mine = factor.values + n * factor.rows * out;
        for (std::ptrdiff_t k = 0; k < factor.rows * out; ++k) columns(k, n) = mine[k];
    }
    Matrix hessians = Matrix::Zero(pairs, factor.data);
    for (std::ptrdiff_t k = 0; k < factor.rows; ++k) {
        for (std::ptrdiff_t i = 0, pair = 0; i < out; ++i) {
            const double* left = columns.data() + (k * out + i) * factor.data;
            for (std::ptrdiff_t j = 0; j <= i; ++j, ++pair) {
                const double* right = columns.data() + (k * out + j) * factor.data;
                double* to = hessians.data() + pair * factor.data;
                for (std::ptrdiff_t n = 0; n < factor.data; ++n) to[n] += left[n] * right[n];
            }
        }
    }
    Matrix moments(factor.data, width * width);
    for (std::ptrdiff_t n = 0; n < factor.data; ++n) {
        double* products = moments.data() + n * width * width;
        for (std::ptrdiff_t p = 0; p < width; ++p) {
            for (std::ptrdiff_t q = 0; q < width; ++q) products[p * width + q] = a(n, p) * a(n, q);
        }
    }
    Matrix sums(pairs, width * width);
    product(hessians.data(), moments.data(), pairs, factor.data, width * width, sums.data());
    // The last column of [W, b] is the bias, which comes after all weights.
    Map result(matrix, out * width, out * width);
    for (std::ptrdiff_t i = 0, pair = 0; i < out; ++i) {
        for (std::ptrdiff_t j = 0; j <= i; ++j, ++pair) {
            const ConstMap mine(sums.data() + pair * width * width, width, width);
            result.block(i * count, j * count, count, count) = mine.topLeftCorner(count, count);
            if (!bias) continue;
            const std::ptrdiff_t b_i = out * count + i, b_j = out * count + j;
            result.row(b_i).segment(j * count, count) = mine.row(count).head(count);
            result.row(b_j).segment(i * count, count) = mine.row(count).head(count);
            result(b_i, b_j) = mine(count, count);
        }
    }
    mirror(matrix, out * width);
}

void linear_diagonal(const CurvatureFactor& factor, const double* inputs, std::ptrdiff_t count, bool bias,
                     double* values) {
    const std::ptrdiff_t out = factor.width;
    double* by_bias = values + out * count;
    std::fill_n(values, out * (count + (bias ? 1 : 0)), 0.0);
    std::vector<double> squares(static_cast<std::size_t>(out + count));
    double* moments = squares.data() + out;  // of the inputs
    for (std::ptrdiff_t n = 0; n < factor.data; ++n, inputs += count) {
        rows_diagonal(factor.values + n * factor.rows * out, factor.rows, out, squares.data());
        for (std::ptrdiff_t j = 0; j < count; ++j) moments[j] = inputs[j] * inputs[j];
        for (std::ptrdiff_t i = 0; i < out; ++i) {
            const double square = squares[static_cast<std::size_t>(i)];
            double* to = values + i * count;
            for (std::ptrdiff_t j = 0; j < count; ++j) to[j] += square * moments[j];
            if (bias) by_bias[i] += square;
        }
    }
}

void kronecker_factors(const CurvatureFactor& factor, const double* inputs, std::ptrdiff_t count, bool bias,
                       double* outer, double* inner) {
    rows_block(factor.values, factor.data * factor.rows, factor.width, outer);
    const std::ptrdiff_t width = count + (bias ? 1 : 0);
    rows_block(augmented(inputs, factor.data, count, bias).data(), factor.data, width, inner);
    for (std::ptrdiff_t i = 0; i < width * width; ++i) inner[i] /= static_cast<double>(factor.data);
}

void largest_eigenvalues(const CurvatureFactor& factor, const double* covariances, double* bounds) {
    const std::ptrdiff_t width = factor.width;
    const std::ptrdiff_t size = std::min(factor.rows, width);
    if (size == 0) {
        std::fill_n(bounds, factor.data, 0.0);
        return;
    }
    const auto entries = [](std::ptrdiff_t count) { return static_cast<std::size_t>(count); };
    Matrix hessian(width, width);
    std::vector<double> root(entries(size * width)), moved(entries(size * width)),
        small(entries(size * size)), values(entries(size));
    for (std::ptrdiff_t n = 0; n < factor.data; ++n) {
        const double* mine = factor.values + n * factor.rows * width;
        if (factor.rows > width) {
            // With H = S^T S = G^T G the other eigenvalues of S C S^T are those of G C G^T, which is smaller.
            hessian_of(factor, n, hessian);
            semidefinite_root(hessian, root.data());
            mine = root.data();
        }
        small_product(mine, size, width, covariances + n * width * width, width, moved.data());
        for (std::ptrdiff_t i = 0; i < size; ++i) {
            for (std::ptrdiff_t j = 0; j <= i; ++j) {
                double sum = 0.0;
                for (std::ptrdiff_t k = 0; k < width; ++k)
                    sum += moved[entries(i * width + k)] * mine[j * width + k];
                small[entries(i * size + j)] = small[entries(j * size + i)] = sum;
            }
        }
        const bool found = symmetric_eigen(small.data(), size, values.data(), nullptr);
        bounds[n] = found ? std::max(values.back(), 0.0) : std::numeric_limits<double>::quiet_NaN();
    }
}

}  // namespace fubini
