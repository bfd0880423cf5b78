// SPDX-License-Identifier: Apache-2.0
// Compiled without contraction to fused multiply-adds: sums must round as they do in torch, because a floor
// or a sign may come after them.
#include "core/expression_sweep.hpp"

#include <algorithm>

#include "core/expression_functions.hpp"
#include "core/lanes.hpp"

namespace fubini {
namespace {

constexpr int widest_tile = 64;
constexpr std::size_t cache_doubles = (std::size_t{256} << 10) / sizeof(double);

/// Calls body(i) for a number, or for every register of lanes.
template <typename Body>
void over(int n, const Body& body) {
    for (int i = 0; i < n; i += lanes) body(i);
}

/// The sum of the rows' products, or of g alone, in an order that depends on nothing but their number.
double dot(const double* f, const double* g, int rows) {
    Vec sums{};
    const int whole = rows / lanes * lanes;
    for (int i = 0; i < whole; i += lanes) sums += f == nullptr ? vec(g + i) : vec(f + i) * vec(g + i);
    double total = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    for (int i = whole; i < rows; ++i) total += f == nullptr ? g[i] : f[i] * g[i];
    return total;
}

}  // namespace

int ExpressionSweep::tile_rows(const ExpressionPlaces& places, std::ptrdiff_t batch) {
    int tile = widest_tile;
    while (tile > lanes && 2 * places.varying.size() * static_cast<std::size_t>(tile) > cache_doubles)
        tile /= 2;
    return static_cast<int>(
        std::min<std::ptrdiff_t>(tile, std::max<std::ptrdiff_t>(batch + lanes - 1, lanes) / lanes * lanes));
}

void ExpressionSweep::begin(std::ptrdiff_t first, int rows) {
    first_ = first;
    rows_ = rows;
    padded_ = (rows + lanes - 1) / lanes * lanes;
}

void ExpressionSweep::load_uniform_leaves(NodeArrays to, const double* weights) const {
    for (const auto& [weight, place] : places_.uniform_weights)
        to.uniform[place] = weights == nullptr ? 0 : weights[weight];
}

void ExpressionSweep::load_leaves(NodeArrays to, const double* weights, std::ptrdiff_t weight_stride,
                                  const double* inputs) const {
    for (const int index : places_.varying_leaves) {
        const ExpressionNode& node = graph_.node(index);
        double* row = at(to, index);
        const bool weight = node.kind == ExpressionKind::weight;
        const double* from = weight ? weights : inputs;
        if (from == nullptr) {
            std::fill_n(row, padded_, 0.0);
            continue;
        }
        const std::ptrdiff_t stride = weight ? weight_stride : graph_.inputs;
        from += first_ * stride + node.u;
        for (int i = 0; i < rows_; ++i) row[i] = from[i * stride];
        // Lanes beyond the rows hold ordinary numbers; no sum over rows looks at them.
        for (int i = rows_; i < padded_; ++i) row[i] = row[rows_ - 1];
    }
}

const double* ExpressionSweep::spread(int node, int n, int index) const {
    const double* data = at(values, node);
    if (n == 1 || places_.lanes(node)) return data;
    std::fill_n(buffer(index), n, *data);
    return buffer(index);
}

/// to += (c * u) * v
void ExpressionSweep::add_product(double* to, int n, double c, Factor u, Factor v) const {
    if (n == 1) {
        const double scaled = c * *u.data;
        *to += v.data == nullptr ? scaled : scaled * *v.data;
    } else if (u.lanes && v.data == nullptr) {
        over(n, [&](int i) { vec(to + i) += c * vec(u.data + i); });
    } else if (u.lanes && v.lanes) {
        over(n, [&](int i) { vec(to + i) += c * vec(u.data + i) * vec(v.data + i); });
    } else if (u.lanes) {
        over(n, [&](int i) { vec(to + i) += c * vec(u.data + i) * *v.data; });
    } else {
        const double scaled = c * *u.data;
        if (v.lanes) {
            over(n, [&](int i) { vec(to + i) += scaled * vec(v.data + i); });
        } else {
            const double product = v.data == nullptr ? scaled : scaled * *v.data;
            over(n, [&](int i) { vec(to + i) += product; });
        }
    }
}

void ExpressionSweep::value(int index) {
    const ExpressionNode& node = graph_.node(index);
    const int n = width(index);
    double* to = at(values, index);
    if (node.kind == ExpressionKind::sum) {
        std::fill_n(to, n, node.c);
        for (const ExpressionTerm& term : graph_.terms_of(node))
            add_product(to, n, term.coefficient, factor(values, term.u), factor(values, term.v));
    } else if (node.kind <= ExpressionKind::input) {
        return;  // loaded
    } else if (node.v < 0) {
        unary_value(node, n, spread(node.u, n, 0), to);
    } else {
        binary_value(node, n, spread(node.u, n, 0), spread(node.v, n, 1), to);
    }
}

void ExpressionSweep::tangent_of_sum(const ExpressionNode& node, double* to, int n) {
    for (const ExpressionTerm& term : graph_.terms_of(node)) {
        if (moves(term.u))
            add_product(to, n, term.coefficient, factor(tangents, term.u), factor(values, term.v));
        if (term.v >= 0 && moves(term.v))
            add_product(to, n, term.coefficient, factor(tangents, term.v), factor(values, term.u));
    }
}

void ExpressionSweep::tangent(int index) {
    const ExpressionNode& node = graph_.node(index);
    if (node.kind <= ExpressionKind::input) return;  // loaded
    const int n = width(index);
    double* to = at(tangents, index);
    std::fill_n(to, n, 0.0);
    if (!moves(index)) return;
    if (node.kind == ExpressionKind::sum) return tangent_of_sum(node, to, n);
    const double* u = spread(node.u, n, 0);
    const double* y = at(values, index);
    const bool choose = chooses(node);
    const auto add = [&](double* by, int argument) {
        if (!moves(argument)) return;
        const Factor moved = factor(tangents, argument);
        if (choose) {
            for (int i = 0; i < n; ++i) {
                if (by[i] != 0) to[i] += by[i] * moved.data[moved.lanes ? i : 0];
            }
        } else {
            add_product(to, n, 1, moved, {by, n > 1});
        }
    };
    if (node.v < 0) {
        unary_first(node, n, u, y, buffer(2));
        add(buffer(2), node.u);
    } else {
        binary_first(node, n, u, spread(node.v, n, 1), y, buffer(2), buffer(3));
        add(buffer(2), node.u);
        add(buffer(3), node.v);
    }
}

/// Adds c f g to a node's number or lanes: over the rows, if the node has one number for all of them.
void ExpressionSweep::push(const NodeArrays& to, int node, double c, Factor f, const double* g, int n) const {
    double* target = at(to, node);
    if (n == 1) {
        *target += f.data == nullptr ? c * *g : c * *f.data * *g;
    } else if (!places_.lanes(node)) {
        if (f.lanes) {
            *target += c * dot(f.data, g, rows_);
        } else {
            *target += (f.data == nullptr ? c : c * *f.data) * dot(nullptr, g, rows_);
        }
    } else if (f.lanes) {
        over(n, [&](int i) { vec(target + i) += c * vec(f.data + i) * vec(g + i); });
    } else {
        const double scaled = f.data == nullptr ? c : c * *f.data;
        over(n, [&](int i) { vec(target + i) += scaled * vec(g + i); });
    }
}

void ExpressionSweep::push_product(const NodeArrays& to, int node, const double* f, const double* g, int n,
                                   bool choose) const {
    if (!choose) return push(to, node, 1, {f, n > 1}, g, n);
    double* chosen = buffer(7);
    for (int i = 0; i < n; ++i) chosen[i] = f[i] == 0 ? 0 : f[i] * g[i];
    push(to, node, 1, {}, chosen, n);
}

void ExpressionSweep::reverse(int index, bool second) {
    const ExpressionNode& node = graph_.node(index);
    if (node.kind <= ExpressionKind::input) return;
    if (node.kind == ExpressionKind::sum) {
        reverse_sum(node, index, second);
    } else {
        reverse_function(node, index, second);
    }
}

void ExpressionSweep::reverse_sum(const ExpressionNode& node, int index, bool second) {
    const int n = width(index);
    const double* g = at(adjoints, index);
    const double* dg = second ? at(adjoint_tangents, index) : nullptr;
    const auto needed = [&](int i) { return i >= 0 && graph_.needed[static_cast<std::size_t>(i)] != 0; };
    for (const ExpressionTerm& term : graph_.terms_of(node)) {
        const double c = term.coefficient;
        const auto give = [&](int to, int other) {
            if (!needed(to)) return;
            push(adjoints, to, c, factor(values, other), g, n);
            if (!second) return;
            push(adjoint_tangents, to, c, factor(values, other), dg, n);
            if (other >= 0 && moves(other)) push(adjoint_tangents, to, c, factor(tangents, other), g, n);
        };
        give(term.u, term.v);
        if (term.v >= 0) give(term.v, term.u);
    }
}

void ExpressionSweep::reverse_function(const ExpressionNode& node, int index, bool second) {
    const int n = width(index);
    const double* g = at(adjoints, index);
    const double* y = at(values, index);
    const double* u = spread(node.u, n, 0);
    const bool choose = chooses(node);
    const bool binary = node.v >= 0;
    const auto needed = [&](int i) { return graph_.needed[static_cast<std::size_t>(i)] != 0; };
    double* du = buffer(2);
    double* dv = buffer(3);
    const double* v = binary ? spread(node.v, n, 1) : nullptr;
    if (binary) {
        binary_first(node, n, u, v, y, du, dv);
    } else {
        unary_first(node, n, u, y, du);
    }
    if (needed(node.u)) push_product(adjoints, node.u, du, g, n, choose);
    if (binary && needed(node.v)) push_product(adjoints, node.v, dv, g, n, choose);
    if (!second) return;
    const double* dg = at(adjoint_tangents, index);
    if (needed(node.u)) push_product(adjoint_tangents, node.u, du, dg, n, choose);
    if (binary && needed(node.v)) push_product(adjoint_tangents, node.v, dv, dg, n, choose);
    if (choose) return;  // piecewise linear
    double* duu = buffer(4);
    double* duv = buffer(5);
    double* dvv = buffer(6);
    if (binary) {
        binary_second(node, n, u, v, y, duu, duv, dvv);
    } else {
        unary_second(node, n, u, y, duu);
    }
    // (second partial * tangent) * adjoint
    const auto bend = [&](int to, const double* partial, int along) {
        if (!needed(to) || !moves(along)) return;
        const Factor moved = factor(tangents, along);
        double* bent = buffer(7);
        for (int i = 0; i < n; ++i) bent[i] = partial[i] * moved.data[moved.lanes ? i : 0];
        push(adjoint_tangents, to, 1, {bent, n > 1}, g, n);
    };
    bend(node.u, duu, node.u);
    if (!binary) return;
    bend(node.u, duv, node.v);
    bend(node.v, duv, node.u);
    bend(node.v, dvv, node.v);
}

void ExpressionSweep::seed(const NodeArrays& arrays, int node, const double* from,
                           std::ptrdiff_t step) const {
    double* to = at(arrays, node);
    const int by_lane = places_.lanes(node) ? 1 : 0;
    for (int i = 0; i < rows_; ++i) to[i * by_lane] += from[i * step];
}

}  // namespace fubini
