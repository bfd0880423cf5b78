// SPDX-License-Identifier: Apache-2.0
// The functions of one and two arguments that an Expression knows, over n numbers at a time: values and
// partial derivatives of first and second order, with torch's conventions at special points.
#pragma once

#include "core/expression.hpp"

namespace fubini {

/// Whether torch chooses the gradient instead of multiplying with the derivative, so that a derivative of 0
/// gives 0 for an infinite cotangent too.
[[nodiscard]] bool chooses(const ExpressionNode& node);

// All arrays have n entries: n is 1, or a multiple of lanes and the arrays are aligned for Vec. y: the
// values.
void unary_value(const ExpressionNode& node, int n, const double* u, double* y);
void unary_first(const ExpressionNode& node, int n, const double* u, const double* y, double* d);
void unary_second(const ExpressionNode& node, int n, const double* u, const double* y, double* d);
void binary_value(const ExpressionNode& node, int n, const double* u, const double* v, double* y);
void binary_first(const ExpressionNode& node, int n, const double* u, const double* v, const double* y,
                  double* du, double* dv);
void binary_second(const ExpressionNode& node, int n, const double* u, const double* v, const double* y,
                   double* duu, double* duv, double* dvv);

}  // namespace fubini
