// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "bind/sweep_arrays.hpp"
#include "core/adjoint.hpp"
#include "core/expval.hpp"
#include "core/memory.hpp"
#include "core/tangent.hpp"

namespace fubini::bind {
namespace {

RealArray expval_array(const Program& program, const RealArray& angles, const State& states) {
    const Batch batch = batch_of(program, angles, states);
    RealArray values = new_array("the values", {batch.size, outputs_of(program)});
    run([&] { expval(program, batch, values.mutable_data()); });
    return values;
}

ComplexArray state_array(const Program& program, const RealArray& angles, const State& states) {
    const Batch batch = batch_of(program, angles, states);
    auto result = new_array<ComplexArray>("the states", {batch.size, amplitudes_of(program)});
    run([&] { state(program, batch, result.mutable_data()); });
    return result;
}

std::tuple<RealArray, RealArray, State> vjp_arrays(const Program& program, const RealArray& angles,
                                                   const RealArray& cotangents, const State& states,
                                                   bool with_state_gradient) {
    const Batch batch = batch_of(program, angles, states);
    expect_shape("cotangents", cotangents, "(batch, outputs)", batch.size, outputs_of(program));
    if (with_state_gradient && !program.takes_state()) {
        throw py::value_error("with_state_gradient: this circuit starts from |0...0>; expected False");
    }
    RealArray gradient({batch.size, py::ssize_t{program.angles()}});
    RealArray values({batch.size, outputs_of(program)});
    State state_gradient;
    if (with_state_gradient) {
        state_gradient =
            new_array<ComplexArray>("the gradient of the states", {batch.size, amplitudes_of(program)});
    }
    run([&] {
        vjp(program, batch, cotangents.data(), gradient.mutable_data(), values.mutable_data(),
            state_gradient ? state_gradient->mutable_data() : nullptr);
    });
    return {values, gradient, state_gradient};
}

RealArray jvp_array(const Program& program, const RealArray& angles, const RealArray& tangents,
                    const State& states, const State& state_tangents) {
    const Batch batch = batch_of(program, angles, states);
    expect_shape("tangents", tangents, "(batch, angles)", batch.size, program.angles());
    if (state_tangents) {
        if (!program.takes_state()) {
            throw py::value_error("state_tangents: this circuit starts from |0...0>; expected None");
        }
        expect_shape("state_tangents", *state_tangents, "(batch, 2^wires)", batch.size,
                     amplitudes_of(program));
    }
    RealArray result = new_array("the derivatives", {batch.size, outputs_of(program)});
    const std::complex<double>* from = state_tangents ? state_tangents->data() : nullptr;
    run([&] { jvp(program, batch, tangents.data(), from, result.mutable_data()); });
    return result;
}

RealArray hessian_product_array(const Program& program, const RealArray& angles, const RealArray& cotangents,
                                const RealArray& tangents, const State& states) {
    const Batch batch = batch_of(program, angles, states);
    expect_shape("cotangents", cotangents, "(batch, outputs)", batch.size, outputs_of(program));
    expect_shape("tangents", tangents, "(batch, angles)", batch.size, program.angles());
    RealArray result({batch.size, py::ssize_t{program.angles()}});
    run([&] { hessian_product(program, batch, cotangents.data(), tangents.data(), result.mutable_data()); });
    return result;
}

RealArray jacobian_array(const Program& program, const RealArray& angles, const State& states) {
    const Batch batch = batch_of(program, angles, states);
    RealArray result = new_array("the Jacobian", {batch.size, outputs_of(program), program.angles()});
    run([&] { jacobian(program, batch, result.mutable_data()); });
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
