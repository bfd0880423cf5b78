// SPDX-License-Identifier: Apache-2.0
#include <numeric>
#include <vector>

#include "bind/sweep_arrays.hpp"
#include "core/assemble.hpp"
#include "core/metric.hpp"

namespace fubini::bind {
namespace {

/// The angles asked for; all of them by default.
std::vector<int> chosen(const Program& program, const std::optional<std::vector<int>>& columns) {
    std::vector<int> all(static_cast<std::size_t>(program.angles()));
    std::iota(all.begin(), all.end(), 0);
    if (!columns) return all;
    std::vector<bool> seen(all.size());
    for (const int column : *columns) {
        if (column < 0 || column >= program.angles() || seen[static_cast<std::size_t>(column)]) {
            throw py::value_error("columns: expected distinct angles 0 to " +
                                  std::to_string(program.angles() - 1) + ", got " + std::to_string(column) +
                                  " out of range or twice");
        }
        seen[static_cast<std::size_t>(column)] = true;
    }
    return *columns;
}

/// Rows of a sparse matrix: where each starts, and the angles and coefficients of all.
using Sparse = py::typing::Tuple<IndexArray, IndexArray, RealArray>;

Directions directions_of(const Program& program, const std::optional<std::vector<int>>& columns,
                         const std::optional<Sparse>& given) {
    if (!given) return Directions::of(chosen(program, columns));
    if (columns) throw py::value_error("directions: expected none besides columns");
    const auto start = (*given)[0].cast<IndexArray>(), slot = (*given)[1].cast<IndexArray>();
    const auto coefficient = (*given)[2].cast<RealArray>();
    if (start.ndim() != 1 || start.shape(0) < 1 || slot.ndim() != 1 || coefficient.ndim() != 1 ||
        coefficient.shape(0) != slot.shape(0) || start.data()[0] != 0 ||
        start.data()[start.shape(0) - 1] != slot.shape(0)) {
        throw py::value_error(
            "directions: expected starts (k + 1,) from 0 to e, angles (e,) and coefficients (e,)");
    }
    Directions made;
    made.start.clear();
    for (py::ssize_t i = 0; i < start.shape(0); ++i) {
        if (i > 0 && start.data()[i] < start.data()[i - 1])
            throw py::value_error("directions: expected starts in rising order");
        made.start.push_back(static_cast<int>(start.data()[i]));
    }
    std::vector<py::ssize_t> last(static_cast<std::size_t>(program.angles()), -1);
    for (std::size_t i = 0; i + 1 < made.start.size(); ++i) {
        for (int e = made.start[i]; e < made.start[i + 1]; ++e) {
            const std::int64_t angle = slot.data()[e];
            if (angle < 0 || angle >= program.angles() ||
                last[static_cast<std::size_t>(angle)] == static_cast<py::ssize_t>(i)) {
                throw py::value_error("directions: expected distinct angles 0 to " +
                                      std::to_string(program.angles() - 1) + " in each, got " +
                                      std::to_string(angle) + " out of range or twice");
            }
            last[static_cast<std::size_t>(angle)] = static_cast<py::ssize_t>(i);
            made.slot.push_back(static_cast<int>(angle));
            made.coefficient.push_back(coefficient.data()[e]);
        }
    }
    return made;
}

RealArray metric_array(const Program& program, const RealArray& angles, const State& states, bool mean,
                       const std::optional<std::vector<int>>& columns, bool centred,
                       const std::optional<Sparse>& directions) {
    if (!centred && !mean) throw py::value_error("centred: expected True without mean, got False");
    const Batch batch = batch_of(program, angles, states, mean);
    const Directions picked = directions_of(program, columns, directions);
    const auto k = static_cast<py::ssize_t>(picked.size());
    std::vector<py::ssize_t> shape{k, k};
    if (!mean) shape.insert(shape.begin(), batch.size);
    RealArray result = new_array("the metric", shape);
    run([&] { metric_full(program, batch, picked, mean, centred, result.mutable_data()); });
    return result;
}

RealArray factor_array(const Program& program, const RealArray& angles, const State& states,
                       const std::optional<std::vector<int>>& columns,
                       const std::optional<Sparse>& directions) {
    const Batch batch = batch_of(program, angles, states);
    const Directions picked = directions_of(program, columns, directions);
    RealArray result = new_array("the factor of the metric", {static_cast<py::ssize_t>(picked.size()),
                                                              batch.size * 2 * amplitudes_of(program)});
    run([&] { metric_factor(program, batch, picked, result.mutable_data()); });
    return result;
}

RealArray connection_array(const Program& program, const RealArray& angles, const State& states) {
    const Batch batch = batch_of(program, angles, states);
    RealArray result({batch.size, py::ssize_t{program.angles()}});
    run([&] { berry_connection(program, batch, result.mutable_data()); });
    return result;
}

RealArray product_array(const Program& program, const RealArray& angles, const RealArray& vectors,
                        const State& states, bool mean) {
    Batch batch = batch_of(program, angles, states, mean);
    const py::ssize_t size = batch.size, count = program.angles();
    const bool several = vectors.ndim() == 3;
    if (!several) expect_shape("vectors", vectors, "(batch, angles)", size, count);
    const py::ssize_t each = several ? expect_vectors(vectors, size, count) : 1;
    // Vectors without entries take no memory: so many numbers would, and the sweep is as long.
    expect_fits(static_cast<double>(size) * static_cast<double>(each), "the products");
    batch.repeat = std::max<py::ssize_t>(each, 1);
    batch.size = size * each;
    std::vector<py::ssize_t> shape{size, each, count};
    if (!several) shape.erase(shape.begin() + 1);
    RealArray products = new_array("the products", shape);
    shape.erase(shape.begin());
    RealArray averaged(mean ? shape : std::vector<py::ssize_t>{0});
    run([&] {
        double* to = products.mutable_data();
        metric_vector_product(program, batch, vectors.data(), to);
        if (!mean) return;
        mean_over_batch(static_cast<std::size_t>(size), static_cast<std::size_t>(each * count), to,
                        averaged.mutable_data());
    });
    return mean ? averaged : products;
}

std::vector<RealArray> covariance_arrays(const Program& program, const RealArray& angles,
                                         const std::vector<int>& counts, bool diagonal, const State& states,
                                         bool mean) {
    const Batch batch = batch_of(program, angles, states, mean);
    if (counts.size() != program.stages().size()) {
        throw py::value_error("counts: expected " + std::to_string(program.stages().size()) +
                              " numbers, one per stage, got " + std::to_string(counts.size()));
    }
    std::vector<RealArray> results;
    std::vector<double*> to;
    double elements = 0;
    for (const int count : counts) {
        const py::ssize_t k = count;
        const py::ssize_t moments = diagonal ? 2 * k : k + k * (k + 1) / 2;
        if (k < 0 || moments > program.moments()) {
            throw py::value_error("counts: the program has too few moments for " + std::to_string(k) +
                                  " generators in a stage");
        }
        elements += static_cast<double>(mean ? 1 : batch.size) * static_cast<double>(diagonal ? k : k * k);
        expect_fits(elements, "the blocks of the metric");
        std::vector<py::ssize_t> shape{batch.size, k, k};
        if (diagonal) shape.pop_back();
        if (mean) shape.erase(shape.begin());
        results.emplace_back(shape);
        to.push_back(results.back().mutable_data());
    }
    run([&] {
        if (mean) {
            mean_stage_covariances(program, batch, counts, diagonal, to);
        } else {
            stage_covariances(program, batch, counts, diagonal, to);
        }
    });
    return results;
}

}  // namespace

void register_metric(py::module_& m) {
    m.def("metric", &metric_array, "program"_a, "angles"_a.noconvert(), "states"_a.noconvert() = py::none(),
          "mean"_a = false, "columns"_a = py::none(), "centred"_a = true, "directions"_a = py::none(),
          "Fubini-Study metric over the angles (or the chosen columns, or directions: starts, angles and "
          "coefficients of sparse vectors), shape (batch, k, k) or their mean "
          "(k, k); not centred: the mean of Re <d_i psi|d_j psi> alone.");
    m.def(
        "metric_factor", &factor_array, "program"_a, "angles"_a.noconvert(),
        "states"_a.noconvert() = py::none(), "columns"_a = py::none(), "directions"_a = py::none(),
        "X of shape (k, batch * 2 * 2^wires) with X X^T = the mean metric: real, then imaginary parts of the "
        "centred derivative states of each batch element, divided by sqrt(batch).");
    m.def("berry_connection", &connection_array, "program"_a, "angles"_a.noconvert(),
          "states"_a.noconvert() = py::none(), "Im <psi|d_a psi>, shape (batch, angles).");
    m.def("stage_covariances", &covariance_arrays, "program"_a, "angles"_a.noconvert(), "counts"_a,
          "diagonal"_a = false, "states"_a.noconvert() = py::none(), "mean"_a = false,
          "Covariances of the generators of each stage, (batch, k, k), or (batch, k) if diagonal, or their "
          "means without the batch. The moments of a stage are <K_i>, then <K_i K_j> for j <= i, or <K_i "
          "K_i>.");
    m.def("metric_vector_product", &product_array, "program"_a, "angles"_a.noconvert(),
          "vectors"_a.noconvert(), "states"_a.noconvert() = py::none(), "mean"_a = false,
          "Metric of each batch element times its vector, (batch, angles), or its vectors, (batch, vectors, "
          "angles); the mean has no batch.");
}

}  // namespace fubini::bind
