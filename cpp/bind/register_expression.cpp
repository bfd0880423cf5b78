// SPDX-License-Identifier: Apache-2.0
#include <map>
#include <memory>
#include <tuple>
#include <utility>

#include "bind/angle_arrays.hpp"
#include "core/expression.hpp"

namespace fubini::bind {
namespace {

using Nodes = std::vector<std::tuple<std::string, int, int, double>>;
using Terms = std::vector<std::tuple<double, int, int>>;
using Tangents = std::optional<RealArray>;

ExpressionKind kind_of(const std::string& name, std::size_t index) {
    static const auto numbers = [] {
        std::map<std::string, std::size_t, std::less<>> all;
        for (const ExpressionKindInfo& kind : expression_kinds()) all.emplace(kind.name, all.size());
        return all;
    }();
    const auto found = numbers.find(name);
    if (found == numbers.end()) {
        throw py::value_error("nodes[" + std::to_string(index) +
                              "]: expected a kind of expression_kinds(), got '" + name + "'");
    }
    return static_cast<ExpressionKind>(found->second);
}

std::shared_ptr<Expression> make(int weights, int inputs, const Nodes& nodes, const Terms& terms,
                                 const std::vector<int>& outputs, int angles) {
    std::vector<ExpressionNode> node_list;
    node_list.reserve(nodes.size());
    for (const auto& [name, u, v, c] : nodes) node_list.push_back({kind_of(name, node_list.size()), u, v, c});
    std::vector<ExpressionTerm> term_list;
    term_list.reserve(terms.size());
    for (const auto& [coefficient, u, v] : terms) term_list.push_back({coefficient, u, v});
    return std::make_shared<Expression>(weights, inputs, node_list, term_list, outputs, angles);
}

AnglePoint point_of(const Expression& e, const RealArray& weights, const RealArray& inputs) {
    AnglePoint point;
    point.batch = batch_rows(e, inputs);
    point.inputs = inputs.data();
    point.weights = weights.data();
    point.weights_by_row = weights.ndim() == 2;
    if (point.weights_by_row) {
        expect_shape("weights", weights, "(batch, weights)", point.batch, e.weights());
    } else if (weights.ndim() != 1 || weights.shape(0) != e.weights()) {
        throw py::value_error("weights: expected shape (weights,) = (" + std::to_string(e.weights()) +
                              ",) or (batch, weights), got " + shape_of(weights));
    }
    return point;
}

std::vector<py::ssize_t> shape_vector(const py::array& array) {
    return {array.shape(), array.shape() + array.ndim()};
}

const double* tangents_of(const char* name, const Tangents& tangents, const RealArray& like) {
    if (!tangents) return nullptr;
    if (shape_vector(*tangents) != shape_vector(like)) {
        throw py::value_error(std::string(name) + ": expected shape " + shape_of(like) + ", got " +
                              shape_of(*tangents));
    }
    return tangents->data();
}

RealArray angles_array(const Expression& map, const std::vector<RealArray>& weights,
                       const RealArray& inputs) {
    return Mapped(map, weights, inputs, false).angles;
}

State states_array(const Expression& map, const std::vector<RealArray>& weights, const RealArray& inputs) {
    const Mapped found(map, weights, inputs);
    if (!found.states || found.states->shape(0) == found.point.batch) return found.states;
    ComplexArray all({found.point.batch, py::ssize_t{map.amplitudes()}});
    for (py::ssize_t b = 0; b < found.point.batch; ++b)
        std::copy_n(found.states->data(), map.amplitudes(), all.mutable_data() + b * map.amplitudes());
    return all;
}

RealArray outputs_array(const Expression& e, const AnglePoint& point) {
    return new_array("the values", {point.batch, e.outputs()});
}

/// Outputs side by side in rows.
template <typename Real>
OutputRows<Real> side_by_side(const Expression& e, Real* data) {
    return {data, e.outputs(), data + e.angles(), e.outputs()};
}

RealArray evaluate(const Expression& e, const RealArray& weights, const RealArray& inputs) {
    const AnglePoint point = point_of(e, weights, inputs);
    RealArray values = outputs_array(e, point);
    const auto to = side_by_side(e, values.mutable_data());
    run([&] { e.evaluate(point, to); });
    return values;
}

std::pair<RealArray, RealArray> gradients(const Expression& e, const RealArray& weights,
                                          const RealArray& inputs, const RealArray& cotangents,
                                          const AngleTangents* tangents) {
    const AnglePoint point = point_of(e, weights, inputs);
    expect_shape("cotangents", cotangents, "(batch, outputs)", point.batch, e.outputs());
    RealArray by_weights(shape_vector(weights));
    RealArray by_inputs(shape_vector(inputs));
    const auto from = side_by_side(e, cotangents.data());
    run([&] { e.pull_back(point, from, tangents, by_weights.mutable_data(), by_inputs.mutable_data()); });
    return {std::move(by_weights), std::move(by_inputs)};
}

std::pair<RealArray, RealArray> vjp(const Expression& e, const RealArray& weights, const RealArray& inputs,
                                    const RealArray& cotangents) {
    return gradients(e, weights, inputs, cotangents, nullptr);
}

std::pair<RealArray, RealArray> hessian_product(const Expression& e, const RealArray& weights,
                                                const RealArray& inputs, const RealArray& cotangents,
                                                const Tangents& weight_tangents,
                                                const Tangents& input_tangents) {
    const AngleTangents tangents{tangents_of("weight_tangents", weight_tangents, weights),
                                 tangents_of("input_tangents", input_tangents, inputs)};
    return gradients(e, weights, inputs, cotangents, &tangents);
}

RealArray jvp(const Expression& e, const RealArray& weights, const RealArray& inputs,
              const Tangents& weight_tangents, const Tangents& input_tangents) {
    const AnglePoint point = point_of(e, weights, inputs);
    const AngleTangents tangents{tangents_of("weight_tangents", weight_tangents, weights),
                                 tangents_of("input_tangents", input_tangents, inputs)};
    RealArray values = outputs_array(e, point);
    const auto to = side_by_side(e, values.mutable_data());
    run([&] { e.push_forward(point, tangents, to); });
    return values;
}

std::pair<RealArray, std::optional<RealArray>> jacobian(const Expression& e, const RealArray& weights,
                                                        const RealArray& inputs, const std::vector<int>& rows,
                                                        bool want_inputs) {
    AnglePoint point = point_of(e, weights, inputs);
    for (std::size_t i = 0; i < rows.size(); ++i) {
        if (rows[i] >= 0 && rows[i] < e.outputs()) continue;
        throw py::value_error("rows[" + std::to_string(i) + "]: expected an output, 0 to " +
                              std::to_string(e.outputs() - 1) + ", got " + std::to_string(rows[i]));
    }
    const bool constant = !point.weights_by_row && e.constant_jacobian(rows);
    const py::ssize_t size = point.batch;
    const auto count = static_cast<py::ssize_t>(rows.size());
    const py::ssize_t by_weights_rows = constant ? 1 : size;
    expect_fits(static_cast<double>(count) * (static_cast<double>(by_weights_rows) * e.weights() +
                                              static_cast<double>(want_inputs ? size : 0) * e.inputs()),
                "the Jacobian");
    RealArray by_weights({by_weights_rows, count, py::ssize_t{e.weights()}});
    std::optional<RealArray> by_inputs;
    if (want_inputs) by_inputs.emplace(RealArray({size, count, py::ssize_t{e.inputs()}}));
    double* weights_to = by_weights.mutable_data();
    double* inputs_to = by_inputs ? by_inputs->mutable_data() : nullptr;
    run([&] {
        if (!constant || inputs_to != nullptr) {
            e.jacobian(point, rows, constant ? nullptr : weights_to, inputs_to);
        }
        if (!constant) return;
        // The inputs do not matter, but there must be some.
        const std::vector<double> zeros(static_cast<std::size_t>(point.batch == 0 ? e.inputs() : 0));
        if (point.batch == 0) point.inputs = zeros.data();
        point.batch = 1;
        e.jacobian(point, rows, weights_to, nullptr);
    });
    return {std::move(by_weights), std::move(by_inputs)};
}

}  // namespace

void register_expression(py::module_& m) {
    m.def(
        "expression_kinds",
        [] {
            std::map<std::string, int> kinds;
            for (const ExpressionKindInfo& kind : expression_kinds())
                kinds.emplace(kind.name, kind.arguments);
            return kinds;
        },
        "Kinds of nodes of an Expression and how many nodes they take; -1: a list of terms.");
    py::class_<Expression, std::shared_ptr<Expression>>(
        m, "Expression", py::module_local(),
        "Angles, and amplitudes of an initial state, as a scalar program of weights and inputs: nodes (kind, "
        "u, v, c), terms (coefficient, u, v) of sums, outputs: angles, then real and imaginary parts of "
        "amplitudes, interleaved.")
        .def(py::init(&make), "weights"_a, "inputs"_a, "nodes"_a, "terms"_a, "outputs"_a, "angles"_a)
        .def_property_readonly("num_weights", &Expression::weights)
        .def_property_readonly("num_outputs", &Expression::outputs)
        .def("angles", &angles_array, "weights"_a, "inputs"_a,
             "Angles (batch, angles) for a list of weights and inputs (batch, features).")
        .def("states", &states_array, "weights"_a, "inputs"_a,
             "Initial states (batch, amplitudes), or None where there are none.")
        .def("evaluate", &evaluate, "weights"_a.noconvert(), "inputs"_a.noconvert(),
             "Outputs (batch, outputs) of weights (weights,) or (batch, weights) and inputs (batch, "
             "features).")
        .def("vjp", &vjp, "weights"_a.noconvert(), "inputs"_a.noconvert(), "cotangents"_a.noconvert(),
             "Gradients, of the shapes of weights and inputs, of outputs weighted by (batch, outputs).")
        .def(
            "jvp", &jvp, "weights"_a.noconvert(), "inputs"_a.noconvert(), "weight_tangents"_a.noconvert(),
            "input_tangents"_a.noconvert(),
            "Derivatives (batch, outputs) along tangents of the shapes of weights and inputs; None: does not "
            "move.")
        .def("hessian_product", &hessian_product, "weights"_a.noconvert(), "inputs"_a.noconvert(),
             "cotangents"_a.noconvert(), "weight_tangents"_a.noconvert(), "input_tangents"_a.noconvert(),
             "Derivatives of the results of vjp along the tangents, for fixed cotangents.")
        .def(
            "jacobian", &jacobian, "weights"_a.noconvert(), "inputs"_a.noconvert(), "rows"_a,
            "want_inputs"_a = false,
            "Derivatives of some outputs by weights, (batch, rows, weights) or (1, rows, weights) where they "
            "are the same for all inputs, and by inputs, (batch, rows, features) or None.");
}

}  // namespace fubini::bind
