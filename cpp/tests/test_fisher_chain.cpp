// SPDX-License-Identifier: Apache-2.0
// Blocks of a whole chain against differences of its outputs.
#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/expression.hpp"
#include "core/expval.hpp"
#include "core/fisher_chain.hpp"
#include "random_program.hpp"

using namespace fubini;
using Values = std::vector<double>;

namespace {

std::size_t at(std::ptrdiff_t index) { return static_cast<std::size_t>(index); }

constexpr std::ptrdiff_t data = 6, inputs = 3, features = 2, weights = 3, results = 4;

struct Coefficient {
    int angle, source;
    double value;
};

/// angles = constant + W weights + X inputs, with entries of W and X.
Expression affine_map(const Values& constant, const std::vector<Coefficient>& by_weights,
                      const std::vector<Coefficient>& by_inputs) {
    std::vector<ExpressionNode> nodes;
    std::vector<ExpressionTerm> terms;
    std::vector<int> angles;
    for (int k = 0; k < weights; ++k) nodes.push_back({ExpressionKind::weight, k, -1, 0.0});
    for (int k = 0; k < features; ++k) nodes.push_back({ExpressionKind::input, k, -1, 0.0});
    for (int a = 0; a < static_cast<int>(constant.size()); ++a) {
        const int first = static_cast<int>(terms.size());
        for (const Coefficient& one : by_weights)
            if (one.angle == a) terms.push_back({one.value, one.source, -1});
        for (const Coefficient& one : by_inputs)
            if (one.angle == a) terms.push_back({one.value, static_cast<int>(weights) + one.source, -1});
        angles.push_back(static_cast<int>(nodes.size()));
        nodes.push_back(
            {ExpressionKind::sum, first, static_cast<int>(terms.size()) - first, constant[at(a)]});
    }
    return {weights, features, nodes, terms, angles, static_cast<int>(constant.size())};
}

/// Linear, tanh, circuit, linear; parameters in this order.
Values outputs(const Program& program, const Expression& map, const Values& x, const Values& theta,
               std::ptrdiff_t classes) {
    Values hidden(at(data * features)), values(at(data * results)), angles(at(data * map.angles())),
        f(at(data * classes));
    const double* p = theta.data();
    linear_layer(x.data(), data, inputs, p, p + features * inputs, features, hidden.data());
    p += features * (inputs + 1);
    for (double& h : hidden) h = std::tanh(h);
    map.evaluate({p, hidden.data(), data, false}, angles.data(), nullptr);
    p += weights;
    Batch batch;
    batch.angles = angles.data();
    batch.size = data;
    expval(program, batch, values.data());
    linear_layer(values.data(), data, results, p, nullptr, classes, f.data());
    return f;
}

}  // namespace

TEST_CASE("the blocks of a chain are those of differences of its outputs") {
    for (unsigned seed = 0; seed < 6; ++seed) {
        tests::Random random(seed);
        const std::ptrdiff_t classes = 2 + static_cast<std::ptrdiff_t>(seed) % 3 * 2;  // ranks 1, 3 and 4
        const Program program = tests::random_program(random, 3, 12, 5, false);
        const Expression map =
            affine_map(random.vector(5), {{0, 0, 1.0}, {1, 1, -0.5}, {2, 2, 0.7}, {3, 0, 0.4}},
                       {{3, 0, 1.0}, {4, 1, 1.3}, {0, 1, 0.2}});
        FisherChain chain(OutputFamily::categorical);
        chain.add_linear(inputs, features, true, BlockForm::dense);
        chain.add_function(Elementwise::tanh);
        chain.add_circuit(program, map, BlockForm::dense);
        chain.add_linear(results, classes, false, BlockForm::dense);
        const std::vector<std::ptrdiff_t> sizes{features * (inputs + 1), weights, classes * results};
        const std::ptrdiff_t count = sizes[0] + sizes[1] + sizes[2];
        REQUIRE(chain.unknowns() == count);
        REQUIRE(chain.outputs() == classes);
        const Values x = random.vector(at(data * inputs), 1), gradient = random.vector(at(count));
        Values theta = random.vector(at(count), 1);

        const double step = 1e-5, share = 0.4;
        std::vector<Values> jacobian;  // by parameter, (data, classes)
        for (double& value : theta) {
            const double old = value;
            value = old + step;
            Values up = outputs(program, map, x, theta, classes);
            value = old - step;
            const Values down = outputs(program, map, x, theta, classes);
            value = old;
            for (std::size_t i = 0; i < up.size(); ++i) up[i] = (up[i] - down[i]) / (2 * step);
            jacobian.push_back(up);
        }
        const Values f = outputs(program, map, x, theta, classes);
        Values factor(at(data * classes * classes));
        output_factor(OutputFamily::categorical, f.data(), data, classes, share, factor.data());

        std::vector<Values> before, after;
        std::vector<const double*> from;
        std::vector<double*> to;
        for (const std::ptrdiff_t size : sizes) {
            before.push_back(random.vector(at(size * size)));
            after.emplace_back(at(size * size));
        }
        for (std::size_t m = 0; m < 3; ++m) {
            from.push_back(before[m].data());
            to.push_back(after[m].data());
        }
        FisherChain::Call call;
        call.inputs = x.data();
        call.data = data;
        call.parameters = theta.data();
        call.gradient = gradient.data();
        call.share = share;
        call.damping = 0.5;
        const Values none(3), half(3, 0.25);
        call.decays = none.data();
        call.before = from.data();
        call.after = to.data();
        Values change(at(count));
        const double square = chain.direction(call, change.data());
        const std::vector<Values> fresh = after;
        double product = 0;
        for (std::size_t i = 0; i < change.size(); ++i) product += change[i] * gradient[i];
        CHECK(square == doctest::Approx(product));
        std::ptrdiff_t start = 0;
        for (std::size_t m = 0; m < 3; ++m) {
            for (std::ptrdiff_t i = 0; i < sizes[m]; ++i) {
                double solved = call.damping * change[at(start + i)];
                for (std::ptrdiff_t j = 0; j < sizes[m]; ++j) {
                    double expected = 0;
                    for (std::ptrdiff_t row = 0; row < data * classes; ++row) {
                        double left = 0, right = 0;
                        for (std::ptrdiff_t k = 0; k < classes; ++k) {
                            const double s = factor[at(row * classes + k)];
                            left += s * jacobian[at(start + i)][at(row / classes * classes + k)];
                            right += s * jacobian[at(start + j)][at(row / classes * classes + k)];
                        }
                        expected += left * right;
                    }
                    const double found = after[m][at(i * sizes[m] + j)];
                    CHECK(found == doctest::Approx(expected).epsilon(1e-6));
                    solved += found * change[at(start + j)];
                }
                // What moves nothing keeps its gradient.
                const bool still = after[m][at(i * sizes[m] + i)] == 0.0;
                CHECK((still ? change[at(start + i)] : solved) ==
                      doctest::Approx(gradient[at(start + i)]).epsilon(1e-8));
            }
            start += sizes[m];
        }
        call.decays = half.data();
        chain.direction(call, change.data());  // the average need not be positive definite
        for (std::size_t m = 0; m < 3; ++m) {
            for (std::size_t i = 0; i < fresh[m].size(); ++i)
                CHECK(after[m][i] == doctest::Approx(0.75 * fresh[m][i] + 0.25 * before[m][i]));
        }
        call.decays = none.data();
        theta[0] = std::numeric_limits<double>::quiet_NaN();
        CHECK(std::isnan(chain.direction(call, change.data())));
    }
}

TEST_CASE("diagonal blocks of a chain are the diagonals of its dense blocks") {
    for (unsigned seed = 0; seed < 6; ++seed) {
        tests::Random random(seed);
        // Of rank 1, the circuit is swept along the factor, as it is where signs combine its outputs.
        const std::ptrdiff_t classes = 2 + static_cast<std::ptrdiff_t>(seed) % 3 * 2;
        const Program program = tests::random_program(random, 3, 12, 5, false);
        const Expression map = affine_map(random.vector(5), {{0, 0, 1.0}, {1, 1, -0.5}, {2, 2, 0.7}},
                                          {{3, 0, 1.0}, {4, 1, 1.3}});
        const std::vector<std::ptrdiff_t> sizes{features * (inputs + 1), weights, classes * results};
        const std::ptrdiff_t count = sizes[0] + sizes[1] + sizes[2];
        const Values x = random.vector(at(data * inputs), 1), gradient = random.vector(at(count)),
                     theta = random.vector(at(count), 1);
        FisherChain::Call call;
        call.inputs = x.data();
        call.data = data;
        call.parameters = theta.data();
        call.gradient = gradient.data();
        call.damping = 0.5;
        if (seed > 2) call.seed = seed;
        const Values decays(3, 0.25);
        call.decays = decays.data();
        std::vector<std::vector<Values>> found;
        Values change(at(count));
        for (const BlockForm form : {BlockForm::dense, BlockForm::diagonal}) {
            FisherChain chain(OutputFamily::categorical);
            chain.add_linear(inputs, features, true, form);
            chain.add_function(Elementwise::tanh);
            chain.add_circuit(program, map, form);
            chain.add_linear(results, classes, false, form);
            std::vector<Values> before, after;
            std::vector<const double*> from;
            std::vector<double*> to;
            for (const std::ptrdiff_t size : sizes) {
                // The unit matrix, and its diagonal.
                const bool dense = form == BlockForm::dense;
                before.emplace_back(at(dense ? size * size : size));
                for (std::ptrdiff_t i = 0; i < size; ++i) before.back()[at(dense ? i * (size + 1) : i)] = 1.0;
                after.emplace_back(before.back().size());
            }
            for (std::size_t m = 0; m < 3; ++m) {
                from.push_back(before[m].data());
                to.push_back(after[m].data());
            }
            call.before = from.data();
            call.after = to.data();
            CHECK(std::isfinite(chain.direction(call, change.data())));
            found.push_back(std::move(after));
        }
        std::ptrdiff_t start = 0;
        for (std::size_t m = 0; m < 3; start += sizes[m++]) {
            REQUIRE(found[1][m].size() == at(sizes[m]));
            for (std::ptrdiff_t i = 0; i < sizes[m]; ++i) {
                const double entry = found[1][m][at(i)];
                CHECK(entry == doctest::Approx(found[0][m][at(i * (sizes[m] + 1))]).epsilon(1e-12));
                CHECK(change[at(start + i)] ==
                      doctest::Approx(gradient[at(start + i)] / (entry + call.damping)).epsilon(1e-12));
            }
        }
    }
}

TEST_CASE("a chain does not begin with a function") {
    FisherChain empty(OutputFamily::gaussian);
    CHECK_THROWS_AS(empty.add_function(Elementwise::relu), std::invalid_argument);
}
