// SPDX-License-Identifier: Apache-2.0
#include "core/affine.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

namespace fubini {
namespace {

void check(const std::vector<Coefficient>& entries, int angles, int sources, const char* name) {
    for (const Coefficient& entry : entries) {
        if (entry.angle < 0 || entry.angle >= angles || entry.source < 0 || entry.source >= sources) {
            throw std::invalid_argument(std::string(name) + ": expected entries inside a matrix of " +
                                        std::to_string(angles) + " x " + std::to_string(sources) + ", got (" +
                                        std::to_string(entry.angle) + ", " + std::to_string(entry.source) +
                                        ")");
        }
    }
}

void expect_shared_weights(const AnglePoint& at) {
    if (at.weights_by_row) throw std::invalid_argument("weights: an affine map has the same for all inputs");
}

}  // namespace

AffineMap::AffineMap(std::vector<double> constant, int weights, int inputs,
                     std::vector<Coefficient> by_weights, std::vector<Coefficient> by_inputs)
    : constant_(std::move(constant)),
      weights_(weights),
      inputs_(inputs),
      from_weights_(std::move(by_weights)),
      from_inputs_(std::move(by_inputs)) {
    if (weights < 0 || inputs < 0) {
        throw std::invalid_argument("weights, inputs: expected numbers >= 0, got " + std::to_string(weights) +
                                    " and " + std::to_string(inputs));
    }
    check(from_weights_, angles(), weights, "by_weights");
    check(from_inputs_, angles(), inputs, "by_inputs");
}

void AffineMap::apply(const double* weights, const double* inputs, std::ptrdiff_t batch,
                      double* angles) const {
    if (batch <= 0) return;
    const std::size_t count = constant_.size();
    std::copy(constant_.begin(), constant_.end(), angles);
    for (const Coefficient& entry : from_weights_) angles[entry.angle] += entry.value * weights[entry.source];
    for (std::ptrdiff_t b = 1; b < batch; ++b) {
        std::copy_n(angles, count, angles + static_cast<std::size_t>(b) * count);
    }
    for (std::ptrdiff_t b = 0; b < batch; ++b) {
        double* row = angles + static_cast<std::size_t>(b) * count;
        const double* x = inputs + b * inputs_;
        for (const Coefficient& entry : from_inputs_) row[entry.angle] += entry.value * x[entry.source];
    }
}

void AffineMap::pull_back(const double* gradient, std::ptrdiff_t batch, double* by_weights,
                          double* by_inputs) const {
    const std::size_t count = constant_.size();
    std::fill_n(by_weights, weights_, 0.0);
    std::fill_n(by_inputs, batch * inputs_, 0.0);
    for (std::ptrdiff_t b = 0; b < batch; ++b) {
        const double* row = gradient + static_cast<std::size_t>(b) * count;
        double* x = by_inputs + b * inputs_;
        for (const Coefficient& entry : from_weights_)
            by_weights[entry.source] += entry.value * row[entry.angle];
        for (const Coefficient& entry : from_inputs_) x[entry.source] += entry.value * row[entry.angle];
    }
}

void AffineMap::chain(const double* by_angles, std::ptrdiff_t rows, double* by_weights,
                      double* by_inputs) const {
    const auto apply = [&](const std::vector<Coefficient>& entries, int sources, double* to) {
        if (to == nullptr) return;
        std::fill_n(to, rows * sources, 0.0);
        for (std::ptrdiff_t row = 0; row < rows; ++row) {
            const double* from = by_angles + row * angles();
            double* mine = to + row * sources;
            for (const Coefficient& entry : entries) mine[entry.source] += entry.value * from[entry.angle];
        }
    };
    apply(from_weights_, weights_, by_weights);
    apply(from_inputs_, inputs_, by_inputs);
}

void AffineMap::evaluate(const AnglePoint& at, double* to_angles, std::complex<double>* /*to_states*/) const {
    expect_shared_weights(at);
    apply(at.weights, at.inputs, at.batch, to_angles);
}

void AffineMap::pull_back(const AnglePoint& at, const double* by_angles,
                          const std::complex<double>* /*by_states*/, double* by_weights,
                          double* by_inputs) const {
    expect_shared_weights(at);
    pull_back(by_angles, at.batch, by_weights, by_inputs);
}

void AffineMap::chain(const AnglePoint& at, std::ptrdiff_t rows, const double* by_angles,
                      const std::complex<double>* /*by_states*/, double* by_weights,
                      double* by_inputs) const {
    expect_shared_weights(at);
    chain(by_angles, at.batch * rows, by_weights, by_inputs);
}

}  // namespace fubini
