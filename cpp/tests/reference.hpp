// SPDX-License-Identifier: Apache-2.0
// Dense and slow on purpose: every formula as it stands in the definition.
#pragma once

#include <complex>
#include <vector>

#include "core/gates.hpp"
#include "core/program.hpp"

namespace fubini::reference {

using State = std::vector<std::complex<double>>;

/// |0...0> of the program's qubits.
[[nodiscard]] State zero_state(const Program& program);

/// K psi for the operation's K = word * projector.
[[nodiscard]] State apply_generator(const Operation& operation, const State& psi);

[[nodiscard]] State apply(const Program& program, const Operation& operation,
                          const std::vector<double>& angles, const State& psi);

[[nodiscard]] State run(const Program& program, const std::vector<double>& angles, State psi);

/// d psi / d angles[slot]: the sum over the operations of the slot of psi with -(i/2) coefficient K inserted.
[[nodiscard]] State derivative(const Program& program, const std::vector<double>& angles,
                               const State& initial, int slot);

/// Re <bra|O_m|ket> for every moment m.
[[nodiscard]] std::vector<double> moments(const Program& program, const State& bra, const State& ket);

[[nodiscard]] std::vector<double> values(const Program& program, const std::vector<double>& angles,
                                         const State& initial);

/// (outputs, angles), row-major.
[[nodiscard]] std::vector<double> jacobian(const Program& program, const std::vector<double>& angles,
                                           const State& initial);

/// Positive frequencies of any expectation value in one parameter: the differences of the eigenvalues of the
/// parameter's generator. {1} is the two-term shift rule, {0.5, 1} the four-term one.
[[nodiscard]] std::vector<double> shift_frequencies(const Gate& gate, int parameter);

}  // namespace fubini::reference
