// SPDX-License-Identifier: Apache-2.0
#include "bind/module.hpp"
#include "core/mixed.hpp"

namespace fubini::bind {
namespace {

namespace py = pybind11;
using namespace py::literals;

MixedRequest request_of(const ComplexArray& derivatives) {
    if (derivatives.ndim() != 4 || derivatives.shape(2) != derivatives.shape(3)) {
        throw py::value_error("derivatives: expected shape (batch, angles, dim, dim)");
    }
    return {static_cast<std::size_t>(derivatives.shape(0)), static_cast<std::size_t>(derivatives.shape(2)),
            static_cast<std::size_t>(derivatives.shape(1))};
}

RealArray fisher(const ComplexArray& states, const ComplexArray& derivatives, double cutoff) {
    const MixedRequest request = request_of(derivatives);
    if (states.ndim() != 3 || states.shape(0) != derivatives.shape(0) ||
        states.shape(1) != derivatives.shape(2) || states.shape(2) != derivatives.shape(3)) {
        throw py::value_error("states: expected shape (batch, dim, dim) as in derivatives");
    }
    RealArray out({derivatives.shape(0), derivatives.shape(1), derivatives.shape(1)});
    const auto* rho = states.data();
    const auto* moved = derivatives.data();
    double* result = out.mutable_data();
    {
        const py::gil_scoped_release release;
        sld_fisher(request, rho, moved, cutoff, result);
    }
    return out;
}

RealArray traces(const ComplexArray& derivatives) {
    const MixedRequest request = request_of(derivatives);
    RealArray out({derivatives.shape(0), derivatives.shape(1), derivatives.shape(1)});
    const auto* moved = derivatives.data();
    double* result = out.mutable_data();
    {
        const py::gil_scoped_release release;
        hilbert_schmidt(request, moved, result);
    }
    return out;
}

}  // namespace

void register_mixed(py::module_& m) {
    m.def("sld_fisher", &fisher, "states"_a.noconvert(), "derivatives"_a.noconvert(), "cutoff"_a,
          "Quantum Fisher information of density matrices (batch, dim, dim) with derivatives "
          "(batch, angles, dim, dim): (batch, angles, angles).");
    m.def("hilbert_schmidt", &traces, "derivatives"_a.noconvert(),
          "Tr(d_i rho d_j rho) of derivatives (batch, angles, dim, dim): (batch, angles, angles).");
}

}  // namespace fubini::bind
