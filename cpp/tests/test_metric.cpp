// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <numeric>

#include "core/expval.hpp"
#include "core/kernels.hpp"
#include "core/memory.hpp"
#include "core/metric.hpp"
#include "core/parallel.hpp"
#include "core/plan.hpp"
#include "random_program.hpp"
#include "tests/reference.hpp"

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

/// <P> as it stands.
double word_value(const reference::State& psi, Mask x, Mask z) {
    const Complex powers[] = {1, Complex(0, 1), -1, Complex(0, -1)};
    Complex sum = 0;
    for (std::size_t r = 0; r < psi.size(); ++r) {
        const double sign = parity(z & r) != 0 ? -1.0 : 1.0;
        sum += std::conj(psi[r ^ x]) * powers[std::popcount(x & z) & 3] * sign * psi[r];
    }
    return sum.real();
}

Batch batch_of(const std::vector<double>& angles, std::ptrdiff_t size) {
    Batch batch;
    batch.angles = angles.data();
    batch.size = size;
    return batch;
}

}  // namespace

TEST_CASE("covariances of commuting words at stages, for every layout") {
    for (unsigned seed = 0; seed < 60; ++seed) {
        Random random(seed + 500);
        const int qubits = seed % 12 == 0 ? 10 : 1 + random.below(6);
        const std::ptrdiff_t size = 1 + static_cast<std::ptrdiff_t>(seed % 9);
        const int angles = 4;
        const Program program = random_program(random, qubits, 10, angles, false);
        const int operations = static_cast<int>(program.operations().size());
        std::vector<int> order(static_cast<std::size_t>(operations));
        std::iota(order.begin(), order.end(), 0);
        // Words that commute with those before them; up to the second stage, the last has any words.
        std::vector<Stage> stages;
        std::vector<int> counts;
        std::vector<std::vector<PauliTerm>> words;
        for (int stage = 0; stage < 3; ++stage) {
            std::vector<PauliTerm> chosen;
            const int wanted = 1 + random.below(2 * qubits + 1);
            for (int attempt = 0; attempt < 400 && static_cast<int>(chosen.size()) < wanted; ++attempt) {
                const auto all = static_cast<int>(Mask{1} << qubits);
                const PauliTerm word{static_cast<Mask>(random.below(all)),
                                     static_cast<Mask>(random.below(all)), random.uniform(-2, 2), 0};
                bool fits = true;
                for (const PauliTerm& other : chosen) {
                    fits = fits &&
                           (stage == 2 || commute(hermitian(word.x, word.z), hermitian(other.x, other.z)));
                }
                if (fits) chosen.push_back(word);
            }
            const int k = static_cast<int>(chosen.size());
            Stage s;
            s.operations = static_cast<std::size_t>(operations * (stage + 1) / 3);
            int moment = k;
            for (int i = 0; i < k; ++i) {
                const PauliTerm& a = chosen[static_cast<std::size_t>(i)];
                s.terms.push_back({a.x, a.z, a.coefficient, i});
                for (int j = 0; j <= i; ++j, ++moment) {
                    const PauliTerm& b = chosen[static_cast<std::size_t>(j)];
                    const Word left = hermitian(a.x, a.z), right = hermitian(b.x, b.z);
                    if (!commute(left, right)) continue;
                    const Word product = left * right;
                    s.terms.push_back(
                        {product.x, product.z, a.coefficient * b.coefficient * sign(product), moment});
                }
            }
            stages.push_back(s);
            counts.push_back(k);
            words.push_back(chosen);
        }
        const Program measured = staged(program, order, stages);
        const std::vector<double> values = random.vector(static_cast<std::size_t>(size * angles));
        const Batch batch = batch_of(values, size);
        std::vector<std::vector<double>> each, mean;
        std::vector<double*> to_each, to_mean;
        for (const int k : counts) {
            each.emplace_back(static_cast<std::size_t>(size * k * k));
            mean.emplace_back(static_cast<std::size_t>(k * k));
        }
        for (std::size_t c = 0; c < 3; ++c) {
            to_each.push_back(each[c].data());
            to_mean.push_back(mean[c].data());
        }
        stage_covariances(measured, batch, counts, false, to_each);
        mean_stage_covariances(measured, batch, counts, false, to_mean);
        for (std::size_t c = 0; c < 3; ++c) {
            const auto count = static_cast<std::ptrdiff_t>(stages[c].operations);
            const Program before =
                staged(program, std::vector<int>(order.begin(), order.begin() + count), {});
            const auto k = static_cast<std::size_t>(counts[c]);
            std::vector<double> sum(k * k);
            for (std::size_t b = 0; b < static_cast<std::size_t>(size); ++b) {
                const std::vector<double> row(values.begin() + static_cast<std::ptrdiff_t>(4 * b),
                                              values.begin() + static_cast<std::ptrdiff_t>(4 * b + 4));
                const reference::State psi = reference::run(before, row, reference::zero_state(before));
                for (std::size_t i = 0; i < k; ++i) {
                    for (std::size_t j = 0; j < k; ++j) {
                        const PauliTerm &x = words[c][i], &y = words[c][j];
                        const Word left = hermitian(x.x, x.z), right = hermitian(y.x, y.z);
                        double expected = -word_value(psi, x.x, x.z) * word_value(psi, y.x, y.z);
                        if (commute(left, right)) {
                            const Word product = left * right;
                            expected += sign(product) * word_value(psi, product.x, product.z);
                        }
                        expected *= x.coefficient * y.coefficient;
                        CHECK(std::abs(each[c][(b * k + i) * k + j] - expected) < 1e-12);
                        sum[i * k + j] += expected;
                    }
                }
            }
            for (std::size_t i = 0; i < k * k; ++i) {
                CHECK(std::abs(mean[c][i] - sum[i] / static_cast<double>(size)) < 1e-12);
            }
        }
    }
}

TEST_CASE("a factor of the mean metric, and the metric of small and large batches") {
    for (unsigned seed = 0; seed < 12; ++seed) {
        Random random(seed + 900);
        const int qubits = 1 + random.below(5);
        const int angles = 1 + random.below(20);
        const Program program = random_program(random, qubits, 15, angles, false);
        const auto count = static_cast<std::size_t>(angles);
        const std::ptrdiff_t size = seed % 3 == 0 ? 70 : 1 + random.below(4);
        const std::vector<double> values = random.vector(static_cast<std::size_t>(size) * count);
        const Batch batch = batch_of(values, size);
        std::vector<int> all(count);
        std::iota(all.begin(), all.end(), 0);
        const std::size_t columns = static_cast<std::size_t>(size) * 2 << qubits;
        std::vector<double> factor(count * columns), mean(count * count);
        metric_factor(program, batch, Directions::of(all), factor.data());
        metric_full(program, batch, Directions::of(all), true, true, mean.data());
        for (std::size_t i = 0; i < count; ++i) {
            for (std::size_t j = 0; j < count; ++j) {
                double dot = 0;
                for (std::size_t c = 0; c < columns; ++c) {
                    dot += factor[i * columns + c] * factor[j * columns + c];
                }
                CHECK(std::abs(dot - mean[i * count + j]) < 1e-11);
            }
        }
    }
}

TEST_CASE("two steps in one pass are the steps one after the other") {
    for (unsigned seed = 0; seed < 30; ++seed) {
        Random random(seed);
        const int qubits = 2 + random.below(6);
        const Layout layout{qubits, 0};
        const auto flips = [&] { return static_cast<Mask>(1 + random.below((1 << qubits) - 1)); };
        Step steps[2];
        for (Step& step : steps) {
            step.x = flips();
            step.z1 = static_cast<Mask>(random.below(1 << qubits));
            step.z3 = static_cast<Mask>(random.below(1 << qubits));
        }
        const Geometry first = geometry(steps[0], layout), second = geometry(steps[1], layout);
        CHECK(can_mix_two(layout, first, second) == (steps[0].x != steps[1].x));
        if (steps[0].x == steps[1].x) continue;
        Vec q[4], p[4];
        for (int i = 0; i < 4; ++i) {
            for (int l = 0; l < lanes; ++l) q[i][l] = random.uniform(-1, 1), p[i][l] = random.uniform(-1, 1);
        }
        struct alignas(64) Row {
            double values[row_doubles];
        };
        std::vector<Row> one(layout.rows());
        for (Row& row : one) {
            for (double& value : row.values) value = random.uniform(-1, 1);
        }
        std::vector<Row> both = one;
        const Mix m = unitary(first, q), n = inverse(second, p);
        mix(first, Flavor::general, m, one[0].values, 0, first.count);
        mix(second, Flavor::general, n, one[0].values, 0, second.count);
        mix_two(first, m, second, n, both[0].values, 0, layout.rows() / 4);
        for (std::size_t r = 0; r < layout.rows(); ++r) {
            for (std::size_t i = 0; i < row_doubles; ++i) {
                CHECK(std::abs(one[r].values[i] - both[r].values[i]) < 1e-14);
            }
        }
    }
}

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
        metric_full(program, batch, Directions::of(all), false, true, full.data());
        metric_full(program, batch, Directions::of(all), true, true, mean.data());
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

TEST_CASE("all operations in their order are the program, and bad indices are refused") {
    Random random(1);
    const Program program = random_program(random, 3, 12, 4, false);
    std::vector<int> all(program.operations().size());
    std::iota(all.begin(), all.end(), 0);
    const Program copy = staged(program, all, {});
    const std::vector<double> angles = random.vector(4);
    Batch batch;
    batch.angles = angles.data();
    batch.size = 1;
    std::vector<Complex> a(8), b(8);
    state(program, batch, a.data());
    state(copy, batch, b.data());
    for (std::size_t i = 0; i < 8; ++i) CHECK(std::abs(a[i] - b[i]) < 1e-14);
    CHECK(copy.outputs().empty());
    CHECK_THROWS_AS((void)staged(program, std::vector<int>{1, 1}, {}), std::invalid_argument);
    CHECK_THROWS_AS((void)staged(program, std::vector<int>{-1}, {}), std::invalid_argument);
    CHECK_THROWS_AS((void)staged(program, std::vector<int>{10000}, {}), std::invalid_argument);
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
    CHECK_THROWS_AS(metric_full(program, batch, Directions::of(all), false, true, metric.data()),
                    MemoryLimit);
    set_memory_limit(0);
}

TEST_CASE("metrics along directions are those of the angles, pulled back") {
    for (unsigned seed = 0; seed < 30; ++seed) {
        Random random(seed);
        const int qubits = 1 + random.below(5);
        const int angles = 1 + random.below(20);
        const Program program = random_program(random, qubits, 15, angles, false);
        const auto count = static_cast<std::size_t>(angles);
        const std::ptrdiff_t size = 1 + random.below(4);
        const std::vector<double> values = random.vector(static_cast<std::size_t>(size) * count);
        Batch batch;
        batch.angles = values.data();
        batch.size = size;
        Directions directions;
        const auto k = static_cast<std::size_t>(random.below(12));
        std::vector<double> jacobian(count * k);
        for (std::size_t i = 0; i < k; ++i) {
            for (std::size_t a = 0; a < count; ++a) {
                if (random.below(3) != 0) continue;
                const double coefficient = random.vector(1)[0];
                jacobian[a * k + i] = coefficient;
                directions.slot.push_back(static_cast<int>(a));
                directions.coefficient.push_back(coefficient);
            }
            directions.start.push_back(static_cast<int>(directions.slot.size()));
        }
        std::vector<int> all(count);
        std::iota(all.begin(), all.end(), 0);
        std::vector<double> full(count * count), mine(k * k);
        metric_full(program, batch, Directions::of(all), true, true, full.data());
        metric_full(program, batch, directions, true, true, mine.data());
        const auto columns = static_cast<std::size_t>(size) * 2 * (std::size_t{1} << qubits);
        std::vector<double> factor(k * columns);
        metric_factor(program, batch, directions, factor.data());
        for (std::size_t i = 0; i < k; ++i) {
            for (std::size_t j = 0; j < k; ++j) {
                double expected = 0, product = 0;
                for (std::size_t a = 0; a < count; ++a) {
                    for (std::size_t b = 0; b < count; ++b)
                        expected += jacobian[a * k + i] * full[a * count + b] * jacobian[b * k + j];
                }
                for (std::size_t c = 0; c < columns; ++c)
                    product += factor[i * columns + c] * factor[j * columns + c];
                CHECK(std::abs(mine[i * k + j] - expected) < 1e-11);
                CHECK(std::abs(product - expected) < 1e-11);
                CHECK(mine[i * k + j] == mine[j * k + i]);
            }
        }
    }
}
