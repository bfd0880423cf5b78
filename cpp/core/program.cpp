// SPDX-License-Identifier: Apache-2.0
#include "core/program.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/plan.hpp"

namespace fubini {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

void check_moment(int moment, int least = 0) {
    if (moment < least || moment >= max_moments) {
        refuse("moment: expected " + std::to_string(least) + " to " + std::to_string(max_moments - 1) +
               ", got " + std::to_string(moment));
    }
}

void check_coefficient(double coefficient) {
    if (!std::isfinite(coefficient))
        refuse("coefficient: expected a finite number, got " + std::to_string(coefficient));
}

void check_pauli(std::string_view pauli, std::size_t wires) {
    if (pauli.size() == wires && pauli.find_first_not_of("IXYZ") == std::string_view::npos) return;
    refuse("pauli: expected " + std::to_string(wires) + " letters of IXYZ, got '" + std::string(pauli) + "'");
}

/// The Hermitian word of letters, one for each of the first qubits.
Word word_of(std::string_view pauli, const std::vector<int>& qubits) {
    Mask x = 0, z = 0;
    for (std::size_t w = 0; w < pauli.size(); ++w) {
        const Mask bit = Mask{1} << qubits[w];
        if (pauli[w] == 'X' || pauli[w] == 'Y') x |= bit;
        if (pauli[w] == 'Z' || pauli[w] == 'Y') z |= bit;
    }
    return hermitian(x, z);
}

}  // namespace

ProgramBuilder::ProgramBuilder(int wires, int angles, bool takes_state) {
    if (wires < 1 || wires > max_qubits) {
        refuse("wires: expected 1 to " + std::to_string(max_qubits) + ", got " + std::to_string(wires));
    }
    if (angles < 0 || angles > max_angles) {
        refuse("angles: expected 0 to " + std::to_string(max_angles) + ", got " + std::to_string(angles));
    }
    program_.qubits_ = wires;
    program_.angles_ = angles;
    program_.takes_state_ = takes_state;
}

std::vector<int> ProgramBuilder::qubits_of(std::span<const int> wires, Mask taken, const char* what) const {
    std::vector<int> qubits;
    for (const int wire : wires) {
        if (wire < 0 || wire >= program_.qubits_) {
            refuse(std::string(what) + ": expected 0 to " + std::to_string(program_.qubits_ - 1) + ", got " +
                   std::to_string(wire));
        }
        const int qubit = program_.qubits_ - 1 - wire;
        if ((taken >> qubit & 1) != 0)
            refuse(std::string(what) + ": wire " + std::to_string(wire) + " occurs twice");
        taken |= Mask{1} << qubit;
        qubits.push_back(qubit);
    }
    return qubits;
}

ProgramBuilder::Frame ProgramBuilder::resolve(const Placement& place) const {
    Frame frame;
    frame.qubits = qubits_of(place.wires, 0, "wires");
    Mask taken = 0;
    for (const int qubit : frame.qubits) taken |= Mask{1} << qubit;
    if (place.controls.size() != place.control_values.size()) {
        refuse("control_values: expected " + std::to_string(place.controls.size()) + " values, got " +
               std::to_string(place.control_values.size()));
    }
    const std::vector<int> controls = qubits_of(place.controls, taken, "controls");
    for (std::size_t i = 0; i < controls.size(); ++i) {
        const int value = place.control_values[i];
        if (value != 0 && value != 1) refuse("control_values: expected 0 or 1, got " + std::to_string(value));
        frame.controls |= Mask{1} << controls[i];
        frame.control_values |= static_cast<Mask>(value) << controls[i];
    }
    return frame;
}

void ProgramBuilder::check(const Parameter& parameter) const {
    if (parameter.slot < -1 || parameter.slot >= program_.angles_) {
        refuse("slot: expected -1 to " + std::to_string(program_.angles_ - 1) + ", got " +
               std::to_string(parameter.slot));
    }
    if (!std::isfinite(parameter.coefficient) || !std::isfinite(parameter.offset)) {
        refuse("parameter: expected a finite coefficient and offset");
    }
}

void ProgramBuilder::add(const Factor& factor, const Frame& frame, const Parameter& parameter, bool adjoint) {
    Operation operation;
    operation.fixed = frame.controls;
    operation.value = frame.control_values;
    operation.word = word_of(factor.pauli, frame.qubits);
    for (std::size_t w = 0; w < factor.where.size(); ++w) {
        const Mask bit = Mask{1} << frame.qubits[w];
        if (factor.where[w] != '-') operation.fixed |= bit;
        if (factor.where[w] == '1') operation.value |= bit;
    }
    if (factor.kind == Factor::Kind::flip) {
        operation.kind = Operation::Kind::flip;
    } else {
        const double direction = adjoint ? -1 : 1;
        operation.slot = factor.parameter < 0 ? -1 : parameter.slot;
        operation.coefficient =
            operation.slot < 0 ? 0 : direction * factor.coefficient * parameter.coefficient;
        operation.offset =
            direction * (factor.offset + (factor.parameter < 0 ? 0 : factor.coefficient * parameter.offset));
    }
    program_.operations_.push_back(std::move(operation));
}

void ProgramBuilder::gate(std::string_view name, const Placement& place,
                          std::span<const Parameter> parameters) {
    const Gate& gate = find_gate(name);
    const std::string label(name);
    // A global phase has no wires of its own; whatever wires it is given do not matter.
    Frame frame = resolve(place);
    if (gate.wires == 0) frame.qubits.clear();
    if (frame.qubits.size() != static_cast<std::size_t>(gate.wires)) {
        refuse("wires: " + label + " expects " + std::to_string(gate.wires) + ", got " +
               std::to_string(frame.qubits.size()));
    }
    if (parameters.size() != static_cast<std::size_t>(gate.parameters)) {
        refuse("parameters: " + label + " expects " + std::to_string(gate.parameters) + ", got " +
               std::to_string(parameters.size()));
    }
    for (const Parameter& parameter : parameters) check(parameter);
    const auto apply = [&](const Factor& factor) {
        const Parameter none;
        add(factor, frame,
            factor.parameter < 0 ? none : parameters[static_cast<std::size_t>(factor.parameter)],
            place.adjoint);
    };
    if (place.adjoint) {
        std::for_each(gate.factors.rbegin(), gate.factors.rend(), apply);
    } else {
        std::for_each(gate.factors.begin(), gate.factors.end(), apply);
    }
}

void ProgramBuilder::pauli_rotation(std::string_view pauli, const Placement& place,
                                    const Parameter& parameter) {
    const Frame frame = resolve(place);
    check(parameter);
    check_pauli(pauli, frame.qubits.size());
    add({Factor::Kind::rotation, pauli, {}, 0, 1, 0}, frame, parameter, place.adjoint);
}

void ProgramBuilder::matrix(std::span<const std::complex<double>> values, const Placement& place) {
    Frame frame = resolve(place);
    const std::size_t dimension = std::size_t{1} << frame.qubits.size();
    if (values.size() != dimension * dimension) {
        refuse("matrix: expected " + std::to_string(dimension * dimension) + " elements, got " +
               std::to_string(values.size()));
    }
    std::vector<std::complex<double>> matrix(values.begin(), values.end());
    for (std::size_t i = 0; i < dimension; ++i) {
        for (std::size_t j = 0; j < dimension; ++j) {
            std::complex<double> dot = 0;
            for (std::size_t k = 0; k < dimension; ++k) {
                dot += matrix[i * dimension + k] * std::conj(matrix[j * dimension + k]);
            }
            if (!(std::abs(dot - (i == j ? 1.0 : 0.0)) < 1e-6)) refuse("matrix: expected a unitary matrix");
        }
    }
    if (place.adjoint) {
        for (std::size_t i = 0; i < dimension; ++i) {
            for (std::size_t j = 0; j < dimension; ++j)
                matrix[i * dimension + j] = std::conj(values[j * dimension + i]);
        }
    }
    add_constant(Operation::Kind::matrix, std::move(frame), std::move(matrix));
}

void ProgramBuilder::add_constant(Operation::Kind kind, Frame frame,
                                  std::vector<std::complex<double>> values) {
    Operation operation;
    operation.kind = kind;
    operation.fixed = frame.controls;
    operation.value = frame.control_values;
    operation.qubits = std::move(frame.qubits);
    operation.data = program_.constants_.size();
    program_.constants_.push_back(std::move(values));
    program_.operations_.push_back(std::move(operation));
}

void ProgramBuilder::diagonal(std::span<const std::complex<double>> values, const Placement& place) {
    Frame frame = resolve(place);
    if (values.size() != std::size_t{1} << frame.qubits.size()) {
        refuse("diagonal: expected " + std::to_string(std::size_t{1} << frame.qubits.size()) +
               " elements, got " + std::to_string(values.size()));
    }
    std::vector<std::complex<double>> diagonal(values.begin(), values.end());
    for (std::complex<double>& value : diagonal) {
        if (!(std::abs(std::abs(value) - 1) < 1e-6)) refuse("diagonal: expected elements of modulus 1");
        if (place.adjoint) value = std::conj(value);
    }
    add_constant(Operation::Kind::diagonal, std::move(frame), std::move(diagonal));
}

void ProgramBuilder::pauli_term(int moment, double coefficient, std::string_view pauli,
                                std::span<const int> wires) {
    const std::vector<int> qubits = qubits_of(wires, 0, "wires");
    check_moment(moment);
    check_coefficient(coefficient);
    check_pauli(pauli, qubits.size());
    const Word word = word_of(pauli, qubits);
    program_.terms_.push_back({word.x, word.z, coefficient, moment});
    program_.moments_ = std::max(program_.moments_, moment + 1);
}

void ProgramBuilder::probability_term(int moment, double weight, std::span<const int> wires,
                                      std::size_t index) {
    std::vector<int> qubits = qubits_of(wires, 0, "wires");
    check_moment(moment);
    check_coefficient(weight);
    if (index >> qubits.size() != 0)
        refuse("index: expected less than 2^wires, got " + std::to_string(index));
    auto& marginals = program_.marginals_;
    auto found = std::find_if(marginals.begin(), marginals.end(),
                              [&](const Marginal& m) { return m.qubits == qubits; });
    if (found == marginals.end()) {
        marginals.push_back({std::move(qubits), {}});
        found = marginals.end() - 1;
    }
    found->entries.push_back({index, moment, weight});
    program_.moments_ = std::max(program_.moments_, moment + 1);
}

void ProgramBuilder::output(int moment, int square) {
    check_moment(moment);
    check_moment(square, -1);
    program_.outputs_.push_back({moment, square});
    program_.moments_ = std::max({program_.moments_, moment + 1, square + 1});
}

Program ProgramBuilder::build() {
    if (program_.qubits_ == 0) refuse("build: expected a builder that has not been built, got an empty one");
    program_.plan_ = std::make_shared<const Plan>(compile(program_));
    return std::exchange(program_, Program{});
}

Program staged(const Program& program, std::span<const int> order, std::vector<Stage> stages) {
    Program result;
    result.qubits_ = program.qubits_;
    result.angles_ = program.angles_;
    result.takes_state_ = program.takes_state_;
    result.constants_ = program.constants_;
    std::vector<bool> seen(program.operations_.size());
    for (const int index : order) {
        const auto i = static_cast<std::size_t>(index);
        if (index < 0 || i >= seen.size() || seen[i]) {
            refuse("order: expected distinct indices below " + std::to_string(seen.size()) + ", got " +
                   std::to_string(index) + " out of range or twice");
        }
        seen[i] = true;
        result.operations_.push_back(program.operations_[i]);
    }
    std::size_t previous = 0;
    for (const Stage& stage : stages) {
        if (stage.operations < previous || stage.operations > order.size()) {
            refuse("stages: expected ascending numbers of operations up to " + std::to_string(order.size()) +
                   ", got " + std::to_string(stage.operations));
        }
        previous = stage.operations;
        for (const PauliTerm& term : stage.terms) {
            if ((term.x | term.z) >> program.qubits_ != 0) {
                refuse("stages: expected words on " + std::to_string(program.qubits_) + " qubits");
            }
            check_moment(term.moment);
            check_coefficient(term.coefficient);
            result.moments_ = std::max(result.moments_, term.moment + 1);
        }
    }
    result.stages_ = std::move(stages);
    result.plan_ = std::make_shared<const Plan>(compile(result));
    return result;
}

std::vector<PauliTerm> expansion(const Operation& operation) {
    std::vector<Word> constraints;  // the projector is the product of (1 + constraint) / 2
    int pivot = -1;
    const auto bit = [](int qubit) { return Mask{1} << qubit; };
    for (Mask rest = operation.fixed; rest != 0; rest &= rest - 1) {
        const int qubit = std::countr_zero(rest);
        const int one = static_cast<int>(operation.value >> qubit & 1);
        if ((operation.word.x >> qubit & 1) == 0) {
            constraints.push_back({0, bit(qubit), 2 * one});
        } else if (pivot < 0) {
            pivot = qubit;  // flipped qubits are all at their value or all at the opposite
        } else {
            const int other = static_cast<int>(operation.value >> pivot & 1);
            constraints.push_back({0, bit(qubit) | bit(pivot), 2 * (one ^ other)});
        }
    }
    const std::size_t subsets = std::size_t{1} << constraints.size();
    std::vector<PauliTerm> terms;
    for (std::size_t subset = 0; subset < subsets; ++subset) {
        Word word = operation.word;
        for (std::size_t i = 0; i < constraints.size(); ++i) {
            if ((subset >> i & 1) != 0) word = word * constraints[i];
        }
        terms.push_back({word.x, word.z, sign(word) / static_cast<double>(subsets), 0});
    }
    return terms;
}

}  // namespace fubini
