// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "core/kronecker.hpp"
#include "core/preconditioner.hpp"
#include "random_program.hpp"

using namespace fubini;
using fubini::tests::Random;

namespace {

/// A positive semi-definite matrix (n, n) whose unknowns couple only within classes modulo `parts`.
std::vector<double> coupled(Random& random, std::size_t n, std::size_t parts) {
    const std::vector<double> root = random.vector(n * n);
    std::vector<double> matrix(n * n);
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < n; ++j) {
            if (i % parts != j % parts) continue;
            for (std::size_t k = 0; k < n; ++k) matrix[i * n + j] += root[i * n + k] * root[j * n + k];
        }
    }
    return matrix;
}

}  // namespace

TEST_CASE("a preconditioner solves dense blocks, in parts or whole, and leaves what moves nothing") {
    for (unsigned seed = 0; seed < 30; ++seed) {
        Random random(seed);
        const double damping = 0.5;
        Preconditioner factors;
        std::vector<std::vector<double>> blocks;
        for (int block = 0; block < 3; ++block) {
            const auto n = static_cast<std::size_t>(1 + random.below(30));
            blocks.push_back(coupled(random, n, static_cast<std::size_t>(1 + random.below(5))));
            const auto still = static_cast<std::size_t>(random.below(static_cast<int>(n)));
            for (std::size_t i = 0; i < n; ++i)
                blocks.back()[still * n + i] = blocks.back()[i * n + still] = 0;
            REQUIRE(factors.add_dense(blocks.back().data(), static_cast<std::ptrdiff_t>(n), damping));
        }
        factors.add_identity(2);
        const auto size = static_cast<std::size_t>(factors.size());
        const std::vector<double> g = random.vector(size);
        std::vector<double> x(size);
        const double found = factors.apply(g.data(), x.data());
        double product = 0;
        for (std::size_t i = 0; i < size; ++i) product += g[i] * x[i];
        CHECK(std::abs(found - product) < 1e-12 * std::abs(product));
        std::size_t start = 0;
        for (const std::vector<double>& block : blocks) {
            const auto n =
                static_cast<std::size_t>(std::lround(std::sqrt(static_cast<double>(block.size()))));
            for (std::size_t i = 0; i < n; ++i) {
                if (block[i * n + i] == 0) {
                    CHECK(x[start + i] == g[start + i]);
                    continue;
                }
                double residual = damping * x[start + i] - g[start + i];
                for (std::size_t j = 0; j < n; ++j) residual += block[i * n + j] * x[start + j];
                CHECK(std::abs(residual) < 1e-9);
            }
            start += n;
        }
        CHECK(x[start] == g[start]);
        CHECK(x[start + 1] == g[start + 1]);
    }
}

TEST_CASE("a preconditioner solves Kronecker products as the solver does") {
    for (unsigned seed = 0; seed < 20; ++seed) {
        Random random(seed);
        const auto rows = static_cast<std::size_t>(1 + random.below(5));
        const auto columns = static_cast<std::size_t>(1 + random.below(70));
        const std::vector<double> left = coupled(random, rows, 1), right = coupled(random, columns, 1);
        const auto width = static_cast<std::ptrdiff_t>(columns);
        const KroneckerSystem system{left.data(), right.data(), 1, static_cast<std::ptrdiff_t>(rows),
                                     width,       {width}};
        Preconditioner factors;
        REQUIRE(factors.add_kronecker(system, 0.3));
        const std::vector<double> g = random.vector(rows * columns);
        std::vector<double> x(g.size()), expected(g.size());
        CHECK(std::isfinite(factors.apply(g.data(), x.data())));
        REQUIRE(solve_kronecker(system, 0.3, g.data(), expected.data()) == SolveStatus::ok);
        for (std::size_t i = 0; i < g.size(); ++i)
            CHECK(std::abs(x[i] - expected[i]) < 1e-9 * (1 + std::abs(expected[i])));
    }
}

TEST_CASE("a preconditioner refuses what is not positive definite and stays as it was") {
    Preconditioner factors;
    const double negative[] = {-1, 0, 0, 2}, nan = std::nan("");
    CHECK_FALSE(factors.add_dense(negative, 2, 0.5));
    CHECK_FALSE(factors.add_diagonal(negative, 1, 0.5));
    CHECK_FALSE(factors.add_diagonal(&nan, 1, 0.5));
    CHECK(factors.size() == 0);
}
