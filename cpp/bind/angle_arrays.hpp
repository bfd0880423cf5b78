// SPDX-License-Identifier: Apache-2.0
// Checks of the weights and inputs of an AngleMap.
#pragma once

#include <string>
#include <vector>

#include "bind/sweep_arrays.hpp"
#include "core/angle_map.hpp"

namespace fubini::bind {

/// Rows of the inputs, whose shape is (batch, features).
inline py::ssize_t batch_rows(const AngleMap& map, const RealArray& inputs) {
    const py::ssize_t size = inputs.ndim() == 2 ? inputs.shape(0) : 0;
    expect_shape("inputs", inputs, "(batch, features)", size, map.inputs());
    return size;
}

/// The weights side by side.
inline std::vector<double> joined(const AngleMap& map, const std::vector<RealArray>& weights) {
    std::vector<double> flat;
    flat.reserve(static_cast<std::size_t>(map.weights()));
    for (const RealArray& w : weights) flat.insert(flat.end(), w.data(), w.data() + w.size());
    if (flat.size() != static_cast<std::size_t>(map.weights())) {
        throw py::value_error("weights: expected " + std::to_string(map.weights()) + " numbers, got " +
                              std::to_string(flat.size()));
    }
    return flat;
}

}  // namespace fubini::bind
