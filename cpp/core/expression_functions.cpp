// SPDX-License-Identifier: Apache-2.0
#include "core/expression_functions.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "core/lanes.hpp"

namespace fubini {
namespace {

using Kind = ExpressionKind;

template <typename F>
void each(int n, double* to, const F& f) {
    for (int i = 0; i < n; ++i) to[i] = f(i);
}

/// Sines or cosines, the same bits for one number and for many.
template <bool cosine>
void trig(int n, const double* u, double* to) {
    const auto of = [](const Vec& angle) {
        Vec s, c;
        sincos(angle, s, c);
        return cosine ? c : s;
    };
    if (n == 1) {
        to[0] = of(splat(u[0]))[0];
    } else {
        for (int i = 0; i < n; i += lanes) vec(to + i) = of(vec(u + i));
    }
    if (cosine) return;
    for (int i = 0; i < n; ++i) to[i] = u[i] == 0 ? u[i] : to[i];  // the sign of zero
}

/// u ** c, with what torch computes by multiplication or root done so here.
void power_by(int n, const double* u, double c, double* to) {
    if (c == 2) {
        each(n, to, [&](int i) { return u[i] * u[i]; });
    } else if (c == 3) {
        each(n, to, [&](int i) { return u[i] * u[i] * u[i]; });
    } else if (c == 1) {
        std::copy_n(u, n, to);
    } else if (c == 0) {
        std::fill_n(to, n, 1.0);
    } else if (c == -1) {
        each(n, to, [&](int i) { return 1 / u[i]; });
    } else if (c == -2) {
        each(n, to, [&](int i) { return 1 / (u[i] * u[i]); });
    } else if (c == 0.5) {
        each(n, to, [&](int i) { return std::sqrt(u[i]); });
    } else if (c == -0.5) {
        each(n, to, [&](int i) { return 1 / std::sqrt(u[i]); });
    } else {
        each(n, to, [&](int i) { return std::pow(u[i], c); });
    }
}

void scale(int n, double* to, double by) {
    for (int i = 0; i < n; ++i) to[i] *= by;
}

}  // namespace

bool chooses(const ExpressionNode& node) {
    switch (node.kind) {
        case Kind::relu:
        case Kind::sign:
        case Kind::floor:
        case Kind::ceil:
        case Kind::round:
        case Kind::maximum:
        case Kind::minimum:
            return true;
        case Kind::power_constant:
            return node.c == 0;
        default:
            return false;
    }
}

void unary_value(const ExpressionNode& node, int n, const double* u, double* y) {
    const auto set = [&](const auto& f) { each(n, y, [&](int i) { return f(u[i]); }); };
    switch (node.kind) {
        case Kind::power_constant:
            return power_by(n, u, node.c, y);
        case Kind::sin:
            return trig<false>(n, u, y);
        case Kind::cos:
            return trig<true>(n, u, y);
        case Kind::tan:
            return set([](double x) { return std::tan(x); });
        case Kind::asin:
            return set([](double x) { return std::asin(x); });
        case Kind::acos:
            return set([](double x) { return std::acos(x); });
        case Kind::atan:
            return set([](double x) { return std::atan(x); });
        case Kind::sinh:
            return set([](double x) { return std::sinh(x); });
        case Kind::cosh:
            return set([](double x) { return std::cosh(x); });
        case Kind::tanh:
            return set([](double x) { return std::tanh(x); });
        case Kind::asinh:
            return set([](double x) { return std::asinh(x); });
        case Kind::acosh:
            return set([](double x) { return std::acosh(x); });
        case Kind::atanh:
            return set([](double x) { return std::atanh(x); });
        case Kind::exp:
            return set([](double x) { return std::exp(x); });
        case Kind::exp2:
            return set([](double x) { return std::exp2(x); });
        case Kind::expm1:
            return set([](double x) { return std::expm1(x); });
        case Kind::log:
            return set([](double x) { return std::log(x); });
        case Kind::log1p:
            return set([](double x) { return std::log1p(x); });
        case Kind::log2:
            return set([](double x) { return std::log2(x); });
        case Kind::log10:
            return set([](double x) { return std::log10(x); });
        case Kind::sqrt:
            return set([](double x) { return std::sqrt(x); });
        case Kind::rsqrt:
            return set([](double x) { return 1 / std::sqrt(x); });
        case Kind::reciprocal:
            return set([](double x) { return 1 / x; });
        case Kind::sigmoid:
            return set([](double x) { return 1 / (1 + std::exp(-x)); });
        case Kind::relu:
            return set([](double x) { return x < 0 ? 0.0 : x; });
        case Kind::abs:
            return set([](double x) { return std::abs(x); });
        case Kind::erf:
            return set([](double x) { return std::erf(x); });
        case Kind::erfc:
            return set([](double x) { return std::erfc(x); });
        case Kind::softplus:
            return set([](double x) { return x > 20 ? x : std::log1p(std::exp(x)); });
        case Kind::sign:
            return set([](double x) { return static_cast<double>((x > 0) - (x < 0)); });
        case Kind::floor:
            return set([](double x) { return std::floor(x); });
        case Kind::ceil:
            return set([](double x) { return std::ceil(x); });
        case Kind::round:
            return set([](double x) { return std::nearbyint(x); });
        default:  // detach
            std::copy_n(u, n, y);
    }
}

void unary_first(const ExpressionNode& node, int n, const double* u, const double* y, double* d) {
    const auto set = [&](const auto& f) { each(n, d, [&](int i) { return f(u[i], y[i]); }); };
    constexpr double ln2 = std::numbers::ln2, ln10 = std::numbers::ln10;
    constexpr double two_over_sqrt_pi = 2 * std::numbers::inv_sqrtpi;
    switch (node.kind) {
        case Kind::power_constant:
            if (node.c == 0) return set([](double, double) { return 0.0; });
            power_by(n, u, node.c - 1, d);
            return scale(n, d, node.c);
        case Kind::sin:
            return trig<true>(n, u, d);
        case Kind::cos:
            trig<false>(n, u, d);
            return scale(n, d, -1);
        case Kind::tan:
            return set([](double, double t) { return 1 + t * t; });
        case Kind::asin:
            return set([](double x, double) { return 1 / std::sqrt(1 - x * x); });
        case Kind::acos:
            return set([](double x, double) { return -1 / std::sqrt(1 - x * x); });
        case Kind::atan:
            return set([](double x, double) { return 1 / (x * x + 1); });
        case Kind::sinh:
            return set([](double x, double) { return std::cosh(x); });
        case Kind::cosh:
            return set([](double x, double) { return std::sinh(x); });
        case Kind::tanh:
            return set([](double, double t) { return 1 - t * t; });
        case Kind::asinh:
            return set([](double x, double) { return 1 / std::sqrt(x * x + 1); });
        case Kind::acosh:
            return set([](double x, double) { return 1 / std::sqrt(x * x - 1); });
        case Kind::atanh:
            return set([](double x, double) { return 1 / (1 - x * x); });
        case Kind::exp:
            return set([](double, double e) { return e; });
        case Kind::exp2:
            return set([](double, double e) { return e * ln2; });
        case Kind::expm1:
            return set([](double, double e) { return e + 1; });
        case Kind::log:
            return set([](double x, double) { return 1 / x; });
        case Kind::log1p:
            return set([](double x, double) { return 1 / (x + 1); });
        case Kind::log2:
            return set([](double x, double) { return 1 / (x * ln2); });
        case Kind::log10:
            return set([](double x, double) { return 1 / (x * ln10); });
        case Kind::sqrt:
            return set([](double, double r) { return 1 / (2 * r); });
        case Kind::rsqrt:
            return set([](double, double r) { return -0.5 * (r * r * r); });
        case Kind::reciprocal:
            return set([](double, double r) { return -r * r; });
        case Kind::sigmoid:
            return set([](double, double s) { return (1 - s) * s; });
        case Kind::relu:
            return set([](double x, double) { return x <= 0 ? 0.0 : 1.0; });
        case Kind::abs:
            return set([](double x, double) { return static_cast<double>((x > 0) - (x < 0)); });
        case Kind::erf:
            return set([](double x, double) { return two_over_sqrt_pi * std::exp(-x * x); });
        case Kind::erfc:
            return set([](double x, double) { return -two_over_sqrt_pi * std::exp(-x * x); });
        case Kind::softplus:
            return set([](double x, double) {
                const double z = std::exp(x);
                return x > 20 ? 1.0 : z / (z + 1);
            });
        default:  // steps
            std::fill_n(d, n, 0.0);
    }
}

void unary_second(const ExpressionNode& node, int n, const double* u, const double* y, double* d) {
    const auto set = [&](const auto& f) { each(n, d, [&](int i) { return f(u[i], y[i]); }); };
    const auto of_first = [&](const auto& f) {
        unary_first(node, n, u, y, d);
        each(n, d, [&](int i) { return f(u[i], y[i], d[i]); });
    };
    constexpr double ln2 = std::numbers::ln2;
    switch (node.kind) {
        case Kind::power_constant:
            if (node.c == 0 || node.c == 1) return std::fill_n(d, n, 0.0), void();
            power_by(n, u, node.c - 2, d);
            return scale(n, d, node.c * (node.c - 1));
        case Kind::sin:
        case Kind::cos:
            return set([](double, double s) { return -s; });
        case Kind::tan:
            return of_first([](double, double t, double f) { return 2 * t * f; });
        case Kind::asin:
        case Kind::acos:
            return of_first([](double x, double, double f) { return x * (f * f * f); });
        case Kind::asinh:
        case Kind::acosh:
            return of_first([](double x, double, double f) { return -x * (f * f * f); });
        case Kind::atan:
            return of_first([](double x, double, double f) { return -2 * x * (f * f); });
        case Kind::atanh:
            return of_first([](double x, double, double f) { return 2 * x * (f * f); });
        case Kind::sinh:
        case Kind::cosh:
        case Kind::exp:
            return set([](double, double e) { return e; });
        case Kind::tanh:
            return of_first([](double, double t, double f) { return -2 * t * f; });
        case Kind::exp2:
            return of_first([](double, double, double f) { return f * ln2; });
        case Kind::expm1:
            return set([](double, double e) { return e + 1; });
        case Kind::log:
        case Kind::log2:
        case Kind::log10:
            return of_first([](double x, double, double f) { return -f / x; });
        case Kind::log1p:
            return of_first([](double, double, double f) { return -f * f; });
        case Kind::sqrt:
            return set([](double, double r) { return -0.25 / (r * r * r); });
        case Kind::rsqrt:
            return set([](double, double r) { return 0.75 * (r * r * r * r * r); });
        case Kind::reciprocal:
            return set([](double, double r) { return 2 * (r * r * r); });
        case Kind::sigmoid:
            return set([](double, double s) { return (1 - 2 * s) * ((1 - s) * s); });
        case Kind::erf:
        case Kind::erfc:
            return of_first([](double x, double, double f) { return -2 * x * f; });
        case Kind::softplus:
            return set([](double x, double) {
                const double s = 1 / (1 + std::exp(-x));
                return x < 20 ? (1 - s) * s : 0.0;
            });
        default:  // piecewise linear
            std::fill_n(d, n, 0.0);
    }
}

void binary_value(const ExpressionNode& node, int n, const double* u, const double* v, double* y) {
    const auto set = [&](const auto& f) { each(n, y, [&](int i) { return f(u[i], v[i]); }); };
    switch (node.kind) {
        case Kind::quotient:
            return set([](double a, double b) { return a / b; });
        case Kind::power:
            return set([](double a, double b) { return std::pow(a, b); });
        case Kind::atan2:
            return set([](double a, double b) { return std::atan2(a, b); });
        case Kind::maximum:
            return set([](double a, double b) { return std::isnan(a) || a > b ? a : b; });
        default:  // minimum
            return set([](double a, double b) { return std::isnan(a) || a < b ? a : b; });
    }
}

void binary_first(const ExpressionNode& node, int n, const double* u, const double* v, const double* y,
                  double* du, double* dv) {
    const auto set = [&](const auto& by_u, const auto& by_v) {
        each(n, du, [&](int i) { return by_u(u[i], v[i], y[i]); });
        each(n, dv, [&](int i) { return by_v(u[i], v[i], y[i]); });
    };
    // 0 where both arguments are 0
    const auto over_square = [](double a, double b) {
        const double square = a * a + b * b;
        return square == 0 ? 0.0 : 1 / square;
    };
    switch (node.kind) {
        case Kind::quotient:
            return set([](double, double b, double) { return 1 / b; },
                       [](double, double b, double q) { return -(q / b); });
        case Kind::power:
            return set([](double a, double b, double) { return b == 0 ? 0.0 : b * std::pow(a, b - 1); },
                       [](double a, double b, double p) { return a == 0 && b >= 0 ? 0.0 : p * std::log(a); });
        case Kind::atan2:
            return set([&](double a, double b, double) { return b * over_square(a, b); },
                       [&](double a, double b, double) { return -a * over_square(a, b); });
        case Kind::maximum:
            return set([](double a, double b, double) { return a == b  ? 0.5
                                                               : a < b ? 0.0
                                                                       : 1.0; },
                       [](double a, double b, double) { return a == b  ? 0.5
                                                               : b < a ? 0.0
                                                                       : 1.0; });
        default:  // minimum
            return set([](double a, double b, double) { return a == b  ? 0.5
                                                               : a > b ? 0.0
                                                                       : 1.0; },
                       [](double a, double b, double) { return a == b  ? 0.5
                                                               : b > a ? 0.0
                                                                       : 1.0; });
    }
}

void binary_second(const ExpressionNode& node, int n, const double* u, const double* v, const double* y,
                   double* duu, double* duv, double* dvv) {
    const auto set = [&](const auto& by_uu, const auto& by_uv, const auto& by_vv) {
        each(n, duu, [&](int i) { return by_uu(u[i], v[i], y[i]); });
        each(n, duv, [&](int i) { return by_uv(u[i], v[i], y[i]); });
        each(n, dvv, [&](int i) { return by_vv(u[i], v[i], y[i]); });
    };
    switch (node.kind) {
        case Kind::quotient:
            return set([](double, double, double) { return 0.0; },
                       [](double, double b, double) { return -1 / (b * b); },
                       [](double, double b, double q) { return 2 * (q / b) / b; });
        case Kind::power:
            return set([](double a, double b,
                          double) { return b == 0 || b == 1 ? 0.0 : b * ((b - 1) * std::pow(a, b - 2)); },
                       [](double a, double b, double) {
                           // At a = 0 the derivative by b of b a^(b - 1), with the convention of the first
                           // one.
                           if (a == 0 && b >= 1) return b == 1 ? 1.0 : 0.0;
                           return std::pow(a, b - 1) * (1 + b * std::log(a));
                       },
                       [](double a, double b, double p) {
                           const double l = std::log(a);
                           return a == 0 && b >= 0 ? 0.0 : p * l * l;
                       });
        case Kind::atan2: {
            const auto inverse = [](double a, double b) {
                const double square = a * a + b * b;
                return 1 / (square * square);
            };
            return set([&](double a, double b, double) { return -2 * a * b * inverse(a, b); },
                       [&](double a, double b, double) { return (a * a - b * b) * inverse(a, b); },
                       [&](double a, double b, double) { return 2 * a * b * inverse(a, b); });
        }
        default: {  // maximum, minimum
            const auto zero = [](double, double, double) { return 0.0; };
            return set(zero, zero, zero);
        }
    }
}

}  // namespace fubini
