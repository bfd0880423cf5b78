// SPDX-License-Identifier: Apache-2.0
#pragma once

#include "core/kernels.hpp"
#include "core/program.hpp"

namespace fubini {

/// Doubles of scratch that the two functions below need.
[[nodiscard]] std::size_t observable_scratch(const Program& program, const Layout& layout);

/// moments[m] = value of moment m in the state, equal in all lanes of a sample. Words that flip the same
/// qubits share one pass over the state; a fold over the qubits (sum and difference of halves) then serves
/// all their Z parts.
void measure(const Program& program, const Layout& layout, const double* state, Vec* moments,
             double* scratch);

/// The same for sorted terms of a checkpoint; adds to the moments.
void measure_terms(std::span<const PauliTerm> terms, const Layout& layout, const double* state, Vec* moments,
                   double* scratch);

/// bra = sum over moments of weights[m] * O_m ket.
void apply_observables(const Program& program, const Layout& layout, const Vec* weights, const double* ket,
                       double* bra, double* scratch);

/// The same for states that lie one in each lane, with weights that are equal in all lanes.
void apply_uniform(const Program& program, const double* weights, const double* ket, double* bra,
                   double* scratch);

}  // namespace fubini
