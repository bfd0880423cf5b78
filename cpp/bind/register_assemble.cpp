// SPDX-License-Identifier: Apache-2.0
#include <tuple>

#include "bind/sweep_arrays.hpp"
#include "core/assemble.hpp"
#include "core/shift.hpp"

namespace fubini::bind {
namespace {

using TermTuple = std::tuple<std::uint64_t, std::uint64_t, double>;

std::vector<Generator> generators_from(const std::vector<std::vector<TermTuple>>& lists) {
    std::vector<Generator> generators;
    generators.reserve(lists.size());
    for (const auto& list : lists) {
        Generator generator;
        for (const auto& [x, z, coefficient] : list) generator.push_back({x, z, coefficient});
        generators.push_back(std::move(generator));
    }
    return generators;
}

/// Shared by both sources: checks (batch, 2^wires), allocates, releases the GIL.
template <class Array, class Function>
RealArray blocks(const char* name, const Array& values, const std::vector<std::vector<TermTuple>>& lists,
                 int wires, bool diagonal, Function function) {
    const auto outcomes = py::ssize_t{1} << (wires < 1 || wires > 30 ? 0 : wires);
    if (values.ndim() != 2 || values.shape(1) != outcomes) {
        throw py::value_error(std::string(name) + ": expected shape (batch, 2^wires) with wires = " +
                              std::to_string(wires) + " in 1 to 30");
    }
    const std::vector<Generator> generators = generators_from(lists);
    const auto k = static_cast<py::ssize_t>(generators.size());
    const BlockRequest request{static_cast<std::size_t>(values.shape(0)), wires, diagonal};
    RealArray out(diagonal ? std::vector<py::ssize_t>{values.shape(0), k}
                           : std::vector<py::ssize_t>{values.shape(0), k, k});
    run([&] { function(request, generators, values.data(), out.mutable_data()); });
    return out;
}

RealArray mean_over_first_axis(const RealArray& values) {
    if (values.ndim() < 1) throw py::value_error("values: expected at least one axis, got none");
    std::vector<py::ssize_t> shape(values.shape() + 1, values.shape() + values.ndim());
    RealArray out(shape);
    const auto batch = static_cast<std::size_t>(values.shape(0));
    const auto size = static_cast<std::size_t>(out.size());
    run([&] { mean_over_batch(batch, size, values.data(), out.mutable_data()); });
    return out;
}

RealArray shifted(const ShiftPlan& plan, const RealArray& angles) {
    if (angles.ndim() != 2) throw py::value_error("angles: expected shape (batch, angles)");
    RealArray out = new_array("the shifted angles", {static_cast<py::ssize_t>(plan.index.size()),
                                                     angles.shape(0), angles.shape(1)});
    run([&] {
        shift_angles(plan, static_cast<std::size_t>(angles.shape(0)),
                     static_cast<std::size_t>(angles.shape(1)), angles.data(), out.mutable_data());
    });
    return out;
}

RealArray shift_sum(const IndexArray& index, const RealArray& coefficients, const RealArray& values,
                    py::ssize_t count) {
    const auto terms = index.size();
    if (index.ndim() != 1 || coefficients.ndim() != 1 || coefficients.size() != terms) {
        throw py::value_error("coefficients: expected one for each index");
    }
    if (values.ndim() != 3 || values.shape(0) != terms) {
        throw py::value_error("values: expected shape (terms, batch, outputs) with terms = " +
                              std::to_string(terms));
    }
    if (count < 0)
        throw py::value_error("count: expected the number of angles, got " + std::to_string(count));
    const ShiftPlan plan{
        {index.data(), index.data() + terms}, {coefficients.data(), coefficients.data() + terms}, {}};
    RealArray out = new_array("the derivatives", {values.shape(1), values.shape(2), count});
    run([&] {
        shift_contract(plan, static_cast<std::size_t>(values.shape(1)),
                       static_cast<std::size_t>(values.shape(2)), static_cast<std::size_t>(count),
                       values.data(), out.mutable_data());
    });
    return out;
}

}  // namespace

void register_assemble(py::module_& m) {
    m.def(
        "blocks_from_probabilities",
        [](const RealArray& probabilities, const std::vector<std::vector<TermTuple>>& generators, int wires,
           bool diagonal) {
            return blocks("probabilities", probabilities, generators, wires, diagonal,
                          &blocks_from_probabilities);
        },
        "probabilities"_a.noconvert(), "generators"_a, "wires"_a, "diagonal"_a = false,
        "Covariances of diagonal generators, lists of (x mask, z mask, coefficient): (batch, k, k) or "
        "(batch, k).");
    m.def(
        "blocks_from_states",
        [](const ComplexArray& states, const std::vector<std::vector<TermTuple>>& generators, int wires,
           bool diagonal) {
            return blocks("states", states, generators, wires, diagonal, &blocks_from_states);
        },
        "states"_a.noconvert(), "generators"_a, "wires"_a, "diagonal"_a = false,
        "Covariances of any Pauli-sum generators, lists of (x mask, z mask, coefficient): (batch, k, k) or "
        "(batch, k).");
    m.def("mean_over_batch", &mean_over_first_axis, "values"_a.noconvert(),
          "Mean over the first axis, added in its order.");

    py::class_<ShiftPlan>(m, "ShiftPlan", py::module_local(),
                          "Parameter-shift terms of a circuit: angle index, coefficient and shift of each.")
        .def(py::init(&shift_plan), "angles"_a, "frequencies"_a,
             "shifts"_a = std::vector<std::vector<double>>{})
        .def_readonly("index", &ShiftPlan::index)
        .def_readonly("coefficient", &ShiftPlan::coefficient)
        .def_readonly("shift", &ShiftPlan::shift)
        .def("__len__", [](const ShiftPlan& plan) { return plan.index.size(); })
        .def("angles", &shifted, "angles"_a.noconvert(),
             "(batch, angles) -> shifted (terms, batch, angles).");
    m.def("shift_sum", &shift_sum, "index"_a.noconvert(), "coefficients"_a.noconvert(),
          "values"_a.noconvert(), "count"_a,
          "Adds coefficient * values, (terms, batch, outputs), to the angle index of each term: derivatives "
          "(batch, outputs, count).");
    m.def(
        "shift_rule",
        [](const std::vector<double>& frequencies, const std::vector<double>& shifts) {
            std::vector<std::pair<double, double>> terms;
            for (const ShiftTerm& term : shift_rule(frequencies, shifts))
                terms.emplace_back(term.coefficient, term.shift);
            return terms;
        },
        "frequencies"_a, "shifts"_a = std::vector<double>{},
        "Terms (coefficient, shift in radians) of the parameter-shift rule for these frequencies and, if "
        "given, shifts.");
}

}  // namespace fubini::bind
