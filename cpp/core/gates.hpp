// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace fubini {

/// One factor of a gate, in the gate's own wires (one character per wire, first wire first).
///
/// K = P Pi: `pauli` gives the Pauli word P (I, X, Y, Z); `where` gives the subspace of Pi: '0' and '1' fix a
/// wire,
/// '-' leaves it free, and where P flips fixed wires the flipped pattern belongs to the subspace too. So K K
/// = Pi.
///   rotation: exp(-i t K / 2) with t = coefficient * parameter + offset (radians)
///   flip:     1 - Pi + K (unitary, its own inverse)
struct Factor {
    enum class Kind { rotation, flip };
    Kind kind;
    std::string_view pauli;
    std::string_view where;
    int parameter = -1;  ///< index of the gate's parameter; -1: constant
    double coefficient = 0;
    double offset = 0;
};

/// A row of the gate table: the factors in the order in which they act.
struct Gate {
    std::string_view name;
    int wires;
    int parameters;
    std::vector<Factor> factors;
};

/// THE gate table: matrices, generators and kernels all derive from these factors.
[[nodiscard]] std::span<const Gate> gate_table();

/// Throws std::invalid_argument when there is no such gate.
[[nodiscard]] const Gate& find_gate(std::string_view name);

}  // namespace fubini
