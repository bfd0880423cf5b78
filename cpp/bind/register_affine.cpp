// SPDX-License-Identifier: Apache-2.0
// A training step of a circuit whose angles are a function of weights and inputs: one call forward, one back.
#include <pybind11/complex.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "bind/angle_arrays.hpp"
#include "bind/pass.hpp"
#include "core/adjoint.hpp"
#include "core/affine.hpp"
#include "core/expval.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace fubini::bind {
namespace {

/// Larger states are computed again in the backward pass, which costs a third more time than keeping them.
constexpr std::size_t max_kept_doubles = (std::size_t{64} << 20) / sizeof(double);

using Entries = std::vector<std::tuple<int, int, double>>;

std::vector<Coefficient> coefficients(const Entries& entries) {
    std::vector<Coefficient> list;
    list.reserve(entries.size());
    for (const auto& [angle, source, value] : entries) list.push_back({angle, source, value});
    return list;
}

/// A map at its weights and inputs, and what it makes of them.
struct Mapped {
    std::vector<double> weights;
    AnglePoint point;
    RealArray angles;
    State states;
};

std::unique_ptr<Mapped> mapped(const AngleMap& map, const std::vector<RealArray>& weights,
                               const RealArray& inputs, bool want_states = true) {
    auto result = std::make_unique<Mapped>();
    result->weights = joined(map, weights);
    const py::ssize_t size = batch_rows(map, inputs);
    result->point = {result->weights.data(), inputs.data(), size, false};
    result->angles = RealArray({size, static_cast<py::ssize_t>(map.angles())});
    double* angles_to = result->angles.mutable_data();
    std::complex<double>* states_to = nullptr;
    if (map.amplitudes() > 0 && want_states) {
        const py::ssize_t rows = map.shared_state() ? std::min<py::ssize_t>(size, 1) : size;
        expect_fits(2.0 * static_cast<double>(rows) * map.amplitudes(), "the initial states");
        ComplexArray states({rows, static_cast<py::ssize_t>(map.amplitudes())});
        states_to = states.mutable_data();
        result->states = std::move(states);
    }
    run([&] { map.evaluate(result->point, angles_to, states_to); });
    return result;
}

void expect_match(const Program& program, const AngleMap& map) {
    const double wanted = program.takes_state() ? std::ldexp(1.0, program.qubits()) : 0;
    if (map.angles() == program.angles() && map.amplitudes() == wanted) return;
    throw py::value_error("map: expected one that makes " + std::to_string(program.angles()) +
                          " angles and " + std::to_string(static_cast<long long>(wanted)) +
                          " amplitudes for this program, got " + std::to_string(map.angles()) + " and " +
                          std::to_string(map.amplitudes()));
}

RealArray angles_array(const AngleMap& map, const std::vector<RealArray>& weights, const RealArray& inputs) {
    return mapped(map, weights, inputs, false)->angles;
}

State states_array(const AngleMap& map, const std::vector<RealArray>& weights, const RealArray& inputs) {
    const std::unique_ptr<Mapped> found = mapped(map, weights, inputs);
    if (!found->states || found->states->shape(0) == found->point.batch) return found->states;
    const auto size = static_cast<py::ssize_t>(found->point.batch);
    ComplexArray all({size, static_cast<py::ssize_t>(map.amplitudes())});
    for (py::ssize_t b = 0; b < size; ++b)
        std::copy_n(found->states->data(), map.amplitudes(), all.mutable_data() + b * map.amplitudes());
    return all;
}

py::typing::Tuple<RealArray, py::typing::Optional<Pass>> forward(const Program& program, const AngleMap& map,
                                                                 const std::vector<RealArray>& weights,
                                                                 const RealArray& inputs, bool keep) {
    expect_match(program, map);
    const std::unique_ptr<Mapped> found = mapped(map, weights, inputs);
    const Batch batch = batch_of(program, found->angles, found->states);
    const auto outputs = static_cast<py::ssize_t>(program.outputs().size());
    expect_fits(static_cast<double>(batch.size) * static_cast<double>(outputs), "the values");
    RealArray values({static_cast<py::ssize_t>(batch.size), outputs});
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
    pass->weights = std::move(found->weights);
    pass->inputs = inputs;
    pass->angles = std::move(found->angles);
    pass->states = std::move(found->states);
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

Reverse reverse_of(const Program& program, const AngleMap& map, const Pass& pass,
                   const RealArray& cotangents) {
    expect_match(program, map);
    const auto size = static_cast<py::ssize_t>(pass.angles.shape(0));
    if (pass.program != &program || pass.angles.shape(1) != map.angles() ||
        pass.states.has_value() != (map.amplitudes() > 0) || batch_rows(map, pass.inputs) != size ||
        pass.weights.size() != static_cast<std::size_t>(map.weights())) {
        throw py::value_error("passed: expected the result of forward with this program and this map");
    }
    expect_shape("cotangents", cotangents, "(batch, outputs)", size,
                 static_cast<py::ssize_t>(program.outputs().size()));
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
void reverse(const Program& program, const AngleMap& map, const Reverse& at, const Pass& pass,
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

std::pair<RealArray, std::vector<RealArray>> backward(const Program& program, const AngleMap& map,
                                                      const Pass& pass, const RealArray& cotangents) {
    const Reverse at = reverse_of(program, map, pass, cotangents);
    RealArray by_inputs({at.size, static_cast<py::ssize_t>(map.inputs())});
    std::vector<double> flat(static_cast<std::size_t>(map.weights()));
    double* inputs_to = by_inputs.mutable_data();
    reverse(program, map, at, pass, cotangents,
            [&](const double* gradient, const std::complex<double>* states) {
                map.pull_back(at.point, gradient, states, flat.data(), inputs_to);
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
std::pair<RealArray, RealArray> backward_rows(const Program& program, const AngleMap& map, const Pass& pass,
                                              const RealArray& cotangents) {
    const Reverse at = reverse_of(program, map, pass, cotangents);
    expect_fits(static_cast<double>(at.size) * map.weights(), "the gradients");
    RealArray by_inputs({at.size, static_cast<py::ssize_t>(map.inputs())});
    RealArray by_weights({at.size, static_cast<py::ssize_t>(map.weights())});
    double* inputs_to = by_inputs.mutable_data();
    double* weights_to = by_weights.mutable_data();
    reverse(program, map, at, pass, cotangents,
            [&](const double* gradient, const std::complex<double>* states) {
                map.chain(at.point, 1, gradient, states, weights_to, inputs_to);
            });
    return {std::move(by_inputs), std::move(by_weights)};
}

/// Jacobians by angles (batch, outputs, angles) and by the amplitudes of the initial state, one sweep per
/// output.
void jacobians(const Program& program, const Batch& batch, double* values, double* by_angles,
               std::complex<double>* by_states) {
    if (by_states == nullptr) return jacobian(program, batch, by_angles, values);
    const auto outputs = static_cast<std::ptrdiff_t>(program.outputs().size());
    const std::ptrdiff_t angles = program.angles(), amplitudes = std::ptrdiff_t{1} << program.qubits();
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
py::typing::Tuple<RealArray, RealArray, py::typing::Optional<RealArray>> linearise(
    const Program& program, const AngleMap& map, const std::vector<RealArray>& weights,
    const RealArray& inputs, bool want_inputs) {
    expect_match(program, map);
    const std::unique_ptr<Mapped> found = mapped(map, weights, inputs);
    const Batch batch = batch_of(program, found->angles, found->states);
    const auto size = static_cast<py::ssize_t>(batch.size);
    const auto outputs = static_cast<py::ssize_t>(program.outputs().size());
    const bool by_states = found->states && map.state_has_derivatives();
    const py::ssize_t widest =
        std::max({map.angles(), map.weights(), map.inputs(), by_states ? 2 * map.amplitudes() : 0});
    expect_fits(static_cast<double>(size) * static_cast<double>(outputs) * static_cast<double>(widest),
                "the Jacobian");
    RealArray values({size, outputs});
    RealArray by_weights({size, outputs, static_cast<py::ssize_t>(map.weights())});
    py::object by_inputs = py::none();
    double* inputs_to = nullptr;
    if (want_inputs) {
        RealArray array({size, outputs, static_cast<py::ssize_t>(map.inputs())});
        inputs_to = array.mutable_data();
        by_inputs = std::move(array);
    }
    double* values_to = values.mutable_data();
    double* weights_to = by_weights.mutable_data();
    run([&] {
        std::vector<double> by_angles(static_cast<std::size_t>(size * outputs * map.angles()));
        std::vector<std::complex<double>> states(
            static_cast<std::size_t>(by_states ? size * outputs * map.amplitudes() : 0));
        std::complex<double>* states_to = by_states ? states.data() : nullptr;
        jacobians(program, batch, values_to, by_angles.data(), states_to);
        map.chain(found->point, outputs, by_angles.data(), states_to, weights_to, inputs_to);
    });
    return py::make_tuple(std::move(values), std::move(by_weights), std::move(by_inputs));
}

}  // namespace

void register_affine(py::module_& m) {
    py::class_<AngleMap, std::shared_ptr<AngleMap>>(
        m, "AngleMap", py::module_local(),
        "Angles, and amplitudes of an initial state, as a function of weights and inputs.")
        .def_property_readonly("num_weights", &AngleMap::weights)
        .def_property_readonly("num_inputs", &AngleMap::inputs)
        .def_property_readonly("num_angles", &AngleMap::angles)
        .def_property_readonly("num_amplitudes", &AngleMap::amplitudes)
        .def("angles", &angles_array, "weights"_a, "inputs"_a,
             "Angles (batch, angles) for a list of weights and inputs (batch, features).")
        .def("states", &states_array, "weights"_a, "inputs"_a,
             "Initial states (batch, amplitudes), or None where there are none.");
    py::class_<AffineMap, AngleMap, std::shared_ptr<AffineMap>>(
        m, "AffineMap", py::module_local(),
        "angles = constant + W weights + X inputs; matrices as (angle, source, value) entries.")
        .def(py::init([](const std::vector<double>& constant, int weights, int inputs,
                         const Entries& by_weights, const Entries& by_inputs) {
                 return AffineMap(constant, weights, inputs, coefficients(by_weights),
                                  coefficients(by_inputs));
             }),
             "constant"_a, "weights"_a, "inputs"_a, "by_weights"_a, "by_inputs"_a);
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
