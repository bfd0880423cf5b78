// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>

#include "core/expval.hpp"
#include "core/gates.hpp"
#include "random_program.hpp"
#include "tests/reference.hpp"

using namespace fubini;
using tests::Random;

namespace {

/// A program of one gate on wires 0.. of n qubits, measuring `observable` words.
Program single_gate(const Gate& gate, int qubits, bool adjoint) {
    ProgramBuilder builder(qubits, std::max(gate.parameters, 1), true);
    std::vector<int> wires;
    for (int w = 0; w < gate.wires; ++w) wires.push_back(w);
    std::vector<Parameter> parameters;
    for (int p = 0; p < gate.parameters; ++p) parameters.push_back({p, 1, 0});
    builder.gate(gate.name, {wires, {}, {}, adjoint}, parameters);
    std::string word;
    for (int q = 0; q < qubits; ++q) word += "XYZ"[q % 3];
    std::vector<int> all;
    for (int q = 0; q < qubits; ++q) all.push_back(q);
    builder.pauli_term(0, 1, word, all);
    builder.pauli_term(0, 0.5, "Z", std::vector<int>{0});
    builder.output(0);
    return builder.build();
}

double distance(const reference::State& a, const reference::State& b) {
    double largest = 0;
    for (std::size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
    return largest;
}

/// Coefficients c_k with f'(0) = sum_k c_k (f(s_k) - f(-s_k)) for a trigonometric f with these frequencies.
std::vector<double> shift_rule(const std::vector<double>& frequencies, const std::vector<double>& shifts) {
    const std::size_t n = frequencies.size();
    std::vector<double> a(n * n), c = frequencies;
    for (std::size_t j = 0; j < n; ++j) {
        for (std::size_t k = 0; k < n; ++k) a[j * n + k] = 2 * std::sin(frequencies[j] * shifts[k]);
    }
    for (std::size_t k = 0; k < n; ++k) {
        std::size_t pivot = k;
        for (std::size_t i = k; i < n; ++i) {
            if (std::abs(a[i * n + k]) > std::abs(a[pivot * n + k])) pivot = i;
        }
        for (std::size_t j = 0; j < n; ++j) std::swap(a[k * n + j], a[pivot * n + j]);
        std::swap(c[k], c[pivot]);
        for (std::size_t i = 0; i < n; ++i) {
            if (i == k) continue;
            const double factor = a[i * n + k] / a[k * n + k];
            for (std::size_t j = k; j < n; ++j) a[i * n + j] -= factor * a[k * n + j];
            c[i] -= factor * c[k];
        }
    }
    for (std::size_t k = 0; k < n; ++k) c[k] /= a[k * n + k];
    return c;
}

}  // namespace

TEST_CASE("every gate is unitary, and its adjoint undoes it") {
    Random random(1);
    for (const Gate& gate : gate_table()) {
        CAPTURE(gate.name);
        const int qubits = std::max(gate.wires, 1);
        const std::vector<double> angles = random.vector(4);
        const reference::State psi = random.state(qubits);
        const reference::State there = reference::run(single_gate(gate, qubits, false), angles, psi);
        const reference::State back = reference::run(single_gate(gate, qubits, true), angles, there);
        CHECK(distance(psi, back) < 1e-14);
    }
}

TEST_CASE("matrix, generator, shift rule and kernel of every gate agree") {
    Random random(2);
    for (const Gate& gate : gate_table()) {
        CAPTURE(gate.name);
        const int qubits = gate.wires + 1;
        const Program program = single_gate(gate, qubits, false);
        std::vector<double> angles = random.vector(static_cast<std::size_t>(program.angles()));
        const reference::State psi = random.state(qubits);
        const auto at = [&](int parameter, double shift) {
            std::vector<double> shifted = angles;
            shifted[static_cast<std::size_t>(parameter)] += shift;
            return shifted;
        };
        reference::State result(psi.size());
        state(program, {angles.data(), 1, 1, psi.data()}, result.data());
        CHECK(distance(result, reference::run(program, angles, psi)) < 1e-14);
        const std::vector<double> jacobian = reference::jacobian(program, angles, psi);
        for (int p = 0; p < gate.parameters; ++p) {
            // Generator: central difference with an error of about step^2 + 1e-16 / step.
            const double step = 1e-5;
            const reference::State plus = reference::run(program, at(p, step), psi);
            const reference::State minus = reference::run(program, at(p, -step), psi);
            reference::State difference(psi.size());
            for (std::size_t i = 0; i < psi.size(); ++i) difference[i] = (plus[i] - minus[i]) / (2 * step);
            CHECK(distance(difference, reference::derivative(program, angles, psi, p)) < 1e-9);
            const std::vector<double> frequencies = reference::shift_frequencies(gate, p);
            if (frequencies.empty()) {  // a global phase
                CHECK(std::abs(jacobian[static_cast<std::size_t>(p)]) < 1e-14);
                continue;
            }
            std::vector<double> shifts;
            for (std::size_t k = 0; k < frequencies.size(); ++k) {
                shifts.push_back(std::numbers::pi * static_cast<double>(k + 1) /
                                 (static_cast<double>(frequencies.size() + 1) * frequencies.back()));
            }
            const std::vector<double> rule = shift_rule(frequencies, shifts);
            double derivative = 0;
            for (std::size_t k = 0; k < rule.size(); ++k) {
                derivative += rule[k] * (reference::values(program, at(p, shifts[k]), psi)[0] -
                                         reference::values(program, at(p, -shifts[k]), psi)[0]);
            }
            CHECK(derivative == doctest::Approx(jacobian[static_cast<std::size_t>(p)]).epsilon(1e-10));
        }
    }
}

TEST_CASE("known shift frequencies") {
    CHECK(reference::shift_frequencies(find_gate("RX"), 0) == std::vector<double>{1});
    CHECK(reference::shift_frequencies(find_gate("PhaseShift"), 0) == std::vector<double>{1});
    CHECK(reference::shift_frequencies(find_gate("CRY"), 0) == std::vector<double>{0.5, 1});
    CHECK(reference::shift_frequencies(find_gate("SingleExcitation"), 0) == std::vector<double>{0.5, 1});
    CHECK(reference::shift_frequencies(find_gate("SingleExcitationPlus"), 0) == std::vector<double>{1});
    CHECK(reference::shift_frequencies(find_gate("OrbitalRotation"), 0) ==
          std::vector<double>{0.5, 1, 1.5, 2});
    CHECK(reference::shift_frequencies(find_gate("GlobalPhase"), 0).empty());
}

TEST_CASE("an unknown gate is refused by name") {
    CHECK_THROWS_WITH_AS((void)find_gate("Nope"), "gate: expected a name of the gate table, got 'Nope'",
                         std::invalid_argument);
}
