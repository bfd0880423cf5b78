// SPDX-License-Identifier: Apache-2.0
#include "core/linear_algebra.hpp"

#include <Eigen/Core>
#include <Eigen/Eigenvalues>

namespace fubini {
namespace {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Map = Eigen::Map<Matrix>;
using ConstMap = Eigen::Map<const Matrix>;

}  // namespace

void product(const double* left, const double* right, std::ptrdiff_t rows, std::ptrdiff_t inner,
             std::ptrdiff_t columns, double* out) {
    Map(out, rows, columns).noalias() = ConstMap(left, rows, inner) * ConstMap(right, inner, columns);
}

void product_of_transpose(const double* left, const double* right, std::ptrdiff_t rows, std::ptrdiff_t inner,
                          std::ptrdiff_t columns, double* out) {
    Map(out, rows, columns).noalias() =
        ConstMap(left, inner, rows).transpose() * ConstMap(right, inner, columns);
}

void product_with_transpose(const double* left, const double* right, std::ptrdiff_t rows,
                            std::ptrdiff_t inner, std::ptrdiff_t columns, double* out) {
    Map(out, rows, columns).noalias() =
        ConstMap(left, rows, inner) * ConstMap(right, columns, inner).transpose();
}

bool symmetric_eigen(const double* matrix, std::ptrdiff_t n, double* values, double* vectors) {
    if (n == 0) return true;
    using Symmetric = Eigen::MatrixXd;  // stored by columns: its eigenvectors lie side by side
    Eigen::SelfAdjointEigenSolver<Symmetric> solver;
    solver.compute(Eigen::Map<const Symmetric>(matrix, n, n),
                   vectors == nullptr ? Eigen::EigenvaluesOnly : Eigen::ComputeEigenvectors);
    if (solver.info() != Eigen::Success || !solver.eigenvalues().allFinite()) return false;
    Eigen::Map<Eigen::VectorXd>(values, n) = solver.eigenvalues();
    if (vectors != nullptr) Eigen::Map<Symmetric>(vectors, n, n) = solver.eigenvectors();
    return true;
}

}  // namespace fubini
