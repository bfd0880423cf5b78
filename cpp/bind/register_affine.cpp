// SPDX-License-Identifier: Apache-2.0
// A training step of a circuit whose angles are affine in weights and inputs: one call forward, one back.
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "bind/sweep_arrays.hpp"
#include "core/adjoint.hpp"
#include "core/affine.hpp"
#include "core/expval.hpp"
#include "core/workspace.hpp"

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

/// What the backward pass needs of a forward pass.
struct Pass {
    RealArray angles;
    std::vector<std::vector<py::ssize_t>> weight_shapes;
    Workspace memory;
    double* kept = nullptr;          // in memory, or null
    std::atomic<bool> fresh{false};  // the first backward pass uses the states up; another one starts anew
};

/// The weights side by side.
std::vector<double> joined(const AffineMap& map, const std::vector<RealArray>& weights) {
    std::vector<double> flat;
    flat.reserve(static_cast<std::size_t>(map.weights()));
    for (const RealArray& w : weights) flat.insert(flat.end(), w.data(), w.data() + w.size());
    if (flat.size() != static_cast<std::size_t>(map.weights())) {
        throw py::value_error("weights: expected " + std::to_string(map.weights()) + " numbers, got " +
                              std::to_string(flat.size()));
    }
    return flat;
}

RealArray angles_array(const AffineMap& map, const std::vector<RealArray>& weights, const RealArray& inputs) {
    const std::vector<double> flat = joined(map, weights);
    const py::ssize_t size = inputs.ndim() == 2 ? inputs.shape(0) : 0;
    expect_shape("inputs", inputs, "(batch, features)", size, map.inputs());
    RealArray angles({size, static_cast<py::ssize_t>(map.angles())});
    map.apply(flat.data(), inputs.data(), size, angles.mutable_data());
    return angles;
}

py::typing::Tuple<RealArray, py::typing::Optional<Pass>> forward(const Program& program, const AffineMap& map,
                                                                 const std::vector<RealArray>& weights,
                                                                 const RealArray& inputs, bool keep) {
    RealArray angles = angles_array(map, weights, inputs);
    const Batch batch = batch_of(program, angles, std::nullopt);
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
    if (doubles <= max_kept_doubles) {
        pass->kept = pass->memory.reserve(doubles);
        pass->fresh = true;
    }
    run([&] { expval(program, batch, to, pass->kept); });
    pass->angles = std::move(angles);
    for (const RealArray& w : weights) pass->weight_shapes.emplace_back(w.shape(), w.shape() + w.ndim());
    return py::make_tuple(values, py::cast(std::move(pass)));
}

std::pair<RealArray, std::vector<RealArray>> pulled_back(
    const AffineMap& map, const RealArray& gradient,
    const std::vector<std::vector<py::ssize_t>>& weight_shapes) {
    const py::ssize_t size = gradient.ndim() == 2 ? gradient.shape(0) : 0;
    expect_shape("gradient", gradient, "(batch, angles)", size, map.angles());
    RealArray by_inputs({size, static_cast<py::ssize_t>(map.inputs())});
    std::vector<double> flat(static_cast<std::size_t>(map.weights()));
    map.pull_back(gradient.data(), size, flat.data(), by_inputs.mutable_data());
    std::vector<RealArray> by_weights;
    const double* from = flat.data();
    for (const auto& shape : weight_shapes) {
        RealArray part(shape);
        std::copy_n(from, part.size(), part.mutable_data());
        from += part.size();
        by_weights.push_back(std::move(part));
    }
    return {std::move(by_inputs), std::move(by_weights)};
}

std::pair<RealArray, std::vector<RealArray>> backward(const Program& program, const AffineMap& map,
                                                      Pass& pass, const RealArray& cotangents) {
    const Batch batch = batch_of(program, pass.angles, std::nullopt);
    const auto size = static_cast<py::ssize_t>(batch.size);
    expect_shape("cotangents", cotangents, "(batch, outputs)", size,
                 static_cast<py::ssize_t>(program.outputs().size()));
    RealArray gradient({size, static_cast<py::ssize_t>(map.angles())});
    double* to = gradient.mutable_data();
    double* kept = pass.fresh.exchange(false) ? pass.kept : nullptr;
    run([&] { vjp(program, batch, cotangents.data(), to, nullptr, nullptr, kept); });
    return pulled_back(map, gradient, pass.weight_shapes);
}

/// Results (batch, outputs), and their derivatives by weights (batch, outputs, weights) and, if wanted, by
/// inputs (batch, outputs, features).
py::typing::Tuple<RealArray, RealArray, py::typing::Optional<RealArray>> linearise(
    const Program& program, const AffineMap& map, const std::vector<RealArray>& weights,
    const RealArray& inputs, bool want_inputs) {
    const RealArray angles = angles_array(map, weights, inputs);
    const Batch batch = batch_of(program, angles, std::nullopt);
    const auto size = static_cast<py::ssize_t>(batch.size);
    const auto outputs = static_cast<py::ssize_t>(program.outputs().size());
    const py::ssize_t widest = std::max({map.angles(), map.weights(), map.inputs()});
    expect_fits(static_cast<double>(size * outputs) * static_cast<double>(widest), "the Jacobian");
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
        jacobian(program, batch, by_angles.data(), values_to);
        map.chain(by_angles.data(), size * outputs, weights_to, inputs_to);
    });
    return py::make_tuple(std::move(values), std::move(by_weights), std::move(by_inputs));
}

}  // namespace

void register_affine(py::module_& m) {
    py::class_<AffineMap>(
        m, "AffineMap", py::module_local(),
        "angles = constant + W weights + X inputs; matrices as (angle, source, value) entries.")
        .def(py::init([](const std::vector<double>& constant, int weights, int inputs,
                         const Entries& by_weights, const Entries& by_inputs) {
                 return AffineMap(constant, weights, inputs, coefficients(by_weights),
                                  coefficients(by_inputs));
             }),
             "constant"_a, "weights"_a, "inputs"_a, "by_weights"_a, "by_inputs"_a)
        .def("angles", &angles_array, "weights"_a, "inputs"_a,
             "Angles (batch, angles) for a list of weights and inputs (batch, features).");
    py::class_<Pass>(m, "Pass", py::module_local(), "What `backward` needs of a call of `forward`.");
    m.def("forward", &forward, "program"_a, "map"_a, "weights"_a, "inputs"_a.noconvert(), "keep"_a,
          "Results (batch, outputs), and a Pass if keep.");
    m.def("backward", &backward, "program"_a, "map"_a, "passed"_a, "cotangents"_a.noconvert(),
          "Gradients by inputs (batch, features) and by every weight.");
    m.def("linearise", &linearise, "program"_a, "map"_a, "weights"_a, "inputs"_a.noconvert(), "want_inputs"_a,
          "Results (batch, outputs), their derivatives by weights (batch, outputs, weights), and by inputs "
          "(batch, outputs, features) or None.");
}

}  // namespace fubini::bind
