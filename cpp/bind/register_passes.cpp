// SPDX-License-Identifier: Apache-2.0
// A training step of a circuit whose angles are a function of weights and inputs: one call forward, one back.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "bind/angle_arrays.hpp"
#include "core/adjoint.hpp"
#include "core/expval.hpp"

namespace fubini::bind {
namespace {

/// Larger states are computed again in the backward pass, which costs a third more time than keeping them.
constexpr std::size_t max_kept_doubles = (std::size_t{64} << 20) / sizeof(double);

void expect_match(const Program& program, const Expression& map) {
    const double wanted = program.takes_state() ? std::ldexp(1.0, program.qubits()) : 0;
    if (map.angles() == program.angles() && map.amplitudes() == wanted) return;
    throw py::value_error("map: expected one that makes " + std::to_string(program.angles()) +
                          " angles and " + std::to_string(static_cast<long long>(wanted)) +
                          " amplitudes for this program, got " + std::to_string(map.angles()) + " and " +
                          std::to_string(map.amplitudes()));
}

py::typing::Tuple<RealArray, py::typing::Optional<Pass>> forward(const Program& program,
                                                                 const Expression& map,
                                                                 const std::vector<RealArray>& weights,
                                                                 const RealArray& inputs, bool keep) {
    expect_match(program, map);
    Mapped found(map, weights, inputs);
    const Batch batch = batch_of(program, found.angles, found.states);
    RealArray values = new_array("the values", {batch.size, outputs_of(program)});
    double* to = values.mutable_data();
    if (!keep) {
        run([&] { expval(program, batch, to); });
        return py::make_tuple(values, py::none());
    }
    auto pass = std::make_unique<Pass>();
    const std::size_t doubles = kept_doubles(program, batch.size);
    if (doubles <= max_kept_doubles) pass->kept = pass->memory.reserve(doubles);
    run([&] { expval(program, batch, to, pass->kept); });
    pass->program = &program;
    pass->values.assign(to, to + values.size());
    pass->weights = std::move(found.weights);
    pass->inputs = inputs;
    pass->angles = std::move(found.angles);
    pass->states = std::move(found.states);
    for (const RealArray& w : weights) pass->weight_shapes.emplace_back(w.shape(), w.shape() + w.ndim());
    return py::make_tuple(values, py::cast(std::move(pass)));
}

/// What a reverse sweep over a pass needs, checked.
struct Reverse {
    Batch batch;
    AnglePoint point;
    py::ssize_t size;
    bool by_states;
};

Reverse reverse_of(const Program& program, const Expression& map, const Pass& pass,
                   const RealArray& cotangents) {
    expect_match(program, map);
    const py::ssize_t size = pass.angles.shape(0);
    if (pass.program != &program || pass.angles.shape(1) != map.angles() ||
        pass.states.has_value() != (map.amplitudes() > 0) || batch_rows(map, pass.inputs) != size ||
        pass.weights.size() != static_cast<std::size_t>(map.weights())) {
        throw py::value_error("passed: expected the result of forward with this program and this map");
    }
    expect_shape("cotangents", cotangents, "(batch, outputs)", size, outputs_of(program));
    const bool by_states = pass.states && map.state_has_derivatives();
    if (by_states) {
        expect_fits(2.0 * static_cast<double>(size) * map.amplitudes(), "the gradient of the states");
    }
    return {batch_of(program, pass.angles, pass.states),
            {pass.weights.data(), pass.inputs.data(), size, false},
            size,
            by_states};
}

/// Runs the sweep, and `use` with the gradients by angles and by the amplitudes, which may be null.
template <class Use>
void reverse(const Program& program, const Expression& map, const Reverse& at, const Pass& pass,
             const RealArray& cotangents, const Use& use) {
    run([&] {
        std::vector<double> gradient(static_cast<std::size_t>(at.size * map.angles()));
        std::vector<std::complex<double>> states(
            static_cast<std::size_t>(at.by_states ? at.size * map.amplitudes() : 0));
        std::complex<double>* states_to = at.by_states ? states.data() : nullptr;
        vjp(program, at.batch, cotangents.data(), gradient.data(), nullptr, states_to, pass.kept);
        use(gradient.data(), states_to);
    });
}

std::pair<RealArray, std::vector<RealArray>> backward(const Program& program, const Expression& map,
                                                      const Pass& pass, const RealArray& cotangents) {
    const Reverse at = reverse_of(program, map, pass, cotangents);
    RealArray by_inputs({at.size, py::ssize_t{map.inputs()}});
    std::vector<double> flat(static_cast<std::size_t>(map.weights()));
    reverse(program, map, at, pass, cotangents,
            [&](const double* gradient, const std::complex<double>* states) {
                map.pull_back(at.point, gradient, states, flat.data(), by_inputs.mutable_data());
            });
    std::vector<RealArray> by_weights;
    const double* from = flat.data();
    for (const auto& shape : pass.weight_shapes) {
        RealArray part(shape);
        std::copy_n(from, part.size(), part.mutable_data());
        from += part.size();
        by_weights.push_back(std::move(part));
    }
    return {std::move(by_inputs), std::move(by_weights)};
}

/// The same element by element: gradients by inputs (batch, features) and by all weights (batch, weights).
std::pair<RealArray, RealArray> backward_rows(const Program& program, const Expression& map, const Pass& pass,
                                              const RealArray& cotangents) {
    const Reverse at = reverse_of(program, map, pass, cotangents);
    RealArray by_weights = new_array("the gradients", {at.size, map.weights()});
    RealArray by_inputs({at.size, py::ssize_t{map.inputs()}});
    reverse(program, map, at, pass, cotangents,
            [&](const double* gradient, const std::complex<double>* states) {
                map.chain(at.point, 1, gradient, states, by_weights.mutable_data(), by_inputs.mutable_data());
            });
    return {std::move(by_inputs), std::move(by_weights)};
}

/// Jacobians by angles (batch, outputs, angles) and by the amplitudes of the initial state, one sweep per
/// output.
void jacobians(const Program& program, const Batch& batch, double* values, double* by_angles,
               std::complex<double>* by_states) {
    if (by_states == nullptr) return jacobian(program, batch, by_angles, values);
    const py::ssize_t outputs = outputs_of(program), angles = program.angles(),
                      amplitudes = amplitudes_of(program);
    std::vector<double> gradient(static_cast<std::size_t>(batch.size * angles));
    std::vector<std::complex<double>> states(static_cast<std::size_t>(batch.size * amplitudes));
    for (std::ptrdiff_t m = 0; m < outputs; ++m) {
        std::vector<double> chosen(static_cast<std::size_t>(batch.size * outputs));
        for (std::ptrdiff_t b = 0; b < batch.size; ++b) chosen[static_cast<std::size_t>(b * outputs + m)] = 1;
        vjp(program, batch, chosen.data(), gradient.data(), values, states.data());
        for (std::ptrdiff_t b = 0; b < batch.size; ++b) {
            std::copy_n(gradient.data() + b * angles, angles, by_angles + (b * outputs + m) * angles);
            std::copy_n(states.data() + b * amplitudes, amplitudes,
                        by_states + (b * outputs + m) * amplitudes);
        }
    }
}

/// Results (batch, outputs), and their derivatives by weights (batch, outputs, weights) and, if wanted, by
/// inputs (batch, outputs, features).
std::tuple<RealArray, RealArray, std::optional<RealArray>> linearise(const Program& program,
                                                                     const Expression& map,
                                                                     const std::vector<RealArray>& weights,
                                                                     const RealArray& inputs,
                                                                     bool want_inputs) {
    expect_match(program, map);
    const Mapped found(map, weights, inputs);
    const Batch batch = batch_of(program, found.angles, found.states);
    const py::ssize_t size = batch.size, outputs = outputs_of(program);
    const bool by_states = found.states && map.state_has_derivatives();
    const py::ssize_t widest =
        std::max({map.angles(), map.weights(), map.inputs(), by_states ? 2 * map.amplitudes() : 0});
    expect_fits(static_cast<double>(size) * static_cast<double>(outputs) * static_cast<double>(widest),
                "the Jacobian");
    RealArray values({size, outputs});
    RealArray by_weights({size, outputs, py::ssize_t{map.weights()}});
    std::optional<RealArray> by_inputs;
    if (want_inputs) by_inputs.emplace(RealArray({size, outputs, py::ssize_t{map.inputs()}}));
    run([&] {
        std::vector<double> by_angles(static_cast<std::size_t>(size * outputs * map.angles()));
        std::vector<std::complex<double>> states(
            static_cast<std::size_t>(by_states ? size * outputs * map.amplitudes() : 0));
        std::complex<double>* states_to = by_states ? states.data() : nullptr;
        jacobians(program, batch, values.mutable_data(), by_angles.data(), states_to);
        map.chain(found.point, outputs, by_angles.data(), states_to, by_weights.mutable_data(),
                  by_inputs ? by_inputs->mutable_data() : nullptr);
    });
    return {std::move(values), std::move(by_weights), std::move(by_inputs)};
}

}  // namespace

void register_passes(py::module_& m) {
    py::class_<Pass>(m, "Pass", py::module_local(), "What `backward` needs of a call of `forward`.");
    m.def("forward", &forward, "program"_a, "map"_a, "weights"_a, "inputs"_a.noconvert(), "keep"_a,
          "Results (batch, outputs), and a Pass if keep.");
    m.def("backward", &backward, "program"_a, "map"_a, "passed"_a, "cotangents"_a.noconvert(),
          "Gradients by inputs (batch, features) and by every weight.");
    m.def("backward_rows", &backward_rows, "program"_a, "map"_a, "passed"_a, "cotangents"_a.noconvert(),
          "Gradients by inputs (batch, features) and by weights (batch, weights), one for each element.");
    m.def("linearise", &linearise, "program"_a, "map"_a, "weights"_a, "inputs"_a.noconvert(), "want_inputs"_a,
          "Results (batch, outputs), their derivatives by weights (batch, outputs, weights), and by inputs "
          "(batch, outputs, features) or None.");
}

}  // namespace fubini::bind
