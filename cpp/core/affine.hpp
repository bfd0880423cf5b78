// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <vector>

namespace fubini {

/// One entry of a sparse matrix that maps weights or inputs to angles.
struct Coefficient {
    int angle;
    int source;
    double value;
};

/// angles = constant + W weights + X inputs, with W and X sparse: as a rule every angle has one source.
class AffineMap {
  public:
    /// Throws std::invalid_argument for an entry outside of (angles, sources).
    AffineMap(std::vector<double> constant, int weights, int inputs, std::vector<Coefficient> by_weights,
              std::vector<Coefficient> by_inputs);

    [[nodiscard]] int angles() const { return static_cast<int>(constant_.size()); }
    [[nodiscard]] int weights() const { return weights_; }
    [[nodiscard]] int inputs() const { return inputs_; }

    /// angles (batch, angles()) from weights (weights()) and inputs (batch, inputs()), row-major.
    void apply(const double* weights, const double* inputs, std::ptrdiff_t batch, double* angles) const;

    /// The transposed map: a gradient (batch, angles()) by angles gives the gradient by weights, summed over
    /// the batch in order, and by inputs (batch, inputs()).
    void pull_back(const double* gradient, std::ptrdiff_t batch, double* by_weights, double* by_inputs) const;

    /// Derivatives (rows, angles()) of something by the angles give its derivatives by the weights (rows,
    /// weights()) and by the inputs (rows, inputs()); either may be null.
    void chain(const double* by_angles, std::ptrdiff_t rows, double* by_weights, double* by_inputs) const;

  private:
    std::vector<double> constant_;
    int weights_, inputs_;
    std::vector<Coefficient> from_weights_, from_inputs_;
};

}  // namespace fubini
