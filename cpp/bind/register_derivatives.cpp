// SPDX-License-Identifier: Apache-2.0
#include <pybind11/complex.h>
#include <pybind11/stl.h>

#include "bind/sweep_arrays.hpp"
#include "core/derivatives.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace fubini::bind {
namespace {

/// A batch in which every row of angles serves `repeat` rows of the other arguments.
Batch repeated(const Program& program, const RealArray& angles, const State& states, py::ssize_t repeat) {
    if (repeat < 1) throw py::value_error("repeat: expected a number >= 1, got " + std::to_string(repeat));
    Batch batch = batch_of(program, angles, states);
    expect_fits(static_cast<double>(batch.size) * static_cast<double>(repeat), "the batch");
    batch.repeat = repeat;
    batch.size *= repeat;
    return batch;
}

void expect_rows(const char* name, const py::array& array, const char* symbols, const Batch& batch,
                 py::ssize_t columns) {
    expect_shape(name, array, symbols, static_cast<py::ssize_t>(batch.size), columns);
}

ComplexArray derivative_array(const Program& program, const RealArray& angles,
                              const std::optional<RealArray>& tangents, const State& states,
                              py::ssize_t repeat) {
    const Batch batch = repeated(program, angles, states, repeat);
    if (tangents) expect_rows("tangents", *tangents, "(batch * repeat, angles)", batch, program.angles());
    const auto amplitudes = static_cast<py::ssize_t>(1) << program.qubits();
    expect_fits(2.0 * static_cast<double>(batch.size) * static_cast<double>(amplitudes),
                "the derivative states");
    ComplexArray result({static_cast<py::ssize_t>(batch.size), amplitudes});
    std::complex<double>* to = result.mutable_data();
    const double* from = tangents ? tangents->data() : nullptr;
    run([&] { derivative_states(program, batch, from, to); });
    return result;
}

RealArray gradient_array(const Program& program, const RealArray& angles, const ComplexArray& covectors,
                         const std::optional<RealArray>& tangents, const State& states, py::ssize_t repeat) {
    const Batch batch = repeated(program, angles, states, repeat);
    const auto amplitudes = static_cast<py::ssize_t>(1) << program.qubits();
    expect_rows("covectors", covectors, "(batch * repeat, 2^wires)", batch, amplitudes);
    if (tangents) expect_rows("tangents", *tangents, "(batch * repeat, angles)", batch, program.angles());
    RealArray result({static_cast<py::ssize_t>(batch.size), static_cast<py::ssize_t>(program.angles())});
    double* to = result.mutable_data();
    const double* from = tangents ? tangents->data() : nullptr;
    run([&] {
        if (from != nullptr) {
            overlap_hessian(program, batch, covectors.data(), from, to);
        } else {
            overlap_gradient(program, batch, covectors.data(), to);
        }
    });
    return result;
}

}  // namespace

void register_derivatives(py::module_& m) {
    m.def("derivative_states", &derivative_array, "program"_a, "angles"_a.noconvert(),
          "tangents"_a.noconvert() = py::none(), "states"_a.noconvert() = py::none(), "repeat"_a = 1,
          "Derivatives of the states along the tangents, (batch * repeat, 2^wires), or the states for None, "
          "in the "
          "sweeps' frame: without the Clifford at the end and the global phase.");
    m.def("overlap_gradient", &gradient_array, "program"_a, "angles"_a.noconvert(), "covectors"_a.noconvert(),
          "tangents"_a.noconvert() = py::none(), "states"_a.noconvert() = py::none(), "repeat"_a = 1,
          "Re <d_a psi|phi> for covectors phi in the sweeps' frame, (batch * repeat, angles), or its "
          "derivative "
          "along the tangents.");
}

}  // namespace fubini::bind
