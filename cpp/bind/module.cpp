// SPDX-License-Identifier: Apache-2.0
// Compiled once; every extension module's entry point calls this one.
#include "bind/module.hpp"

#include <pybind11/stl.h>

#include "bind/entry.hpp"
#include "core/parallel.hpp"

namespace py = pybind11;
using namespace py::literals;

PYBIND11_MODULE(_core, m) {
    m.doc() =
        "fubini's kernel. Private: use the functions of the fubini package, which check their arguments.";
    m.def("isa", &fubini::bind::isa_name, "Instruction set that this module was compiled for.");
    m.def(
        "version", [] { return FUBINI_VERSION; }, "Version of the package that this module was built with.");
    m.def("compiler", [] { return __VERSION__; }, "Compiler that built this module.");
    m.def("num_threads", &fubini::num_threads, "Number of threads that the kernel may use.");
    m.def("set_num_threads", &fubini::set_num_threads, "threads"_a, "Set the number of threads, 1 to 1024.");
    fubini::bind::register_assemble(m);
    fubini::bind::register_solve(m);
    fubini::bind::register_program(m);
    fubini::bind::register_sweeps(m);
    fubini::bind::register_metric(m);
    fubini::bind::register_affine(m);
    fubini::bind::register_expression(m);
    fubini::bind::register_derivatives(m);
    fubini::bind::register_energy(m);
    fubini::bind::register_gauss_newton(m);
    fubini::bind::register_kronecker(m);
    fubini::bind::register_preconditioner(m);
    fubini::bind::register_fisher_chain(m);
    fubini::bind::register_finite(m);
    fubini::bind::register_variational(m);
}
