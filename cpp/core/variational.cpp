// SPDX-License-Identifier: Apache-2.0
#include "core/variational.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/linear_algebra.hpp"
#include "core/parallel.hpp"

namespace fubini {
namespace {

using Values = std::vector<double>;

constexpr double converged = 1e-7;  // of the damping's logarithm
constexpr int most_steps = 60;
constexpr double searched_below = 1e-6, searched_beyond = 1e4;  // of the least and of the largest damping

double dot(const double* a, const double* b, std::ptrdiff_t n) {
    double sum = 0;
    for (std::ptrdiff_t i = 0; i < n; ++i) sum += a[i] * b[i];
    return sum;
}

/// Where an increasing function, of slope 2 at most, crosses zero; an end of the interval if it does not.
template <typename Function>
double root(const Function& function, double low, double high) {
    double x = high;
    double value = function(x);
    if (value <= 0) return high;
    double before_x = std::numeric_limits<double>::quiet_NaN();
    double before_value = before_x;
    for (int i = 0; i < most_steps; ++i) {
        const double slope = (value - before_value) / (x - before_x);
        double step = slope > 0 && std::isfinite(slope) ? value / slope : value / 2;
        before_x = x;
        before_value = value;
        if (!(low < x - step && x - step < high)) step = x - 0.5 * (low + high);
        x -= step;
        if (std::abs(step) < converged) break;
        value = function(x);
        (value <= 0 ? low : high) = x;
    }
    return x;
}

/// One element's problem in the eigenbasis of T T^T, or of T^T T where that is smaller.
struct Spectrum {
    Values squares;  ///< eigenvalues
    Values sides;    ///< squares of T h along the metric's eigenvectors
    double total = 0;
    double trace = 0;

    [[nodiscard]] double damping(const Cutoff& cutoff) const {
        const double least = cutoff.least * trace;
        const double most = cutoff.largest * trace;
        const auto excess = [&](double x) {
            const double d = std::exp(x);
            double added = 0;
            double square = total;
            for (std::size_t i = 0; i < squares.size(); ++i) {
                const double inverse = 1 / (squares[i] + d);
                const double part = sides[i] * inverse * inverse;
                added += part / (squares[i] + least);
                square -= sides[i] * inverse + d * part;
            }
            added *= d * d;
            const double goal =
                cutoff.allowed * cutoff.allowed + cutoff.share * cutoff.share * std::max(square, 0.0);
            if (goal <= 0) return std::numeric_limits<double>::infinity();
            return added > 0 ? std::log(added / goal) : -std::numeric_limits<double>::infinity();
        };
        const double found =
            std::exp(root(excess, std::log(searched_below * least), std::log(searched_beyond * most)));
        return found * most / (found + most) + least;
    }
};

struct Problem {
    const double* tangents;
    const double* state;
    std::ptrdiff_t weights;
    std::ptrdiff_t width;

    /// to (width) = T^T v
    void push(const double* v, double* to) const { product(v, tangents, 1, weights, width, to); }
    /// to (weights) = T u
    void pull(const double* u, double* to) const { product(tangents, u, weights, width, 1, to); }
};

double solve(const Problem& given, const Cutoff& cutoff, double* velocity, double* residual) {
    const std::ptrdiff_t p = given.weights;
    const std::ptrdiff_t w = given.width;
    Spectrum spectrum;
    spectrum.trace = dot(given.tangents, given.tangents, p * w);
    spectrum.total = dot(given.state, given.state, w);
    std::fill_n(velocity, p, 0.0);
    *residual = std::sqrt(spectrum.total);
    if (spectrum.trace == 0 || spectrum.total == 0) return 0;
    const bool dual = w < p;
    const std::ptrdiff_t n = dual ? w : p;
    Values matrix(static_cast<std::size_t>(n * n));
    if (dual) {
        product_of_transpose(given.tangents, given.tangents, n, p, n, matrix.data());
    } else {
        product_with_transpose(given.tangents, given.tangents, n, w, n, matrix.data());
    }
    spectrum.squares.resize(static_cast<std::size_t>(n));
    Values vectors(static_cast<std::size_t>(n * n));  // one in each row
    if (!symmetric_eigen(matrix.data(), n, spectrum.squares.data(), vectors.data())) {
        std::fill_n(velocity, p, std::numeric_limits<double>::quiet_NaN());
        return *residual = std::numeric_limits<double>::quiet_NaN();
    }
    for (double& square : spectrum.squares) square = std::max(square, 0.0);
    Values side(static_cast<std::size_t>(n));  // T h, or h
    Values turned(static_cast<std::size_t>(n));
    if (dual) {
        std::copy_n(given.state, n, side.begin());
    } else {
        given.pull(given.state, side.data());
    }
    product(vectors.data(), side.data(), n, n, 1, turned.data());
    spectrum.sides.resize(static_cast<std::size_t>(n));
    for (std::size_t i = 0; i < turned.size(); ++i) {
        spectrum.sides[i] = turned[i] * turned[i] * (dual ? spectrum.squares[i] : 1.0);
    }
    const double damping = spectrum.damping(cutoff);
    // Solved twice: the eigenbasis is that of a matrix with rounding in it, which fast weights feel, and the
    // tangents are exact.
    Values solution(static_cast<std::size_t>(n), 0.0);
    Values change(static_cast<std::size_t>(n));
    Values pushed(static_cast<std::size_t>(w));
    for (int round = 0; round < 2; ++round) {
        for (std::size_t i = 0; i < turned.size(); ++i) turned[i] /= spectrum.squares[i] + damping;
        product(turned.data(), vectors.data(), 1, n, n, change.data());
        for (std::size_t i = 0; i < solution.size(); ++i) solution[i] += change[i];
        double* weights = dual ? velocity : solution.data();
        if (dual) given.pull(solution.data(), weights);
        given.push(weights, pushed.data());
        for (std::size_t i = 0; i < pushed.size(); ++i) pushed[i] = given.state[i] - pushed[i];
        if (round == 1) break;
        if (dual) {
            side = pushed;
        } else {
            given.pull(pushed.data(), side.data());
        }
        for (std::size_t i = 0; i < side.size(); ++i) side[i] -= damping * solution[i];
        product(vectors.data(), side.data(), n, n, 1, turned.data());
    }
    if (!dual) std::copy(solution.begin(), solution.end(), velocity);
    *residual = std::sqrt(dot(pushed.data(), pushed.data(), w));
    return damping;
}

}  // namespace

void variational_velocities(const double* tangents, const double* states, std::ptrdiff_t size,
                            std::ptrdiff_t weights, std::ptrdiff_t width, const Cutoff& cutoff,
                            double* velocities, double* residuals, double* dampings) {
    parallel_for(size, 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (std::ptrdiff_t b = begin; b < end; ++b) {
            const Problem given{tangents + b * weights * width, states + b * width, weights, width};
            dampings[b] = solve(given, cutoff, velocities + b * weights, residuals + b);
        }
    });
}

}  // namespace fubini
