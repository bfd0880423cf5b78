// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "core/finite.hpp"
#include "core/gauss_newton.hpp"
#include "core/kronecker.hpp"
#include "random_program.hpp"

using fubini::CurvatureFactor;
using Values = std::vector<double>;

namespace {

/// H_n = S_n^T S_n, entry by entry.
double hessian(const CurvatureFactor& factor, int n, int i, int j) {
    double sum = 0;
    for (std::ptrdiff_t k = 0; k < factor.rows; ++k) {
        const double* row = factor.values + (n * factor.rows + k) * factor.width;
        sum += row[i] * row[j];
    }
    return sum;
}

void check_close(const Values& found, const Values& expected) {
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i)
        CHECK(found[i] == doctest::Approx(expected[i]).epsilon(1e-12));
}

}  // namespace

TEST_CASE("blocks equal sums over data of explicit products") {
    fubini::tests::Random random(3);
    const int data = 5, width = 3, count = 2, parameters = 4;
    for (const int rows : {1, 3, 6}) {
        const Values s = random.vector(data * rows * width);
        const Values jacobian = random.vector(data * width * parameters);
        const CurvatureFactor factor{s.data(), data, rows, width};
        Values block(parameters * parameters), expected(parameters * parameters);
        for (int n = 0; n < data; ++n) {
            for (int i = 0; i < width; ++i) {
                for (int j = 0; j < width; ++j) {
                    for (int p = 0; p < parameters; ++p) {
                        for (int q = 0; q < parameters; ++q) {
                            const auto at = [&](int output, int column) {
                                return jacobian[static_cast<std::size_t>((n * width + output) * parameters +
                                                                         column)];
                            };
                            expected[static_cast<std::size_t>(p * parameters + q)] +=
                                at(i, p) * hessian(factor, n, i, j) * at(j, q);
                        }
                    }
                }
            }
        }
        fubini::jacobian_block(factor, jacobian.data(), parameters, block.data());
        check_close(block, expected);

        const Values a = random.vector(data * count);
        for (const bool bias : {false, true}) {
            const int all = width * (count + (bias ? 1 : 0));
            Values linear(static_cast<std::size_t>(all * all)), by_hand(linear.size());
            // Parameter p of [W row-major, b]: its output, and the input that it multiplies.
            const auto output_of = [&](int p) { return p < width * count ? p / count : p - width * count; };
            const auto input_of = [&](int n, int p) {
                return p < width * count ? a[static_cast<std::size_t>(n * count + p % count)] : 1.0;
            };
            for (int p = 0; p < all; ++p) {
                for (int q = 0; q < all; ++q) {
                    for (int n = 0; n < data; ++n) {
                        by_hand[static_cast<std::size_t>(p * all + q)] +=
                            hessian(factor, n, output_of(p), output_of(q)) * input_of(n, p) * input_of(n, q);
                    }
                }
            }
            fubini::linear_block(factor, a.data(), count, bias, linear.data());
            check_close(linear, by_hand);
            for (int p = 0; p < all; ++p) {
                for (int q = 0; q < p; ++q) {
                    CHECK(linear[static_cast<std::size_t>(p * all + q)] ==
                          linear[static_cast<std::size_t>(q * all + p)]);
                }
            }
        }
    }
}

TEST_CASE("factors of the outputs' Fisher information give the closed forms") {
    const Values f = {0.3, -1.2, 2.0, 0.0, 700.0, -700.0};
    const int width = 3;
    Values s(2 * width * width);
    const CurvatureFactor factor{s.data(), 2, width, width};
    fubini::output_factor(fubini::OutputFamily::categorical, f.data(), 2, width, 0.5, s.data());
    double total = 0;
    for (int k = 0; k < width; ++k) total += std::exp(f[static_cast<std::size_t>(k)]);
    for (int i = 0; i < width; ++i) {
        const double p = std::exp(f[static_cast<std::size_t>(i)]) / total;
        for (int j = 0; j < width; ++j) {
            const double q = std::exp(f[static_cast<std::size_t>(j)]) / total;
            CHECK(hessian(factor, 0, i, j) == doctest::Approx(0.5 * ((i == j ? p : 0.0) - p * q)));
            CHECK(std::isfinite(hessian(factor, 1, i, j)));
        }
    }
    fubini::output_factor(fubini::OutputFamily::bernoulli, f.data(), 2, width, 1.0, s.data());
    const double p = 1.0 / (1.0 + std::exp(1.2));
    CHECK(hessian(factor, 0, 1, 1) == doctest::Approx(p * (1.0 - p)));
    CHECK(hessian(factor, 0, 0, 1) == 0.0);
    CHECK(std::isfinite(hessian(factor, 1, 2, 2)));
    fubini::output_factor(fubini::OutputFamily::gaussian, f.data(), 2, width, 0.25, s.data());
    CHECK(hessian(factor, 1, 2, 2) == doctest::Approx(0.5));
}

TEST_CASE("the largest eigenvalue of S C S^T, for few and many rows, and singular matrices") {
    fubini::tests::Random random(5);
    const int data = 4, width = 3;
    for (const int rows : {1, 2, 3, 7}) {
        Values s = random.vector(data * rows * width);
        std::fill_n(s.begin(), rows * width, 0.0);
        Values c(data * width * width);
        for (int n = 0; n < data; ++n) {
            const Values v = random.vector(2 * width);  // rank 2
            for (int i = 0; i < width; ++i) {
                for (int j = 0; j < width; ++j) {
                    const auto at = [&](int k) { return v[static_cast<std::size_t>(k)]; };
                    c[static_cast<std::size_t>((n * width + i) * width + j)] =
                        at(i) * at(j) + at(width + i) * at(width + j);
                }
            }
        }
        const CurvatureFactor factor{s.data(), data, rows, width};
        Values found(data);
        fubini::largest_eigenvalues(factor, c.data(), found.data());
        CHECK(found[0] == 0.0);
        for (int n = 1; n < data; ++n) {
            // Powers of H C, whose largest eigenvalue it is.
            Values v(width, 1.0);
            double growth = 0;
            for (int step = 0; step < 2000; ++step) {
                Values w(width), next(width);
                for (int i = 0; i < width; ++i) {
                    for (int j = 0; j < width; ++j) {
                        w[static_cast<std::size_t>(i)] +=
                            c[static_cast<std::size_t>((n * width + i) * width + j)] *
                            v[static_cast<std::size_t>(j)];
                    }
                }
                growth = 0;
                for (int i = 0; i < width; ++i) {
                    for (int j = 0; j < width; ++j)
                        next[static_cast<std::size_t>(i)] +=
                            hessian(factor, n, i, j) * w[static_cast<std::size_t>(j)];
                    growth = std::max(growth, std::abs(next[static_cast<std::size_t>(i)]));
                }
                for (double& entry : next) entry /= growth;
                v = next;
            }
            CHECK(found[static_cast<std::size_t>(n)] == doctest::Approx(growth).epsilon(1e-9));
        }
    }
}

TEST_CASE("a Kronecker system is solved, and one that is singular is not") {
    fubini::tests::Random random(7);
    const int groups = 2, rows = 3, columns = 4;
    const auto gram = [&](int size, int rank) {
        Values matrix(static_cast<std::size_t>(groups * size * size));
        for (int g = 0; g < groups; ++g) {
            const Values root = random.vector(size * rank);
            for (int i = 0; i < size; ++i) {
                for (int j = 0; j < size; ++j) {
                    for (int k = 0; k < rank; ++k) {
                        matrix[static_cast<std::size_t>((g * size + i) * size + j)] +=
                            root[static_cast<std::size_t>(i * rank + k)] *
                            root[static_cast<std::size_t>(j * rank + k)];
                    }
                }
            }
        }
        return matrix;
    };
    const Values left = gram(rows, 2), right = gram(columns, 3), rhs = random.vector(groups * rows * columns);
    const fubini::KroneckerSystem system{left.data(), right.data(), groups, rows, columns, {columns}};
    Values x = rhs;
    REQUIRE(fubini::solve_kronecker(system, 0.1, x.data(), x.data()) == fubini::SolveStatus::ok);
    for (int g = 0; g < groups; ++g) {
        for (int i = 0; i < rows; ++i) {
            for (int p = 0; p < columns; ++p) {
                const auto place = static_cast<std::size_t>((g * rows + i) * columns + p);
                double sum = 0.1 * x[place];
                for (int j = 0; j < rows; ++j) {
                    for (int q = 0; q < columns; ++q) {
                        sum += left[static_cast<std::size_t>((g * rows + i) * rows + j)] *
                               right[static_cast<std::size_t>((g * columns + p) * columns + q)] *
                               x[static_cast<std::size_t>((g * rows + j) * columns + q)];
                    }
                }
                CHECK(sum == doctest::Approx(rhs[place]).epsilon(1e-9));
            }
        }
    }
    CHECK(fubini::solve_kronecker(system, 0.0, x.data(), x.data()) != fubini::SolveStatus::ok);
}

TEST_CASE("one number that is not finite is found wherever it is") {
    for (const std::ptrdiff_t size : {1, 15, 16, 17, 40}) {
        Values values(static_cast<std::size_t>(size), 1e308);  // their sum is not finite
        CHECK(fubini::all_finite(values.data(), size));
        for (double& value : values) {
            for (const double bad : {std::numeric_limits<double>::infinity(), std::nan("")}) {
                value = bad;
                CHECK(!fubini::all_finite(values.data(), size));
            }
            value = 0.0;
        }
    }
    CHECK(fubini::all_finite(static_cast<const float*>(nullptr), 0));
}
