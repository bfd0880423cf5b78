// SPDX-License-Identifier: Apache-2.0
#include "tests/reference.hpp"

#include <algorithm>
#include <cmath>
#include <utility>

namespace fubini::reference {
namespace {

using Complex = std::complex<double>;
using Matrix = std::vector<std::complex<double>>;  // square, row-major

/// matrix += scale * K of the factor; only for the small dimension of a table gate.
void add_generator(const Factor& factor, double scale, Matrix& matrix) {
    const std::size_t wires = factor.pauli.size();
    const std::size_t dimension = std::size_t{1} << wires;
    for (std::size_t column = 0; column < dimension; ++column) {
        bool direct = true;
        bool flipped = true;
        std::size_t row = column;
        std::complex<double> value = 1;
        for (std::size_t w = 0; w < wires; ++w) {
            const std::size_t bit = std::size_t{1} << (wires - 1 - w);
            const bool one = (column & bit) != 0;
            const bool flips = factor.pauli[w] == 'X' || factor.pauli[w] == 'Y';
            if (factor.where[w] != '-') {
                const bool wanted = factor.where[w] == '1';
                direct = direct && one == wanted;
                flipped = flipped && one == (wanted != flips);
            }
            if (flips) row ^= bit;
            if (factor.pauli[w] == 'Y') value *= std::complex<double>(0, one ? -1 : 1);
            if (factor.pauli[w] == 'Z' && one) value = -value;
        }
        if (direct || flipped) matrix[row * dimension + column] += scale * value;
    }
}

bool is_singular(Matrix matrix, std::size_t dimension) {
    for (std::size_t k = 0; k < dimension; ++k) {
        std::size_t pivot = k;
        for (std::size_t i = k; i < dimension; ++i) {
            if (std::abs(matrix[i * dimension + k]) > std::abs(matrix[pivot * dimension + k])) pivot = i;
        }
        if (std::abs(matrix[pivot * dimension + k]) < 1e-9) return true;
        for (std::size_t j = 0; j < dimension; ++j)
            std::swap(matrix[k * dimension + j], matrix[pivot * dimension + j]);
        for (std::size_t i = k + 1; i < dimension; ++i) {
            const std::complex<double> factor = matrix[i * dimension + k] / matrix[k * dimension + k];
            for (std::size_t j = k; j < dimension; ++j)
                matrix[i * dimension + j] -= factor * matrix[k * dimension + j];
        }
    }
    return false;
}

bool in_subspace(const Operation& operation, Mask row) {
    const Mask flipped = operation.value ^ (operation.word.x & operation.fixed);
    return (row & operation.fixed) == operation.value || (row & operation.fixed) == flipped;
}

std::size_t gathered(Mask row, const std::vector<int>& qubits) {
    std::size_t index = 0;
    for (const int qubit : qubits) index = 2 * index + (row >> qubit & 1);
    return index;
}

Mask replaced(Mask row, const std::vector<int>& qubits, std::size_t index) {
    for (std::size_t i = 0; i < qubits.size(); ++i) {
        const Mask bit = Mask{1} << qubits[i];
        row &= ~bit;
        if ((index >> (qubits.size() - 1 - i) & 1) != 0) row |= bit;
    }
    return row;
}

}  // namespace

State zero_state(const Program& program) {
    State psi(std::size_t{1} << program.qubits());
    psi[0] = 1;
    return psi;
}

State apply_generator(const Operation& operation, const State& psi) {
    const Complex phases[] = {1, {0, 1}, -1, {0, -1}};
    State result(psi.size());
    for (Mask row = 0; row < psi.size(); ++row) {
        if (!in_subspace(operation, row)) continue;
        // i^phase X^x Z^z |row>
        const double z_sign = parity(row & operation.word.z) != 0 ? -1 : 1;
        result[row ^ operation.word.x] += phases[operation.word.phase] * z_sign * psi[row];
    }
    return result;
}

State apply(const Program& program, const Operation& operation, const std::vector<double>& angles,
            const State& psi) {
    State result = psi;
    switch (operation.kind) {
        case Operation::Kind::rotation: {
            const double value = operation.slot < 0 ? 0 : angles[static_cast<std::size_t>(operation.slot)];
            const double half = 0.5 * (operation.coefficient * value + operation.offset);
            const State k_psi = apply_generator(operation, psi);
            for (Mask row = 0; row < psi.size(); ++row) {
                const double inside = in_subspace(operation, row) ? 1 : 0;  // K K = projector
                result[row] +=
                    inside * (std::cos(half) - 1) * psi[row] - Complex(0, std::sin(half)) * k_psi[row];
            }
            break;
        }
        case Operation::Kind::flip: {
            const State k_psi = apply_generator(operation, psi);
            for (Mask row = 0; row < psi.size(); ++row) {
                if (in_subspace(operation, row)) result[row] = k_psi[row];
            }
            break;
        }
        case Operation::Kind::matrix: {
            const auto matrix = program.constant(operation);
            const std::size_t dimension = std::size_t{1} << operation.qubits.size();
            for (Mask row = 0; row < psi.size(); ++row) {
                if ((row & operation.fixed) != operation.value) continue;
                const std::size_t i = gathered(row, operation.qubits);
                result[row] = 0;
                for (std::size_t j = 0; j < dimension; ++j) {
                    result[row] += matrix[i * dimension + j] * psi[replaced(row, operation.qubits, j)];
                }
            }
            break;
        }
        case Operation::Kind::diagonal: {
            const auto diagonal = program.constant(operation);
            for (Mask row = 0; row < psi.size(); ++row) {
                if ((row & operation.fixed) == operation.value)
                    result[row] *= diagonal[gathered(row, operation.qubits)];
            }
            break;
        }
    }
    return result;
}

State run(const Program& program, const std::vector<double>& angles, State psi) {
    for (const Operation& operation : program.operations()) psi = apply(program, operation, angles, psi);
    return psi;
}

State derivative(const Program& program, const std::vector<double>& angles, const State& initial, int slot) {
    State psi = initial;
    State sum(initial.size());
    for (const Operation& operation : program.operations()) {
        psi = apply(program, operation, angles, psi);
        sum = apply(program, operation, angles, sum);
        if (operation.slot != slot) continue;
        const State k_psi = apply_generator(operation, psi);
        for (std::size_t row = 0; row < sum.size(); ++row) {
            sum[row] -= Complex(0, 0.5 * operation.coefficient) * k_psi[row];
        }
    }
    return sum;
}

std::vector<double> moments(const Program& program, const State& bra, const State& ket) {
    std::vector<double> result(static_cast<std::size_t>(program.moments()));
    for (const PauliTerm& term : program.terms()) {
        Operation operation;
        operation.word = hermitian(term.x, term.z);
        const State o_ket = apply_generator(operation, ket);
        for (std::size_t row = 0; row < ket.size(); ++row) {
            result[static_cast<std::size_t>(term.moment)] +=
                term.coefficient * (std::conj(bra[row]) * o_ket[row]).real();
        }
    }
    for (const Marginal& marginal : program.marginals()) {
        for (const Marginal::Entry& entry : marginal.entries) {
            for (std::size_t row = 0; row < ket.size(); ++row) {
                if (gathered(row, marginal.qubits) != entry.index) continue;
                result[static_cast<std::size_t>(entry.moment)] +=
                    entry.weight * (std::conj(bra[row]) * ket[row]).real();
            }
        }
    }
    return result;
}

std::vector<double> values(const Program& program, const std::vector<double>& angles, const State& initial) {
    const State psi = run(program, angles, initial);
    const std::vector<double> means = moments(program, psi, psi);
    std::vector<double> result;
    for (const Output& output : program.outputs()) {
        const double mean = output.square < 0 ? 0 : means[static_cast<std::size_t>(output.square)];
        result.push_back(means[static_cast<std::size_t>(output.moment)] - mean * mean);
    }
    return result;
}

std::vector<double> jacobian(const Program& program, const std::vector<double>& angles,
                             const State& initial) {
    const State psi = run(program, angles, initial);
    const std::vector<double> means = moments(program, psi, psi);
    const auto outputs = program.outputs();
    const auto columns = static_cast<std::size_t>(program.angles());
    std::vector<double> result(outputs.size() * columns);
    for (std::size_t a = 0; a < columns; ++a) {
        const std::vector<double> half =
            moments(program, psi, derivative(program, angles, initial, static_cast<int>(a)));
        for (std::size_t m = 0; m < outputs.size(); ++m) {
            double& entry = result[m * columns + a];
            entry = 2 * half[static_cast<std::size_t>(outputs[m].moment)];
            if (outputs[m].square < 0) continue;
            const auto square = static_cast<std::size_t>(outputs[m].square);
            entry -= 4 * means[square] * half[square];
        }
    }
    return result;
}

std::vector<double> shift_frequencies(const Gate& gate, int parameter) {
    // Factors that share a parameter commute in every gate of the table, so their generators add up. With the
    // table's coefficients the eigenvalues are multiples of 1/4.
    const std::size_t dimension = std::size_t{1} << gate.wires;
    Matrix generator(dimension * dimension);
    for (const Factor& factor : gate.factors) {
        if (factor.parameter == parameter) add_generator(factor, 0.5 * factor.coefficient, generator);
    }
    std::vector<double> values;
    for (int quarter = -8; quarter <= 8; ++quarter) {
        Matrix shifted = generator;
        for (std::size_t i = 0; i < dimension; ++i) shifted[i * dimension + i] -= 0.25 * quarter;
        if (is_singular(std::move(shifted), dimension)) values.push_back(0.25 * quarter);
    }
    std::vector<double> frequencies;
    for (const double a : values) {
        for (const double b : values) {
            if (a > b && std::find(frequencies.begin(), frequencies.end(), a - b) == frequencies.end()) {
                frequencies.push_back(a - b);
            }
        }
    }
    std::sort(frequencies.begin(), frequencies.end());
    return frequencies;
}

}  // namespace fubini::reference
