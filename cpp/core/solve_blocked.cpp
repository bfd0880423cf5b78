// SPDX-License-Identifier: Apache-2.0
// The matrix lives in row panels of `height` rows, stored column after column, so that a panel is at once the
// left operand (whole registers), the right operand (single values of `lanes` of its rows) and the result of
// the one kernel below. Panels are only as wide as the lower triangle. Block columns of `depth` keep the
// operands in the first-level cache: factor the block's own panels, finish the panels below it, then subtract
// its product from everything to the right.
#include "core/solve_blocked.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/parallel.hpp"
#include "core/solve_dense.hpp"

namespace fubini::detail {
namespace {

using Index = std::ptrdiff_t;

// With AVX-512, 3 x 8 accumulators of 32 registers; else 12 or 8 of 16.
constexpr int vectors = lanes == 2 ? 4 : 3;
constexpr Index height = Index{vectors} * lanes;
constexpr Index panels_per_block = 120 / height;

/// Fewer rows than this are not worth a second thread.
constexpr Index parallel_rows = 256;

struct Panels {
    double* data;
    double* inverse_pivots;
    Index rows;  // a multiple of lanes; rows from n on are those of the identity

    [[nodiscard]] Index count() const { return (rows + height - 1) / height; }
    [[nodiscard]] double* panel(Index p) const { return data + height * height * (p * (p + 1) / 2); }
    /// Registers of rows that panel p has.
    [[nodiscard]] int used(Index p) const {
        return static_cast<int>(std::min<Index>(vectors, (rows - p * height) / lanes));
    }
    /// Rows lanes * j to lanes * (j + 1), as right operand.
    [[nodiscard]] const double* right(Index j) const { return panel(j / vectors) + j % vectors * lanes; }
};

/// acc(c, v) -= sum over k in [from, to) of register v of left's column k times row c of right's.
template <int V>
inline void accumulate(const double* left, const double* right, Index from, Index to, Vec (&acc)[lanes][V]) {
    for (Index k = from; k < to; ++k) {
        Vec a[V];
        for (int v = 0; v < V; ++v) a[v] = load(left + k * height + v * lanes);
        for (int c = 0; c < lanes; ++c) {
            const Vec b = splat(right[k * height + c]);
            for (int v = 0; v < V; ++v) acc[c][v] -= a[v] * b;
        }
    }
}

template <int V>
inline void load_tile(const double* panel, Index j, Vec (&acc)[lanes][V]) {
    for (int c = 0; c < lanes; ++c) {
        for (int v = 0; v < V; ++v) acc[c][v] = load(panel + (j * lanes + c) * height + v * lanes);
    }
}

template <int V>
inline void store_tile(double* panel, Index j, const Vec (&acc)[lanes][V]) {
    for (int c = 0; c < lanes; ++c) {
        for (int v = 0; v < V; ++v) store(panel + (j * lanes + c) * height + v * lanes, acc[c][v]);
    }
}

/// Subtracts the product of columns [from, to) from tiles [first, last) of panel p.
template <int V>
void update(const Panels& m, Index p, Index first, Index last, Index from, Index to) {
    double* panel = m.panel(p);
    for (Index j = first; j < last; ++j) {
        Vec acc[lanes][V];
        load_tile(panel, j, acc);
        accumulate(panel, m.right(j), from, to, acc);
        store_tile(panel, j, acc);
    }
}

/// Tiles [first, last) of a panel, left of its diagonal, become those of the factor; columns before `from`
/// are done. For a panel of right-hand sides that is the forward substitution.
template <int V>
void finish(const Panels& m, double* panel, Index first, Index last, Index from) {
    for (Index j = first; j < last; ++j) {
        Vec acc[lanes][V];
        load_tile(panel, j, acc);
        const double* right = m.right(j);
        accumulate(panel, right, from, j * lanes, acc);
        for (int c = 0; c < lanes; ++c) {
            for (int before = 0; before < c; ++before) {
                const Vec l = splat(right[(j * lanes + before) * height + c]);
                for (int v = 0; v < V; ++v) acc[c][v] -= acc[before][v] * l;
            }
            const Vec inverse = splat(m.inverse_pivots[j * lanes + c]);
            for (int v = 0; v < V; ++v) acc[c][v] *= inverse;
        }
        store_tile(panel, j, acc);
    }
}

/// The tiles of panel p that hold its diagonal. False when a pivot is not larger than its limit.
template <int V>
bool factor_diagonal(const Panels& m, Index p, Index from, const double* limits) {
    double* panel = m.panel(p);
    for (int t = 0; t < V; ++t) {
        const Index j = p * vectors + t;
        Vec acc[lanes][V];
        load_tile(panel, j, acc);
        accumulate(panel, m.right(j), from, j * lanes, acc);
        for (int c = 0; c < lanes; ++c) {
            const Index column = j * lanes + c;
            const double pivot = acc[c][t][c];
            if (!(pivot > limits[column])) return false;
            const double inverse = 1.0 / std::sqrt(pivot);
            m.inverse_pivots[column] = inverse;
            for (int v = 0; v < V; ++v)
                acc[c][v] *= splat(inverse);  // rows above the diagonal are never read
            double values[lanes];
            store(values, acc[c][t]);
            for (int later = c + 1; later < lanes; ++later) {
                for (int v = 0; v < V; ++v) acc[later][v] -= acc[c][v] * splat(values[later]);
            }
        }
        store_tile(panel, j, acc);
    }
    return true;
}

/// Calls body<V>() for the number of registers that panel p has.
template <class Body>
auto by_height(int used, const Body& body) {
    switch (used) {
        case 1:
            return body.template operator()<1>();
        case 2:
            return body.template operator()<2>();
        case 3:
            return body.template operator()<3>();
        default:
            return body.template operator()<vectors>();
    }
}

/// Calls body(p) for p in [first, last), in parallel; neighbours in the order come from both ends, because
/// later panels are longer.
template <class Body>
void for_panels(const Panels& m, Index first, Index last, const Body& body) {
    const Index count = last - first;
    const Index grain = m.rows < parallel_rows ? count : 2;
    parallel_for(count, std::max<Index>(grain, 1), [&](Index begin, Index end) {
        for (Index i = begin; i < end; ++i) body(i % 2 == 0 ? first + i / 2 : last - 1 - i / 2);
    });
}

bool factor(const Panels& m, const double* limits) {
    const Index count = m.count();
    for (Index b0 = 0; b0 < count; b0 += panels_per_block) {
        const Index b1 = std::min(count, b0 + panels_per_block);
        const Index from = b0 * height;
        const Index to = std::min(m.rows, b1 * height);
        for (Index p = b0; p < b1; ++p) {
            const bool good = by_height(m.used(p), [&]<int V>() {
                finish<V>(m, m.panel(p), b0 * vectors, p * vectors, from);
                return factor_diagonal<V>(m, p, from, limits);
            });
            if (!good) return false;
        }
        for_panels(m, b1, count, [&](Index p) {
            by_height(m.used(p),
                      [&]<int V>() { finish<V>(m, m.panel(p), b0 * vectors, b1 * vectors, from); });
        });
        for_panels(m, b1, count, [&](Index p) {
            by_height(m.used(p),
                      [&]<int V>() { update<V>(m, p, b1 * vectors, p * vectors + m.used(p), from, to); });
        });
    }
    return true;
}

/// Backward substitution for a panel of right-hand sides: each row x becomes the solution of L^T y = x.
template <int V>
void finish_backward(const Panels& m, double* panel) {
    for (Index j = m.rows / lanes - 1; j >= 0; --j) {
        Vec acc[lanes][V];
        load_tile(panel, j, acc);
        for (Index q = j / vectors; q < m.count(); ++q) {
            const double* below = m.panel(q) + j * lanes * height;
            const Index first = q == j / vectors ? (j % vectors + 1) * lanes : 0;
            for (Index r = first; r < Index{m.used(q)} * lanes; ++r) {
                Vec a[V];
                for (int v = 0; v < V; ++v) a[v] = load(panel + (q * height + r) * height + v * lanes);
                for (int c = 0; c < lanes; ++c) {
                    const Vec b = splat(below[c * height + r]);
                    for (int v = 0; v < V; ++v) acc[c][v] -= a[v] * b;
                }
            }
        }
        const double* right = m.right(j);
        for (int c = lanes - 1; c >= 0; --c) {
            for (int later = c + 1; later < lanes; ++later) {
                const Vec l = splat(right[(j * lanes + c) * height + later]);
                for (int v = 0; v < V; ++v) acc[c][v] -= acc[later][v] * l;
            }
            const Vec inverse = splat(m.inverse_pivots[j * lanes + c]);
            for (int v = 0; v < V; ++v) acc[c][v] *= inverse;
        }
        store_tile(panel, j, acc);
    }
}

/// y (rows) becomes the solution of L L^T x = y.
void substitute(const Panels& m, double* y) {
    for (Index p = 0; p < m.count(); ++p) {
        const double* panel = m.panel(p);
        const Index first = p * height;
        const Index rows = Index{m.used(p)} * lanes;
        Vec sums[4][vectors] = {};
        for (Index k = 0; k < first; k += 4) {  // panels are a multiple of 4 columns wide
            for (int u = 0; u < 4; ++u) {
                const Vec factor_k = splat(y[k + u]);
                for (int v = 0; v < vectors; ++v) {
                    sums[u][v] += load(panel + (k + u) * height + v * lanes) * factor_k;
                }
            }
        }
        double rest[height];
        for (int v = 0; v < vectors; ++v) {
            store(rest + v * lanes, (sums[0][v] + sums[1][v]) + (sums[2][v] + sums[3][v]));
        }
        for (Index r = 0; r < rows; ++r) rest[r] = y[first + r] - rest[r];
        for (Index c = 0; c < rows; ++c) {
            const double value = rest[c] * m.inverse_pivots[first + c];
            y[first + c] = value;
            for (Index r = c + 1; r < rows; ++r) rest[r] -= panel[(first + c) * height + r] * value;
        }
    }
    for (Index p = m.count() - 1; p >= 0; --p) {
        const double* panel = m.panel(p);
        const Index first = p * height;
        const Index rows = Index{m.used(p)} * lanes;
        double x[height] = {};
        for (Index c = rows - 1; c >= 0; --c) {
            double sum = y[first + c];
            for (Index r = c + 1; r < rows; ++r) sum -= panel[(first + c) * height + r] * x[r];
            x[c] = sum * m.inverse_pivots[first + c];
            y[first + c] = x[c];
        }
        Vec xs[vectors];
        for (int v = 0; v < vectors; ++v) xs[v] = load(x + v * lanes);
        for (Index k = 0; k < first; k += lanes) {
            Vec sums[lanes];
            for (int c = 0; c < lanes; ++c) {
                Vec sum = load(panel + (k + c) * height) * xs[0];
                for (int v = 1; v < vectors; ++v) sum += load(panel + (k + c) * height + v * lanes) * xs[v];
                sums[c] = sum;
            }
            transpose(sums);
            Vec total = sums[0];
            for (int c = 1; c < lanes; ++c) total += sums[c];
            store(y + k, load(y + k) - total);
        }
    }
}

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

}  // namespace

namespace {

/// Where the factor of an (n, n) matrix lies in a workspace.
Panels panels_of(Index n, BlockedWorkspace& workspace) {
    Panels m{};
    m.rows = (n + lanes - 1) / lanes * lanes;
    const Index count = m.count();
    const auto doubles = static_cast<std::size_t>(height * height * (count * (count + 1) / 2));
    workspace.inverse_pivots.resize(static_cast<std::size_t>(2 * m.rows));
    m.data = reinterpret_cast<double*>(workspace.panels.reserve(doubles / lanes));
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
        switch (options.damping) {
            case DampingKind::absolute:
                d += block.damping;
                break;
            case DampingKind::relative:
                d += block.damping * (trace / static_cast<double>(n));
                break;
            case DampingKind::diagonal:
                d += block.damping * d;
                break;
        }
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
    m.data = reinterpret_cast<double*>(factor.panels.data());
    m.inverse_pivots = const_cast<double*>(factor.inverse_pivots.data());  // substitute() writes to y only
    substitute(m, y);
}

Index factored_rows(Index n) { return (n + lanes - 1) / lanes * lanes; }

}  // namespace fubini::detail
