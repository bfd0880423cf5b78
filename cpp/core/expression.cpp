// SPDX-License-Identifier: Apache-2.0
#include "core/expression.hpp"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>

#include "core/expression_graph.hpp"

namespace fubini {
namespace {

constexpr std::size_t max_cone_arguments = std::size_t{1} << 21;
constexpr std::size_t max_terms = std::size_t{1} << 26;

constexpr auto kinds = std::to_array<ExpressionKindInfo>({
    {"weight", 0},     {"input", 0},   {"sum", -1},           {"quotient", 2}, {"power", 2}, {"atan2", 2},
    {"maximum", 2},    {"minimum", 2}, {"power_constant", 1}, {"sin", 1},      {"cos", 1},   {"tan", 1},
    {"asin", 1},       {"acos", 1},    {"atan", 1},           {"sinh", 1},     {"cosh", 1},  {"tanh", 1},
    {"asinh", 1},      {"acosh", 1},   {"atanh", 1},          {"exp", 1},      {"exp2", 1},  {"expm1", 1},
    {"log", 1},        {"log1p", 1},   {"log2", 1},           {"log10", 1},    {"sqrt", 1},  {"rsqrt", 1},
    {"reciprocal", 1}, {"sigmoid", 1}, {"relu", 1},           {"abs", 1},      {"erf", 1},   {"erfc", 1},
    {"softplus", 1},   {"sign", 1},    {"floor", 1},          {"ceil", 1},     {"round", 1}, {"detach", 1},
});
static_assert(kinds.size() == static_cast<std::size_t>(ExpressionKind::detach) + 1);

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void expect(bool holds, const char* list, std::size_t index, const char* what, int got, int below) {
    if (holds) return;
    refuse(std::string(list) + "[" + std::to_string(index) + "]: expected " + what + " below " +
           std::to_string(below) + ", got " + std::to_string(got));
}

constexpr auto most = static_cast<std::size_t>(std::numeric_limits<int>::max() / 4);

[[noreturn]] void refuse_long(const char* list, std::size_t limit) {
    refuse(std::string(list) + ": expected at most " + std::to_string(limit) + " entries");
}

bool within(int index, int size) { return index >= 0 && index < size; }

void check_nodes(const ExpressionGraph& graph) {
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
        const ExpressionNode& node = graph.nodes[i];
        const int before = static_cast<int>(i);
        const auto kind = static_cast<std::size_t>(node.kind);
        if (kind >= kinds.size()) refuse("nodes[" + std::to_string(i) + "]: unknown kind");
        if (node.kind == ExpressionKind::weight) {
            expect(within(node.u, graph.weights), "nodes", i, "a weight", node.u, graph.weights);
        } else if (node.kind == ExpressionKind::input) {
            expect(within(node.u, graph.inputs), "nodes", i, "an input", node.u, graph.inputs);
        } else if (node.kind == ExpressionKind::sum) {
            const int count = static_cast<int>(graph.terms.size());
            expect(within(node.u, count + 1), "nodes", i, "a first term", node.u, count + 1);
            expect(within(node.v, count - node.u + 1), "nodes", i, "a number of terms", node.v,
                   count - node.u + 1);
            for (int t = node.u; t < node.u + node.v; ++t) {
                const ExpressionTerm& term = graph.terms[static_cast<std::size_t>(t)];
                const auto place = static_cast<std::size_t>(t);
                expect(within(term.u, before), "terms", place, "an earlier node", term.u, before);
                expect(term.v == -1 || within(term.v, before), "terms", place, "-1 or an earlier node",
                       term.v, before);
            }
        } else {
            expect(within(node.u, before), "nodes", i, "an earlier node", node.u, before);
            if (kinds[kind].arguments == 2)
                expect(within(node.v, before), "nodes", i, "an earlier node", node.v, before);
        }
    }
}

/// Leaves out what no output needs.
void prune(ExpressionGraph& graph) {
    std::vector<char> live(graph.nodes.size());
    for (const int output : graph.outputs) live[static_cast<std::size_t>(output)] = 1;
    for (std::size_t i = graph.nodes.size(); i-- > 0;) {
        if (live[i] == 0) continue;
        graph.for_arguments(graph.nodes[i],
                            [&](int argument) { live[static_cast<std::size_t>(argument)] = 1; });
    }
    std::size_t total = 0;  // lists of terms that overlap are copied
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
        if (live[i] != 0 && graph.nodes[i].kind == ExpressionKind::sum)
            total += static_cast<std::size_t>(graph.nodes[i].v);
    }
    if (total > max_terms) refuse_long("terms of all nodes", max_terms);
    std::vector<int> renamed(graph.nodes.size(), -1);
    const auto name = [&](int old) { return old < 0 ? -1 : renamed[static_cast<std::size_t>(old)]; };
    std::vector<ExpressionNode> nodes;
    std::vector<ExpressionTerm> terms;
    for (std::size_t i = 0; i < graph.nodes.size(); ++i) {
        if (live[i] == 0) continue;
        ExpressionNode node = graph.nodes[i];
        if (node.kind == ExpressionKind::sum) {
            const int first = static_cast<int>(terms.size());
            for (const ExpressionTerm& term : graph.terms_of(node))
                terms.push_back({term.coefficient, name(term.u), name(term.v)});
            node.u = first;
        } else if (kinds[static_cast<std::size_t>(node.kind)].arguments > 0) {
            node.u = name(node.u);
            node.v = kinds[static_cast<std::size_t>(node.kind)].arguments == 2 ? name(node.v) : -1;
        }
        renamed[i] = static_cast<int>(nodes.size());
        nodes.push_back(node);
    }
    for (int& output : graph.outputs) output = name(output);
    graph.nodes = std::move(nodes);
    graph.terms = std::move(terms);
}

/// The derivative of a node by the weights is the same for all inputs where what multiplies the derivatives
/// of its arguments is.
bool has_constant_derivative(const ExpressionGraph& graph, const ExpressionNode& node,
                             const std::vector<char>& by_inputs_at_all) {
    const auto fixed = [&](int i) { return by_inputs_at_all[static_cast<std::size_t>(i)] == 0; };
    const auto depends = [&](int i) { return graph.by_weights[static_cast<std::size_t>(i)] != 0; };
    const auto constant = [&](int i) {
        return !depends(i) || graph.constant_derivative[static_cast<std::size_t>(i)] != 0;
    };
    if (node.kind == ExpressionKind::sum) {
        return std::ranges::all_of(graph.terms_of(node), [&](const ExpressionTerm& term) {
            if (term.v < 0) return constant(term.u);
            return constant(term.u) && constant(term.v) && (!depends(term.u) || fixed(term.v)) &&
                   (!depends(term.v) || fixed(term.u));
        });
    }
    if (node.kind == ExpressionKind::quotient && !depends(node.v) && fixed(node.v)) return constant(node.u);
    bool any = false, same = true;
    graph.for_arguments(node, [&](int argument) {
        any = any || depends(argument);
        same = same && fixed(argument) && constant(argument);
    });
    return !any || same;
}

void analyse(ExpressionGraph& graph) {
    const std::size_t count = graph.nodes.size();
    std::vector<char> value_by_weights(count), value_by_inputs(count);
    for (auto* flags : {&graph.by_weights, &graph.by_inputs, &graph.needed, &graph.constant_derivative})
        flags->assign(count, 0);
    for (std::size_t i = 0; i < count; ++i) {
        const ExpressionNode& node = graph.nodes[i];
        const bool passes = node.kind != ExpressionKind::detach;
        value_by_weights[i] = graph.by_weights[i] = node.kind == ExpressionKind::weight;
        value_by_inputs[i] = graph.by_inputs[i] = node.kind == ExpressionKind::input;
        graph.for_arguments(node, [&](int argument) {
            const auto a = static_cast<std::size_t>(argument);
            value_by_weights[i] |= value_by_weights[a];
            value_by_inputs[i] |= value_by_inputs[a];
            if (passes) {
                graph.by_weights[i] |= graph.by_weights[a];
                graph.by_inputs[i] |= graph.by_inputs[a];
            }
        });
        graph.constant_derivative[i] = has_constant_derivative(graph, node, value_by_inputs);
        graph.row_cost += value_by_inputs[i] == 0              ? 0.0
                          : node.kind == ExpressionKind::sum   ? 0.3 * (node.v + 1)
                          : node.kind <= ExpressionKind::input ? 1.0
                                                               : 15.0;
    }
    for (const int output : graph.outputs) graph.needed[static_cast<std::size_t>(output)] = 1;
    for (std::size_t i = count; i-- > 0;) {
        graph.needed[i] = graph.needed[i] != 0 && (graph.by_weights[i] != 0 || graph.by_inputs[i] != 0);
        if (graph.needed[i] == 0) continue;
        graph.for_arguments(graph.nodes[i],
                            [&](int argument) { graph.needed[static_cast<std::size_t>(argument)] = 1; });
    }
    const auto arrange = [&](ExpressionPlaces& places, bool by_row) {
        places.varies.resize(count);
        places.place.resize(count);
        for (std::size_t i = 0; i < count; ++i) {
            const int index = static_cast<int>(i);
            const bool varies = value_by_inputs[i] != 0 || (by_row && value_by_weights[i] != 0);
            std::vector<int>& list = varies ? places.varying : places.uniform;
            places.varies[i] = varies;
            places.place[i] = static_cast<int>(list.size());
            list.push_back(index);
            const bool leaf = graph.nodes[i].kind <= ExpressionKind::input;
            if (varies && leaf) places.varying_leaves.push_back(index);
            if (!varies && leaf) places.uniform_weights.push_back({graph.nodes[i].u, places.place[i]});
            if (!varies && !leaf) places.uniform_inner.push_back(index);
        }
        for (int k = 0; k < static_cast<int>(graph.outputs.size()); ++k) {
            const int node = graph.outputs[static_cast<std::size_t>(k)];
            const bool angle = k < graph.angles;
            auto& sort = places.lanes(node) ? places.varying_outputs : places.uniform_outputs;
            sort[angle ? 0 : 1].push_back(
                {angle ? k : k - graph.angles, places.place[static_cast<std::size_t>(node)]});
        }
        for (std::size_t i = count; i-- > 0;) {
            if (graph.needed[i] == 0) continue;
            (places.varies[i] != 0 ? places.reverse_varying : places.reverse_uniform)
                .push_back(static_cast<int>(i));
        }
    };
    arrange(graph.shared_weights, false);
    arrange(graph.weights_by_row, true);
}

void find_cones(ExpressionGraph& graph) {
    std::vector<int> seen(graph.nodes.size(), -1);
    std::size_t arguments = 0;
    for (int a = 0; a < graph.angles; ++a) {
        graph.cones.push_back(graph.cone(graph.outputs[static_cast<std::size_t>(a)], seen, a, arguments));
        if (arguments > max_cone_arguments) return graph.cones.clear();
    }
}

}  // namespace

std::vector<int> ExpressionGraph::cone(int output, std::vector<int>& seen, int stamp,
                                       std::size_t& arguments) const {
    std::vector<int> found;
    const auto visit = [&](int node_index) {
        const auto i = static_cast<std::size_t>(node_index);
        ++arguments;
        if (seen[i] == stamp || needed[i] == 0) return;
        seen[i] = stamp;
        found.push_back(node_index);
    };
    visit(output);
    for (std::size_t next = 0; next < found.size(); ++next) for_arguments(node(found[next]), visit);
    std::ranges::sort(found, std::greater<>());
    return found;
}

std::span<const ExpressionKindInfo> expression_kinds() { return kinds; }

Expression::Expression(int weights, int inputs, const std::vector<ExpressionNode>& nodes,
                       const std::vector<ExpressionTerm>& terms, const std::vector<int>& outputs,
                       int angles) {
    if (weights < 0 || inputs < 0 || angles < 0) {
        refuse("weights, inputs, angles: expected numbers >= 0, got " + std::to_string(weights) + ", " +
               std::to_string(inputs) + " and " + std::to_string(angles));
    }
    if (std::max({nodes.size(), terms.size(), outputs.size()}) > most) {
        refuse_long("nodes, terms, outputs", most);
    }
    const auto angle_count = static_cast<std::size_t>(angles);
    if (outputs.size() < angle_count || (outputs.size() - angle_count) % 2 != 0) {
        refuse("outputs: expected " + std::to_string(angles) +
               " angles, and real and imaginary parts of amplitudes, got " + std::to_string(outputs.size()) +
               " nodes");
    }
    auto graph = std::make_shared<ExpressionGraph>();
    graph->weights = weights;
    graph->inputs = inputs;
    graph->angles = angles;
    graph->nodes = nodes;
    graph->terms = terms;
    graph->outputs = outputs;
    check_nodes(*graph);
    for (std::size_t i = 0; i < outputs.size(); ++i) {
        const int size = static_cast<int>(nodes.size());
        expect(within(outputs[i], size), "outputs", i, "a node", outputs[i], size);
    }
    prune(*graph);
    analyse(*graph);
    find_cones(*graph);
    graph_ = std::move(graph);
}

int Expression::angles() const { return graph_->angles; }
int Expression::weights() const { return graph_->weights; }
int Expression::inputs() const { return graph_->inputs; }
int Expression::amplitudes() const { return (static_cast<int>(graph_->outputs.size()) - graph_->angles) / 2; }

bool Expression::shared_state() const {
    return std::none_of(graph_->outputs.begin() + graph_->angles, graph_->outputs.end(),
                        [&](int node) { return graph_->shared_weights.lanes(node); });
}

bool Expression::state_has_derivatives() const {
    return std::any_of(graph_->outputs.begin() + graph_->angles, graph_->outputs.end(),
                       [&](int node) { return graph_->needed[static_cast<std::size_t>(node)] != 0; });
}

bool Expression::constant_jacobian(std::span<const int> rows) const {
    return std::ranges::all_of(rows, [&](int row) {
        const auto node = static_cast<std::size_t>(graph_->outputs[static_cast<std::size_t>(row)]);
        return graph_->by_weights[node] == 0 || graph_->constant_derivative[node] != 0;
    });
}

}  // namespace fubini
