// SPDX-License-Identifier: Apache-2.0
#include "core/kronecker.hpp"

#include <algorithm>
#include <vector>

#include "core/linear_algebra.hpp"
#include "core/solve_lanes.hpp"
#include "core/workspace.hpp"

namespace fubini {
namespace {

/// matrix (rows, columns) becomes the solution.
SolveStatus solve_group(const double* left, const double* right, std::ptrdiff_t rows, std::ptrdiff_t columns,
                        double damping, double* matrix) {
    const auto entries = [](std::ptrdiff_t count) { return static_cast<std::size_t>(count); };
    std::vector<double> values(entries(rows)), vectors(entries(rows * rows));
    if (!symmetric_eigen(left, rows, values.data(), vectors.data())) return SolveStatus::not_finite;
    std::vector<double> rotated(entries(rows * columns)), solved(entries(rows * columns));
    product(vectors.data(), matrix, rows, rows, columns, rotated.data());
    thread_local Workspace workspace;
    // Small systems are solved side by side; larger ones in turn, so that all of it stays in the caches.
    const std::ptrdiff_t together = columns <= detail::largest_pack_size ? rows : 1;
    const std::ptrdiff_t size = columns * columns;
    double* systems = workspace.reserve(entries(together * size));
    std::vector<SolveStatus> status(entries(rows));
    for (std::ptrdiff_t first = 0; first < rows; first += together) {
        for (std::ptrdiff_t i = 0; i < together; ++i) {
            const double value = std::max(values[entries(first + i)], 0.0);
            double* to = systems + i * size;
            for (std::ptrdiff_t k = 0; k < size; ++k) to[k] = value * right[k];
        }
        solve(systems, rotated.data() + first * columns, solved.data() + first * columns, together, columns,
              1, &damping, 0, SolveOptions{}, status.data() + first, nullptr);
    }
    workspace.release_if_large();
    const SolveStatus worst = *std::max_element(status.begin(), status.end());
    if (worst == SolveStatus::ok)
        product_of_transpose(vectors.data(), solved.data(), rows, rows, columns, matrix);
    return worst;
}

}  // namespace

SolveStatus solve_kronecker(const KroneckerSystem& system, double damping, const double* rhs, double* x) {
    const std::ptrdiff_t rows = system.rows, columns = system.columns;
    if (rows == 0 || columns == 0) return SolveStatus::ok;
    std::vector<double> matrices(static_cast<std::size_t>(system.size()));
    const auto at = [&](std::ptrdiff_t line, std::ptrdiff_t c) -> double& {
        return matrices[static_cast<std::size_t>(line * columns + c)];
    };
    system.for_unknowns([&](auto i, auto line, auto c) { at(line, c) = rhs[i]; });
    for (std::ptrdiff_t g = 0; g < system.groups; ++g) {
        double* mine = matrices.data() + g * rows * columns;
        const SolveStatus status =
            solve_group(system.left + g * rows * rows, system.right + g * columns * columns, rows, columns,
                        damping, mine);
        if (status != SolveStatus::ok) return status;
    }
    system.for_unknowns([&](auto i, auto line, auto c) { x[i] = at(line, c); });
    return SolveStatus::ok;
}

}  // namespace fubini
