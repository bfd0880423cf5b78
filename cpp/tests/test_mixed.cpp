// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <cmath>
#include <complex>
#include <limits>
#include <stdexcept>
#include <vector>

#include "core/mixed.hpp"

namespace {

using Complex = std::complex<double>;

/// (1 + x X + y Y + z Z) / 2 with a trace, or half of x X + y Y + z Z without one.
std::vector<Complex> bloch(double x, double y, double z, double trace) {
    return {(trace + z) / 2.0, Complex{x, -y} / 2.0, Complex{x, y} / 2.0, (trace - z) / 2.0};
}

}  // namespace

TEST_CASE("a qubit's information is that of its Bloch vector") {
    // F_ij = r_i . r_j + (r . r_i)(r . r_j) / (1 - |r|^2) for the derivatives r_i of the Bloch vector r.
    const double r[] = {0.3, -0.4, 0.5};
    const double moved[2][3] = {{0.2, 0.7, -0.1}, {-0.6, 0.3, 0.25}};
    const auto state = bloch(r[0], r[1], r[2], 1.0);
    std::vector<Complex> derivatives;
    for (const auto& d : moved) {
        for (const Complex& c : bloch(d[0], d[1], d[2], 0.0)) derivatives.push_back(c);
    }
    double fisher[4];
    double traces[4];
    fubini::sld_fisher({1, 2, 2}, state.data(), derivatives.data(), 1e-12, fisher);
    fubini::hilbert_schmidt({1, 2, 2}, derivatives.data(), traces);
    const auto dot = [](const double* a, const double* b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; };
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 2; ++j) {
            const double flat = dot(moved[i], moved[j]);
            const double expected = flat + dot(r, moved[i]) * dot(r, moved[j]) / (1.0 - dot(r, r));
            CHECK(fisher[2 * i + j] == doctest::Approx(expected).epsilon(1e-12));
            CHECK(traces[2 * i + j] == doctest::Approx(flat / 2.0).epsilon(1e-12));
        }
    }
    CHECK(fisher[1] == fisher[2]);
}

TEST_CASE("a pure qubit, and errors") {
    const auto state = bloch(0.0, 0.0, 1.0, 1.0);
    const auto derivative = bloch(1.0, 0.0, 0.0, 0.0);
    double fisher = 0.0;
    fubini::sld_fisher({1, 2, 1}, state.data(), derivative.data(), 1e-12, &fisher);
    CHECK(fisher == doctest::Approx(1.0).epsilon(1e-14));
    CHECK_THROWS_AS(fubini::sld_fisher({1, 2, 1}, state.data(), derivative.data(), 0.0, &fisher),
                    std::invalid_argument);
    const std::vector<Complex> broken(4, Complex{std::numeric_limits<double>::quiet_NaN(), 0.0});
    CHECK_THROWS_AS(fubini::sld_fisher({1, 2, 1}, broken.data(), derivative.data(), 1e-12, &fisher),
                    std::runtime_error);
}
