// SPDX-License-Identifier: Apache-2.0
#include "bind/sweep_arrays.hpp"
#include "core/derivatives.hpp"

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

ComplexArray derivative_array(const Program& program, const RealArray& angles,
                              const std::optional<RealArray>& tangents, const State& states,
                              py::ssize_t repeat) {
    const Batch batch = repeated(program, angles, states, repeat);
    if (tangents)
        expect_shape("tangents", *tangents, "(batch * repeat, angles)", batch.size, program.angles());
    auto result = new_array<ComplexArray>("the derivative states", {batch.size, amplitudes_of(program)});
    const double* from = tangents ? tangents->data() : nullptr;
    run([&] { derivative_states(program, batch, from, result.mutable_data()); });
    return result;
}

RealArray gradient_array(const Program& program, const RealArray& angles, const ComplexArray& covectors,
                         const std::optional<RealArray>& tangents, const State& states, py::ssize_t repeat) {
    const Batch batch = repeated(program, angles, states, repeat);
    expect_shape("covectors", covectors, "(batch * repeat, 2^wires)", batch.size, amplitudes_of(program));
    if (tangents)
        expect_shape("tangents", *tangents, "(batch * repeat, angles)", batch.size, program.angles());
    RealArray result({batch.size, py::ssize_t{program.angles()}});
    run([&] {
        if (tangents) {
            overlap_hessian(program, batch, covectors.data(), tangents->data(), result.mutable_data());
        } else {
            overlap_gradient(program, batch, covectors.data(), result.mutable_data());
        }
    });
    return result;
}

}  // namespace

void register_derivatives(py::module_& m) {
    m.def("derivative_states", &derivative_array, "program"_a, "angles"_a.noconvert(),
          "tangents"_a.noconvert() = py::none(), "states"_a.noconvert() = py::none(), "repeat"_a = 1,
          "Derivatives of the states along the tangents, (batch * repeat, 2^wires), or the states for None, "
          "in "
          "the sweeps' frame: without the Clifford at the end and the global phase.");
    m.def("overlap_gradient", &gradient_array, "program"_a, "angles"_a.noconvert(), "covectors"_a.noconvert(),
          "tangents"_a.noconvert() = py::none(), "states"_a.noconvert() = py::none(), "repeat"_a = 1,
          "Re <d_a psi|phi> for covectors phi in the sweeps' frame, (batch * repeat, angles), or its "
          "derivative along the tangents.");
}

}  // namespace fubini::bind
