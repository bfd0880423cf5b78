// SPDX-License-Identifier: Apache-2.0
#include "bind/module.hpp"
#include "core/peak.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace fubini::bind {

void register_peak(py::module_& m) {
    m.def(
        "multiply_add",
        [](std::int64_t rounds) {
            if (rounds < 0) throw py::value_error("rounds: expected a number >= 0");
            const py::gil_scoped_release release;
            return multiply_add(rounds);
        },
        "rounds"_a, "Multiply-adds in registers on all threads; their floating-point operations.");
}

}  // namespace fubini::bind
