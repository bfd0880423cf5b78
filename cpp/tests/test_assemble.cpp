// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <Eigen/Dense>
#include <algorithm>
#include <complex>
#include <random>
#include <stdexcept>
#include <vector>

#include "core/assemble.hpp"
#include "core/parallel.hpp"

using fubini::BlockRequest;
using fubini::Generator;
using Complex = std::complex<double>;

namespace {

/// Dense matrix of a generator by Kronecker products, written independently of the kernel's bit tricks.
Eigen::MatrixXcd dense(const Generator& generator, int wires) {
    const Eigen::Index size = Eigen::Index{1} << wires;
    Eigen::MatrixXcd sum = Eigen::MatrixXcd::Zero(size, size);
    for (const auto& term : generator) {
        Eigen::MatrixXcd word = Eigen::MatrixXcd::Constant(1, 1, term.coefficient);
        for (int wire = 0; wire < wires; ++wire) {
            const std::uint64_t bit = std::uint64_t{1} << (wires - 1 - wire);
            Eigen::Matrix2cd pauli = Eigen::Matrix2cd::Identity();
            if ((term.x & bit) != 0 && (term.z & bit) != 0) {
                pauli << 0, Complex(0, -1), Complex(0, 1), 0;
            } else if ((term.x & bit) != 0) {
                pauli << 0, 1, 1, 0;
            } else if ((term.z & bit) != 0) {
                pauli << 1, 0, 0, -1;
            }
            Eigen::MatrixXcd next(word.rows() * 2, word.cols() * 2);
            for (Eigen::Index r = 0; r < word.rows(); ++r) {
                for (Eigen::Index c = 0; c < word.cols(); ++c)
                    next.block<2, 2>(2 * r, 2 * c) = word(r, c) * pauli;
            }
            word = next;
        }
        sum += word;
    }
    return sum;
}

struct Case {
    int wires;
    std::size_t batch;
    std::vector<Generator> generators;
    std::vector<Complex> states;
    std::vector<double> probabilities;
    std::vector<Eigen::MatrixXcd> applied;  // per generator: its product with every state

    Case(int wires_, std::size_t batch_, std::size_t count, bool diagonal, unsigned seed)
        : wires(wires_), batch(batch_) {
        std::mt19937_64 random(seed);
        std::normal_distribution<double> normal;
        const std::uint64_t size = std::uint64_t{1} << wires;
        for (std::size_t i = 0; i < count; ++i) {
            Generator generator;
            for (std::size_t t = 0; t <= i % 3; ++t) {
                generator.push_back({diagonal ? 0 : random() % size, random() % size, normal(random)});
            }
            generators.push_back(generator);
        }
        for (std::size_t b = 0; b < batch; ++b) {
            Eigen::VectorXcd state(static_cast<Eigen::Index>(size));
            for (Complex& amplitude : state) amplitude = {normal(random), normal(random)};
            state.normalize();
            for (const Complex& amplitude : state) {
                states.push_back(amplitude);
                probabilities.push_back(std::norm(amplitude));
            }
        }
        for (const Generator& generator : generators) {
            const Eigen::Map<const Eigen::MatrixXcd> all(states.data(), static_cast<Eigen::Index>(size),
                                                         static_cast<Eigen::Index>(batch));
            applied.emplace_back(dense(generator, wires) * all);
        }
    }

    [[nodiscard]] double expected(std::size_t b, std::size_t i, std::size_t j) const {
        const auto column = static_cast<Eigen::Index>(b);
        const Eigen::Index size = Eigen::Index{1} << wires;
        const Eigen::Map<const Eigen::VectorXcd> state(states.data() + column * size, size);
        const auto left = applied[i].col(column);
        const auto right = applied[j].col(column);
        return left.dot(right).real() - state.dot(left).real() * state.dot(right).real();
    }
};

// Sums of at most 3 * 3 terms of order one over at most 2^11 amplitudes.
constexpr double tolerance = 1e-12;

void check_blocks(const Case& c, const std::vector<double>& block, const std::vector<double>& diagonal) {
    const std::size_t k = c.generators.size();
    for (std::size_t b = 0; b < c.batch; ++b) {
        for (std::size_t i = 0; i < k; ++i) {
            CHECK(std::abs(diagonal[b * k + i] - c.expected(b, i, i)) < tolerance);
            for (std::size_t j = 0; j < k; ++j) {
                CHECK(std::abs(block[(b * k + i) * k + j] - c.expected(b, i, j)) < tolerance);
                CHECK(block[(b * k + i) * k + j] == block[(b * k + j) * k + i]);
            }
        }
    }
}

}  // namespace

TEST_CASE("blocks from states equal dense matrices, for any generators") {
    for (const int wires : {1, 2, 3, 5}) {
        for (const std::size_t batch : {1U, 3U}) {
            const Case c(wires, batch, 4, false,
                         static_cast<unsigned>(wires) * 10 + static_cast<unsigned>(batch));
            std::vector<double> block(batch * 16);
            std::vector<double> diagonal(batch * 4);
            fubini::blocks_from_states({batch, wires, false}, c.generators, c.states.data(), block.data());
            fubini::blocks_from_states({batch, wires, true}, c.generators, c.states.data(), diagonal.data());
            check_blocks(c, block, diagonal);
        }
    }
}

TEST_CASE("blocks from states are right across chunk borders") {
    const Case c(11, 1, 3, false, 99);
    std::vector<double> block(9);
    std::vector<double> diagonal(3);
    fubini::blocks_from_states({1, 11, false}, c.generators, c.states.data(), block.data());
    fubini::blocks_from_states({1, 11, true}, c.generators, c.states.data(), diagonal.data());
    check_blocks(c, block, diagonal);
}

TEST_CASE("blocks from probabilities equal dense matrices, for diagonal generators") {
    for (const int wires : {1, 3, 6}) {
        for (const std::size_t batch : {1U, 4U}) {
            const Case c(wires, batch, 5, true,
                         static_cast<unsigned>(wires) * 7 + static_cast<unsigned>(batch));
            std::vector<double> block(batch * 25);
            std::vector<double> diagonal(batch * 5);
            fubini::blocks_from_probabilities({batch, wires, false}, c.generators, c.probabilities.data(),
                                              block.data());
            fubini::blocks_from_probabilities({batch, wires, true}, c.generators, c.probabilities.data(),
                                              diagonal.data());
            check_blocks(c, block, diagonal);
        }
    }
}

TEST_CASE("the same bits for any number of threads") {
    const Case c(6, 9, 6, false, 5);
    std::vector<double> first;
    for (const int threads : {1, 2, 7}) {
        fubini::set_num_threads(threads);
        std::vector<double> block(9 * 36);
        fubini::blocks_from_states({9, 6, false}, c.generators, c.states.data(), block.data());
        std::vector<double> mean(36);
        fubini::mean_over_batch(9, 36, block.data(), mean.data());
        block.insert(block.end(), mean.begin(), mean.end());
        if (first.empty()) first = block;
        CHECK(std::equal(first.begin(), first.end(), block.begin()));
    }
}

TEST_CASE("bad requests are refused") {
    const std::vector<double> probabilities(4, 0.25);
    std::vector<double> out(4);
    const BlockRequest request{1, 2, false};
    CHECK_THROWS_AS(fubini::blocks_from_probabilities(request, {}, probabilities.data(), out.data()),
                    std::invalid_argument);
    CHECK_THROWS_AS(
        fubini::blocks_from_probabilities(request, {{{1, 0, 1.0}}}, probabilities.data(), out.data()),
        std::invalid_argument);
    CHECK_THROWS_AS(
        fubini::blocks_from_probabilities(request, {{{0, 8, 1.0}}}, probabilities.data(), out.data()),
        std::invalid_argument);
    CHECK_THROWS_AS(fubini::mean_over_batch(0, 1, probabilities.data(), out.data()), std::invalid_argument);
}
