// SPDX-License-Identifier: Apache-2.0
#include "core/shift.hpp"

#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/parallel.hpp"

namespace fubini {
namespace {

void check_frequencies(const std::vector<double>& sorted) {
    for (std::size_t i = 0; i < sorted.size(); ++i) {
        if (!(sorted[i] > 0.0) || !std::isfinite(sorted[i])) {
            throw std::invalid_argument("frequencies: expected positive finite numbers, got " +
                                        std::to_string(sorted[i]));
        }
        if (i > 0 && sorted[i] - sorted[i - 1] < 1e-10 * sorted.back()) {
            throw std::invalid_argument("frequencies: expected distinct numbers, got " +
                                        std::to_string(sorted[i]) + " twice");
        }
    }
}

bool equidistant(const std::vector<double>& sorted) {
    for (std::size_t k = 0; k < sorted.size(); ++k) {
        const double expected = static_cast<double>(k + 1) * sorted.front();
        if (std::abs(sorted[k] - expected) > 1e-12 * expected) return false;
    }
    return true;
}

/// Shift number mu = 0, 1, ...: odd multiples of pi/(2R) in units of the mean frequency spacing.
double spread_shift(std::size_t mu, const std::vector<double>& sorted) {
    return static_cast<double>(2 * mu + 1) * std::numbers::pi / (2.0 * sorted.back());
}

/// Gauss and Jordan's elimination with partial pivoting of an n x n matrix beside its right-hand sides, both
/// row-major; these become the solutions. False where a pivot is zero or not a number.
bool eliminate(std::vector<double>& matrix, std::vector<double>& right, std::size_t n) {
    const std::size_t columns = right.size() / n;
    for (std::size_t k = 0; k < n; ++k) {
        std::size_t pivot = k;
        for (std::size_t i = k + 1; i < n; ++i) {
            if (std::abs(matrix[i * n + k]) > std::abs(matrix[pivot * n + k])) pivot = i;
        }
        if (!(std::abs(matrix[pivot * n + k]) > 0.0)) return false;
        const auto swap_rows = [&](std::vector<double>& of, std::size_t width) {
            const auto row = [&](std::size_t i) {
                return of.begin() + static_cast<std::ptrdiff_t>(i * width);
            };
            if (pivot != k) std::swap_ranges(row(k), row(k + 1), row(pivot));
        };
        swap_rows(matrix, n);
        swap_rows(right, columns);
        for (std::size_t i = 0; i < n; ++i) {
            if (i == k) continue;
            const double factor = matrix[i * n + k] / matrix[k * n + k];
            for (std::size_t j = k; j < n; ++j) matrix[i * n + j] -= factor * matrix[k * n + j];
            for (std::size_t j = 0; j < columns; ++j)
                right[i * columns + j] -= factor * right[k * columns + j];
        }
    }
    for (std::size_t i = 0; i < n; ++i) {
        for (std::size_t j = 0; j < columns; ++j) right[i * columns + j] /= matrix[i * n + i];
    }
    return true;
}

/// The largest sum of magnitudes of a column among the first n of `width`.
double norm(const std::vector<double>& matrix, std::size_t n, std::size_t width) {
    double largest = 0.0;
    for (std::size_t j = 0; j < n; ++j) {
        double sum = 0.0;
        for (std::size_t i = 0; i < n; ++i) sum += std::abs(matrix[i * width + j]);
        largest = std::max(largest, sum);
    }
    return largest;
}

}  // namespace

std::vector<ShiftTerm> shift_rule(std::vector<double> frequencies, const std::vector<double>& shifts) {
    std::sort(frequencies.begin(), frequencies.end());
    check_frequencies(frequencies);
    const std::size_t count = frequencies.size();
    if (!shifts.empty() && shifts.size() != count) {
        throw std::invalid_argument("shifts: expected one per frequency, " + std::to_string(count) +
                                    ", got " + std::to_string(shifts.size()));
    }
    const auto shift_of = [&](std::size_t mu) {
        return shifts.empty() ? spread_shift(mu, frequencies) : shifts[mu];
    };
    std::vector<ShiftTerm> terms;
    terms.reserve(2 * count);
    if (count == 0) return terms;

    // f(t + s) - f(t - s) = sum_k 2 sin(omega_k s) h_k(t) with f' = sum_k omega_k h_k: the coefficients c_mu
    // of the pairs solve sum_mu 2 sin(omega_k s_mu) c_mu = omega_k.
    std::vector<double> coefficients(count);
    if (shifts.empty() && equidistant(frequencies)) {
        const double spacing = frequencies.front();
        for (std::size_t mu = 0; mu < count; ++mu) {
            const double sine = std::sin(spread_shift(mu, frequencies) * spacing / 2.0);
            const double parity = mu % 2 == 0 ? 1.0 : -1.0;
            coefficients[mu] = parity * spacing / (4.0 * static_cast<double>(count) * sine * sine);
        }
    } else {
        // Beside the identity: the inverse says how many digits there are.
        const std::size_t width = count + 1;
        std::vector<double> sines(count * count);
        std::vector<double> right(count * width);
        for (std::size_t k = 0; k < count; ++k) {
            right[k * width + k] = 1.0;
            right[k * width + count] = frequencies[k];
            for (std::size_t mu = 0; mu < count; ++mu) {
                sines[k * count + mu] = 2.0 * std::sin(frequencies[k] * shift_of(mu));
            }
        }
        const double size = norm(sines, count, count);
        bool good = eliminate(sines, right, count) && 1e-6 * size * norm(right, count, width) < 1.0;
        for (std::size_t mu = 0; mu < count; ++mu) {
            coefficients[mu] = right[mu * width + count];
            good = good && std::abs(coefficients[mu]) < 1e6 * frequencies.back();
        }
        if (!good) {
            throw std::invalid_argument(
                shifts.empty()
                    ? "frequencies: too close to each other for a shift rule of ten digits; "
                      "decompose the gate into gates with fewer frequencies"
                    : "shifts: no rule with these shifts exists, or none of ten digits; choose others, "
                      "distinct and between 0 and pi / frequency");
        }
    }
    for (std::size_t mu = 0; mu < count; ++mu) {
        const double shift = shift_of(mu);
        const double coefficient = coefficients[mu];
        terms.push_back({coefficient, shift});
        terms.push_back({-coefficient, -shift});
    }
    return terms;
}

ShiftPlan shift_plan(const std::vector<std::int64_t>& angles,
                     const std::vector<std::vector<double>>& frequencies,
                     const std::vector<std::vector<double>>& shifts) {
    if (angles.size() != frequencies.size()) {
        throw std::invalid_argument("frequencies: expected one list per angle, " +
                                    std::to_string(angles.size()) + ", got " +
                                    std::to_string(frequencies.size()));
    }
    if (!shifts.empty() && shifts.size() != angles.size()) {
        throw std::invalid_argument("shifts: expected one list per angle, " + std::to_string(angles.size()) +
                                    ", got " + std::to_string(shifts.size()));
    }
    ShiftPlan plan;
    using Key = std::pair<std::vector<double>, std::vector<double>>;
    std::map<Key, std::vector<ShiftTerm>> rules;  // most gates of a circuit share a rule
    for (std::size_t j = 0; j < angles.size(); ++j) {
        Key key{frequencies[j], shifts.empty() ? std::vector<double>{} : shifts[j]};
        auto found = rules.find(key);
        if (found == rules.end()) found = rules.emplace(key, shift_rule(key.first, key.second)).first;
        for (const ShiftTerm& term : found->second) {
            plan.index.push_back(angles[j]);
            plan.coefficient.push_back(term.coefficient);
            plan.shift.push_back(term.shift);
        }
    }
    return plan;
}

void shift_angles(const ShiftPlan& plan, std::size_t batch, std::size_t count, const double* angles,
                  double* out) {
    for (const std::int64_t index : plan.index) {
        if (index < 0 || static_cast<std::size_t>(index) >= count) {
            throw std::invalid_argument("plan: moves angle " + std::to_string(index) + ", but there are " +
                                        std::to_string(count) + " angles");
        }
    }
    const std::size_t size = batch * count;
    parallel_for(static_cast<std::ptrdiff_t>(plan.index.size()), 64,
                 [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
                     for (auto s = static_cast<std::size_t>(begin); s < static_cast<std::size_t>(end); ++s) {
                         double* rows = out + s * size;
                         std::copy_n(angles, size, rows);
                         for (std::size_t b = 0; b < batch; ++b) {
                             rows[b * count + static_cast<std::size_t>(plan.index[s])] += plan.shift[s];
                         }
                     }
                 });
}

void shift_contract(const ShiftPlan& plan, std::size_t batch, std::size_t outputs, std::size_t count,
                    const double* values, double* out) {
    std::fill(out, out + batch * outputs * count, 0.0);
    for (std::size_t s = 0; s < plan.index.size(); ++s) {
        const std::int64_t index = plan.index[s];
        if (index < 0 || static_cast<std::size_t>(index) >= count) {
            throw std::invalid_argument("plan: moves angle " + std::to_string(index) + ", but there are " +
                                        std::to_string(count) + " angles");
        }
        const double* answers = values + s * batch * outputs;
        for (std::size_t row = 0; row < batch * outputs; ++row) {
            out[row * count + static_cast<std::size_t>(index)] += plan.coefficient[s] * answers[row];
        }
    }
}

}  // namespace fubini
