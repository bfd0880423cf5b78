// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <tuple>

#include "bind/sweep_arrays.hpp"
#include "core/energy.hpp"

namespace fubini::bind {
namespace {

void expect_energy(const Program& program, const RealArray& weights) {
    const auto outputs = program.outputs();
    if (weights.ndim() != 1 || weights.shape(0) != static_cast<py::ssize_t>(outputs.size())) {
        throw py::value_error("weights: expected shape (outputs,) = (" + std::to_string(outputs.size()) +
                              ",), got " + shape_of(weights));
    }
    for (const Output& output : outputs) {
        if (output.square >= 0)
            throw py::value_error("program: expected expectation values alone, got a variance");
    }
}

std::tuple<RealArray, RealArray, RealArray, std::optional<RealArray>> energy_arrays(const Program& program,
                                                                                    const RealArray& angles,
                                                                                    const RealArray& weights,
                                                                                    const State& states,
                                                                                    bool with_metric) {
    const Batch batch = batch_of(program, angles, states);
    expect_energy(program, weights);
    const py::ssize_t k = program.angles();
    expect_fits((with_metric ? 2.0 : 1.0) * static_cast<double>(batch.size) * static_cast<double>(k) *
                    static_cast<double>(k),
                "the curvature of the energy");
    RealArray value({batch.size}), gradient({batch.size, k}), curvature({batch.size, k, k});
    std::optional<RealArray> metric;
    if (with_metric) metric.emplace(RealArray({batch.size, k, k}));
    const EnergyModel to{value.mutable_data(), gradient.mutable_data(), curvature.mutable_data(),
                         metric ? metric->mutable_data() : nullptr};
    run([&] { energy_curvature(program, batch, weights.data(), to); });
    return {value, gradient, curvature, metric};
}

RealArray energy_products(const Program& program, const RealArray& angles, const RealArray& weights,
                          const RealArray& vectors, const State& states) {
    Batch batch = batch_of(program, angles, states);
    expect_energy(program, weights);
    const py::ssize_t each = expect_vectors(vectors, batch.size, program.angles());
    RealArray result({batch.size, each, py::ssize_t{program.angles()}});
    if (each == 0) return result;
    batch.repeat = each;
    batch.size *= each;
    run([&] {
        energy_curvature_product(program, batch, weights.data(), vectors.data(), result.mutable_data());
    });
    return result;
}

}  // namespace

void register_energy(py::module_& m) {
    m.def(
        "energy_curvature", &energy_arrays, "program"_a, "angles"_a.noconvert(), "weights"_a.noconvert(),
        "states"_a.noconvert() = py::none(), "with_metric"_a = true,
        "The energy of the weighted results, (batch,), its gradient, (batch, angles), the Gauss-Newton part "
        "of its Hessian and the metric, (batch, angles, angles); None in its place without with_metric.");
    m.def("energy_curvature_product", &energy_products, "program"_a, "angles"_a.noconvert(),
          "weights"_a.noconvert(), "vectors"_a.noconvert(), "states"_a.noconvert() = py::none(),
          "Products of that part of the Hessian with vectors, (batch, vectors, angles).");
}

}  // namespace fubini::bind
