// SPDX-License-Identifier: Apache-2.0
#include "bind/module.hpp"
#include "core/finite.hpp"

namespace fubini::bind {
namespace {

/// The number of the first array with NaN or infinity, or -1.
int first_not_finite(const py::typing::List<py::array>& arrays) {
    int number = 0;
    for (const py::handle item : arrays) {
        if (!py::isinstance<py::array>(item)) throw py::type_error("arrays: expected NumPy arrays");
        const auto array = py::reinterpret_borrow<py::array>(item);
        const char type = array.dtype().char_();
        if (!is_plain(array) || array.dtype().byteorder() != '=' || (type != 'd' && type != 'f')) {
            throw py::type_error("arrays: expected contiguous float64 or float32");
        }
        const void* data = array.data();
        const bool finite = type == 'd' ? all_finite(static_cast<const double*>(data), array.size())
                                        : all_finite(static_cast<const float*>(data), array.size());
        if (!finite) return number;
        ++number;
    }
    return -1;
}

}  // namespace

void register_finite(py::module_& m) {
    m.def("first_not_finite", &first_not_finite, "arrays"_a,
          "Number of the first array of a list that has NaN or infinity; -1 if there is none.");
}

}  // namespace fubini::bind
