// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "core/expression.hpp"
#include "core/parallel.hpp"
#include "random_program.hpp"

using fubini::AnglePoint;
using fubini::AngleTangents;
using fubini::Expression;
using fubini::ExpressionNode;
using fubini::ExpressionTerm;
using Kind = fubini::ExpressionKind;

namespace {

constexpr int weights = 4, inputs = 3, angles = 3, amplitudes = 2, outputs = angles + 2 * amplitudes;

/// Smooth functions with arguments that stay in their domains.
Expression random_expression(fubini::tests::Random& random, int size) {
    std::vector<ExpressionNode> nodes;
    std::vector<ExpressionTerm> terms;
    for (int p = 0; p < weights; ++p) nodes.push_back({Kind::weight, p, -1, 0});
    for (int d = 0; d < inputs; ++d) nodes.push_back({Kind::input, d, -1, 0});
    const Kind bounded[] = {Kind::sin, Kind::cos, Kind::tanh, Kind::atan, Kind::sigmoid, Kind::erf};
    for (int i = 0; i < size; ++i) {
        const int count = static_cast<int>(nodes.size());
        const int u = random.below(count), v = random.below(count);
        switch (random.below(4)) {
            case 0: {
                const int first = static_cast<int>(terms.size());
                terms.push_back({random.uniform(-1, 1), u, -1});
                terms.push_back({random.uniform(-1, 1), v, random.below(count)});
                nodes.push_back({Kind::sum, first, 2, random.uniform(-1, 1)});
                break;
            }
            case 1: {  // u / (2 + sin v)
                nodes.push_back({Kind::sin, v, -1, 0});
                const int first = static_cast<int>(terms.size());
                terms.push_back({1, count, -1});
                nodes.push_back({Kind::sum, first, 1, 2});
                nodes.push_back({Kind::quotient, u, count + 1, 0});
                break;
            }
            default:
                nodes.push_back({bounded[random.below(6)], u, -1, 0});
        }
    }
    std::vector<int> chosen;
    const int last = static_cast<int>(nodes.size());
    for (int k = 0; k < outputs; ++k) chosen.push_back(last - 1 - random.below(last / 2));
    return Expression(weights, inputs, nodes, terms, chosen, angles);
}

struct Data {
    std::ptrdiff_t batch;
    bool by_row;
    std::vector<double> w, x, cotangents, dw, dx;
    Data(fubini::tests::Random& random, int size, bool rows)
        : batch(size),
          by_row(rows),
          w(random.vector(static_cast<std::size_t>(weights * (rows ? size : 1)), 1)),
          x(random.vector(static_cast<std::size_t>(inputs * size), 1)),
          cotangents(random.vector(static_cast<std::size_t>(outputs * size), 1)),
          dw(random.vector(w.size(), 1)),
          dx(random.vector(x.size(), 1)) {}
    [[nodiscard]] AnglePoint point() const { return {w.data(), x.data(), batch, by_row}; }
    [[nodiscard]] Data moved(double by) const {
        Data other = *this;
        for (std::size_t i = 0; i < w.size(); ++i) other.w[i] += by * dw[i];
        for (std::size_t i = 0; i < x.size(); ++i) other.x[i] += by * dx[i];
        return other;
    }
    [[nodiscard]] AngleTangents tangents() const { return {dw.data(), dx.data()}; }
};

std::vector<double> values(const Expression& e, const Data& data) {
    std::vector<double> result(static_cast<std::size_t>(data.batch * outputs));
    e.evaluate(data.point(), {result.data(), outputs, result.data() + angles, outputs});
    return result;
}

/// Gradients by weights and inputs, one after the other.
std::vector<double> gradients(const Expression& e, const Data& data, bool second = false) {
    std::vector<double> result(data.w.size() + data.x.size());
    const AngleTangents tangents = data.tangents();
    e.pull_back(data.point(), {data.cotangents.data(), outputs, data.cotangents.data() + angles, outputs},
                second ? &tangents : nullptr, result.data(), result.data() + data.w.size());
    return result;
}

void check_close(const std::vector<double>& found, const std::vector<double>& expected, double tolerance) {
    REQUIRE(found.size() == expected.size());
    for (std::size_t i = 0; i < found.size(); ++i) {
        CHECK(std::abs(found[i] - expected[i]) <= tolerance * (1 + std::abs(expected[i])));
    }
}

std::vector<double> slope(const std::vector<double>& up, const std::vector<double>& down, double step) {
    std::vector<double> result(up.size());
    for (std::size_t i = 0; i < up.size(); ++i) result[i] = (up[i] - down[i]) / (2 * step);
    return result;
}

double dot(const std::vector<double>& a, const std::vector<double>& b) {
    double sum = 0;
    for (std::size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
    return sum;
}

}  // namespace

TEST_CASE("derivatives of random expressions equal differences, and each other") {
    fubini::tests::Random random(3);
    for (int trial = 0; trial < 40; ++trial) {
        const Expression e = random_expression(random, 4 + trial);
        const Data data(random, 1 + random.below(70), trial % 2 == 1);
        // Third derivatives of these functions are a few hundred at most.
        const double step = 1e-5, tolerance = 1e-6;
        std::vector<double> pushed(static_cast<std::size_t>(data.batch * outputs));
        e.push_forward(data.point(), data.tangents(),
                       {pushed.data(), outputs, pushed.data() + angles, outputs});
        check_close(pushed, slope(values(e, data.moved(step)), values(e, data.moved(-step)), step),
                    tolerance);
        std::vector<double> direction = data.dw;
        direction.insert(direction.end(), data.dx.begin(), data.dx.end());
        const double along = dot(gradients(e, data), direction);
        CHECK(along == doctest::Approx(dot(data.cotangents, pushed)).epsilon(1e-10));
        check_close(gradients(e, data, true),
                    slope(gradients(e, data.moved(step)), gradients(e, data.moved(-step)), step), tolerance);
    }
}

TEST_CASE("jacobians of expressions and chains through them equal pull-backs row by row") {
    fubini::tests::Random random(4);
    for (int trial = 0; trial < 10; ++trial) {
        const Expression e = random_expression(random, 10 + trial);
        const Data data(random, 9, trial % 2 == 1);
        const auto batch = static_cast<std::size_t>(data.batch);
        const std::vector<int> rows = {outputs - 1, 0, 2, 0};
        std::vector<double> by_weights(batch * rows.size() * weights),
            by_inputs(batch * rows.size() * inputs);
        e.jacobian(data.point(), rows, by_weights.data(), by_inputs.data());
        const std::ptrdiff_t parts = 2 * amplitudes;
        std::vector<double> by_angles = random.vector(batch * 2 * angles, 1);
        std::vector<fubini::tests::Complex> by_states(batch * 2 * amplitudes);
        for (auto& z : by_states) z = {random.uniform(-1, 1), random.uniform(-1, 1)};
        std::vector<double> chained_weights(batch * 2 * weights), chained_inputs(batch * 2 * inputs);
        e.chain(data.point(), 2, by_angles.data(), by_states.data(), chained_weights.data(),
                chained_inputs.data());
        for (std::ptrdiff_t b = 0; b < data.batch; ++b) {
            const AnglePoint one{data.w.data() + (data.by_row ? b * weights : 0), data.x.data() + b * inputs,
                                 1, false};
            std::vector<double> w(weights), x(inputs);
            for (std::size_t r = 0; r < rows.size(); ++r) {
                std::vector<double> pick(outputs);
                pick[static_cast<std::size_t>(rows[r])] = 1;
                e.pull_back(one, {pick.data(), outputs, pick.data() + angles, outputs}, nullptr, w.data(),
                            x.data());
                const auto row = static_cast<std::ptrdiff_t>(static_cast<std::size_t>(b) * rows.size() + r);
                const auto at = by_weights.begin() + row * weights;
                check_close({at, at + weights}, w, 1e-13);
                check_close({by_inputs.begin() + row * inputs, by_inputs.begin() + (row + 1) * inputs}, x,
                            1e-13);
            }
            for (std::ptrdiff_t m = 0; m < 2; ++m) {
                const auto* states = reinterpret_cast<const double*>(by_states.data());
                e.pull_back(
                    one,
                    {by_angles.data() + (2 * b + m) * angles, angles, states + (2 * b + m) * parts, parts},
                    nullptr, w.data(), x.data());
                const auto at = chained_weights.begin() + (2 * b + m) * weights;
                check_close({at, at + weights}, w, 1e-13);
                const auto from = chained_inputs.begin() + (2 * b + m) * inputs;
                check_close({from, from + inputs}, x, 1e-13);
            }
        }
    }
}

TEST_CASE("expressions give the same bits for any number of threads") {
    fubini::tests::Random random(5);
    const Expression e = random_expression(random, 60);
    const Data data(random, 20000, false);
    const int before = fubini::num_threads();
    std::vector<std::vector<double>> found;
    for (const int threads : {1, 2, 5}) {
        fubini::set_num_threads(threads);
        found.push_back(values(e, data));
        found.push_back(gradients(e, data));
        found.push_back(gradients(e, data, true));
    }
    fubini::set_num_threads(before);
    for (std::size_t i = 3; i < found.size(); ++i) CHECK(found[i] == found[i % 3]);
}

TEST_CASE("a sum rounds after every product, on every instruction set") {
    // In floating point 0.1 * 3 - 0.3 is 2^-54, and 0.1 * 3 fused with it would be half of that.
    const Expression e(0, 1, {{Kind::input, 0, -1, 0}, {Kind::sum, 0, 1, -0.3}}, {{0.1, 0, -1}}, {1}, 1);
    const std::vector<double> x(9, 3.0);
    std::vector<double> found(9);
    e.evaluate({nullptr, x.data(), 9, false}, found.data(), nullptr);
    for (const double value : found) CHECK(value == std::ldexp(1.0, -54));
}

TEST_CASE("nodes under a detached one are not differentiated") {
    // detach(sqrt(x)) + x at 0, where the derivative of the root is infinite
    const Expression e(
        0, 1,
        {{Kind::input, 0, -1, 0}, {Kind::sqrt, 0, -1, 0}, {Kind::detach, 1, -1, 0}, {Kind::sum, 0, 2, 0}},
        {{1, 2, -1}, {1, 0, -1}}, {3}, 1);
    const double x = 0, one = 1;
    double found = 0;
    e.pull_back({nullptr, &x, 1, false}, &one, nullptr, nullptr, &found);
    CHECK(found == 1);
}

TEST_CASE("expressions refuse what lies outside of their lists") {
    const std::vector<ExpressionNode> leaf = {{Kind::weight, 0, -1, 0}};
    const int far = std::numeric_limits<int>::max();
    CHECK_NOTHROW(Expression(1, 0, leaf, {}, {0}, 1));
    CHECK_THROWS_AS(Expression(0, 0, leaf, {}, {0}, 1), std::invalid_argument);
    CHECK_THROWS_AS(Expression(-1, 0, leaf, {}, {0}, 1), std::invalid_argument);
    CHECK_THROWS_AS(Expression(1, 0, leaf, {}, {1}, 1), std::invalid_argument);
    CHECK_THROWS_AS(Expression(1, 0, leaf, {}, {-1}, 1), std::invalid_argument);
    CHECK_THROWS_AS(Expression(1, 0, leaf, {}, {0, 0}, 1), std::invalid_argument);
    CHECK_THROWS_AS(Expression(1, 0, leaf, {}, {0}, 2), std::invalid_argument);
    for (const int bad : {-2, -1, 0, 1, far}) {
        CHECK_THROWS_AS(Expression(1, 0, {{Kind::sin, bad, -1, 0}}, {}, {0}, 1), std::invalid_argument);
        CHECK_THROWS_AS(Expression(1, 0, {leaf[0], {Kind::power, 0, bad == 0 ? 1 : bad, 0}}, {}, {1}, 1),
                        std::invalid_argument);
        CHECK_THROWS_AS(Expression(1, 0, {leaf[0], {Kind::sum, bad, bad == 0 ? far : 1, 0}}, {}, {1}, 1),
                        std::invalid_argument);
        CHECK_THROWS_AS(
            Expression(1, 0, {leaf[0], {Kind::sum, 0, 1, 0}}, {{1.0, bad == 0 ? 1 : bad, -1}}, {1}, 1),
            std::invalid_argument);
    }
    CHECK_THROWS_AS(Expression(1, 0, {leaf[0], {Kind::sum, 0, 1, 0}}, {{1.0, 0, -2}}, {1}, 1),
                    std::invalid_argument);
    CHECK_THROWS_AS(Expression(1, 0, {{static_cast<Kind>(200), 0, 0, 0}}, {}, {0}, 1), std::invalid_argument);
}
