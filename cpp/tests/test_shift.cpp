// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cmath>
#include <numbers>
#include <random>
#include <stdexcept>
#include <vector>

#include "core/shift.hpp"

namespace {

/// A trigonometric polynomial with the given frequencies, and its derivative.
struct Signal {
    std::vector<double> frequencies;
    double constant = 0.3;

    [[nodiscard]] double value(double t) const {
        double sum = constant;
        for (std::size_t k = 0; k < frequencies.size(); ++k) {
            const double a = 1.0 + static_cast<double>(k);
            sum += a * std::cos(frequencies[k] * t) - 0.5 * a * std::sin(frequencies[k] * t);
        }
        return sum;
    }
    [[nodiscard]] double derivative(double t) const {
        double sum = 0.0;
        for (std::size_t k = 0; k < frequencies.size(); ++k) {
            const double a = 1.0 + static_cast<double>(k);
            sum -=
                frequencies[k] * (a * std::sin(frequencies[k] * t) + 0.5 * a * std::cos(frequencies[k] * t));
        }
        return sum;
    }
};

}  // namespace

TEST_CASE("shift rules differentiate every signal of their frequencies") {
    const std::vector<std::vector<double>> cases = {
        {1.0},           {2.0},      {0.5, 1.0},      {1.0, 2.0}, {1.0, 2.0, 3.0, 4.0},
        {0.5, 1.0, 1.5}, {1.0, 2.5}, {0.7, 1.0, 1.9},
    };
    for (const auto& frequencies : cases) {
        const auto rule = fubini::shift_rule(frequencies);
        CHECK(rule.size() == 2 * frequencies.size());
        const Signal signal{frequencies};
        for (const double t : {-2.0, 0.0, 0.3, 1.7}) {
            double sum = 0.0;
            for (const auto& term : rule) sum += term.coefficient * signal.value(t + term.shift);
            // The general rule loses at most the condition number of its system, bounded by 1e6.
            CHECK(sum == doctest::Approx(signal.derivative(t)).epsilon(1e-10));
        }
    }
}

TEST_CASE("one frequency gives the two-term rule") {
    const auto rule = fubini::shift_rule({1.0});
    CHECK(rule[0].coefficient == doctest::Approx(0.5));
    CHECK(rule[0].shift == doctest::Approx(std::numbers::pi / 2));
    CHECK(rule[1].coefficient == doctest::Approx(-0.5));
    CHECK(rule[1].shift == doctest::Approx(-std::numbers::pi / 2));
    CHECK(fubini::shift_rule({}).empty());
}

TEST_CASE("impossible frequencies are refused") {
    CHECK_THROWS_AS(fubini::shift_rule({0.0}), std::invalid_argument);
    CHECK_THROWS_AS(fubini::shift_rule({-1.0}), std::invalid_argument);
    CHECK_THROWS_AS(fubini::shift_rule({1.0, 1.0}), std::invalid_argument);
    CHECK_THROWS_AS(fubini::shift_rule({1.0, std::nan("")}), std::invalid_argument);
    CHECK_THROWS_AS(fubini::shift_rule({1.0, 1.0000001}), std::invalid_argument);
}

TEST_CASE("a plan moves one angle per term and contracts back to the Jacobian") {
    // f_m(a) = sin(a0) cos(a2 / 2) + m a-free; angle 1 has no rule, so its derivative is reported as zero.
    const fubini::ShiftPlan plan = fubini::shift_plan({0, 2}, {{1.0}, {0.5, 1.0}});
    CHECK(plan.index.size() == 6);
    const std::size_t batch = 2;
    const std::vector<double> angles = {0.1, 9.0, 0.4, -1.2, 9.0, 2.0};
    std::vector<double> shifted(plan.index.size() * 6);
    fubini::shift_angles(plan, batch, 3, angles.data(), shifted.data());
    std::vector<double> values;
    for (std::size_t row = 0; row < plan.index.size() * batch; ++row) {
        const double* a = shifted.data() + 3 * row;
        CHECK(a[1] == 9.0);
        values.push_back(std::sin(a[0]) * std::cos(a[2] / 2));
        values.push_back(std::cos(a[0]) + std::sin(a[2]));
    }
    std::vector<double> jacobian(batch * 2 * 3);
    fubini::shift_contract(plan, batch, 2, 3, values.data(), jacobian.data());
    for (std::size_t b = 0; b < batch; ++b) {
        const double a0 = angles[3 * b];
        const double a2 = angles[3 * b + 2];
        const double expected[] = {std::cos(a0) * std::cos(a2 / 2),
                                   0.0,
                                   -0.5 * std::sin(a0) * std::sin(a2 / 2),
                                   -std::sin(a0),
                                   0.0,
                                   std::cos(a2)};
        for (std::size_t i = 0; i < 6; ++i) CHECK(jacobian[6 * b + i] == doctest::Approx(expected[i]));
    }
    CHECK_THROWS_AS(fubini::shift_angles(plan, batch, 2, angles.data(), shifted.data()),
                    std::invalid_argument);
    CHECK_THROWS_AS(fubini::shift_plan({0}, {}), std::invalid_argument);
}

TEST_CASE("rules with chosen shifts") {
    const std::vector<double> frequencies = {0.5, 1.0};
    const std::vector<double> shifts = {0.4, 2.2};
    const Signal signal{frequencies};
    double sum = 0.0;
    for (const auto& term : fubini::shift_rule(frequencies, shifts)) {
        CHECK((std::abs(term.shift) == 0.4 || std::abs(term.shift) == 2.2));
        sum += term.coefficient * signal.value(0.3 + term.shift);
    }
    CHECK(sum == doctest::Approx(signal.derivative(0.3)).epsilon(1e-10));
    CHECK_THROWS_AS(fubini::shift_rule(frequencies, {0.4}), std::invalid_argument);
    CHECK_THROWS_AS(fubini::shift_rule(frequencies, {0.4, 0.4}), std::invalid_argument);
    CHECK_THROWS_AS(fubini::shift_plan({0}, {{1.0}}, {{0.1}, {0.2}}), std::invalid_argument);
}
