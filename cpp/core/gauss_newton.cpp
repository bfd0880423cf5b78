// SPDX-License-Identifier: Apache-2.0
#include "core/gauss_newton.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <cmath>

namespace fubini {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Map = Eigen::Map<Matrix>;
using ConstMap = Eigen::Map<const Matrix>;

ConstMap factor_of(const CurvatureFactor& factor, std::ptrdiff_t datum) {
    return {factor.values + datum * factor.rows * factor.width, factor.rows, factor.width};
}

/// The factors of all data below each other.
ConstMap stacked(const CurvatureFactor& factor) {
    return {factor.values, factor.data * factor.rows, factor.width};
}

void mirror(Map& matrix) {
    for (Eigen::Index i = 0; i < matrix.rows(); ++i) {
        for (Eigen::Index j = 0; j < i; ++j) matrix(j, i) = matrix(i, j);
    }
}

/// matrix = rows^T rows.
void gram(const Eigen::Ref<const Matrix>& rows, Map& matrix) {
    matrix.setZero();
    matrix.selfadjointView<Eigen::Lower>().rankUpdate(rows.transpose());
    mirror(matrix);
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

void pull_factor(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t inputs,
                 double* pulled) {
    for (std::ptrdiff_t n = 0; n < factor.data; ++n) {
        Map(pulled + n * factor.rows * inputs, factor.rows, inputs).noalias() =
            factor_of(factor, n).lazyProduct(
                ConstMap(jacobian + n * factor.width * inputs, factor.width, inputs));
    }
}

void pull_factor_shared(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t inputs,
                        double* pulled) {
    Map(pulled, factor.data * factor.rows, inputs).noalias() =
        stacked(factor) * ConstMap(jacobian, factor.width, inputs);
}

void jacobian_block(const CurvatureFactor& factor, const double* jacobian, std::ptrdiff_t parameters,
                    double* matrix) {
    Map result(matrix, parameters, parameters);
    if (factor.rows <= factor.width) {
        Matrix rows(factor.data * factor.rows, parameters);
        pull_factor(factor, jacobian, parameters, rows.data());
        gram(rows, result);
        return;
    }
    // H J is smaller than S J.
    const ConstMap all(jacobian, factor.data * factor.width, parameters);
    Matrix weighted(all.rows(), parameters);
    Matrix curvature(factor.width, factor.width);
    for (std::ptrdiff_t n = 0; n < factor.data; ++n) {
        const ConstMap mine = factor_of(factor, n);
        curvature.noalias() = mine.transpose().lazyProduct(mine);
        weighted.middleRows(n * factor.width, factor.width).noalias() =
            curvature.lazyProduct(all.middleRows(n * factor.width, factor.width));
    }
    result.setZero();
    result.triangularView<Eigen::Lower>() += all.transpose() * weighted;
    mirror(result);
}

void linear_block(const CurvatureFactor& factor, const double* inputs, std::ptrdiff_t count, bool bias,
                  double* matrix) {
    const std::ptrdiff_t width = count + (bias ? 1 : 0), out = factor.width;
    const Matrix a = augmented(inputs, factor.data, count, bias);
    const std::ptrdiff_t pairs = out * (out + 1) / 2, moments = width * (width + 1) / 2;
    Matrix curvatures(factor.data, pairs), products(factor.data, moments);
    for (std::ptrdiff_t n = 0; n < factor.data; ++n) {
        const ConstMap mine = factor_of(factor, n);
        const Matrix curvature = mine.transpose().lazyProduct(mine);
        for (std::ptrdiff_t i = 0, at = 0; i < out; ++i) {
            for (std::ptrdiff_t j = 0; j <= i; ++j) curvatures(n, at++) = curvature(i, j);
        }
        for (std::ptrdiff_t p = 0, at = 0; p < width; ++p) {
            for (std::ptrdiff_t q = 0; q <= p; ++q) products(n, at++) = a(n, p) * a(n, q);
        }
    }
    const Matrix sums = curvatures.transpose() * products;
    // The last column of [W, b] is the bias, which comes after all weights.
    const auto place = [&](std::ptrdiff_t i, std::ptrdiff_t p) {
        return p < count ? i * count + p : out * count + i;
    };
    Map result(matrix, out * width, out * width);
    for (std::ptrdiff_t i = 0, pair = 0; i < out; ++i) {
        for (std::ptrdiff_t j = 0; j <= i; ++j, ++pair) {
            for (std::ptrdiff_t p = 0, moment = 0; p < width; ++p) {
                for (std::ptrdiff_t q = 0; q <= p; ++q, ++moment) {
                    const double value = sums(pair, moment);
                    result(place(i, p), place(j, q)) = result(place(i, q), place(j, p)) = value;
                    result(place(j, q), place(i, p)) = result(place(j, p), place(i, q)) = value;
                }
            }
        }
    }
}

void kronecker_factors(const CurvatureFactor& factor, const double* inputs, std::ptrdiff_t count, bool bias,
                       double* outer, double* inner) {
    Map left(outer, factor.width, factor.width);
    gram(stacked(factor), left);
    const std::ptrdiff_t width = count + (bias ? 1 : 0);
    Map right(inner, width, width);
    gram(augmented(inputs, factor.data, count, bias), right);
    right /= static_cast<double>(factor.data);
}

}  // namespace fubini
