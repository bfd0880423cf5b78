// SPDX-License-Identifier: Apache-2.0
#include "core/kronecker.hpp"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <vector>

#include "core/workspace.hpp"

namespace fubini {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Map = Eigen::Map<Matrix>;
using ConstMap = Eigen::Map<const Matrix>;

SolveStatus solve_group(const double* left, const double* right, std::ptrdiff_t rows, std::ptrdiff_t columns,
                        double damping, const double* rhs, double* x) {
    const Eigen::SelfAdjointEigenSolver<Matrix> eigen(ConstMap(left, rows, rows));
    if (eigen.info() != Eigen::Success) return SolveStatus::not_finite;
    const Matrix rotated = eigen.eigenvectors().transpose() * ConstMap(rhs, rows, columns);
    thread_local Workspace workspace;
    double* systems = workspace.reserve(static_cast<std::size_t>(rows * columns * columns));
    for (std::ptrdiff_t i = 0; i < rows; ++i) {
        Map(systems + i * columns * columns, columns, columns) =
            std::max(eigen.eigenvalues()[i], 0.0) * ConstMap(right, columns, columns);
    }
    Matrix solved(rows, columns);
    std::vector<SolveStatus> status(static_cast<std::size_t>(rows));
    solve(systems, rotated.data(), solved.data(), rows, columns, 1, &damping, 0, SolveOptions{},
          status.data(), nullptr);
    workspace.release_if_large();
    const SolveStatus worst = *std::max_element(status.begin(), status.end());
    if (worst == SolveStatus::ok) Map(x, rows, columns).noalias() = eigen.eigenvectors() * solved;
    return worst;
}

}  // namespace

SolveStatus solve_kronecker(const KroneckerSystem& system, double damping, const double* rhs, double* x) {
    const std::ptrdiff_t rows = system.rows, columns = system.columns;
    for (std::ptrdiff_t g = 0; g < system.groups; ++g) {
        const SolveStatus status =
            solve_group(system.left + g * rows * rows, system.right + g * columns * columns, rows, columns,
                        damping, rhs + g * rows * columns, x + g * rows * columns);
        if (status != SolveStatus::ok) return status;
    }
    return SolveStatus::ok;
}

}  // namespace fubini
