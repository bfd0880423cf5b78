// SPDX-License-Identifier: Apache-2.0
#include "core/kronecker.hpp"

#include <Eigen/Eigenvalues>
#include <algorithm>
#include <vector>

#include "core/solve_lanes.hpp"
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
    // Small systems are solved side by side; larger ones in turn, so that all of it stays in the caches.
    const std::ptrdiff_t together = columns <= detail::largest_pack_size ? rows : 1;
    double* systems = workspace.reserve(static_cast<std::size_t>(together * columns * columns));
    Matrix solved(rows, columns);
    std::vector<SolveStatus> status(static_cast<std::size_t>(rows));
    for (std::ptrdiff_t first = 0; first < rows; first += together) {
        for (std::ptrdiff_t i = 0; i < together; ++i) {
            Map(systems + i * columns * columns, columns, columns) =
                std::max(eigen.eigenvalues()[first + i], 0.0) * ConstMap(right, columns, columns);
        }
        solve(systems, rotated.data() + first * columns, solved.data() + first * columns, together, columns,
              1, &damping, 0, SolveOptions{}, status.data() + first, nullptr);
    }
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
