// SPDX-License-Identifier: Apache-2.0
#include <pybind11/complex.h>
#include <pybind11/stl.h>

#include <tuple>

#include "bind/sweep_arrays.hpp"
#include "core/adjoint.hpp"
#include "core/expval.hpp"
#include "core/tangent.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace fubini::bind {
namespace {

RealArray expval_array(const Program& program, const RealArray& angles, const State& states) {
    const Batch batch = batch_of(program, angles, states);
    const auto outputs = static_cast<py::ssize_t>(program.outputs().size());
    expect_fits(static_cast<double>(batch.size) * static_cast<double>(outputs), "the values");
    RealArray values({static_cast<py::ssize_t>(batch.size), outputs});
    double* to = values.mutable_data();
    run([&] { expval(program, batch, to); });
    return values;
}

ComplexArray state_array(const Program& program, const RealArray& angles, const State& states) {
    const Batch batch = batch_of(program, angles, states);
    const auto amplitudes = static_cast<py::ssize_t>(1) << program.qubits();
    expect_fits(2.0 * static_cast<double>(batch.size) * static_cast<double>(amplitudes), "the states");
    ComplexArray result({static_cast<py::ssize_t>(batch.size), amplitudes});
    std::complex<double>* to = result.mutable_data();
    run([&] { state(program, batch, to); });
    return result;
}

std::tuple<RealArray, RealArray, State> vjp_arrays(const Program& program, const RealArray& angles,
                                                   const RealArray& cotangents, const State& states,
                                                   bool with_state_gradient) {
    const Batch batch = batch_of(program, angles, states);
    const auto size = static_cast<py::ssize_t>(batch.size);
    const auto outputs = static_cast<py::ssize_t>(program.outputs().size());
    expect_shape("cotangents", cotangents, "(batch, outputs)", size, outputs);
    if (with_state_gradient && !program.takes_state()) {
        throw py::value_error("with_state_gradient: this circuit starts from |0...0>; expected False");
    }
    RealArray gradient({size, static_cast<py::ssize_t>(program.angles())});
    RealArray values({size, outputs});
    State state_gradient;
    std::complex<double>* state_to = nullptr;
    if (with_state_gradient) {
        const auto amplitudes = static_cast<py::ssize_t>(1) << program.qubits();
        expect_fits(2.0 * static_cast<double>(size) * static_cast<double>(amplitudes),
                    "the gradient of the states");
        ComplexArray array({size, amplitudes});
        state_to = array.mutable_data();
        state_gradient = array;
    }
    double* gradient_to = gradient.mutable_data();
    double* values_to = values.mutable_data();
    run([&] { vjp(program, batch, cotangents.data(), gradient_to, values_to, state_to); });
    return {values, gradient, state_gradient};
}

RealArray jvp_array(const Program& program, const RealArray& angles, const RealArray& tangents,
                    const State& states, const State& state_tangents) {
    const Batch batch = batch_of(program, angles, states);
    const auto size = static_cast<py::ssize_t>(batch.size);
    expect_shape("tangents", tangents, "(batch, angles)", size, program.angles());
    if (state_tangents) {
        if (!program.takes_state()) {
            throw py::value_error("state_tangents: this circuit starts from |0...0>; expected None");
        }
        expect_shape("state_tangents", *state_tangents, "(batch, 2^wires)", size,
                     static_cast<py::ssize_t>(1) << program.qubits());
    }
    const auto outputs = static_cast<py::ssize_t>(program.outputs().size());
    expect_fits(static_cast<double>(size) * static_cast<double>(outputs), "the derivatives");
    RealArray result({size, outputs});
    double* to = result.mutable_data();
    const std::complex<double>* from = state_tangents ? state_tangents->data() : nullptr;
    run([&] { jvp(program, batch, tangents.data(), from, to); });
    return result;
}

RealArray hessian_product_array(const Program& program, const RealArray& angles, const RealArray& cotangents,
                                const RealArray& tangents, const State& states) {
    const Batch batch = batch_of(program, angles, states);
    const auto size = static_cast<py::ssize_t>(batch.size);
    expect_shape("cotangents", cotangents, "(batch, outputs)", size,
                 static_cast<py::ssize_t>(program.outputs().size()));
    expect_shape("tangents", tangents, "(batch, angles)", size, program.angles());
    RealArray result({size, static_cast<py::ssize_t>(program.angles())});
    double* to = result.mutable_data();
    run([&] { hessian_product(program, batch, cotangents.data(), tangents.data(), to); });
    return result;
}

RealArray jacobian_array(const Program& program, const RealArray& angles, const State& states) {
    const Batch batch = batch_of(program, angles, states);
    const auto size = static_cast<py::ssize_t>(batch.size);
    const auto outputs = static_cast<py::ssize_t>(program.outputs().size());
    expect_fits(static_cast<double>(size) * static_cast<double>(outputs) * program.angles(), "the Jacobian");
    RealArray result({size, outputs, static_cast<py::ssize_t>(program.angles())});
    double* to = result.mutable_data();
    run([&] { jacobian(program, batch, to); });
    return result;
}

}  // namespace

void register_sweeps(py::module_& m) {
    py::register_local_exception_translator([](std::exception_ptr p) {
        try {
            if (p) std::rethrow_exception(p);
        } catch (const MemoryLimit& error) {
            PyErr_SetString(PyExc_MemoryError, error.what());
        }
    });
    m.def("expval", &expval_array, "program"_a, "angles"_a.noconvert(), "states"_a.noconvert() = py::none(),
          "Results, shape (batch, outputs), at angles of shape (batch, angles).");
    m.def("state", &state_array, "program"_a, "angles"_a.noconvert(), "states"_a.noconvert() = py::none(),
          "Final states, shape (batch, 2^wires).");
    m.def("vjp", &vjp_arrays, "program"_a, "angles"_a.noconvert(), "cotangents"_a.noconvert(),
          "states"_a.noconvert() = py::none(), "with_state_gradient"_a = false,
          "Results (batch, outputs), gradient (batch, angles), and gradient of the input states or None.");
    m.def("jvp", &jvp_array, "program"_a, "angles"_a.noconvert(), "tangents"_a.noconvert(),
          "states"_a.noconvert() = py::none(), "state_tangents"_a.noconvert() = py::none(),
          "Derivative of the results along the tangents, shape (batch, outputs).");
    m.def("hessian_product", &hessian_product_array, "program"_a, "angles"_a.noconvert(),
          "cotangents"_a.noconvert(), "tangents"_a.noconvert(), "states"_a.noconvert() = py::none(),
          "Hessian of the weighted results times the tangents, shape (batch, angles).");
    m.def("jacobian", &jacobian_array, "program"_a, "angles"_a.noconvert(),
          "states"_a.noconvert() = py::none(), "Jacobian, shape (batch, outputs, angles).");
    m.def("set_memory_limit", &set_memory_limit, "bytes"_a,
          "Limit what one sweep may allocate; 0: three quarters of the memory of this process.");
    m.def("memory_limit", &memory_limit, "The limit in bytes.");
}

}  // namespace fubini::bind
