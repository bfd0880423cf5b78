// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <numeric>

#include "core/derivatives.hpp"
#include "core/metric.hpp"
#include "random_program.hpp"

using namespace fubini;
using tests::Complex;
using tests::Random;

namespace {

Complex inner(const Complex* a, const Complex* b, std::size_t size) {
    Complex sum = 0;
    for (std::size_t i = 0; i < size; ++i) sum += std::conj(a[i]) * b[i];
    return sum;
}

}  // namespace

TEST_CASE(
    "derivatives of states: their products are the metric, covectors see them, differences confirm the "
    "second") {
    for (unsigned seed = 0; seed < 30; ++seed) {
        Random random(seed);
        const int qubits = 1 + random.below(5);
        const int angles = 1 + random.below(12);
        const bool takes_state = random.below(3) == 0;
        const Program program = random_program(random, qubits, 12, angles, takes_state);
        const auto count = static_cast<std::size_t>(angles);
        const std::size_t amplitudes = std::size_t{1} << qubits;
        const std::vector<double> values = random.vector(2 * count);
        const std::vector<Complex> initial = random.state(qubits);
        Batch batch;
        batch.angles = values.data();
        batch.size = 2;
        if (takes_state) batch.states = initial.data(), batch.shared_state = true;
        Batch repeated = batch;
        repeated.repeat = angles;
        repeated.size = 2 * repeated.repeat;

        std::vector<double> unit(2 * count * count);
        for (std::size_t i = 0; i < 2 * count; ++i) unit[i * count + i % count] = 1;
        std::vector<Complex> psi(2 * amplitudes), tangents(2 * count * amplitudes);
        derivative_states(program, batch, nullptr, psi.data());
        derivative_states(program, repeated, unit.data(), tangents.data());
        std::vector<int> all(count);
        std::iota(all.begin(), all.end(), 0);
        std::vector<double> metric(2 * count * count);
        metric_full(program, batch, Directions::of(all), false, true, metric.data());

        std::vector<Complex> covectors;
        for (int b = 0; b < 2; ++b) {
            const std::vector<Complex> one = random.state(qubits);
            covectors.insert(covectors.end(), one.begin(), one.end());
        }
        std::vector<double> slopes(2 * count);
        overlap_gradient(program, batch, covectors.data(), slopes.data());
        for (std::size_t b = 0; b < 2; ++b) {
            const Complex* state = psi.data() + b * amplitudes;
            const Complex* rows = tangents.data() + b * count * amplitudes;
            CHECK(std::abs(inner(state, state, amplitudes) - 1.0) < 1e-12);
            for (std::size_t i = 0; i < count; ++i) {
                const Complex* left = rows + i * amplitudes;
                for (std::size_t j = 0; j < count; ++j) {
                    const Complex* right = rows + j * amplitudes;
                    const Complex projected =
                        inner(left, right, amplitudes) -
                        inner(left, state, amplitudes) * inner(state, right, amplitudes);
                    CHECK(std::abs(projected.real() - metric[(b * count + i) * count + j]) < 1e-11);
                }
                const double overlap = inner(left, covectors.data() + b * amplitudes, amplitudes).real();
                CHECK(std::abs(slopes[b * count + i] - overlap) < 1e-11);
            }
        }

        const std::vector<double> directions = random.vector(2 * count, 1);
        std::vector<double> second(2 * count), sums(2 * count);
        overlap_hessian(program, batch, covectors.data(), directions.data(), second.data());
        const double step = 1e-3;
        for (const auto& [times, weight] : {std::pair{1, 8.0}, {-1, -8.0}, {2, -1.0}, {-2, 1.0}}) {
            std::vector<double> moved = values;
            for (std::size_t i = 0; i < moved.size(); ++i) moved[i] += times * step * directions[i];
            Batch shifted = batch;
            shifted.angles = moved.data();
            overlap_gradient(program, shifted, covectors.data(), slopes.data());
            for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += weight * slopes[i] / (12 * step);
        }
        for (std::size_t i = 0; i < sums.size(); ++i) {
            CHECK(std::abs(sums[i] - second[i]) < 1e-7 * (1 + std::abs(second[i])));
        }
    }
}
