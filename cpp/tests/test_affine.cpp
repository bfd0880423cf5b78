// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <stdexcept>
#include <vector>

#include "core/affine.hpp"
#include "random_program.hpp"

using fubini::AffineMap;
using fubini::Coefficient;

TEST_CASE("the affine map equals its dense matrices, and its pull-back their transposes") {
    fubini::tests::Random random(1);
    const int angles = 7, weights = 5, inputs = 3, batch = 4;
    std::vector<double> w_dense(angles * weights), x_dense(angles * inputs);
    std::vector<Coefficient> w_entries, x_entries;
    for (int k = 0; k < 12; ++k) {  // repeated entries add up
        const Coefficient w{random.below(angles), random.below(weights), random.uniform(-2, 2)};
        const Coefficient x{random.below(angles), random.below(inputs), random.uniform(-2, 2)};
        w_dense[static_cast<std::size_t>(w.angle * weights + w.source)] += w.value;
        x_dense[static_cast<std::size_t>(x.angle * inputs + x.source)] += x.value;
        w_entries.push_back(w);
        x_entries.push_back(x);
    }
    const std::vector<double> constant = random.vector(angles), w = random.vector(weights);
    const std::vector<double> x = random.vector(inputs * batch), gradient = random.vector(angles * batch);
    const AffineMap map(constant, weights, inputs, w_entries, x_entries);
    std::vector<double> found(angles * batch), by_weights(weights), by_inputs(inputs * batch);
    map.apply(w.data(), x.data(), batch, found.data());
    map.pull_back(gradient.data(), batch, by_weights.data(), by_inputs.data());
    std::vector<double> expected_weights(weights);
    for (int b = 0; b < batch; ++b) {
        std::vector<double> expected_inputs(inputs);
        for (int a = 0; a < angles; ++a) {
            const double g = gradient[static_cast<std::size_t>(b * angles + a)];
            double angle = constant[static_cast<std::size_t>(a)];
            for (int k = 0; k < weights; ++k) {
                const auto entry = w_dense[static_cast<std::size_t>(a * weights + k)];
                angle += entry * w[static_cast<std::size_t>(k)];
                expected_weights[static_cast<std::size_t>(k)] += entry * g;
            }
            for (int k = 0; k < inputs; ++k) {
                const auto entry = x_dense[static_cast<std::size_t>(a * inputs + k)];
                angle += entry * x[static_cast<std::size_t>(b * inputs + k)];
                expected_inputs[static_cast<std::size_t>(k)] += entry * g;
            }
            CHECK(found[static_cast<std::size_t>(b * angles + a)] == doctest::Approx(angle).epsilon(1e-13));
        }
        for (int k = 0; k < inputs; ++k) {
            CHECK(by_inputs[static_cast<std::size_t>(b * inputs + k)] ==
                  doctest::Approx(expected_inputs[static_cast<std::size_t>(k)]).epsilon(1e-13));
        }
    }
    for (int k = 0; k < weights; ++k) {
        CHECK(by_weights[static_cast<std::size_t>(k)] ==
              doctest::Approx(expected_weights[static_cast<std::size_t>(k)]).epsilon(1e-13));
    }
}

TEST_CASE("the affine map refuses entries outside of its matrices") {
    CHECK_THROWS_AS(AffineMap({0.0}, 1, 1, {{1, 0, 1.0}}, {}), std::invalid_argument);
    CHECK_THROWS_AS(AffineMap({0.0}, 1, 1, {}, {{0, -1, 1.0}}), std::invalid_argument);
    CHECK_THROWS_AS(AffineMap({0.0}, -1, 1, {}, {}), std::invalid_argument);
}
