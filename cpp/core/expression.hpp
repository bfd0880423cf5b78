// SPDX-License-Identifier: Apache-2.0
// Angles and initial states as a scalar program of weights and inputs, with derivatives. The recorder in
// Python writes the program; values, conventions at special points and rounding of sums are torch's.
#pragma once

#include <complex>
#include <cstddef>
#include <memory>
#include <span>
#include <vector>

namespace fubini {

/// What a node computes from its arguments u and v and its constant c.
enum class ExpressionKind : unsigned char {
    weight,  ///< weights[u]
    input,   ///< inputs[row, u]
    sum,     ///< c + the v terms that begin at term u
    quotient,
    power,
    atan2,
    maximum,
    minimum,
    power_constant,  ///< u ** c
    sin,
    cos,
    tan,
    asin,
    acos,
    atan,
    sinh,
    cosh,
    tanh,
    asinh,
    acosh,
    atanh,
    exp,
    exp2,
    expm1,
    log,
    log1p,
    log2,
    log10,
    sqrt,
    rsqrt,
    reciprocal,
    sigmoid,
    relu,
    abs,
    erf,
    erfc,
    softplus,  ///< beta 1, threshold 20
    sign,
    floor,
    ceil,
    round,
    detach,  ///< u, without derivatives
};

struct ExpressionKindInfo {
    const char* name;
    int arguments;  ///< nodes; -1: a list of terms
};
/// By number of the kind.
[[nodiscard]] std::span<const ExpressionKindInfo> expression_kinds();

struct ExpressionNode {
    ExpressionKind kind;
    int u, v;
    double c;
};

/// coefficient * u, or coefficient * u * v where v >= 0.
struct ExpressionTerm {
    double coefficient;
    int u, v;
};

/// Weights, shared by a batch or one row for each of its elements, and inputs (batch, inputs), row-major.
struct AnglePoint {
    const double* weights = nullptr;
    const double* inputs = nullptr;
    std::ptrdiff_t batch = 0;
    bool weights_by_row = false;
};

/// Rows of numbers for the outputs: angles side by side, and behind them or elsewhere the parts of the
/// amplitudes. Null for what is not wanted.
template <typename Real>
struct OutputRows {
    Real* angles = nullptr;
    std::ptrdiff_t angle_stride = 0;  ///< from row to row
    Real* amplitudes = nullptr;       ///< real and imaginary parts, interleaved
    std::ptrdiff_t amplitude_stride = 0;
};

/// Directions of weights and inputs, of their shapes; null: they do not move.
struct AngleTangents {
    const double* weights = nullptr;
    const double* inputs = nullptr;
};

struct ExpressionGraph;

/// An immutable program: the angles of a circuit, and its initial state if it takes one, as a function of
/// weights and inputs. Arguments of a node come before it; what no output needs is left out.
class Expression {
  public:
    /// outputs: nodes, first the angles, then real and imaginary parts of amplitudes, interleaved. Throws
    /// std::invalid_argument for numbers out of range.
    Expression(int weights, int inputs, const std::vector<ExpressionNode>& nodes,
               const std::vector<ExpressionTerm>& terms, const std::vector<int>& outputs, int angles);

    [[nodiscard]] int angles() const;
    [[nodiscard]] int weights() const;
    [[nodiscard]] int inputs() const;
    /// Of the initial state; 0 where there is none.
    [[nodiscard]] int amplitudes() const;
    [[nodiscard]] int outputs() const { return angles() + 2 * amplitudes(); }
    /// Whether all elements of a batch with shared weights start from the same state.
    [[nodiscard]] bool shared_state() const;
    /// Whether the state has derivatives by weights or inputs.
    [[nodiscard]] bool state_has_derivatives() const;

    /// Angles (batch, angles) and amplitudes (batch, amplitudes); null for what is not wanted.
    void evaluate(const AnglePoint& at, double* to_angles, std::complex<double>* to_states) const;
    /// Gradients by angles (batch, angles) and by amplitudes (batch, amplitudes), d / d Re + i d / d Im or
    /// null, give the gradients by weights (weights), summed over the batch, and by inputs (batch, inputs).
    /// Weights by row give gradients by row.
    void pull_back(const AnglePoint& at, const double* by_angles, const std::complex<double>* by_states,
                   double* by_weights, double* by_inputs) const;
    /// The same for `rows` gradients (batch, rows, angles) at once, without the sum over the batch:
    /// by_weights (batch, rows, weights), by_inputs (batch, rows, inputs); either may be null.
    void chain(const AnglePoint& at, std::ptrdiff_t rows, const double* by_angles,
               const std::complex<double>* by_states, double* by_weights, double* by_inputs) const;

    void evaluate(const AnglePoint& at, const OutputRows<double>& to) const;
    /// Cotangents of the outputs give gradients by weights, summed over the batch unless weights come by row,
    /// and by inputs. With tangents: the derivatives of these gradients along them, for fixed cotangents.
    void pull_back(const AnglePoint& at, const OutputRows<const double>& cotangents,
                   const AngleTangents* tangents, double* by_weights, double* by_inputs) const;
    /// Derivatives of the outputs along the tangents.
    void push_forward(const AnglePoint& at, const AngleTangents& tangents,
                      const OutputRows<double>& to) const;
    /// Whether the derivatives of these outputs by the weights are the same for all inputs.
    [[nodiscard]] bool constant_jacobian(std::span<const int> rows) const;
    /// Derivatives of some outputs, by_weights (batch, rows, weights) and by_inputs (batch, rows, inputs);
    /// either may be null.
    void jacobian(const AnglePoint& at, std::span<const int> rows, double* by_weights,
                  double* by_inputs) const;

  private:
    std::shared_ptr<const ExpressionGraph> graph_;
};

}  // namespace fubini
