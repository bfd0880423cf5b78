// SPDX-License-Identifier: Apache-2.0
// Compiled once; every extension module's entry point calls this one.
#include "bind/module.hpp"

#include "bind/entry.hpp"
#include "core/parallel.hpp"

using namespace fubini::bind;  // also what finds "name"_a

PYBIND11_MODULE(_core, m) {
    m.doc() =
        "fubini's kernel. Private: use the functions of the fubini package, which check their arguments.";
    m.def("isa", &isa_name, "Instruction set that this module was compiled for.");
    m.def(
        "version", [] { return FUBINI_VERSION; }, "Version of the package that this module was built with.");
    m.def("compiler", [] { return __VERSION__; }, "Compiler that built this module.");
    m.def("num_threads", &fubini::num_threads, "Number of threads that the kernel may use.");
    m.def("set_num_threads", &fubini::set_num_threads, "threads"_a, "Set the number of threads, 1 to 1024.");
    register_assemble(m);
    register_solve(m);
    register_program(m);
    register_sweeps(m);
    register_metric(m);
    register_expression(m);
    register_passes(m);
    register_derivatives(m);
    register_energy(m);
    register_gauss_newton(m);
    register_preconditioner(m);
    register_fisher_chain(m);
    register_finite(m);
    register_variational(m);
}
