// SPDX-License-Identifier: Apache-2.0
#include "core/mixed.hpp"

#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <atomic>
#include <cmath>
#include <stdexcept>
#include <string>

#include "core/parallel.hpp"

namespace fubini {
namespace {

using Complex = std::complex<double>;
using RowComplex = Eigen::Matrix<Complex, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using RowReal = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// rows R^T of real vectors -> their inner products.
void gram(const RowReal& rows, double* out) {
    const Eigen::Index k = rows.rows();
    RowReal product = RowReal::Zero(k, k);
    product.selfadjointView<Eigen::Lower>().rankUpdate(rows);
    Eigen::Map<RowReal>(out, k, k) = product.selfadjointView<Eigen::Lower>();
}

}  // namespace

void sld_fisher(const MixedRequest& request, const Complex* states, const Complex* derivatives, double cutoff,
                double* out) {
    if (!(cutoff > 0.0)) {
        throw std::invalid_argument("cutoff: expected a number > 0, got " + std::to_string(cutoff));
    }
    const auto dim = static_cast<Eigen::Index>(request.dim);
    const auto k = static_cast<Eigen::Index>(request.angles);
    const std::size_t entries = request.dim * request.dim;
    std::atomic<bool> failed = false;
    const auto body = [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        Eigen::SelfAdjointEigenSolver<RowComplex> solver(dim);
        RowReal rows(k, 2 * dim * dim);
        RowReal weight(dim, dim);
        RowComplex inner(dim, dim);
        for (auto b = static_cast<std::size_t>(begin); b < static_cast<std::size_t>(end); ++b) {
            solver.compute(Eigen::Map<const RowComplex>(states + b * entries, dim, dim));
            if (solver.info() != Eigen::Success) {
                failed = true;
                continue;
            }
            const auto& values = solver.eigenvalues();
            const auto& vectors = solver.eigenvectors();
            for (Eigen::Index i = 0; i < dim; ++i) {
                for (Eigen::Index j = 0; j < dim; ++j) {
                    const double sum = values(i) + values(j);
                    weight(i, j) = sum > cutoff ? std::sqrt(2.0 / sum) : 0.0;
                }
            }
            for (Eigen::Index i = 0; i < k; ++i) {
                const std::size_t offset = (b * request.angles + static_cast<std::size_t>(i)) * entries;
                const Eigen::Map<const RowComplex> derivative(derivatives + offset, dim, dim);
                inner.noalias() = vectors.adjoint() * derivative * vectors;
                Eigen::Map<RowReal>(rows.row(i).data(), dim, dim) = inner.real().cwiseProduct(weight);
                Eigen::Map<RowReal>(rows.row(i).data() + dim * dim, dim, dim) =
                    inner.imag().cwiseProduct(weight);
            }
            gram(rows, out + b * request.angles * request.angles);
        }
    };
    parallel_for(static_cast<std::ptrdiff_t>(request.batch), 1, body);
    if (failed) throw std::runtime_error("states: the eigenvalues of a density matrix were not found (NaN?)");
}

void hilbert_schmidt(const MixedRequest& request, const Complex* derivatives, double* out) {
    const auto k = static_cast<Eigen::Index>(request.angles);
    const std::size_t entries = request.dim * request.dim;
    parallel_for(static_cast<std::ptrdiff_t>(request.batch), 1,
                 [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
                     for (auto b = static_cast<std::size_t>(begin); b < static_cast<std::size_t>(end); ++b) {
                         // For Hermitian matrices the trace is the real inner product of all real and
                         // imaginary parts.
                         const auto* parts =
                             reinterpret_cast<const double*>(derivatives + b * request.angles * entries);
                         gram(Eigen::Map<const RowReal>(parts, k, static_cast<Eigen::Index>(2 * entries)),
                              out + b * request.angles * request.angles);
                     }
                 });
}

}  // namespace fubini
