// SPDX-License-Identifier: Apache-2.0
// The matrix lives in row panels of `height` rows, stored column after column, so that a panel is at once the
// left operand (whole registers), the right operand (single values of `lanes` of its rows) and the result of
// the one kernel below. Panels are only as wide as the lower triangle. Block columns of `depth` keep the
// operands in the first-level cache: factor the block's own panels, finish the panels below it, then subtract
// its product from everything to the right.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/constants.hpp"
#include "core/parallel.hpp"
#include "core/solve_simd.hpp"

namespace fubini::detail {

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
void by_height(int used, const Body& body) {
    with_constant<vectors>(used - 1, [&]<int fewer>() { body.template operator()<fewer + 1>(); });
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

inline bool factor(const Panels& m, const double* limits) {
    const Index count = m.count();
    for (Index b0 = 0; b0 < count; b0 += panels_per_block) {
        const Index b1 = std::min(count, b0 + panels_per_block);
        const Index from = b0 * height;
        const Index to = std::min(m.rows, b1 * height);
        for (Index p = b0; p < b1; ++p) {
            bool good = false;
            by_height(m.used(p), [&]<int V>() {
                finish<V>(m, m.panel(p), b0 * vectors, p * vectors, from);
                good = factor_diagonal<V>(m, p, from, limits);
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
inline void substitute(const Panels& m, double* y) {
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

}  // namespace fubini::detail
