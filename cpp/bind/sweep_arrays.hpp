// SPDX-License-Identifier: Apache-2.0
// What the functions that run sweeps share: checks of their arrays.
#pragma once

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/module.hpp"
#include "bind/without_gil.hpp"
#include "core/batch.hpp"
#include "core/memory.hpp"

namespace fubini::bind {

using State = std::optional<ComplexArray>;

inline std::string shape_of(const py::array& array) {
    std::string text = "(";
    for (py::ssize_t i = 0; i < array.ndim(); ++i)
        text += (i > 0 ? ", " : "") + std::to_string(array.shape(i));
    return text + ")";
}

inline void expect_shape(const char* name, const py::array& array, const char* symbols, py::ssize_t rows,
                         py::ssize_t columns) {
    if (array.ndim() == 2 && array.shape(0) == rows && array.shape(1) == columns) return;
    throw py::value_error(std::string(name) + ": expected shape " + symbols + " = (" + std::to_string(rows) +
                          ", " + std::to_string(columns) + "), got " + shape_of(array));
}

/// How many vectors there are for each element of a batch.
inline py::ssize_t expect_vectors(const RealArray& vectors, py::ssize_t size, py::ssize_t angles) {
    if (vectors.ndim() == 3 && vectors.shape(0) == size && vectors.shape(2) == angles)
        return vectors.shape(1);
    throw py::value_error("vectors: expected shape (batch, vectors, angles) = (" + std::to_string(size) +
                          ", any, " + std::to_string(angles) + "), got " + shape_of(vectors));
}

/// Refuses results that cannot fit, before they are allocated.
inline void expect_fits(double elements, const char* what) {
    const double bytes = 8 * elements;
    if (bytes <= memory_limit()) return;
    throw MemoryLimit(std::string(what) + " would take " + std::to_string(bytes / 1e9) +
                      " GB of memory, and may take " + std::to_string(memory_limit() / 1e9) +
                      " GB; use a smaller batch or fewer qubits");
}

/// A new array, refused before it is allocated where it cannot fit.
template <typename Array = RealArray>
Array new_array(const char* what, std::vector<py::ssize_t> shape) {
    double elements = sizeof(typename Array::value_type) / sizeof(double);
    for (const py::ssize_t side : shape) elements *= static_cast<double>(side);
    expect_fits(elements, what);
    return Array(std::move(shape));
}

inline py::ssize_t outputs_of(const Program& program) {
    return static_cast<py::ssize_t>(program.outputs().size());
}
inline py::ssize_t amplitudes_of(const Program& program) { return py::ssize_t{1} << program.qubits(); }

/// Checks angles and states, and points a batch at them.
inline Batch batch_of(const Program& program, const RealArray& angles, const State& states) {
    const py::ssize_t size = angles.ndim() == 2 ? angles.shape(0) : 0;
    if (angles.ndim() != 2) {
        throw py::value_error("angles: expected shape (batch, angles) = (batch, " +
                              std::to_string(program.angles()) + "), got " + shape_of(angles));
    }
    expect_shape("angles", angles, "(batch, angles)", size, program.angles());
    expect_fits(static_cast<double>(size), "the batch");  // rows without angles take no memory
    Batch batch;
    batch.angles = angles.data();
    batch.size = size;
    batch.poll = Signals{};
    if (!program.takes_state()) {
        if (states) throw py::value_error("states: this circuit starts from |0...0>; expected None");
        return batch;
    }
    if (!states)
        throw py::value_error("states: this circuit prepares an input state; expected an array, got None");
    batch.shared_state = states->ndim() == 2 && states->shape(0) == 1;
    expect_shape("states", *states, "(batch or 1, 2^wires)", batch.shared_state ? 1 : size,
                 amplitudes_of(program));
    batch.states = states->data();
    return batch;
}

/// The same for a mean over the batch, which must not be empty.
inline Batch batch_of(const Program& program, const RealArray& angles, const State& states, bool mean) {
    Batch batch = batch_of(program, angles, states);
    if (mean && batch.size == 0)
        throw py::value_error("angles: expected at least one row for the mean, got none");
    return batch;
}

}  // namespace fubini::bind
