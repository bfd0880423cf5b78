// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <complex>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "core/gates.hpp"
#include "core/pauli.hpp"

namespace fubini {

constexpr int max_qubits = 24;
constexpr int max_angles = 1 << 24;
constexpr int max_moments = 1 << 24;

/// One elementary operation, in the order of the circuit. With K = word * projector (see Factor):
///   rotation: exp(-i t K / 2), t = coefficient * angles[slot] + offset; slot -1: constant
///   flip:     1 - projector + K
///   matrix, diagonal: constants[data] on `qubits` (most significant first), where the qubits of `fixed` are
///   `value`
struct Operation {
    enum class Kind { rotation, flip, matrix, diagonal };
    Kind kind = Kind::rotation;
    Word word;
    Mask fixed = 0;
    Mask value = 0;
    int slot = -1;
    double coefficient = 0;
    double offset = 0;
    std::vector<int> qubits;
    std::size_t data = 0;

    /// All qubits that it acts on.
    [[nodiscard]] Mask support() const {
        Mask mask = word.x | word.z | fixed;
        for (const int qubit : qubits) mask |= Mask{1} << qubit;
        return mask;
    }
};

/// coefficient * <P(x, z)> is added to a moment.
struct PauliTerm {
    Mask x = 0;
    Mask z = 0;
    double coefficient = 0;
    int moment = 0;
};

/// weight * probability that `qubits` (most significant first) read `index` is added to a moment.
struct Marginal {
    struct Entry {
        std::size_t index;
        int moment;
        double weight;
    };
    std::vector<int> qubits;
    std::vector<Entry> entries;
};

/// A column of the result: moment - square^2 (a variance), or moment alone when square is -1.
struct Output {
    int moment = 0;
    int square = -1;
};

/// What is measured on the way: after the first `operations` operations, moments of its own, numbered from 0.
struct Stage {
    std::size_t operations = 0;
    std::vector<PauliTerm> terms;
};

struct Plan;

/// A circuit and what is measured. Immutable, and validated where it is built: the sweeps check only array
/// sizes.
class Program {
  public:
    [[nodiscard]] int qubits() const { return qubits_; }
    [[nodiscard]] int angles() const { return angles_; }
    [[nodiscard]] int moments() const { return moments_; }
    /// Whether the initial state comes with each call; it is |0...0> otherwise.
    [[nodiscard]] bool takes_state() const { return takes_state_; }
    [[nodiscard]] std::span<const Operation> operations() const { return operations_; }
    [[nodiscard]] std::span<const std::complex<double>> constant(const Operation& operation) const {
        return constants_[operation.data];
    }
    [[nodiscard]] std::span<const PauliTerm> terms() const { return terms_; }
    [[nodiscard]] std::span<const Marginal> marginals() const { return marginals_; }
    [[nodiscard]] std::span<const Output> outputs() const { return outputs_; }
    [[nodiscard]] std::span<const Stage> stages() const { return stages_; }
    [[nodiscard]] const Plan& plan() const { return *plan_; }

  private:
    friend class ProgramBuilder;
    friend Program staged(const Program& program, std::span<const int> order, std::vector<Stage> stages);
    int qubits_ = 0;
    int angles_ = 0;
    int moments_ = 0;
    bool takes_state_ = false;
    std::vector<Operation> operations_;
    std::vector<std::vector<std::complex<double>>> constants_;
    std::vector<PauliTerm> terms_;
    std::vector<Marginal> marginals_;
    std::vector<Output> outputs_;
    std::vector<Stage> stages_;
    std::shared_ptr<const Plan> plan_;
};

/// Whether an output is a variance.
[[nodiscard]] inline bool has_variances(const Program& program) {
    return std::ranges::any_of(program.outputs(), [](const Output& output) { return output.square >= 0; });
}

/// The operations in another order (distinct indices, not all need occur), with stages to be measured on the
/// way, in the order in which they are reached. Throws std::invalid_argument on bad indices or masks.
[[nodiscard]] Program staged(const Program& program, std::span<const int> order, std::vector<Stage> stages);

/// K of a rotation or flip as a sum of Pauli words; the coefficient of a word includes its sign. 2^c words,
/// where c is the number of conditions that the projector makes.
[[nodiscard]] std::vector<PauliTerm> expansion(const Operation& operation);

/// Where a gate acts. Wire w is qubit (qubits - 1 - w): the first wire is the most significant bit.
struct Placement {
    std::span<const int> wires;
    std::span<const int> controls = {};
    std::span<const int> control_values = {};  ///< 0 or 1 each
    bool adjoint = false;
};

/// coefficient * angles[slot] + offset, the value of one gate parameter; slot -1: the offset alone.
struct Parameter {
    int slot = -1;
    double coefficient = 1;
    double offset = 0;
};

/// Everything here throws std::invalid_argument on bad input, before the program is changed.
class ProgramBuilder {
  public:
    /// 1 <= wires <= max_qubits, 0 <= angles <= max_angles.
    ProgramBuilder(int wires, int angles, bool takes_state);

    void gate(std::string_view name, const Placement& place, std::span<const Parameter> parameters);
    /// exp(-i t P / 2) for the word given by one character per wire.
    void pauli_rotation(std::string_view pauli, const Placement& place, const Parameter& parameter);
    /// Row-major 2^k x 2^k for k wires; must be unitary to 1e-6.
    void matrix(std::span<const std::complex<double>> values, const Placement& place);
    /// The 2^k diagonal elements for k wires; must have modulus 1 to 1e-6.
    void diagonal(std::span<const std::complex<double>> values, const Placement& place);

    /// Adds coefficient * <word> to a moment; moments are numbered from 0 and less than max_moments.
    void pauli_term(int moment, double coefficient, std::string_view pauli, std::span<const int> wires);
    /// Adds weight * probability of reading `index` on the wires (first wire most significant) to a moment.
    void probability_term(int moment, double weight, std::span<const int> wires, std::size_t index);
    void output(int moment, int square = -1);

    /// Compiles. The builder is empty afterwards, and refuses everything.
    [[nodiscard]] Program build();

  private:
    struct Frame {  // where a gate acts, as masks
        std::vector<int> qubits;
        Mask controls = 0;
        Mask control_values = 0;
    };
    [[nodiscard]] Frame resolve(const Placement& place) const;
    [[nodiscard]] std::vector<int> qubits_of(std::span<const int> wires, Mask taken, const char* what) const;
    void check(const Parameter& parameter) const;
    void add_constant(Operation::Kind kind, Frame frame, std::vector<std::complex<double>> values);
    void add(const Factor& factor, const Frame& frame, const Parameter& parameter, bool adjoint);

    Program program_;
};

}  // namespace fubini
