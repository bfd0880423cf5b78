// SPDX-License-Identifier: Apache-2.0
#include <utility>
#include <vector>

#include "bind/sweep_arrays.hpp"
#include "core/preconditioner.hpp"

namespace fubini::bind {
namespace {

bool add_dense(Preconditioner& self, const RealArray& matrix, double damping) {
    if (matrix.ndim() != 2 || matrix.shape(0) != matrix.shape(1))
        throw py::value_error("matrix: expected shape (n, n)");
    const py::gil_scoped_release release;
    return self.add_dense(matrix.data(), matrix.shape(0), damping);
}

/// A system whose unknowns are blocks of columns of matrices (groups, rows, columns), one block after the
/// other, as the weight and the bias of a layer are.
KroneckerSystem system_of(const RealArray& left, const RealArray& right, std::vector<py::ssize_t> widths) {
    if (left.ndim() != 3 || left.shape(1) != left.shape(2) || right.ndim() != 3 ||
        right.shape(1) != right.shape(2) || right.shape(0) != left.shape(0)) {
        throw py::value_error(
            "left, right: expected shapes (groups, rows, rows) and (groups, columns, columns)");
    }
    py::ssize_t left_over = right.shape(1);
    for (const py::ssize_t width : widths) {
        if (width < 0 || width > left_over) left_over = -1;
        if (left_over < 0) break;
        left_over -= width;
    }
    if (left_over != 0) throw py::value_error("widths: expected the columns of the right factor in parts");
    return {left.data(), right.data(), left.shape(0), left.shape(1), right.shape(1), std::move(widths)};
}

bool add_kronecker(Preconditioner& self, const RealArray& left, const RealArray& right,
                   const std::vector<py::ssize_t>& widths, double damping) {
    const KroneckerSystem system = system_of(left, right, widths);
    const py::gil_scoped_release release;
    return self.add_kronecker(system, damping);
}

/// x (n,) and the status.
std::pair<RealArray, int> solve_kronecker_array(const RealArray& left, const RealArray& right,
                                                const std::vector<py::ssize_t>& widths, const RealArray& rhs,
                                                double damping) {
    const KroneckerSystem system = system_of(left, right, widths);
    if (rhs.ndim() != 1 || rhs.shape(0) != system.size())
        throw py::value_error("rhs: expected shape (groups * rows * columns,)");
    RealArray x(rhs.shape(0));
    SolveStatus status{};
    run([&] { status = solve_kronecker(system, damping, rhs.data(), x.mutable_data()); });
    return {std::move(x), static_cast<int>(status)};
}

bool add_diagonal(Preconditioner& self, const RealArray& values, double damping) {
    if (values.ndim() != 1) throw py::value_error("values: expected shape (n,)");
    return self.add_diagonal(values.data(), values.shape(0), damping);
}

std::pair<RealArray, double> apply(const Preconditioner& self, const RealArray& gradient) {
    if (gradient.ndim() != 1 || gradient.shape(0) != self.size())
        throw py::value_error("gradient: expected shape (" + std::to_string(self.size()) + ",)");
    RealArray x(self.size());
    double square = 0.0;
    run([&] { square = self.apply(gradient.data(), x.mutable_data()); });
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
    m.def("solve_kronecker", &solve_kronecker_array, "left"_a.noconvert(), "right"_a.noconvert(), "widths"_a,
          "rhs"_a.noconvert(), "damping"_a,
          "x (n,) with (left kron right + damping I) x = rhs, and a status; widths are the columns of each "
          "parameter.");
}

}  // namespace fubini::bind
