// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

#include "core/angle_map.hpp"

namespace fubini {

/// One entry of a sparse matrix that maps weights or inputs to angles.
struct Coefficient {
    int angle;
    int source;
    double value;
};

/// angles = constant + W weights + X inputs, with W and X sparse: as a rule every angle has one source.
class AffineMap final : public AngleMap {
  public:
    /// Throws std::invalid_argument for an entry outside of (angles, sources).
    AffineMap(std::vector<double> constant, int weights, int inputs, std::vector<Coefficient> by_weights,
              std::vector<Coefficient> by_inputs);

    [[nodiscard]] int angles() const override { return static_cast<int>(constant_.size()); }
    [[nodiscard]] int weights() const override { return weights_; }
    [[nodiscard]] int inputs() const override { return inputs_; }

    /// angles (batch, angles()) from weights (weights()) and inputs (batch, inputs()), row-major.
    void apply(const double* weights, const double* inputs, std::ptrdiff_t batch, double* angles) const;

    /// The transposed map: a gradient (batch, angles()) by angles gives the gradient by weights, summed over
    /// the batch in order, and by inputs (batch, inputs()).
    void pull_back(const double* gradient, std::ptrdiff_t batch, double* by_weights, double* by_inputs) const;

    /// Derivatives (rows, angles()) of something by the angles give its derivatives by the weights (rows,
    /// weights()) and by the inputs (rows, inputs()); either may be null.
    void chain(const double* by_angles, std::ptrdiff_t rows, double* by_weights, double* by_inputs) const;

    void evaluate(const AnglePoint& at, double* to_angles, std::complex<double>* to_states) const override;
    void pull_back(const AnglePoint& at, const double* by_angles, const std::complex<double>* by_states,
                   double* by_weights, double* by_inputs) const override;
    void chain(const AnglePoint& at, std::ptrdiff_t rows, const double* by_angles,
               const std::complex<double>* by_states, double* by_weights, double* by_inputs) const override;

  private:
    std::vector<double> constant_;
    int weights_, inputs_;
    std::vector<Coefficient> from_weights_, from_inputs_;
};

}  // namespace fubini
