// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace fubini {

/// One evaluation of a parameter-shift rule: d/dt f(t) = sum over terms of coefficient * f(t + shift).
struct ShiftTerm {
    double coefficient = 0.0;
    double shift = 0.0;  ///< radians
};

/// Rule for an expectation value with the given positive frequencies in one angle (the differences of the
/// generator's eigenvalues); 2R terms for R frequencies. One frequency gives the two-term rule with shifts
/// +-pi/(2 omega), the frequencies {1/2, 1} of controlled rotations the four-term rule. Equidistant
/// frequencies omega, 2 omega, ... use Wierichs et al. 2022 (arXiv:2107.12390), eq. 20; others solve eq. 17
/// for shifts spread likewise. Throws std::invalid_argument where frequencies are not positive, finite and
/// distinct, or where the linear system is too ill-conditioned to give ten correct digits.
/// With `shifts`, R positive numbers, the terms move the angle by these and their negatives instead.
std::vector<ShiftTerm> shift_rule(std::vector<double> frequencies, const std::vector<double>& shifts = {});

/// All rules of a circuit in one flat list: term s evaluates the circuit with angle index[s] moved by
/// shift[s].
struct ShiftPlan {
    std::vector<std::int64_t> index;
    std::vector<double> coefficient;
    std::vector<double> shift;
};

/// frequencies[j] are those of angle angles[j]; an angle without frequencies contributes no term. shifts[j]
/// are its shifts, or empty; no list at all stands for empty ones.
ShiftPlan shift_plan(const std::vector<std::int64_t>& angles,
                     const std::vector<std::vector<double>>& frequencies,
                     const std::vector<std::vector<double>>& shifts = {});

/// (batch, count) angles -> (terms, batch, count) shifted angles.
void shift_angles(const ShiftPlan& plan, std::size_t batch, std::size_t count, const double* angles,
                  double* out);

/// (terms, batch, outputs) answers of the device -> (batch, outputs, count) derivatives; angles without a
/// term get 0. The plan's shifts are not read.
void shift_contract(const ShiftPlan& plan, std::size_t batch, std::size_t outputs, std::size_t count,
                    const double* values, double* out);

}  // namespace fubini
