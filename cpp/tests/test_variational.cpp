// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "core/variational.hpp"
#include "random_program.hpp"

using fubini::Cutoff;
using Values = std::vector<double>;

namespace {

constexpr Cutoff usual{1e-7, 0.01, 1e-10, 1e-4};

struct Found {
    Values velocity;
    double residual = 0;
    double damping = 0;
};

Found solved(const Values& tangents, const Values& state, const Cutoff& cutoff) {
    const auto width = static_cast<std::ptrdiff_t>(state.size());
    const auto weights = static_cast<std::ptrdiff_t>(tangents.size()) / width;
    Found found{Values(static_cast<std::size_t>(weights))};
    fubini::variational_velocities(tangents.data(), state.data(), 1, weights, width, cutoff,
                                   found.velocity.data(), &found.residual, &found.damping);
    return found;
}

}  // namespace

TEST_CASE("velocities solve the damped normal equations, in both forms") {
    fubini::tests::Random random(5);
    const std::size_t width = 6;
    for (const std::size_t weights : {std::size_t{3}, std::size_t{6}, std::size_t{9}}) {
        Values tangents(weights * width), state(width);
        for (double& value : tangents) value = random.uniform(-1, 1);
        for (double& value : state) value = random.uniform(-1, 1);
        const Found found = solved(tangents, state, usual);
        Values rest = state;
        for (std::size_t j = 0; j < weights; ++j) {
            for (std::size_t i = 0; i < width; ++i) rest[i] -= found.velocity[j] * tangents[j * width + i];
        }
        double square = 0;
        for (const double value : rest) square += value * value;
        CHECK(found.residual == doctest::Approx(std::sqrt(square)).epsilon(1e-9));
        for (std::size_t j = 0; j < weights; ++j) {  // T (h - T^T v) = damping v
            double sum = 0;
            for (std::size_t i = 0; i < width; ++i) sum += tangents[j * width + i] * rest[i];
            CHECK(sum == doctest::Approx(found.damping * found.velocity[j]).epsilon(1e-6));
        }
        if (weights >= width) CHECK(found.residual < 3e-7);
    }
}

TEST_CASE("a direction is left out as far as the residual allows it") {
    // T = diag(1, s), h = (1, c, r): what the damping adds is c d / (s^2 + d) of the second one.
    const double s = 1e-2, c = 1e-3, r = 0.5;
    const Values tangents{1, 0, 0, 0, s, 0};
    const Found found = solved(tangents, {1, c, r}, usual);
    const double added = c * found.damping / (s * s + found.damping);
    CHECK(found.residual == doctest::Approx(std::sqrt(r * r + added * added)).epsilon(1e-6));
    CHECK(added < 0.01 * found.residual);
    CHECK(found.velocity[0] == doctest::Approx(1 / (1 + found.damping)));
    CHECK(found.damping < 1.001e-4);
    const Found tight = solved(tangents, {1, c, 0}, usual);  // nothing else is missed: 1e-7
    CHECK(tight.residual == doctest::Approx(1e-7).epsilon(0.02));
    CHECK(tight.velocity[1] == doctest::Approx(c / s).epsilon(1e-3));
}

TEST_CASE("nothing moves where nothing can, and NaN stays NaN") {
    const Found still = solved({0, 0, 0, 0}, {1, 2}, usual);
    CHECK(still.velocity == Values{0, 0});
    CHECK(still.residual == doctest::Approx(std::sqrt(5.0)));
    CHECK(solved({1, 0, 0, 1}, {0, 0}, usual).velocity == Values{0, 0});
    const double nan = std::numeric_limits<double>::quiet_NaN();
    CHECK(std::isnan(solved({1, nan, 0, 1}, {1, 2}, usual).velocity[0]));
    CHECK(solved({1, 0, 0, 1}, {1, 2}, {0, 0, 1e-10, 1e-4}).residual < 1e-8);  // nothing allowed
}
