// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/complex.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <complex>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>

namespace fubini::bind {

namespace py = pybind11;
using namespace py::literals;

/// C-contiguous arrays; together with .noconvert() anything else is a TypeError instead of a silent copy.
/// Only where memory is not aligned for its numbers, as at an odd place of a file's contents, there is a
/// copy.
using RealArray = py::array_t<double, py::array::c_style>;
using ComplexArray = py::array_t<std::complex<double>, py::array::c_style>;
using IndexArray = py::array_t<std::int64_t, py::array::c_style>;

/// Whether the kernel can read it as it lies.
constexpr int plain_flags =
    py::detail::npy_api::NPY_ARRAY_C_CONTIGUOUS_ | py::detail::npy_api::NPY_ARRAY_ALIGNED_;
inline bool is_plain(const py::array& array) { return (array.flags() & plain_flags) == plain_flags; }

/// pybind11's own caster does not look at alignment.
template <typename Array>
struct AlignedCaster {
    bool load(py::handle source, bool convert) {
        if (!convert && !Array::check_(source)) return false;
        value = Array::ensure(source);
        if (value && !is_plain(value)) {
            value = py::reinterpret_steal<Array>(py::detail::npy_api::get().PyArray_NewCopy_(value.ptr(), 0));
        }
        return static_cast<bool>(value);
    }
    static py::handle cast(const py::handle& source, py::return_value_policy /*policy*/,
                           py::handle /*parent*/) {
        return source.inc_ref();
    }
    PYBIND11_TYPE_CASTER(Array, py::detail::handle_type_name<Array>::name);
};

/// The member of an enumeration whose members have these names, in order.
template <typename Enum>
Enum member_of(const char* argument, std::string_view name, std::initializer_list<std::string_view> names) {
    int number = 0;
    for (const std::string_view one : names) {
        if (one == name) return static_cast<Enum>(number);
        ++number;
    }
    std::string expected;
    for (const std::string_view one : names) {
        if (!expected.empty()) expected += &one == names.end() - 1 ? " or " : ", ";
        expected += "'" + std::string(one) + "'";
    }
    throw py::value_error(std::string(argument) + ": expected " + expected + ", got '" + std::string(name) +
                          "'");
}

// One function per topic, each in its register_<topic>.cpp.
void register_assemble(py::module_& m);
void register_solve(py::module_& m);
void register_program(py::module_& m);
void register_sweeps(py::module_& m);
void register_metric(py::module_& m);
void register_passes(py::module_& m);
void register_expression(py::module_& m);
void register_derivatives(py::module_& m);
void register_energy(py::module_& m);
void register_gauss_newton(py::module_& m);
void register_preconditioner(py::module_& m);
void register_fisher_chain(py::module_& m);
void register_finite(py::module_& m);
void register_variational(py::module_& m);

}  // namespace fubini::bind

template <>
struct pybind11::detail::pyobject_caster<fubini::bind::RealArray>
    : fubini::bind::AlignedCaster<fubini::bind::RealArray> {};
template <>
struct pybind11::detail::pyobject_caster<fubini::bind::ComplexArray>
    : fubini::bind::AlignedCaster<fubini::bind::ComplexArray> {};
template <>
struct pybind11::detail::pyobject_caster<fubini::bind::IndexArray>
    : fubini::bind::AlignedCaster<fubini::bind::IndexArray> {};
