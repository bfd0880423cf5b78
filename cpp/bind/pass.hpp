// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "bind/sweep_arrays.hpp"
#include "core/program.hpp"
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

}  // namespace fubini::bind
