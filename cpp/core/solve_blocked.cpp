// SPDX-License-Identifier: Apache-2.0
#include "core/solve_blocked.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/parallel.hpp"
#include "core/solve_dense.hpp"
#include "core/solve_panels.hpp"

namespace fubini::detail {
namespace {

/// What packing sees of a panel; not a number where an entry is not finite.
struct Seen {
    Vec tilt = splat(0.0);
    Vec bad = splat(0.0);
};

/// Columns [0, last] of panel p of (G + G^T) / 2.
void pack_panel(const SolveBlock& block, const Panels& m, Index p, Seen& seen) {
    const Index n = block.n;
    const double* g = block.matrix;
    double* panel = m.panel(p);
    const Index columns = std::min(m.rows, (p + 1) * height);
    if (m.used(p) < vectors) std::fill_n(panel, columns * height, 0.0);  // substitute() reads whole panels
    for (int v = 0; v < m.used(p); ++v) {
        const Index i = p * height + v * lanes;
        for (Index k = 0; k < columns; k += lanes) {
            double* to = panel + k * height + v * lanes;
            if (i + lanes <= n && k + lanes <= n) {
                Vec lower[lanes];
                for (int r = 0; r < lanes; ++r) lower[r] = load(g + (i + r) * n + k);
                transpose(lower);
                for (int c = 0; c < lanes; ++c) {
                    const Vec upper = load(g + (k + c) * n + i);
                    const Vec gap = lower[c] - upper;
                    seen.bad += gap - gap;
                    seen.tilt = larger(magnitude(gap), seen.tilt);
                    store(to + c * height, 0.5 * lower[c] + 0.5 * upper);
                }
                continue;
            }
            for (Index c = 0; c < lanes; ++c) {
                for (Index r = 0; r < lanes; ++r) {
                    const bool inside = i + r < n && k + c < n;
                    const double low = inside ? g[(i + r) * n + k + c] : i + r == k + c ? 1.0 : 0.0;
                    const double up = inside ? g[(k + c) * n + i + r] : low;
                    const double gap = low - up;
                    seen.bad[0] += gap - gap;
                    seen.tilt[0] = std::max(std::abs(gap), seen.tilt[0]);
                    to[c * height + r] = 0.5 * low + 0.5 * up;
                }
            }
        }
    }
}

/// Where the factor of an (n, n) matrix lies in a workspace.
Panels panels_of(Index n, BlockedWorkspace& workspace) {
    Panels m{};
    m.rows = (n + lanes - 1) / lanes * lanes;
    const Index count = m.count();
    const auto doubles = static_cast<std::size_t>(height * height * (count * (count + 1) / 2));
    workspace.inverse_pivots.resize(static_cast<std::size_t>(2 * m.rows));
    m.data = workspace.panels.reserve(doubles);
    m.inverse_pivots = workspace.inverse_pivots.data();
    return m;
}

/// The factor of the damped matrix, and its largest diagonal entry; false when anything is not beyond doubt.
bool factor_damped(const SolveBlock& block, const SolveOptions& options, const Panels& m, double* limits,
                   double& damped_largest) {
    const Index n = block.n;
    std::atomic<bool> sound{true};
    double largest = 0.0;
    double trace = 0.0;
    for (Index i = 0; i < n; ++i) {
        largest = std::max(largest, block.matrix[i * n + i]);
        trace += block.matrix[i * n + i];
    }
    // The bound of solve_one uses all entries; for a positive definite matrix the largest is on the diagonal.
    const double allowed = options.symmetry_tolerance * largest;
    for_panels(m, 0, m.count(), [&](Index p) {
        Seen seen;
        pack_panel(block, m, p, seen);
        for (int l = 0; l < lanes; ++l) {
            if (!(seen.bad[l] == 0.0 && seen.tilt[l] <= allowed))
                sound.store(false, std::memory_order_relaxed);
        }
    });
    if (!sound.load()) return false;

    const bool own_scale = options.method == SolveMethod::cholesky;
    const double tolerance = pivot_tolerance * static_cast<double>(n);
    damped_largest = 0.0;
    for (Index i = 0; i < n; ++i) {
        double& d = m.panel(i / height)[i * height + i % height];
        d += added(block, options, d, trace);
        limits[i] = tolerance * d;
        damped_largest = std::max(damped_largest, d);
    }
    if (!std::isfinite(damped_largest)) return false;
    for (Index i = 0; i < m.rows; ++i) {
        if (i >= n) {
            limits[i] = 0.0;
        } else if (!own_scale) {
            limits[i] = tolerance * damped_largest;
        }
    }
    return factor(m, limits);
}

}  // namespace

bool solve_blocked(const SolveBlock& block, const SolveOptions& options, BlockedWorkspace& workspace) {
    const Index n = block.n;
    const Panels m = panels_of(n, workspace);
    double damped_largest = 0.0;
    if (!factor_damped(block, options, m, workspace.inverse_pivots.data() + m.rows, damped_largest))
        return false;
    std::atomic<bool> sound{true};
    const bool own_scale = options.method == SolveMethod::cholesky;

    // One right-hand side is a vector; several are the rows of panels like the matrix's own.
    const Index columns = block.columns;
    const Index width = columns == 1 ? 1 : height;
    const Index groups = (columns + width - 1) / width;
    workspace.results.assign(static_cast<std::size_t>(groups * width * m.rows), 0.0);
    double* results = workspace.results.data();
    parallel_for(groups, m.rows < parallel_rows ? groups : 1, [&](Index begin, Index end) {
        for (Index group = begin; group < end; ++group) {
            double* y = results + group * width * m.rows;
            const Index first = group * width;
            const Index inside = std::min(width, columns - first);
            for (Index i = 0; i < n; ++i) {
                for (Index c = 0; c < inside; ++c) y[i * width + c] = block.rhs[i * columns + first + c];
            }
            if (columns == 1) {
                substitute(m, y);
            } else {
                by_height(static_cast<int>((inside + lanes - 1) / lanes), [&]<int V>() {
                    finish<V>(m, y, 0, m.rows / lanes, 0);
                    finish_backward<V>(m, y);
                });
            }
            for (Index c = 0; c < inside; ++c) {
                double size = 0.0;
                double grown = 0.0;
                double bad = 0.0;
                for (Index i = 0; i < n; ++i) {
                    const double x = y[i * width + c];
                    size = std::max(size, std::abs(block.rhs[i * columns + first + c]));
                    grown = std::max(grown, std::abs(x));
                    bad += x - x;
                }
                const bool calm = own_scale || grown * damped_largest <= suspicious_growth * size;
                if (bad != 0.0 || !calm) sound.store(false, std::memory_order_relaxed);
            }
        }
    });
    if (!sound.load()) return false;
    for (Index i = 0; i < n; ++i) {
        for (Index c = 0; c < columns; ++c) {
            block.x[i * columns + c] = results[(c / width * m.rows + i) * width + c % width];
        }
    }
    return true;
}

bool factor_blocked(const double* matrix, Index n, double damping, BlockedWorkspace& factor) {
    SolveBlock block;
    block.matrix = matrix;
    block.n = n;
    block.damping = damping;
    SolveOptions options;
    options.method = SolveMethod::cholesky;
    const Panels m = panels_of(n, factor);
    double largest = 0.0;
    return factor_damped(block, options, m, factor.inverse_pivots.data() + m.rows, largest);
}

void solve_factored(const BlockedWorkspace& factor, double* y) {
    Panels m{};
    m.rows = static_cast<Index>(factor.inverse_pivots.size() / 2);
    m.data = factor.panels.data();
    m.inverse_pivots = const_cast<double*>(factor.inverse_pivots.data());  // substitute() writes to y only
    substitute(m, y);
}

Index factored_rows(Index n) { return (n + lanes - 1) / lanes * lanes; }

}  // namespace fubini::detail
