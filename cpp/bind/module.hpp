// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <complex>
#include <cstdint>

namespace fubini::bind {

/// C-contiguous arrays; together with .noconvert() anything else is a TypeError instead of a silent copy.
using RealArray = pybind11::array_t<double, pybind11::array::c_style>;
using ComplexArray = pybind11::array_t<std::complex<double>, pybind11::array::c_style>;
using IndexArray = pybind11::array_t<std::int64_t, pybind11::array::c_style>;

// One function per topic, each in its register_<topic>.cpp.
void register_assemble(pybind11::module_& m);
void register_solve(pybind11::module_& m);
void register_program(pybind11::module_& m);
void register_sweeps(pybind11::module_& m);
void register_metric(pybind11::module_& m);
void register_affine(pybind11::module_& m);
void register_expression(pybind11::module_& m);
void register_derivatives(pybind11::module_& m);
void register_mixed(pybind11::module_& m);
void register_peak(pybind11::module_& m);
void register_gauss_newton(pybind11::module_& m);
void register_kronecker(pybind11::module_& m);
void register_finite(pybind11::module_& m);

}  // namespace fubini::bind
