// SPDX-License-Identifier: Apache-2.0
// The weights and inputs of an Expression, and a forward pass of a circuit at them.
#pragma once

#include <string>
#include <vector>

#include "bind/sweep_arrays.hpp"
#include "core/expression.hpp"
#include "core/workspace.hpp"

namespace fubini::bind {

/// What backward passes need of a forward pass of a circuit.
struct Pass {
    const Program* program = nullptr;
    std::vector<double> weights;
    RealArray inputs;
    RealArray angles;
    State states;
    std::vector<double> values;  // (batch, outputs)
    std::vector<std::vector<py::ssize_t>> weight_shapes;
    Workspace memory;
    double* kept = nullptr;  // the states, in memory; null where they were too large
};

/// Rows of the inputs, whose shape is (batch, features).
inline py::ssize_t batch_rows(const Expression& map, const RealArray& inputs) {
    const py::ssize_t size = inputs.ndim() == 2 ? inputs.shape(0) : 0;
    expect_shape("inputs", inputs, "(batch, features)", size, map.inputs());
    return size;
}

/// An expression at its weights and inputs, and what it makes of them.
struct Mapped {
    std::vector<double> weights;  // side by side
    AnglePoint point;
    RealArray angles;
    State states;

    Mapped(const Expression& map, const std::vector<RealArray>& parts, const RealArray& inputs,
           bool want_states = true) {
        for (const RealArray& part : parts)
            weights.insert(weights.end(), part.data(), part.data() + part.size());
        if (weights.size() != static_cast<std::size_t>(map.weights())) {
            throw py::value_error("weights: expected " + std::to_string(map.weights()) + " numbers, got " +
                                  std::to_string(weights.size()));
        }
        const py::ssize_t size = batch_rows(map, inputs);
        point = {weights.data(), inputs.data(), size, false};
        angles = RealArray({size, py::ssize_t{map.angles()}});
        if (map.amplitudes() > 0 && want_states) {
            const py::ssize_t rows = map.shared_state() ? std::min<py::ssize_t>(size, 1) : size;
            states = new_array<ComplexArray>("the initial states", {rows, map.amplitudes()});
        }
        std::complex<double>* states_to = states ? states->mutable_data() : nullptr;
        run([&] { map.evaluate(point, angles.mutable_data(), states_to); });
    }
    Mapped(const Mapped&) = delete;  // the point looks at the weights
    Mapped& operator=(const Mapped&) = delete;
};

}  // namespace fubini::bind
