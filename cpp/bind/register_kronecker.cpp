// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "bind/module.hpp"
#include "core/kronecker.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace fubini::bind {
namespace {

/// x (n,) and the status. The unknowns are blocks of columns of matrices (groups, rows, columns), one block
/// after the other, as the weight and the bias of a layer are.
std::pair<RealArray, int> solve_kronecker_array(const RealArray& left, const RealArray& right,
                                                const std::vector<py::ssize_t>& widths, const RealArray& rhs,
                                                double damping) {
    if (left.ndim() != 3 || left.shape(1) != left.shape(2) || right.ndim() != 3 ||
        right.shape(1) != right.shape(2) || right.shape(0) != left.shape(0)) {
        throw py::value_error(
            "left, right: expected shapes (groups, rows, rows) and (groups, columns, columns)");
    }
    const KroneckerSystem system{left.data(), right.data(), left.shape(0), left.shape(1), right.shape(1)};
    py::ssize_t left_over = system.columns;
    for (const py::ssize_t width : widths) {
        if (width < 0 || width > left_over) left_over = -1;
        if (left_over < 0) break;
        left_over -= width;
    }
    if (left_over != 0) throw py::value_error("widths: expected the columns of the right factor in parts");
    const std::ptrdiff_t lines = system.groups * system.rows;
    if (rhs.ndim() != 1 || rhs.shape(0) != lines * system.columns) {
        throw py::value_error("rhs: expected shape (groups * rows * columns,)");
    }
    RealArray x(rhs.shape(0));
    const double* from = rhs.data();
    double* to = x.mutable_data();
    SolveStatus status{};
    {
        const py::gil_scoped_release release;
        std::vector<double> matrices(static_cast<std::size_t>(lines * system.columns));
        const auto copy = [&](bool into) {
            std::ptrdiff_t start = 0, at = 0;
            for (const py::ssize_t width : widths) {
                for (std::ptrdiff_t line = 0; line < lines; ++line, at += width) {
                    double* place = matrices.data() + line * system.columns + start;
                    if (into) {
                        std::copy_n(from + at, width, place);
                    } else {
                        std::copy_n(place, width, to + at);
                    }
                }
                start += width;
            }
        };
        copy(true);
        status = solve_kronecker(system, damping, matrices.data(), matrices.data());
        copy(false);
    }
    return {std::move(x), static_cast<int>(status)};
}

}  // namespace

void register_kronecker(py::module_& m) {
    m.def("solve_kronecker", &solve_kronecker_array, "left"_a.noconvert(), "right"_a.noconvert(), "widths"_a,
          "rhs"_a.noconvert(), "damping"_a,
          "x (n,) with (left kron right + damping I) x = rhs, and a status; widths are the columns of each "
          "parameter.");
}

}  // namespace fubini::bind
