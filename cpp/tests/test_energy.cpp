// SPDX-License-Identifier: Apache-2.0
#include "core/energy.hpp"

#include <doctest/doctest.h>

#include "core/metric.hpp"
#include "core/observable.hpp"
#include "core/parallel.hpp"
#include "core/restricted.hpp"
#include "core/workspace.hpp"
#include "random_program.hpp"
#include "tests/reference.hpp"

using namespace fubini;
using tests::Complex;
using tests::Random;

namespace {

Complex inner(const reference::State& a, const reference::State& b) {
    Complex sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += std::conj(a[i]) * b[i];
    return sum;
}

/// What energy_curvature returns, as it stands in the definition.
struct Model {
    double value = 0;
    std::vector<double> gradient, curvature, metric;

    Model(const Program& program, const std::vector<double>& angles, const std::vector<double>& weights) {
        const reference::State zero = reference::zero_state(program);
        const reference::State psi = reference::run(program, angles, zero);
        const auto energy = [&](const reference::State& bra, const reference::State& ket) {
            const std::vector<double> moments = reference::moments(program, bra, ket);
            double sum = 0;
            for (std::size_t m = 0; m < weights.size(); ++m) {
                sum += weights[m] * moments[static_cast<std::size_t>(program.outputs()[m].moment)];
            }
            return sum;
        };
        value = energy(psi, psi);
        std::vector<reference::State> tangents;
        for (int a = 0; a < program.angles(); ++a) {
            reference::State d = reference::derivative(program, angles, zero, a);
            const Complex along = inner(psi, d);
            for (std::size_t i = 0; i < d.size(); ++i) d[i] -= along * psi[i];
            gradient.push_back(2 * energy(d, psi));
            tangents.push_back(std::move(d));
        }
        for (const reference::State& a : tangents) {
            for (const reference::State& b : tangents) {
                metric.push_back(inner(a, b).real());
                curvature.push_back(2 * (energy(a, b) - value * metric.back()));
            }
        }
    }
};

void expect_equal(const std::vector<double>& found, const std::vector<double>& expected) {
    REQUIRE(found.size() == expected.size());
    // Products of some ten gates and words with coefficients below 2.
    for (std::size_t i = 0; i < found.size(); ++i) CHECK(std::abs(found[i] - expected[i]) < 1e-10);
}

}  // namespace

TEST_CASE("the curvature of an energy, as a matrix and as products, for any number of threads") {
    for (unsigned seed = 0; seed < 40; ++seed) {
        Random random(seed + 900);
        const int qubits = 1 + random.below(6), angles = 1 + random.below(11);
        const Program program = random_program(random, qubits, 14, angles, false);
        const std::size_t outputs = program.outputs().size();
        const std::vector<double> weights = random.vector(outputs);
        const std::ptrdiff_t size = 1 + random.below(3);
        const auto k = static_cast<std::size_t>(angles), count = static_cast<std::size_t>(size);
        const std::vector<double> values = random.vector(count * k), vectors = random.vector(count * k);
        Batch batch;
        batch.angles = values.data();
        batch.size = size;
        std::vector<double> products(count * k), kept;
        energy_curvature_product(program, batch, weights.data(), vectors.data(), products.data());
        for (const int threads : {1, 3}) {
            set_num_threads(threads);
            std::vector<double> value(count), gradient(count * k), curvature(count * k * k),
                metric(count * k * k);
            energy_curvature(program, batch, weights.data(),
                             {value.data(), gradient.data(), curvature.data(), metric.data()});
            if (threads > 1) CHECK(kept == curvature);
            kept = curvature;
            std::vector<double> alone(count * k * k), slopes(count * k);
            energy_curvature(program, batch, weights.data(),
                             {value.data(), slopes.data(), alone.data(), nullptr});
            CHECK(alone == curvature);
            CHECK(slopes == gradient);
            for (std::size_t b = 0; b < count; ++b) {
                const auto part = [&](const std::vector<double>& all, std::size_t each) {
                    const auto first = all.begin() + static_cast<std::ptrdiff_t>(b * each);
                    return std::vector<double>(first, first + static_cast<std::ptrdiff_t>(each));
                };
                const Model expected(program, part(values, k), weights);
                CHECK(std::abs(value[b] - expected.value) < 1e-10);
                expect_equal(part(gradient, k), expected.gradient);
                expect_equal(part(curvature, k * k), expected.curvature);
                expect_equal(part(metric, k * k), expected.metric);
                std::vector<double> product(k);
                for (std::size_t i = 0; i < k; ++i) {
                    for (std::size_t j = 0; j < k; ++j) {
                        product[i] += expected.curvature[i * k + j] * vectors[b * k + j];
                    }
                }
                expect_equal(part(products, k), product);
            }
        }
        set_num_threads(1);
    }
}

TEST_CASE("an observable between some basis states") {
    for (unsigned seed = 0; seed < 20; ++seed) {
        Random random(seed + 300);
        const int qubits = 1 + random.below(6);
        const Program program = random_program(random, qubits, 6, 2, false);
        if (!program.marginals().empty()) continue;
        const std::vector<double> weights = random.vector(static_cast<std::size_t>(program.moments()));
        const std::size_t all = std::size_t{1} << qubits;
        std::vector<std::uint32_t> rows;
        for (std::uint32_t r = 0; r < all; ++r) {
            if (random.below(2) == 0) rows.push_back(r);
        }
        // Whole states that are zero elsewhere, and the same amplitudes side by side.
        Workspace memory;
        const std::size_t scratch = observable_scratch(program, {qubits, 0});
        double* ket = memory.reserve(4 * all * row_doubles + scratch);
        double *bra = ket + all * row_doubles, *few = bra + all * row_doubles;
        double *image = few + all * row_doubles, *free = image + all * row_doubles;
        std::fill_n(ket, all * row_doubles, 0.0);
        for (std::size_t i = 0; i < rows.size(); ++i) {
            const std::vector<double> values = random.vector(row_doubles);
            std::copy(values.begin(), values.end(), ket + rows[i] * row_doubles);
            std::copy(values.begin(), values.end(), few + i * row_doubles);
        }
        apply_uniform(program, weights.data(), ket, bra, free);
        Restricted(program, weights.data(), rows).apply(few, image);
        for (std::size_t i = 0; i < rows.size() * row_doubles; ++i) {
            CHECK(std::abs(image[i] - bra[rows[i / row_doubles] * row_doubles + i % row_doubles]) < 1e-12);
        }
    }
}
