// SPDX-License-Identifier: Apache-2.0
#include <optional>
#include <string>
#include <utility>

#include "bind/module.hpp"
#include "core/gauss_newton.hpp"

namespace fubini::bind {
namespace {

void expect(bool right, const char* name, const char* shape) {
    if (!right) throw py::value_error(std::string(name) + ": expected shape " + shape);
}

CurvatureFactor factor_of(const RealArray& factor) {
    expect(factor.ndim() == 3, "factor", "(data, rows, outputs)");
    return {factor.data(), factor.shape(0), factor.shape(1), factor.shape(2)};
}

RealArray output_factor_array(const std::string& family, const RealArray& outputs, double share) {
    expect(outputs.ndim() == 2 && outputs.shape(1) > 0, "outputs", "(data, outputs)");
    const auto kind = member_of<OutputFamily>("family", family, {"categorical", "bernoulli", "gaussian"});
    const py::ssize_t width = outputs.shape(1);
    RealArray factor({outputs.shape(0), width, width});
    output_factor(kind, outputs.data(), outputs.shape(0), width, share, factor.mutable_data());
    return factor;
}

RealArray linear_layer_array(const RealArray& inputs, const RealArray& weight,
                             const std::optional<RealArray>& bias) {
    expect(inputs.ndim() == 2, "inputs", "(data, inputs)");
    expect(weight.ndim() == 2 && weight.shape(1) == inputs.shape(1), "weight", "(outputs, inputs)");
    expect(!bias || (bias->ndim() == 1 && bias->shape(0) == weight.shape(0)), "bias", "(outputs,)");
    RealArray outputs({inputs.shape(0), weight.shape(0)});
    linear_layer(inputs.data(), inputs.shape(0), inputs.shape(1), weight.data(),
                 bias ? bias->data() : nullptr, weight.shape(0), outputs.mutable_data());
    return outputs;
}

RealArray pull_factor_array(const RealArray& factor, const RealArray& jacobian) {
    const CurvatureFactor given = factor_of(factor);
    const bool shared = jacobian.ndim() == 2;
    const py::ssize_t d = jacobian.ndim();
    expect(d >= 2 && d <= 3 && jacobian.shape(d - 2) == given.width &&
               (shared || jacobian.shape(0) == given.data),
           "jacobian", "(outputs, inputs) or (data, outputs, inputs)");
    RealArray pulled({factor.shape(0), factor.shape(1), jacobian.shape(d - 1)});
    (shared ? pull_factor_shared : pull_factor)(given, jacobian.data(), jacobian.shape(d - 1),
                                                pulled.mutable_data());
    return pulled;
}

RealArray combined_rows(const RealArray& factor, std::uint64_t seed) {
    const CurvatureFactor given = factor_of(factor);
    RealArray combined({factor.shape(0), factor.shape(2)});
    combine_rows(given, seed, combined.mutable_data());
    return combined;
}

RealArray reduced_rows(const RealArray& factor, py::ssize_t rank) {
    const CurvatureFactor given = factor_of(factor);
    expect(rank > 0 && rank <= given.width, "rank", "of at most the outputs");
    RealArray reduced({factor.shape(0), rank, factor.shape(2)});
    reduce_rows(given, rank, reduced.mutable_data());
    return reduced;
}

RealArray jacobian_block_array(const RealArray& factor, const RealArray& jacobian) {
    const CurvatureFactor given = factor_of(factor);
    expect(jacobian.ndim() == 3 && jacobian.shape(0) == given.data && jacobian.shape(1) == given.width,
           "jacobian", "(data, outputs, parameters)");
    const py::ssize_t size = jacobian.shape(2);
    RealArray matrix({size, size});
    jacobian_block(given, jacobian.data(), size, matrix.mutable_data());
    return matrix;
}

void expect_inputs(const RealArray& inputs, const CurvatureFactor& factor) {
    expect(inputs.ndim() == 2 && inputs.shape(0) == factor.data, "inputs", "(data, inputs)");
}

RealArray linear_block_array(const RealArray& factor, const RealArray& inputs, bool bias) {
    const CurvatureFactor given = factor_of(factor);
    expect_inputs(inputs, given);
    const py::ssize_t size = factor.shape(2) * (inputs.shape(1) + (bias ? 1 : 0));
    RealArray matrix({size, size});
    linear_block(given, inputs.data(), inputs.shape(1), bias, matrix.mutable_data());
    return matrix;
}

std::pair<RealArray, RealArray> kronecker_arrays(const RealArray& factor, const RealArray& inputs,
                                                 bool bias) {
    const CurvatureFactor given = factor_of(factor);
    expect_inputs(inputs, given);
    const py::ssize_t out = factor.shape(2), width = inputs.shape(1) + (bias ? 1 : 0);
    RealArray outer({static_cast<py::ssize_t>(1), out, out});
    RealArray inner({static_cast<py::ssize_t>(1), width, width});
    kronecker_factors(given, inputs.data(), inputs.shape(1), bias, outer.mutable_data(),
                      inner.mutable_data());
    return {std::move(outer), std::move(inner)};
}

RealArray largest_eigenvalues_array(const RealArray& factor, const RealArray& covariances) {
    const CurvatureFactor given = factor_of(factor);
    expect(covariances.ndim() == 3 && covariances.shape(0) == given.data &&
               covariances.shape(1) == given.width && covariances.shape(2) == given.width,
           "covariances", "(data, outputs, outputs)");
    RealArray bounds(given.data);
    largest_eigenvalues(given, covariances.data(), bounds.mutable_data());
    return bounds;
}

}  // namespace

void register_gauss_newton(py::module_& m) {
    m.def("linear_layer", &linear_layer_array, "inputs"_a.noconvert(), "weight"_a.noconvert(),
          "bias"_a.noconvert(), "inputs weight^T + bias, (data, outputs).");
    m.def("output_factor", &output_factor_array, "family"_a, "outputs"_a.noconvert(), "share"_a,
          "Factors S (data, outputs, outputs) of share times the Hessian S^T S of -log p, by outputs (data, "
          "outputs).");
    m.def("pull_factor", &pull_factor_array, "factor"_a.noconvert(), "jacobian"_a.noconvert(),
          "S J (data, rows, inputs) for S (data, rows, outputs) and J (data, outputs, inputs), or one J for "
          "all.");
    m.def("combine_rows", &combined_rows, "factor"_a.noconvert(), "seed"_a,
          "Sums (data, outputs) of the rows of S (data, rows, outputs) with random signs.");
    m.def("reduce_rows", &reduced_rows, "factor"_a.noconvert(), "rank"_a,
          "Factors (data, rank, outputs) of the same S^T S, whose rank is at most that.");
    m.def("jacobian_block", &jacobian_block_array, "factor"_a.noconvert(), "jacobian"_a.noconvert(),
          "Sum of J^T S^T S J over data.");
    m.def("linear_block", &linear_block_array, "factor"_a.noconvert(), "inputs"_a.noconvert(), "bias"_a,
          "The same for the weight and bias of a linear layer.");
    m.def(
        "largest_eigenvalues", &largest_eigenvalues_array, "factor"_a.noconvert(),
        "covariances"_a.noconvert(),
        "Largest eigenvalue of S C S^T (data,) for S (data, rows, outputs) and C (data, outputs, outputs).");
    m.def("kronecker_factors", &kronecker_arrays, "factor"_a.noconvert(), "inputs"_a.noconvert(), "bias"_a,
          "K-FAC's factors of that block, (1, outputs, outputs) and (1, inputs + bias, inputs + bias).");
}

}  // namespace fubini::bind
