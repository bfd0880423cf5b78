// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <tuple>

#include "bind/sweep_arrays.hpp"
#include "core/variational.hpp"

namespace fubini::bind {
namespace {

std::tuple<RealArray, RealArray, RealArray> velocity_arrays(const RealArray& tangents,
                                                            const RealArray& states, double allowed,
                                                            double share, double least, double largest) {
    if (tangents.ndim() != 3) throw py::value_error("tangents: expected shape (batch, weights, width)");
    if (states.ndim() != 2 || states.shape(0) != tangents.shape(0) || states.shape(1) != tangents.shape(2))
        throw py::value_error("states: expected shape (batch, width), as of the tangents");
    for (const double number : {allowed, share}) {
        if (!(number >= 0) || std::isinf(number))
            throw py::value_error("allowed, share: expected finite numbers of at least 0");
    }
    if (!(least > 0) || !(largest > least) || std::isinf(largest))
        throw py::value_error("least, largest: expected 0 < least < largest");
    const py::ssize_t size = tangents.shape(0);
    RealArray velocities({size, tangents.shape(1)});
    RealArray residuals(size);
    RealArray dampings(size);
    run([&] {
        variational_velocities(tangents.data(), states.data(), size, tangents.shape(1), tangents.shape(2),
                               {allowed, share, least, largest}, velocities.mutable_data(),
                               residuals.mutable_data(), dampings.mutable_data());
    });
    return {velocities, residuals, dampings};
}

}  // namespace

void register_variational(py::module_& m) {
    m.def("variational_velocities", &velocity_arrays, "tangents"_a.noconvert(), "states"_a.noconvert(),
          "allowed"_a, "share"_a, "least"_a, "largest"_a,
          "McLachlan's principle: (velocities (batch, weights), residuals (batch,), dampings (batch,)) for "
          "tangents (batch, weights, width) and states' velocities (batch, width).");
}

}  // namespace fubini::bind
