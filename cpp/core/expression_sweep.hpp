// SPDX-License-Identifier: Apache-2.0
// The nodes of an Expression one after the other, over the lanes of a tile of rows: values, tangents,
// adjoints.
#pragma once

#include <algorithm>
#include <cstddef>

#include "core/expression_graph.hpp"

namespace fubini {

/// One quantity of every node: numbers of the nodes that are the same for the whole batch, and lanes.
struct NodeArrays {
    double* uniform = nullptr;
    double* lanes = nullptr;
};

/// Works on one tile at a time, and once on what is the same for all tiles.
class ExpressionSweep {
  public:
    ExpressionSweep(const ExpressionGraph& graph, const ExpressionPlaces& places, int tile)
        : graph_(graph), places_(places), tile_(tile) {}

    /// Lanes per node of a tile: a multiple of the register width that keeps the nodes in the cache.
    [[nodiscard]] static int tile_rows(const ExpressionPlaces& places, std::ptrdiff_t batch);
    [[nodiscard]] std::size_t lane_doubles() const {
        return places_.varying.size() * static_cast<std::size_t>(tile_);
    }
    [[nodiscard]] std::size_t uniform_doubles() const { return places_.uniform.size(); }
    [[nodiscard]] std::size_t scratch_doubles() const { return buffers * static_cast<std::size_t>(tile_); }

    // What to work with. Arrays of tangents and adjoints may be left out where no call below needs them.
    NodeArrays values, tangents, adjoints, adjoint_tangents;
    double* scratch = nullptr;
    /// Which leaves move; nothing is computed along what does not.
    bool weights_move = false, inputs_move = false;

    /// Chooses rows [first, first + rows) of the batch.
    void begin(std::ptrdiff_t first, int rows);
    [[nodiscard]] std::ptrdiff_t first() const { return first_; }
    [[nodiscard]] int rows() const { return rows_; }

    /// Leaves from weights and inputs, for values and tangents alike.
    void load_uniform_leaves(NodeArrays to, const double* weights) const;
    void load_leaves(NodeArrays to, const double* weights, std::ptrdiff_t weight_stride,
                     const double* inputs) const;
    void value(int node);
    void tangent(int node);
    /// Adds to the adjoints of the node's arguments, and with `second` to the tangents of these adjoints.
    void reverse(int node, bool second);

    [[nodiscard]] bool moves(int node) const {
        const auto i = static_cast<std::size_t>(node);
        return (weights_move && graph_.by_weights[i] != 0) || (inputs_move && graph_.by_inputs[i] != 0);
    }
    /// A node's number, or its lanes.
    [[nodiscard]] double* at(const NodeArrays& arrays, int node) const {
        if (!places_.lanes(node)) return arrays.uniform + places_.at(node);
        return arrays.lanes + places_.at(node) * static_cast<std::size_t>(tile_);
    }
    [[nodiscard]] double* lane(const NodeArrays& arrays, int place) const {
        return arrays.lanes + static_cast<std::ptrdiff_t>(place) * tile_;
    }
    void clear(const NodeArrays& arrays, int node) const { std::fill_n(at(arrays, node), width(node), 0.0); }
    /// Adds numbers of the rows to a node's; `step` lies between them. Those of a uniform node are summed.
    void seed(const NodeArrays& arrays, int node, const double* from, std::ptrdiff_t step) const;

  private:
    static constexpr std::size_t buffers = 8;

    /// A factor: a number, lanes, or 1 where null.
    struct Factor {
        const double* data = nullptr;
        bool lanes = false;
    };
    [[nodiscard]] int width(int node) const { return places_.lanes(node) ? padded_ : 1; }
    [[nodiscard]] double* buffer(int index) const { return scratch + index * tile_; }
    [[nodiscard]] Factor factor(const NodeArrays& arrays, int node) const {
        if (node < 0) return {};
        return {at(arrays, node), places_.lanes(node)};
    }
    [[nodiscard]] const double* spread(int node, int n, int index) const;
    void add_product(double* to, int n, double c, Factor u, Factor v) const;
    void push(const NodeArrays& to, int node, double c, Factor f, const double* g, int n) const;
    void push_product(const NodeArrays& to, int node, const double* f, const double* g, int n,
                      bool choose) const;
    void tangent_of_sum(const ExpressionNode& node, double* to, int n);
    void reverse_sum(const ExpressionNode& node, int index, bool second);
    void reverse_function(const ExpressionNode& node, int index, bool second);

    const ExpressionGraph& graph_;
    const ExpressionPlaces& places_;
    int tile_;
    std::ptrdiff_t first_ = 0;
    int rows_ = 0, padded_ = 0;
};

}  // namespace fubini
