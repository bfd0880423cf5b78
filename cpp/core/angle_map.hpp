// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <complex>
#include <cstddef>

namespace fubini {

/// Weights, shared by a batch or one row for each of its elements, and inputs (batch, inputs), row-major.
struct AnglePoint {
    const double* weights = nullptr;
    const double* inputs = nullptr;
    std::ptrdiff_t batch = 0;
    bool weights_by_row = false;
};

/// Where the angles of a circuit come from, and its initial state if it takes one: a function of weights and
/// inputs.
class AngleMap {
  public:
    AngleMap() = default;
    AngleMap(const AngleMap&) = default;
    AngleMap(AngleMap&&) = default;
    AngleMap& operator=(const AngleMap&) = default;
    AngleMap& operator=(AngleMap&&) = default;
    virtual ~AngleMap() = default;

    [[nodiscard]] virtual int angles() const = 0;
    [[nodiscard]] virtual int weights() const = 0;
    [[nodiscard]] virtual int inputs() const = 0;
    /// Of the initial state; 0 where the map makes none.
    [[nodiscard]] virtual int amplitudes() const { return 0; }
    /// Whether all elements of a batch with shared weights start from the same state.
    [[nodiscard]] virtual bool shared_state() const { return false; }
    /// Whether the state has derivatives by weights or inputs.
    [[nodiscard]] virtual bool state_has_derivatives() const { return false; }

    /// Angles (batch, angles) and amplitudes (batch, amplitudes); null for what is not wanted.
    virtual void evaluate(const AnglePoint& at, double* to_angles, std::complex<double>* to_states) const = 0;

    /// Gradients by angles (batch, angles) and by amplitudes (batch, amplitudes), d / d Re + i d / d Im or
    /// null, give the gradients by weights (weights), summed over the batch, and by inputs (batch, inputs).
    /// Weights by row give gradients by row.
    virtual void pull_back(const AnglePoint& at, const double* by_angles,
                           const std::complex<double>* by_states, double* by_weights,
                           double* by_inputs) const = 0;

    /// The same for `rows` gradients (batch, rows, angles) at once, without the sum over the batch:
    /// by_weights (batch, rows, weights), by_inputs (batch, rows, inputs); either may be null.
    virtual void chain(const AnglePoint& at, std::ptrdiff_t rows, const double* by_angles,
                       const std::complex<double>* by_states, double* by_weights,
                       double* by_inputs) const = 0;
};

}  // namespace fubini
