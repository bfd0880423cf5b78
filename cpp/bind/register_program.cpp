// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "bind/module.hpp"
#include "core/plan.hpp"
#include "core/program.hpp"

namespace fubini::bind {
namespace {

using Wires = std::vector<int>;
using ParameterTuple = std::tuple<int, double, double>;

Placement placement(const Wires& wires, const Wires& controls, const Wires& values, bool adjoint) {
    return {wires, controls, values, adjoint};
}

Parameter parameter(const ParameterTuple& p) { return {std::get<0>(p), std::get<1>(p), std::get<2>(p)}; }

std::span<const std::complex<double>> span_of(const ComplexArray& array) {
    return {array.data(), static_cast<std::size_t>(array.size())};
}

using OperationRow = std::tuple<std::string, Mask, Mask, double, Mask, Mask, int, double, double, Mask>;

std::vector<OperationRow> operation_rows(const Program& program) {
    const auto name = [](Operation::Kind kind) {
        switch (kind) {
            case Operation::Kind::rotation:
                return "rotation";
            case Operation::Kind::flip:
                return "flip";
            case Operation::Kind::matrix:
                return "matrix";
            default:
                return "diagonal";
        }
    };
    std::vector<OperationRow> rows;
    for (const Operation& o : program.operations()) {
        rows.emplace_back(name(o.kind), o.word.x, o.word.z, sign(o.word), o.fixed, o.value, o.slot,
                          o.coefficient, o.offset, o.support());
    }
    return rows;
}

}  // namespace

void register_program(py::module_& m) {
    py::class_<Program>(m, "Program", py::module_local(), "A compiled circuit. Immutable.")
        .def_property_readonly("num_wires", &Program::qubits)
        .def_property_readonly("num_angles", &Program::angles)
        .def_property_readonly("num_outputs", [](const Program& p) { return p.outputs().size(); })
        .def_property_readonly("takes_state", &Program::takes_state)
        .def_property_readonly(
            "num_steps", [](const Program& p) { return p.plan().steps.size(); },
            "Passes over the state that one forward sweep makes, after fusion.")
        .def("operations", &operation_rows,
             "Elementary operations in order: (kind, x mask, z mask, sign, fixed mask, fixed value, slot, "
             "coefficient, offset, mask of all wires).")
        .def(
            "expansion",
            [](const Program& p, int index) {
                if (index < 0 || static_cast<std::size_t>(index) >= p.operations().size()) {
                    throw py::index_error("operation: expected 0 to " +
                                          std::to_string(p.operations().size()) + " - 1, got " +
                                          std::to_string(index));
                }
                std::vector<std::tuple<Mask, Mask, double>> terms;
                for (const PauliTerm& term : expansion(p.operations()[static_cast<std::size_t>(index)])) {
                    terms.emplace_back(term.x, term.z, term.coefficient);
                }
                return terms;
            },
            "operation"_a, "K of a rotation or flip as a sum of words: (x mask, z mask, coefficient).")
        .def(
            "staged",
            [](const Program& p, const std::vector<int>& order,
               const std::vector<std::pair<std::size_t, std::vector<std::tuple<Mask, Mask, double, int>>>>&
                   stages) {
                std::vector<Stage> list;
                for (const auto& [operations, terms] : stages) {
                    Stage stage{operations, {}};
                    for (const auto& [x, z, coefficient, moment] : terms) {
                        stage.terms.push_back({x, z, coefficient, moment});
                    }
                    list.push_back(std::move(stage));
                }
                return staged(p, order, std::move(list));
            },
            "order"_a, "stages"_a,
            "The operations in another order, measured on the way; a stage is (number of operations before "
            "it, "
            "[(x mask, z mask, coefficient, moment)]).");

    py::class_<ProgramBuilder>(m, "ProgramBuilder", py::module_local(),
                               "Collects gates and observables. A parameter is (slot, coefficient, offset): "
                               "coefficient * angles[slot] + offset; slot -1 leaves the offset alone.")
        .def(py::init<int, int, bool>(), "wires"_a, "angles"_a, "takes_state"_a)
        .def(
            "gate",
            [](ProgramBuilder& self, const std::string& name, const Wires& wires, const Wires& controls,
               const Wires& values, bool adjoint, const std::vector<ParameterTuple>& parameters) {
                std::vector<Parameter> list;
                for (const ParameterTuple& p : parameters) list.push_back(parameter(p));
                self.gate(name, placement(wires, controls, values, adjoint), list);
            },
            "name"_a, "wires"_a, "controls"_a, "control_values"_a, "adjoint"_a, "parameters"_a,
            "Append a gate of the gate table.")
        .def(
            "pauli_rotation",
            [](ProgramBuilder& self, const std::string& pauli, const Wires& wires, const Wires& controls,
               const Wires& values, bool adjoint, const ParameterTuple& p) {
                self.pauli_rotation(pauli, placement(wires, controls, values, adjoint), parameter(p));
            },
            "pauli"_a, "wires"_a, "controls"_a, "control_values"_a, "adjoint"_a, "parameter"_a,
            "Append exp(-i t P / 2).")
        .def(
            "matrix",
            [](ProgramBuilder& self, const ComplexArray& matrix, const Wires& wires, const Wires& controls,
               const Wires& values,
               bool adjoint) { self.matrix(span_of(matrix), placement(wires, controls, values, adjoint)); },
            "matrix"_a.noconvert(), "wires"_a, "controls"_a, "control_values"_a, "adjoint"_a,
            "Append a constant unitary, shape (2^k, 2^k).")
        .def(
            "diagonal",
            [](ProgramBuilder& self, const ComplexArray& diagonal, const Wires& wires, const Wires& controls,
               const Wires& values, bool adjoint) {
                self.diagonal(span_of(diagonal), placement(wires, controls, values, adjoint));
            },
            "diagonal"_a.noconvert(), "wires"_a, "controls"_a, "control_values"_a, "adjoint"_a,
            "Append a constant diagonal unitary, shape (2^k,).")
        .def(
            "pauli_term",
            [](ProgramBuilder& self, int moment, double coefficient, const std::string& pauli,
               const Wires& wires) { self.pauli_term(moment, coefficient, pauli, wires); },
            "moment"_a, "coefficient"_a, "pauli"_a, "wires"_a, "Add coefficient * <P> to a moment.")
        .def(
            "probability_term",
            [](ProgramBuilder& self, int moment, double weight, const Wires& wires, std::size_t index) {
                self.probability_term(moment, weight, wires, index);
            },
            "moment"_a, "weight"_a, "wires"_a, "index"_a,
            "Add weight * probability of reading index on the wires to a moment.")
        .def("output", &ProgramBuilder::output, "moment"_a, "square"_a = -1,
             "Append a result column: moment - square^2, or moment alone.")
        .def("build", &ProgramBuilder::build, "Compile; the builder is empty afterwards.");

    m.def(
        "gate_table",
        [] {
            std::vector<std::tuple<std::string, int, int>> rows;
            for (const Gate& gate : gate_table()) {
                rows.emplace_back(std::string(gate.name), gate.wires, gate.parameters);
            }
            return rows;
        },
        "Name, number of wires and number of parameters of every native gate.");
}

}  // namespace fubini::bind
