// SPDX-License-Identifier: Apache-2.0
// What an Expression knows about its nodes before any number is computed.
#pragma once

#include <array>
#include <span>
#include <vector>

#include "core/expression.hpp"

namespace fubini {

/// A number of a row, an output or a weight, and where its node lives.
struct ExpressionColumn {
    int column, place;
};

/// Where the values of the nodes live: those that are the same for the whole batch in one array of numbers,
/// the others in rows of lanes.
struct ExpressionPlaces {
    std::vector<char> varies;  ///< by node
    std::vector<int> place;    ///< by node, among its own sort
    std::vector<int> uniform, varying;
    std::vector<int> reverse_uniform, reverse_varying;  ///< that a reverse sweep visits, in its order
    std::vector<int> varying_leaves;
    std::vector<int> uniform_inner;                 ///< uniform nodes but the leaves
    std::vector<ExpressionColumn> uniform_weights;  ///< uniform leaves: all of them are weights
    /// Of the angles, and of the parts of the amplitudes.
    std::array<std::vector<ExpressionColumn>, 2> uniform_outputs, varying_outputs;

    [[nodiscard]] bool lanes(int node) const { return varies[static_cast<std::size_t>(node)] != 0; }
    [[nodiscard]] std::size_t at(int node) const {
        return static_cast<std::size_t>(place[static_cast<std::size_t>(node)]);
    }
};

struct ExpressionGraph {
    int weights = 0, inputs = 0, angles = 0;
    std::vector<ExpressionNode> nodes;
    std::vector<ExpressionTerm> terms;
    std::vector<int> outputs;

    // Whether a node has derivatives by weights and by inputs, as torch's autograd would see it.
    std::vector<char> by_weights, by_inputs;
    /// Whether a reverse sweep from the outputs passes the node.
    std::vector<char> needed;
    /// Whether the derivatives by the weights are the same for all inputs.
    std::vector<char> constant_derivative;
    /// For an angle: the nodes that a reverse sweep from it visits, in its order; empty lists where they
    /// would take too much memory.
    std::vector<std::vector<int>> cones;
    ExpressionPlaces shared_weights, weights_by_row;
    double row_cost = 0;  ///< of the varying nodes, nanoseconds per row, roughly

    [[nodiscard]] const ExpressionNode& node(int index) const {
        return nodes[static_cast<std::size_t>(index)];
    }
    [[nodiscard]] std::span<const ExpressionTerm> terms_of(const ExpressionNode& node) const {
        return {terms.data() + node.u, static_cast<std::size_t>(node.v)};
    }
    [[nodiscard]] const ExpressionPlaces& places(bool by_row) const {
        return by_row ? weights_by_row : shared_weights;
    }

    /// The nodes that a reverse sweep from an output alone visits, in its order. `seen`, one entry per node,
    /// holds no `stamp` yet; `arguments` counts what is looked at.
    [[nodiscard]] std::vector<int> cone(int output, std::vector<int>& seen, int stamp,
                                        std::size_t& arguments) const;

    /// Calls body(argument) for every node that a node computes with.
    template <typename Body>
    void for_arguments(const ExpressionNode& node, const Body& body) const {
        const int count = expression_kinds()[static_cast<std::size_t>(node.kind)].arguments;
        if (node.kind == ExpressionKind::sum) {
            for (const ExpressionTerm& term : terms_of(node)) {
                body(term.u);
                if (term.v >= 0) body(term.v);
            }
        }
        if (count >= 1) body(node.u);
        if (count >= 2) body(node.v);
    }
};

}  // namespace fubini
