// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <complex>
#include <cstdint>

namespace fubini::bind {

/// C-contiguous arrays; together with .noconvert() anything else is a TypeError instead of a silent copy.
/// Only where memory is not aligned for its numbers, as at an odd place of a file's contents, there is a
/// copy.
using RealArray = pybind11::array_t<double, pybind11::array::c_style>;
using ComplexArray = pybind11::array_t<std::complex<double>, pybind11::array::c_style>;
using IndexArray = pybind11::array_t<std::int64_t, pybind11::array::c_style>;

/// Whether the kernel can read it as it lies.
inline bool is_plain(const pybind11::array& array) {
    using Api = pybind11::detail::npy_api;
    constexpr int wanted = Api::NPY_ARRAY_C_CONTIGUOUS_ | Api::NPY_ARRAY_ALIGNED_;
    return (array.flags() & wanted) == wanted;
}

/// pybind11's own caster does not look at alignment.
template <typename Array>
struct AlignedCaster {
    bool load(pybind11::handle source, bool convert) {
        if (!convert && !Array::check_(source)) return false;
        value = Array::ensure(source);
        if (value && !is_plain(value)) {
            value = pybind11::reinterpret_steal<Array>(
                pybind11::detail::npy_api::get().PyArray_NewCopy_(value.ptr(), 0));
        }
        return static_cast<bool>(value);
    }
    static pybind11::handle cast(const pybind11::handle& source, pybind11::return_value_policy /*policy*/,
                                 pybind11::handle /*parent*/) {
        return source.inc_ref();
    }
    PYBIND11_TYPE_CASTER(Array, pybind11::detail::handle_type_name<Array>::name);
};

// One function per topic, each in its register_<topic>.cpp.
void register_assemble(pybind11::module_& m);
void register_solve(pybind11::module_& m);
void register_program(pybind11::module_& m);
void register_sweeps(pybind11::module_& m);
void register_metric(pybind11::module_& m);
void register_affine(pybind11::module_& m);
void register_expression(pybind11::module_& m);
void register_derivatives(pybind11::module_& m);
void register_energy(pybind11::module_& m);
void register_gauss_newton(pybind11::module_& m);
void register_kronecker(pybind11::module_& m);
void register_preconditioner(pybind11::module_& m);
void register_fisher_chain(pybind11::module_& m);
void register_finite(pybind11::module_& m);
void register_variational(pybind11::module_& m);

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
