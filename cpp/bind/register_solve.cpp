// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/sweep_arrays.hpp"
#include "core/solve.hpp"

namespace fubini::bind {
namespace {

using StatusArray = py::array_t<std::int8_t, py::array::c_style>;

SolveMethod method_from(std::string_view name) {
    return member_of<SolveMethod>("method", name, {"auto", "cholesky", "ldlt", "pinv", "power", "cg"});
}

DampingKind damping_from(std::string_view name) {
    return member_of<DampingKind>("damping_kind", name, {"absolute", "relative", "diagonal"});
}

SolveStatus* statuses(StatusArray& array) { return reinterpret_cast<SolveStatus*>(array.mutable_data()); }

/// One field of all.
template <typename To, typename From>
py::array_t<To> column(const std::vector<SolveInfo>& info, From SolveInfo::* field) {
    py::array_t<To> values(static_cast<py::ssize_t>(info.size()));
    std::transform(info.begin(), info.end(), values.mutable_data(),
                   [field](const SolveInfo& one) { return static_cast<To>(one.*field); });
    return values;
}

py::typing::Dict<py::str, py::array> info_arrays(const std::vector<SolveInfo>& info) {
    return py::dict("method"_a = column<std::int8_t>(info, &SolveInfo::method),
                    "rank"_a = column<std::int64_t>(info, &SolveInfo::rank),
                    "iterations"_a = column<std::int64_t>(info, &SolveInfo::iterations),
                    "condition"_a = column<double>(info, &SolveInfo::condition),
                    "smallest"_a = column<double>(info, &SolveInfo::smallest),
                    "largest"_a = column<double>(info, &SolveInfo::largest),
                    "residual"_a = column<double>(info, &SolveInfo::residual));
}

/// Whether this is numpy.ndarray itself: what a sub-class means by its numbers (a mask, say) is not known
/// here.
bool is_exact_array(const py::handle& object) {
    return reinterpret_cast<PyObject*>(Py_TYPE(object.ptr())) ==
           reinterpret_cast<PyObject*>(py::detail::npy_api::get().PyArray_Type_);
}

/// Whether systems take so long that the caller wants to be able to interrupt them.
bool takes_long(py::ssize_t batch, py::ssize_t n, py::ssize_t columns, const SolveOptions& options = {}) {
    const auto size = static_cast<double>(n);
    const double factor = options.method == SolveMethod::pinv ? 10.0 * size : size / 3.0;
    return static_cast<double>(batch) * size * size * (factor + 2.0 * static_cast<double>(columns)) > 1e9;
}

bool is_strength(double damping) { return damping >= 0.0 && std::isfinite(damping); }

/// The low-overhead way for NumPy arrays: None for everything but the usual case, which the caller then
/// treats slowly.
py::object solve_fast(const py::handle& matrix, const py::handle& rhs, double damping,
                      std::string_view damping_kind, std::string_view method) {
    if (!RealArray::check_(matrix) || !RealArray::check_(rhs) || !is_exact_array(matrix) ||
        !is_exact_array(rhs) || !is_strength(damping)) {
        return py::none();
    }
    const auto a = py::reinterpret_borrow<RealArray>(matrix);
    const auto b = py::reinterpret_borrow<RealArray>(rhs);
    if (!is_plain(a) || !is_plain(b)) return py::none();
    const py::ssize_t d = a.ndim();
    if (d < 2 || a.shape(d - 1) != a.shape(d - 2) || b.ndim() < d - 1 || b.ndim() > d) return py::none();
    for (py::ssize_t i = 0; i < d - 1; ++i) {
        if (a.shape(i) != b.shape(i)) return py::none();
    }
    py::ssize_t batch = 1;
    for (py::ssize_t i = 0; i < d - 2; ++i) batch *= a.shape(i);
    const py::ssize_t n = a.shape(d - 1);
    const py::ssize_t columns = b.ndim() == d ? b.shape(d - 1) : 1;
    const SolveOptions options{.method = method_from(method), .damping = damping_from(damping_kind)};
    if (takes_long(batch, n, columns, options)) return py::none();
    RealArray x(std::vector<py::ssize_t>(b.shape(), b.shape() + b.ndim()));
    std::int8_t few[64];
    std::vector<std::int8_t> many(batch > 64 ? static_cast<std::size_t>(batch) : 0U);
    auto* status = reinterpret_cast<SolveStatus*>(batch > 64 ? many.data() : few);
    run([&] {
        solve(a.data(), b.data(), x.mutable_data(), batch, n, columns, &damping, 0, options, status, nullptr);
    });
    for (py::ssize_t i = 0; i < batch; ++i) {
        if (is_failure(status[i])) return py::none();
    }
    return x;
}

py::typing::Tuple<RealArray, StatusArray, py::typing::Optional<py::typing::Dict<py::str, py::array>>>
solve_batch(const RealArray& matrix, const RealArray& rhs, const RealArray& damping, std::string_view method,
            std::string_view damping_kind, double rcond, bool smooth, double exponent,
            double symmetry_tolerance, double tolerance, std::int64_t max_iterations,
            const std::optional<RealArray>& start, bool want_info) {
    if (matrix.ndim() != 3 || matrix.shape(1) != matrix.shape(2)) {
        throw py::value_error("matrix: expected shape (batch, n, n)");
    }
    if (!(symmetry_tolerance >= 0.0)) throw py::value_error("symmetry_tolerance: expected a number >= 0");
    const py::ssize_t batch = matrix.shape(0);
    const py::ssize_t n = matrix.shape(1);
    if (rhs.ndim() != 3 || rhs.shape(0) != batch || rhs.shape(1) != n) {
        throw py::value_error("rhs: expected shape (batch, n, columns) to match the matrix");
    }
    const py::ssize_t columns = rhs.shape(2);
    if (damping.ndim() != 1 || (damping.shape(0) != 1 && damping.shape(0) != batch)) {
        throw py::value_error("damping: expected 1 or batch values");
    }
    SolveOptions options{.method = method_from(method),
                         .damping = damping_from(damping_kind),
                         .rcond = rcond,
                         .smooth = smooth,
                         .exponent = exponent,
                         .symmetry_tolerance = symmetry_tolerance,
                         .tolerance = tolerance,
                         .max_iterations = max_iterations,
                         .warm_start = start.has_value()};
    RealArray x({batch, n, columns});
    if (start) {
        if (start->size() != x.size()) throw py::value_error("start: expected the shape of rhs");
        std::copy_n(start->data(), start->size(), x.mutable_data());
    }
    StatusArray status(batch);
    std::vector<SolveInfo> info(want_info ? static_cast<std::size_t>(batch) : 0U);
    const py::ssize_t stride = damping.shape(0) == 1 ? 0 : 1;
    run([&] {
        solve(matrix.data(), rhs.data(), x.mutable_data(), batch, n, columns, damping.data(), stride, options,
              statuses(status), want_info ? info.data() : nullptr);
    });
    py::object details = py::none();
    if (want_info) details = info_arrays(info);
    return py::make_tuple(std::move(x), std::move(status), std::move(details));
}

std::pair<std::vector<RealArray>, StatusArray> solve_list(const std::vector<RealArray>& matrices,
                                                          const std::vector<RealArray>& rhs,
                                                          const RealArray& damping,
                                                          std::string_view damping_kind,
                                                          double symmetry_tolerance) {
    const std::size_t count = matrices.size();
    if (rhs.size() != count || (damping.size() != 1 && static_cast<std::size_t>(damping.size()) != count)) {
        throw py::value_error("rhs, damping: expected as many as matrices");
    }
    std::vector<SolveBlock> blocks(count);
    std::vector<RealArray> x;
    x.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        const RealArray& a = matrices[i];
        const RealArray& b = rhs[i];
        if (a.ndim() != 2 || a.shape(0) != a.shape(1)) {
            throw py::value_error("matrices[" + std::to_string(i) + "]: expected shape (n, n)");
        }
        if (b.ndim() < 1 || b.ndim() > 2 || b.shape(0) != a.shape(0)) {
            throw py::value_error(
                "rhs[" + std::to_string(i) +
                "]: expected shape (n,) or (n, columns) with n = " + std::to_string(a.shape(0)));
        }
        x.emplace_back(std::vector<py::ssize_t>(b.shape(), b.shape() + b.ndim()));
        blocks[i] = {a.data(),
                     b.data(),
                     x.back().mutable_data(),
                     a.shape(0),
                     b.ndim() == 2 ? b.shape(1) : 1,
                     damping.data()[damping.size() == 1 ? 0 : static_cast<py::ssize_t>(i)]};
    }
    StatusArray status(static_cast<py::ssize_t>(count));
    const SolveOptions options{.damping = damping_from(damping_kind),
                               .symmetry_tolerance = symmetry_tolerance};
    run([&] { solve_blocks(blocks.data(), status.size(), options, statuses(status), nullptr); });
    return {std::move(x), std::move(status)};
}

/// The fields of an array that a system needs, read without the checks and copies of py::array.
struct Operand {
    const py::detail::PyArray_Proxy* array = nullptr;

    /// False for anything but a contiguous, aligned array of native float64 with `least` to `most` axes.
    bool read(const py::handle& object, const py::handle& real, int least, int most) {
        if (!is_exact_array(object)) return false;
        array = py::detail::array_proxy(object.ptr());
        return array->descr == real.ptr() && (array->flags & plain_flags) == plain_flags &&
               array->nd >= least && array->nd <= most;
    }
    [[nodiscard]] const double* data() const { return reinterpret_cast<const double*>(array->data); }
    [[nodiscard]] py::ssize_t shape(int axis) const { return array->dimensions[axis]; }
};

/// The low-overhead way for lists of NumPy arrays: None for everything but the usual case. All solutions are
/// parts of one array, since to make an array costs more than to solve a small system.
py::typing::Optional<py::typing::Tuple<py::typing::List<RealArray>, StatusArray>> solve_list_fast(
    const py::typing::List<py::object>& matrices, const py::typing::List<py::object>& rhs, double damping,
    std::string_view damping_kind) {
    const std::size_t count = matrices.size();
    if (rhs.size() != count || !is_strength(damping)) return py::none();
    const py::dtype real = py::dtype::of<double>();
    std::vector<SolveBlock> blocks(count);
    std::vector<std::int8_t> axes(count);
    py::ssize_t total = 0;
    for (std::size_t i = 0; i < count; ++i) {
        Operand a;
        Operand b;
        if (!a.read(PyList_GET_ITEM(matrices.ptr(), static_cast<py::ssize_t>(i)), real, 2, 2) ||
            !b.read(PyList_GET_ITEM(rhs.ptr(), static_cast<py::ssize_t>(i)), real, 1, 2) ||
            a.shape(0) != a.shape(1) || b.shape(0) != a.shape(0)) {
            return py::none();
        }
        axes[i] = static_cast<std::int8_t>(b.array->nd);
        const py::ssize_t columns = b.array->nd == 2 ? b.shape(1) : 1;
        blocks[i] = {a.data(), b.data(), nullptr, a.shape(0), columns, damping};
        if (takes_long(1, a.shape(0), columns)) return py::none();
        total += a.shape(0) * columns;
    }
    RealArray memory(total);
    double* x = memory.mutable_data();
    for (SolveBlock& block : blocks) {
        block.x = x;
        x += block.n * block.columns;
    }
    StatusArray status(static_cast<py::ssize_t>(count));
    const SolveOptions options{.damping = damping_from(damping_kind)};
    run([&] { solve_blocks(blocks.data(), status.size(), options, statuses(status), nullptr); });
    py::list out(count);
    const auto& numpy = py::detail::npy_api::get();
    for (std::size_t i = 0; i < count; ++i) {
        const Py_intptr_t shape[2] = {blocks[i].n, blocks[i].columns};
        PyObject* view = numpy.PyArray_NewFromDescr_(
            numpy.PyArray_Type_, real.inc_ref().ptr(), axes[i], shape, nullptr, blocks[i].x,
            plain_flags | py::detail::npy_api::NPY_ARRAY_WRITEABLE_, nullptr);
        if (view == nullptr) throw py::error_already_set();
        numpy.PyArray_SetBaseObject_(view, memory.inc_ref().ptr());
        PyList_SET_ITEM(out.ptr(), static_cast<py::ssize_t>(i), view);
    }
    return py::make_tuple(std::move(out), std::move(status));
}

}  // namespace

void register_solve(py::module_& m) {
    m.def("solve_fast", &solve_fast, "matrix"_a, "rhs"_a, "damping"_a, "damping_kind"_a = "absolute",
          "method"_a = "auto",
          "x (shape of rhs) for contiguous float64 arrays, a method without options and one damping; None if "
          "that does not fit, takes long or fails.");
    m.def("solve_batch", &solve_batch, "matrix"_a.noconvert(), "rhs"_a.noconvert(), "damping"_a.noconvert(),
          "method"_a = "auto", "damping_kind"_a = "absolute", "rcond"_a = -1.0, "smooth"_a = false,
          "exponent"_a = 1.0, "symmetry_tolerance"_a = SolveOptions{}.symmetry_tolerance,
          "tolerance"_a = 1e-12, "max_iterations"_a = 0, "start"_a.noconvert() = py::none(),
          "want_info"_a = false,
          "(x (batch, n, columns), status (batch), info or None) of matrix (batch, n, n) and rhs (batch, n, "
          "columns).");
    m.def("solve_list", &solve_list, "matrices"_a.noconvert(), "rhs"_a.noconvert(), "damping"_a.noconvert(),
          "damping_kind"_a = "absolute", "symmetry_tolerance"_a = SolveOptions{}.symmetry_tolerance,
          "(list of x, status) of systems of mixed sizes: matrices (n, n), right-hand sides (n,) or (n, "
          "columns).");
    m.def("solve_list_fast", &solve_list_fast, "matrices"_a, "rhs"_a, "damping"_a,
          "damping_kind"_a = "absolute",
          "(list of x, status) for lists of contiguous float64 arrays and one damping; None if that does not "
          "fit.");
    m.def(
        "solve_status_text", [](int status) { return status_text(static_cast<SolveStatus>(status)); },
        "status"_a, "One sentence that says what happened and what to do.");
    m.def(
        "solve_method_name", [](int method) { return method_name(static_cast<SolveMethod>(method)); },
        "method"_a, "The word for a method number in info.");
}

}  // namespace fubini::bind
