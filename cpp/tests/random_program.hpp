// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <complex>
#include <random>
#include <string>
#include <vector>

#include "core/program.hpp"

namespace fubini::tests {

using Complex = std::complex<double>;

struct Random {
    std::mt19937_64 engine;
    explicit Random(unsigned seed) : engine(seed) {}
    int below(int n) { return std::uniform_int_distribution<int>(0, n - 1)(engine); }
    double uniform(double low, double high) {
        return std::uniform_real_distribution<double>(low, high)(engine);
    }
    std::vector<double> vector(std::size_t size, double range = 3) {
        std::vector<double> result(size);
        for (double& value : result) value = uniform(-range, range);
        return result;
    }
    std::vector<Complex> state(int qubits) {
        std::vector<Complex> psi(std::size_t{1} << qubits);
        double norm = 0;
        for (Complex& amplitude : psi) {
            amplitude = {uniform(-1, 1), uniform(-1, 1)};
            norm += std::norm(amplitude);
        }
        for (Complex& amplitude : psi) amplitude /= std::sqrt(norm);
        return psi;
    }
    std::vector<int> wires(int count, int of) {
        std::vector<int> all(static_cast<std::size_t>(of));
        for (int w = 0; w < of; ++w) all[static_cast<std::size_t>(w)] = w;
        std::shuffle(all.begin(), all.end(), engine);
        all.resize(static_cast<std::size_t>(count));
        return all;
    }
};

/// Gates of the whole table with random wires, controls, adjoints and shared slots; words, probabilities,
/// variances.
inline Program random_program(Random& random, int qubits, int gates, int angles, bool takes_state) {
    ProgramBuilder builder(qubits, angles, takes_state);
    for (int g = 0; g < gates; ++g) {
        const Gate& gate =
            gate_table()[static_cast<std::size_t>(random.below(static_cast<int>(gate_table().size())))];
        if (gate.wires > qubits) continue;
        const int controls = gate.wires < qubits && random.below(5) == 0 ? 1 : 0;
        std::vector<int> wires = random.wires(gate.wires + controls, qubits);
        std::vector<int> control_wires, control_values;
        if (controls != 0) {
            control_wires.push_back(wires.back());
            control_values.push_back(random.below(2));
            wires.pop_back();
        }
        std::vector<Parameter> parameters;
        for (int p = 0; p < gate.parameters; ++p) {
            parameters.push_back(
                {random.below(angles + 1) - 1, random.uniform(-2, 2), random.uniform(-1, 1)});
        }
        builder.gate(gate.name, {wires, control_wires, control_values, random.below(4) == 0}, parameters);
    }
    if (qubits >= 2 && random.below(2) == 0) {  // a dense constant: a Fourier matrix is unitary
        std::vector<Complex> matrix;
        for (int i = 0; i < 4; ++i) {
            for (int j = 0; j < 4; ++j) matrix.push_back(0.5 * std::polar(1.0, 1.5707963267948966 * i * j));
        }
        builder.matrix(matrix, {random.wires(2, qubits), {}, {}, random.below(2) == 0});
        const std::vector<Complex> phases = {std::polar(1.0, 0.3), std::polar(1.0, -1.1)};
        builder.diagonal(phases, {random.wires(1, qubits), {}, {}, random.below(2) == 0});
        builder.gate("RY", {random.wires(1, qubits)}, std::vector<Parameter>{{angles - 1, 1, 0}});
    }
    for (int m = 0; m < 4; ++m) {
        for (int t = 0; t <= m; ++t) {
            std::string word;
            for (int q = 0; q < qubits; ++q) word += "IXYZ"[random.below(4)];
            builder.pauli_term(m, random.uniform(-1, 1), word, random.wires(qubits, qubits));
        }
    }
    builder.probability_term(4, 0.7, random.wires(1, qubits), 1);
    builder.probability_term(4, -0.2, random.wires(qubits, qubits), 0);
    builder.output(0);
    builder.output(1);
    builder.output(2, 3);
    builder.output(4);
    return builder.build();
}

}  // namespace fubini::tests
