// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <numeric>

#include "core/expval.hpp"
#include "core/metric.hpp"
#include "core/parallel.hpp"
#include "core/reference.hpp"
#include "random_program.hpp"

using namespace fubini;
using tests::Complex;
using tests::Random;

namespace {

/// g = Re[<d_i|d_j> - <d_i|psi><psi|d_j>] as it stands.
std::vector<double> dense_metric(const Program& program, const std::vector<double>& angles,
                                 const reference::State& initial) {
    const reference::State psi = reference::run(program, angles, initial);
    std::vector<reference::State> derivatives;
    for (int a = 0; a < program.angles(); ++a) {
        derivatives.push_back(reference::derivative(program, angles, initial, a));
    }
    const auto inner = [](const reference::State& a, const reference::State& b) {
        Complex sum = 0;
        for (std::size_t i = 0; i < a.size(); ++i) sum += std::conj(a[i]) * b[i];
        return sum;
    };
    std::vector<double> metric;
    for (const reference::State& a : derivatives) {
        for (const reference::State& b : derivatives) {
            metric.push_back((inner(a, b) - inner(a, psi) * inner(psi, b)).real());
        }
    }
    return metric;
}

}  // namespace

TEST_CASE("metric and its product with vectors, with slots shared between gates") {
    for (unsigned seed = 0; seed < 40; ++seed) {
        Random random(seed);
        const int qubits = 1 + random.below(5);
        const int angles = 1 + random.below(20);
        const bool takes_state = random.below(3) == 0;
        const Program program = random_program(random, qubits, 15, angles, takes_state);
        const auto count = static_cast<std::size_t>(angles);
        const std::ptrdiff_t size = 1 + random.below(9);
        const std::vector<double> values = random.vector(static_cast<std::size_t>(size) * count);
        const std::vector<double> vectors = random.vector(values.size());
        const std::vector<Complex> state = random.state(qubits);
        Batch batch;
        batch.angles = values.data();
        batch.size = size;
        if (takes_state) batch.states = state.data(), batch.shared_state = true;
        std::vector<int> all(count);
        std::iota(all.begin(), all.end(), 0);
        std::vector<double> full(static_cast<std::size_t>(size) * count * count), mean(count * count);
        std::vector<double> product(values.size());
        metric_full(program, batch, all, false, full.data());
        metric_full(program, batch, all, true, mean.data());
        metric_vector_product(program, batch, vectors.data(), product.data());
        std::vector<double> sum(mean.size());
        for (std::size_t b = 0; b < static_cast<std::size_t>(size); ++b) {
            const std::vector<double> row(values.begin() + static_cast<std::ptrdiff_t>(b * count),
                                          values.begin() + static_cast<std::ptrdiff_t>((b + 1) * count));
            const std::vector<double> expected =
                dense_metric(program, row, takes_state ? state : reference::zero_state(program));
            const double* got = full.data() + b * count * count;
            for (std::size_t i = 0; i < expected.size(); ++i) {
                CHECK(std::abs(got[i] - expected[i]) < 1e-11);
                sum[i] += got[i];
            }
            for (std::size_t i = 0; i < count; ++i) {
                double dot = 0;
                for (std::size_t j = 0; j < count; ++j) {
                    dot += got[i * count + j] * vectors[b * count + j];
                    CHECK(got[i * count + j] == got[j * count + i]);
                }
                CHECK(std::abs(product[b * count + i] - dot) < 1e-11);
            }
        }
        for (std::size_t i = 0; i < sum.size(); ++i) {
            CHECK(std::abs(mean[i] - sum[i] / static_cast<double>(size)) < 1e-12);
        }
    }
}

TEST_CASE("a subset of all operations is the program, and bad indices are refused") {
    Random random(1);
    const Program program = random_program(random, 3, 12, 4, false);
    std::vector<int> all(program.operations().size());
    std::iota(all.begin(), all.end(), 0);
    const Program copy = subset(program, all);
    const std::vector<double> angles = random.vector(4);
    Batch batch;
    batch.angles = angles.data();
    batch.size = 1;
    std::vector<Complex> a(8), b(8);
    state(program, batch, a.data());
    state(copy, batch, b.data());
    for (std::size_t i = 0; i < 8; ++i) CHECK(std::abs(a[i] - b[i]) < 1e-14);
    CHECK(copy.outputs().empty());
    CHECK_THROWS_AS((void)subset(program, std::vector<int>{1, 1}), std::invalid_argument);
    CHECK_THROWS_AS((void)subset(program, std::vector<int>{-1}), std::invalid_argument);
    CHECK_THROWS_AS((void)subset(program, std::vector<int>{10000}), std::invalid_argument);
}

TEST_CASE("a metric beyond the memory limit is refused") {
    Random random(2);
    const Program program = random_program(random, 6, 12, 4, false);
    const std::vector<double> angles = random.vector(4);
    Batch batch;
    batch.angles = angles.data();
    batch.size = 1;
    const std::vector<int> all = {0, 1, 2, 3};
    std::vector<double> metric(16);
    set_memory_limit(1000);
    CHECK_THROWS_AS(metric_full(program, batch, all, false, metric.data()), MemoryLimit);
    set_memory_limit(0);
}
