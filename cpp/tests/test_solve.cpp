// SPDX-License-Identifier: Apache-2.0
#include "core/solve.hpp"

#include <doctest/doctest.h>

#include <Eigen/Dense>
#include <cmath>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/parallel.hpp"

using namespace fubini;
using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

namespace {

const double not_a_number = std::numeric_limits<double>::quiet_NaN();

/// Positive definite, with eigenvalues spread geometrically from 1 to 1 / condition.
Matrix matrix_with_condition(std::ptrdiff_t n, double condition, std::mt19937& random) {
    std::normal_distribution<double> normal;
    Matrix q = Matrix::NullaryExpr(n, n, [&] { return normal(random); });
    q = Eigen::HouseholderQR<Matrix>(q).householderQ();
    Eigen::VectorXd values(n);
    for (std::ptrdiff_t i = 0; i < n; ++i) {
        values[i] = n == 1 ? 1.0 : std::pow(condition, -static_cast<double>(i) / static_cast<double>(n - 1));
    }
    const Matrix a = q * values.asDiagonal() * q.transpose();
    return 0.5 * (a + Matrix(a.transpose()));
}

struct Batch {
    std::vector<double> matrix, rhs, x;
    std::vector<SolveStatus> status;
    std::vector<SolveInfo> info;
    std::ptrdiff_t count, n, columns;

    Batch(std::ptrdiff_t count_, std::ptrdiff_t n_, std::ptrdiff_t columns_, double condition, unsigned seed)
        : count(count_), n(n_), columns(columns_) {
        std::mt19937 random(seed);
        std::normal_distribution<double> normal;
        matrix.resize(static_cast<std::size_t>(count * n * n));
        rhs.resize(static_cast<std::size_t>(count * n * columns));
        x.assign(rhs.size(), 7.0);
        status.resize(static_cast<std::size_t>(count));
        info.resize(status.size());
        for (std::ptrdiff_t i = 0; i < count; ++i) a(i) = matrix_with_condition(n, condition, random);
        for (double& value : rhs) value = normal(random);
    }
    Eigen::Map<Matrix> a(std::ptrdiff_t i) { return {matrix.data() + i * n * n, n, n}; }
    Eigen::Map<Matrix> b(std::ptrdiff_t i) { return {rhs.data() + i * n * columns, n, columns}; }
    Eigen::Map<Matrix> solution(std::ptrdiff_t i) { return {x.data() + i * n * columns, n, columns}; }
    SolveStatus& state(std::ptrdiff_t i) { return status[static_cast<std::size_t>(i)]; }

    void run(double damping, const SolveOptions& options = {}) {
        solve(matrix.data(), rhs.data(), x.data(), count, n, columns, &damping, 0, options, status.data(),
              info.data());
    }
    double residual(std::ptrdiff_t i, double damping) {
        const Matrix damped = a(i) + damping * Matrix::Identity(n, n);
        const double norm = damped.cwiseAbs().rowwise().sum().maxCoeff();
        double worst = 0.0;
        for (std::ptrdiff_t c = 0; c < columns; ++c) {
            const Eigen::VectorXd r = damped * solution(i).col(c) - b(i).col(c);
            worst =
                std::max(worst, r.cwiseAbs().maxCoeff() / (norm * solution(i).col(c).cwiseAbs().maxCoeff() +
                                                           b(i).col(c).cwiseAbs().maxCoeff()));
        }
        return worst;
    }
};

SolveOptions with(SolveMethod method) { return SolveOptions{.method = method}; }

}  // namespace

TEST_CASE("direct methods leave a small residual for condition numbers up to 1e10") {
    set_num_threads(2);
    for (const SolveMethod method :
         {SolveMethod::automatic, SolveMethod::cholesky, SolveMethod::ldlt, SolveMethod::pinv}) {
        for (const std::ptrdiff_t n : {1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 64, 65, 130, 259}) {
            for (const double condition : {1.0, 1e5, 1e10}) {
                Batch batch(n > 200  ? 1
                            : n > 64 ? 2
                                     : 11,
                            n, n % 5 == 0 ? 5 : 1, condition, static_cast<unsigned>(n));
                batch.run(0.0, with(method));
                for (std::ptrdiff_t i = 0; i < batch.count; ++i) {
                    INFO(method_name(method), " n ", n, " condition ", condition);
                    CHECK(batch.state(i) == SolveStatus::ok);
                    CHECK(batch.residual(i, 0.0) <= 1e-13 * static_cast<double>(n));
                }
            }
        }
    }
}

TEST_CASE(
    "damping: absolute, relative and diagonal add what they say, at every size with a kernel of its own") {
    for (const std::ptrdiff_t n : {1, 2, 3, 4, 5, 6, 7, 8, 9, 17, 70}) {
        for (const SolveMethod method : {SolveMethod::automatic, SolveMethod::cholesky}) {
            for (const DampingKind kind :
                 {DampingKind::absolute, DampingKind::relative, DampingKind::diagonal}) {
                Batch batch(11, n, 1, 10.0, static_cast<unsigned>(n));
                std::vector<double> damping;
                for (int i = 0; i < 11; ++i) damping.push_back(0.3 + 0.1 * i);
                SolveOptions options = with(method);
                options.damping = kind;
                solve(batch.matrix.data(), batch.rhs.data(), batch.x.data(), 11, n, 1, damping.data(), 1,
                      options, batch.status.data(), nullptr);
                for (std::ptrdiff_t i = 0; i < 11; ++i) {
                    const Matrix g = batch.a(i);
                    Matrix added = Matrix::Identity(n, n);
                    if (kind == DampingKind::relative) added *= g.trace() / static_cast<double>(n);
                    if (kind == DampingKind::diagonal) added = Matrix(g.diagonal().asDiagonal());
                    const Matrix damped = g + damping[static_cast<std::size_t>(i)] * added;
                    const Matrix expected = damped.fullPivLu().solve(Matrix(batch.b(i)));
                    INFO("n ", n, " system ", i);
                    CHECK(batch.state(i) == SolveStatus::ok);
                    CHECK((batch.solution(i) - expected).cwiseAbs().maxCoeff() < 1e-12);
                }
            }
        }
    }
}

TEST_CASE("a bad system gets its status and NaN, and its neighbours the bits they have alone") {
    for (const std::ptrdiff_t n : {2, 3, 4, 5, 6, 7, 8, 20, 70, 130}) {
        Batch good(24, n, 1, 100.0, 3);
        good.run(0.0);
        Batch bad = good;
        bad.a(2)(n - 1, 0) = not_a_number;
        bad.b(5)(0, 0) = std::numeric_limits<double>::infinity();
        bad.a(7)(0, n - 1) += 1.0;
        bad.a(9).setZero();
        bad.a(11) *= -1.0;
        bad.a(23)(0, n - 1) = not_a_number;
        bad.run(0.0);
        CHECK(bad.state(2) == SolveStatus::not_finite);
        CHECK(bad.state(5) == SolveStatus::not_finite);
        CHECK(bad.state(7) == SolveStatus::not_symmetric);
        CHECK(bad.state(9) == SolveStatus::used_pinv);
        CHECK(bad.state(11) == SolveStatus::used_pinv);
        CHECK(bad.state(23) == SolveStatus::not_finite);
        CHECK(bad.solution(9).isZero(0.0));
        CHECK((bad.solution(11) + good.solution(11)).cwiseAbs().maxCoeff() < 1e-10);
        for (const std::ptrdiff_t i : {2, 5, 7, 23}) CHECK(std::isnan(bad.solution(i)(0, 0)));
        for (std::ptrdiff_t i = 0; i < 24; ++i) {
            if (i == 2 || i == 5 || i == 7 || i == 9 || i == 11 || i == 23) continue;
            CHECK(bad.state(i) == SolveStatus::ok);
            CHECK(bad.solution(i) == good.solution(i));
        }
    }
}

TEST_CASE("singular matrices: the automatic method finds the smallest solution, cholesky refuses") {
    std::mt19937 random(5);
    std::normal_distribution<double> normal;
    for (const std::ptrdiff_t n : {2, 4, 9, 30, 70}) {
        Batch batch(3, n, 1, 1.0, 5);
        for (std::ptrdiff_t i = 0; i < 3; ++i) {
            const Matrix factor = Matrix::NullaryExpr(n, (n + 1) / 2, [&] { return normal(random); });
            batch.a(i) = factor * factor.transpose();
        }
        batch.run(0.0);
        for (std::ptrdiff_t i = 0; i < 3; ++i) {
            const Eigen::SelfAdjointEigenSolver<Matrix> eigen(batch.a(i));
            Eigen::VectorXd inverse = eigen.eigenvalues();
            for (double& v : inverse) v = v > 1e-10 ? 1.0 / v : 0.0;
            const Matrix expected =
                eigen.eigenvectors() * inverse.asDiagonal() * eigen.eigenvectors().transpose() * batch.b(i);
            CHECK(batch.state(i) == SolveStatus::used_pinv);
            CHECK(batch.info[static_cast<std::size_t>(i)].rank == (n + 1) / 2);
            CHECK((batch.solution(i) - expected).cwiseAbs().maxCoeff() <=
                  1e-9 * expected.cwiseAbs().maxCoeff());
        }
        batch.run(0.0, with(SolveMethod::cholesky));
        CHECK(batch.state(0) == SolveStatus::not_positive_definite);
        CHECK(std::isnan(batch.solution(0)(0, 0)));
    }
}

TEST_CASE("ldlt solves indefinite systems and refuses singular ones") {
    std::mt19937 random(6);
    std::normal_distribution<double> normal;
    for (const std::ptrdiff_t n : {1, 2, 3, 6, 17, 50}) {
        for (const bool zero_diagonal : {false, true}) {
            if (zero_diagonal && (n == 1 || n == 3)) continue;
            Batch batch(4, n, 2, 1.0, 6);
            for (std::ptrdiff_t i = 0; i < 4; ++i) {
                const Matrix m = Matrix::NullaryExpr(n, n, [&] { return normal(random); });
                batch.a(i) = m + m.transpose();
                if (zero_diagonal) batch.a(i).diagonal().setZero();
            }
            batch.run(0.0, with(SolveMethod::ldlt));
            for (std::ptrdiff_t i = 0; i < 4; ++i) {
                CHECK(batch.state(i) == SolveStatus::ok);
                CHECK(batch.residual(i, 0.0) <= 1e-13 * static_cast<double>(n));
            }
            batch.a(1).row(0).setZero();
            batch.a(1).col(0).setZero();
            batch.run(0.0, with(SolveMethod::ldlt));
            CHECK(batch.state(0) == SolveStatus::ok);
            CHECK(batch.state(1) == SolveStatus::singular);
        }
    }
}

TEST_CASE("power: two inverse square roots are one inverse; a negative eigenvalue is refused") {
    Batch batch(3, 6, 1, 100.0, 7);
    batch.run(0.1);
    const std::vector<double> expected = batch.x;
    const SolveOptions half{.method = SolveMethod::power, .exponent = 0.5};
    batch.run(0.1, half);
    batch.rhs = batch.x;
    batch.run(0.1, half);
    for (std::size_t i = 0; i < expected.size(); ++i)
        CHECK(batch.x[i] == doctest::Approx(expected[i]).epsilon(1e-11));
    batch.a(1) *= -1.0;
    batch.run(0.0, half);
    CHECK(batch.state(0) == SolveStatus::ok);
    CHECK(batch.state(1) == SolveStatus::not_positive_definite);
}

TEST_CASE("conjugate gradients: converges, starts warm, and says when it does not") {
    Batch batch(3, 40, 2, 1e3, 8);
    SolveOptions options = with(SolveMethod::cg);
    batch.run(0.0, options);
    for (std::ptrdiff_t i = 0; i < 3; ++i) {
        CHECK(batch.state(i) == SolveStatus::ok);
        CHECK((batch.a(i) * batch.solution(i) - batch.b(i)).norm() <= 1e-11 * batch.b(i).norm());
    }
    options.warm_start = true;
    batch.run(0.0, options);
    CHECK(batch.info[0].iterations == 0);
    options.warm_start = false;
    options.max_iterations = 2;
    batch.run(0.0, options);
    CHECK(batch.state(0) == SolveStatus::not_converged);
    CHECK(std::isfinite(batch.solution(0)(0, 0)));
    batch.a(1) *= -1.0;
    batch.run(0.0, with(SolveMethod::cg));
    CHECK(batch.state(1) == SolveStatus::not_positive_definite);
    CHECK(batch.state(2) == SolveStatus::ok);
}

TEST_CASE("the same bits for any number of threads, uniform and mixed") {
    Batch batch(501, 12, 1, 1e4, 9);
    set_num_threads(1);
    batch.run(1e-3);
    const std::vector<double> expected = batch.x;
    std::vector<SolveBlock> blocks;
    for (std::ptrdiff_t i = 0; i < batch.count; ++i) {
        const std::ptrdiff_t n =
            1 + i % 12;  // any leading part of the storage is some matrix; most are not symmetric
        blocks.push_back(
            {batch.matrix.data() + i * 144, batch.rhs.data() + i * 12, batch.x.data() + i * 12, n, 1, 1e-3});
    }
    std::vector<double> mixed;
    for (const int threads : {1, 2, 7}) {
        set_num_threads(threads);
        batch.run(1e-3);
        CHECK(batch.x == expected);
    }
    for (const int threads : {1, 2, 7}) {
        set_num_threads(threads);
        solve_blocks(blocks.data(), batch.count, SolveOptions{.symmetry_tolerance = 1e9}, batch.status.data(),
                     nullptr);
        if (mixed.empty()) mixed = batch.x;
        CHECK(batch.x == mixed);
    }
    set_num_threads(2);
}

TEST_CASE("the same bits for any number of threads, one large system") {
    Batch batch(1, 403, 3, 1e4, 12);
    set_num_threads(1);
    batch.run(1e-3);
    CHECK(batch.state(0) == SolveStatus::ok);
    CHECK(batch.residual(0, 1e-3) <= 1e-13 * 403);
    const std::vector<double> expected = batch.x;
    for (const int threads : {2, 7}) {
        set_num_threads(threads);
        batch.x.assign(batch.x.size(), 0.0);
        batch.run(1e-3);
        CHECK(batch.x == expected);
    }
    set_num_threads(2);
}

TEST_CASE("every number of systems in a pack, every number of columns") {
    for (const std::ptrdiff_t n : {1, 2, 4, 7, 11, 26, 41}) {
        for (std::ptrdiff_t count = 1; count <= 17; ++count) {
            for (const std::ptrdiff_t columns : {1, 2, 3, 4, 6}) {
                Batch batch(count, n, columns, 30.0, static_cast<unsigned>(count + 100 * n));
                batch.run(0.01);
                for (std::ptrdiff_t i = 0; i < count; ++i) {
                    CHECK(batch.state(i) == SolveStatus::ok);
                    CHECK(batch.residual(i, 0.01) <= 1e-14 * static_cast<double>(n + 2));
                }
            }
        }
    }
}

TEST_CASE("one large system with many right-hand sides") {
    for (const std::ptrdiff_t n : {66, 125, 290}) {
        for (const std::ptrdiff_t columns : {2, 7, 8, 9, 23, 24, 25, 61}) {
            Batch batch(1, n, columns, 1e3, static_cast<unsigned>(n + columns));
            batch.run(0.01);
            CHECK(batch.state(0) == SolveStatus::ok);
            CHECK(batch.residual(0, 0.01) <= 1e-14 * static_cast<double>(n));
        }
    }
}

TEST_CASE("mixed sizes: every block is solved, in its place") {
    std::mt19937 random(10);
    std::vector<Matrix> matrices;
    std::vector<Eigen::VectorXd> rhs;
    std::vector<Eigen::VectorXd> x;
    for (int i = 0; i < 200; ++i) {
        const std::ptrdiff_t n = (i * 7) % 41;
        matrices.push_back(matrix_with_condition(n, 50.0, random));
        rhs.push_back(Eigen::VectorXd::LinSpaced(n, 1.0, 2.0));
        x.emplace_back(n);
    }
    std::vector<SolveBlock> blocks;
    for (std::size_t i = 0; i < matrices.size(); ++i) {
        blocks.push_back({matrices[i].data(), rhs[i].data(), x[i].data(), matrices[i].rows(), 1,
                          0.01 * static_cast<double>(i)});
    }
    std::vector<SolveStatus> status(blocks.size(), SolveStatus::not_converged);
    solve_blocks(blocks.data(), static_cast<std::ptrdiff_t>(blocks.size()), {}, status.data(), nullptr);
    for (std::size_t i = 0; i < matrices.size(); ++i) {
        const std::ptrdiff_t n = matrices[i].rows();
        CHECK(status[i] == SolveStatus::ok);
        if (n == 0) continue;
        const Matrix damped = matrices[i] + blocks[i].damping * Matrix::Identity(n, n);
        CHECK((damped * x[i] - rhs[i]).cwiseAbs().maxCoeff() < 1e-12);
    }
}

TEST_CASE("arguments outside their range are refused before anything is written") {
    Batch batch(2, 3, 1, 10.0, 11);
    const auto before = batch.x;
    CHECK_THROWS_AS(batch.run(-1.0), std::invalid_argument);
    CHECK_THROWS_AS(batch.run(not_a_number), std::invalid_argument);
    const std::vector<SolveOptions> wrong{
        {.rcond = 1.5}, {.exponent = not_a_number}, {.tolerance = -1.0}, {.max_iterations = -1}};
    for (const SolveOptions& options : wrong) CHECK_THROWS_AS(batch.run(0.0, options), std::invalid_argument);
    CHECK(batch.x == before);
}
