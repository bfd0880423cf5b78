// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <utility>
#include <vector>

#include "bind/module.hpp"
#include "core/preconditioner.hpp"

namespace py = pybind11;
using namespace py::literals;

namespace fubini::bind {
namespace {

bool add_dense(Preconditioner& self, const RealArray& matrix, double damping) {
    if (matrix.ndim() != 2 || matrix.shape(0) != matrix.shape(1))
        throw py::value_error("matrix: expected shape (n, n)");
    const py::gil_scoped_release release;
    return self.add_dense(matrix.data(), matrix.shape(0), damping);
}

bool add_kronecker(Preconditioner& self, const RealArray& left, const RealArray& right,
                   const std::vector<py::ssize_t>& widths, double damping) {
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
    const py::gil_scoped_release release;
    return self.add_kronecker(system, {widths.begin(), widths.end()}, damping);
}

bool add_diagonal(Preconditioner& self, const RealArray& values, double damping) {
    if (values.ndim() != 1) throw py::value_error("values: expected shape (n,)");
    return self.add_diagonal(values.data(), values.shape(0), damping);
}

std::pair<RealArray, double> apply(const Preconditioner& self, const RealArray& gradient) {
    if (gradient.ndim() != 1 || gradient.shape(0) != self.size())
        throw py::value_error("gradient: expected shape (" + std::to_string(self.size()) + ",)");
    RealArray x(self.size());
    const double* from = gradient.data();
    double* to = x.mutable_data();
    double square = 0.0;
    {
        const py::gil_scoped_release release;
        square = self.apply(from, to);
    }
    return {std::move(x), square};
}

}  // namespace

void register_preconditioner(py::module_& m) {
    py::class_<Preconditioner>(
        m, "Preconditioner", py::module_local(),
        "A damped metric in blocks, factorised once for many gradients. Blocks are added "
        "in order, False where one is not positive definite; unknowns with a zero on the diagonal keep their "
        "gradient.")
        .def(py::init())
        .def_property_readonly("size", &Preconditioner::size)
        .def("add_dense", &add_dense, "matrix"_a.noconvert(), "damping"_a, "A symmetric matrix (n, n).")
        .def("add_kronecker", &add_kronecker, "left"_a.noconvert(), "right"_a.noconvert(), "widths"_a,
             "damping"_a, "left kron right; widths are the columns of each parameter.")
        .def("add_diagonal", &add_diagonal, "values"_a.noconvert(), "damping"_a, "A diagonal (n,).")
        .def("add_identity", &Preconditioner::add_identity, "n"_a, "The identity, without damping.")
        .def("apply", &apply, "gradient"_a.noconvert(),
             "x (n,) = (G + D)^-1 gradient, and gradient . x, which is NaN if anything is not finite.");
}

}  // namespace fubini::bind
