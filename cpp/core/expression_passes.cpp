// SPDX-License-Identifier: Apache-2.0
// What an Expression computes for a batch: tiles of rows, in parallel where that pays.
#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>

#include "core/expression.hpp"
#include "core/expression_sweep.hpp"
#include "core/parallel.hpp"
#include "core/workspace.hpp"

namespace fubini {
namespace {

// Sums over the batch are made chunk by chunk, and then over the chunks, whatever the number of threads.
constexpr std::ptrdiff_t max_chunks = 64;
constexpr double max_partial_doubles = 1 << 22;
constexpr double part_cost = 40e3;  // nanoseconds of work that are worth another thread

thread_local Workspace lane_memory;  // of the thread that works on a chunk
thread_local Workspace call_memory;  // of the thread that makes the call

std::size_t rounded(std::size_t doubles) { return (doubles + 7) / 8 * 8; }

/// One pass over a batch.
class Pass {
  public:
    /// by_row: every row has weights of its own, or gradients by them. tangents: null for none.
    Pass(const ExpressionGraph& graph, const AnglePoint& point, bool by_row, const AngleTangents* tangents,
         bool reverse)
        : graph_(graph),
          point_(point),
          places_(graph.places(by_row)),
          tangents_(tangents),
          reverse_(reverse),
          tile_(ExpressionSweep::tile_rows(places_, point.batch)),
          release_(call_memory) {
        const std::ptrdiff_t tiles = (point.batch + tile_ - 1) / tile_;
        const std::size_t uniform = rounded(places_.uniform.size());
        std::ptrdiff_t chunks = max_chunks;
        if (reverse && uniform > 0) {
            chunks = std::clamp<std::ptrdiff_t>(
                static_cast<std::ptrdiff_t>(max_partial_doubles / static_cast<double>(uniform)), 1,
                max_chunks);
        }
        chunk_rows_ = std::max<std::ptrdiff_t>(1, (tiles + chunks - 1) / chunks) * tile_;
        chunks_ = (point.batch + chunk_rows_ - 1) / chunk_rows_;
        const auto partials = static_cast<std::size_t>(reverse ? std::max<std::ptrdiff_t>(chunks_, 1) : 0);
        const std::size_t copies = 2 + partials * (tangents != nullptr ? 2 : 1);
        ExpressionSweep sweep = unplaced();
        double* memory = call_memory.reserve(copies * uniform + sweep.scratch_doubles());
        uniform_values_ = memory;
        uniform_tangents_ = memory + uniform;
        uniform_adjoints_ = memory + 2 * uniform;
        uniform_adjoint_tangents_ = uniform_adjoints_ + partials * uniform;
        std::fill_n(uniform_adjoints_, (copies - 2) * uniform, 0.0);
        sweep.scratch = memory + copies * uniform;
        place_uniform(sweep, 0);
        sweep.load_uniform_leaves(sweep.values, point.weights);
        if (tangents != nullptr) sweep.load_uniform_leaves(sweep.tangents, tangents->weights);
        for (const int node : places_.uniform_inner) {
            sweep.value(node);
            if (tangents != nullptr) sweep.tangent(node);
        }
        uniform_.emplace(sweep);
    }

    /// Calls body(sweep) for every tile, when its values and tangents are known.
    void for_tiles(double cost, const std::function<void(ExpressionSweep&)>& body) {
        const double chunk = (graph_.row_cost * cost + 10) * static_cast<double>(chunk_rows_);
        const auto grain = static_cast<std::ptrdiff_t>(std::ceil(part_cost / chunk));
        parallel_for(chunks_, grain, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
            const ReleaseAfter release(lane_memory);
            ExpressionSweep sweep = unplaced();
            const std::size_t lanes = sweep.lane_doubles();
            const std::size_t copies =
                1 + (tangents_ != nullptr ? 1 : 0) + (reverse_ ? (tangents_ != nullptr ? 2 : 1) : 0);
            double* memory = lane_memory.reserve(copies * lanes + sweep.scratch_doubles());
            const auto take = [&](NodeArrays& arrays, bool wanted) {
                arrays.lanes = memory;
                if (wanted) memory += lanes;
            };
            take(sweep.values, true);
            take(sweep.tangents, tangents_ != nullptr);
            take(sweep.adjoints, reverse_);
            take(sweep.adjoint_tangents, reverse_ && tangents_ != nullptr);
            sweep.scratch = memory;
            for (std::ptrdiff_t chunk_index = begin; chunk_index < end; ++chunk_index) {
                place_uniform(sweep, reverse_ ? chunk_index : 0);
                const std::ptrdiff_t from = chunk_index * chunk_rows_;
                const std::ptrdiff_t to = std::min(from + chunk_rows_, point_.batch);
                for (std::ptrdiff_t first = from; first < to; first += tile_) {
                    sweep.begin(first, static_cast<int>(std::min<std::ptrdiff_t>(tile_, to - first)));
                    compute(sweep);
                    body(sweep);
                }
            }
        });
    }

    void clear_adjoints(ExpressionSweep& sweep) const {
        std::fill_n(sweep.adjoints.lanes, sweep.lane_doubles(), 0.0);
        if (tangents_ != nullptr) std::fill_n(sweep.adjoint_tangents.lanes, sweep.lane_doubles(), 0.0);
    }

    /// Cotangents of the outputs become adjoints; of uniform ones the sums over the rows.
    void seed(ExpressionSweep& sweep, const OutputRows<const double>& from) const {
        const auto add = [&](std::size_t part, const double* data, std::ptrdiff_t stride) {
            if (data == nullptr) return;
            data += sweep.first() * stride;
            for (int i = 0; i < sweep.rows(); ++i) {
                const double* row = data + i * stride;
                for (const auto& [column, place] : places_.uniform_outputs[part])
                    sweep.adjoints.uniform[place] += row[column];
            }
            for (const auto& [column, place] : places_.varying_outputs[part]) {
                double* lane = sweep.lane(sweep.adjoints, place);
                for (int i = 0; i < sweep.rows(); ++i) lane[i] += data[i * stride + column];
            }
        };
        add(0, from.angles, from.angle_stride);
        add(1, from.amplitudes, from.amplitude_stride);
    }

    void reverse(ExpressionSweep& sweep) const {
        for (const int node : places_.reverse_varying) sweep.reverse(node, tangents_ != nullptr);
    }

    /// A leaf's adjoints are added to a result whose rows lie `stride` apart.
    void collect(const ExpressionSweep& sweep, const NodeArrays& from, int leaf, double* to,
                 std::ptrdiff_t stride) const {
        const double* row = sweep.at(from, leaf);
        to += sweep.first() * stride + graph_.node(leaf).u;
        for (int i = 0; i < sweep.rows(); ++i) to[i * stride] += row[i];
    }

    /// The adjoints of what is the same for all rows, summed over the chunks, become gradients.
    void finish(double* by_weights) {
        const std::size_t uniform = rounded(places_.uniform.size());
        const auto add_up = [&](double* partials) {
            for (std::ptrdiff_t c = 1; c < chunks_; ++c) {
                const double* more = partials + static_cast<std::size_t>(c) * uniform;
                for (std::size_t i = 0; i < places_.uniform.size(); ++i) partials[i] += more[i];
            }
        };
        add_up(uniform_adjoints_);
        if (tangents_ != nullptr) add_up(uniform_adjoint_tangents_);
        ExpressionSweep& sweep = *uniform_;
        for (const int node : places_.reverse_uniform) sweep.reverse(node, tangents_ != nullptr);
        const NodeArrays& found = tangents_ != nullptr ? sweep.adjoint_tangents : sweep.adjoints;
        for (const int node : places_.reverse_uniform) {
            if (graph_.node(node).kind == ExpressionKind::weight)
                by_weights[graph_.node(node).u] += *sweep.at(found, node);
        }
    }

    [[nodiscard]] const ExpressionPlaces& places() const { return places_; }

  private:
    [[nodiscard]] ExpressionSweep unplaced() const {
        ExpressionSweep sweep(graph_, places_, tile_);
        sweep.weights_move = tangents_ != nullptr && tangents_->weights != nullptr;
        sweep.inputs_move = tangents_ != nullptr && tangents_->inputs != nullptr;
        return sweep;
    }
    void place_uniform(ExpressionSweep& sweep, std::ptrdiff_t chunk) const {
        const std::size_t offset = static_cast<std::size_t>(chunk) * rounded(places_.uniform.size());
        sweep.values.uniform = uniform_values_;
        sweep.tangents.uniform = uniform_tangents_;
        sweep.adjoints.uniform = uniform_adjoints_ + offset;
        sweep.adjoint_tangents.uniform = uniform_adjoint_tangents_ + offset;
    }
    void compute(ExpressionSweep& sweep) const {
        const std::ptrdiff_t stride = point_.weights_by_row ? graph_.weights : 0;
        sweep.load_leaves(sweep.values, point_.weights, stride, point_.inputs);
        if (tangents_ != nullptr)
            sweep.load_leaves(sweep.tangents, tangents_->weights, stride, tangents_->inputs);
        for (const int node : places_.varying) sweep.value(node);
        if (tangents_ == nullptr) return;
        for (const int node : places_.varying) sweep.tangent(node);
    }

    const ExpressionGraph& graph_;
    const AnglePoint& point_;
    const ExpressionPlaces& places_;
    const AngleTangents* tangents_;
    bool reverse_;
    int tile_;
    ReleaseAfter release_;
    std::ptrdiff_t chunk_rows_ = 0, chunks_ = 0;
    double* uniform_values_ = nullptr;
    double* uniform_tangents_ = nullptr;
    double* uniform_adjoints_ = nullptr;
    double* uniform_adjoint_tangents_ = nullptr;
    std::optional<ExpressionSweep> uniform_;
};

void store(const ExpressionPlaces& places, const ExpressionSweep& sweep, const NodeArrays& from,
           const OutputRows<double>& to) {
    const auto write = [&](std::size_t part, double* data, std::ptrdiff_t stride) {
        if (data == nullptr) return;
        data += sweep.first() * stride;
        const auto& uniform = places.uniform_outputs[part];
        const auto& varying = places.varying_outputs[part];
        for (const auto& [column, place] : uniform) data[column] = from.uniform[place];
        for (const auto& [column, place] : varying) data[column] = *sweep.lane(from, place);
        if (!uniform.empty()) {
            for (int i = 1; i < sweep.rows(); ++i)
                std::copy_n(data, uniform.size() + varying.size(), data + i * stride);
        }
        for (const auto& [column, place] : varying) {
            const double* lane = sweep.lane(from, place);
            for (int i = 1; i < sweep.rows(); ++i) data[i * stride + column] = lane[i];
        }
    };
    write(0, to.angles, to.angle_stride);
    write(1, to.amplitudes, to.amplitude_stride);
}

/// Angles and amplitudes that lie in arrays of their own.
template <typename Real, typename Complex>
OutputRows<Real> apart(const Expression& expression, Real* angles, Complex* states) {
    return {angles, expression.angles(), reinterpret_cast<Real*>(states),
            2 * static_cast<std::ptrdiff_t>(expression.amplitudes())};
}

}  // namespace

void Expression::evaluate(const AnglePoint& at, const OutputRows<double>& to) const {
    Pass pass(*graph_, at, at.weights_by_row, nullptr, false);
    pass.for_tiles(1, [&](ExpressionSweep& sweep) { store(pass.places(), sweep, sweep.values, to); });
}

void Expression::evaluate(const AnglePoint& at, double* to_angles, std::complex<double>* to_states) const {
    if (to_states != nullptr && shared_state() && !at.weights_by_row) {
        evaluate(at, {to_angles, angles(), nullptr, 0});
        AnglePoint one = at;
        one.batch = std::min<std::ptrdiff_t>(at.batch, 1);
        evaluate(one, apart<double>(*this, static_cast<double*>(nullptr), to_states));
        return;
    }
    evaluate(at, apart(*this, to_angles, to_states));
}

void Expression::push_forward(const AnglePoint& at, const AngleTangents& tangents,
                              const OutputRows<double>& to) const {
    Pass pass(*graph_, at, at.weights_by_row, &tangents, false);
    pass.for_tiles(3, [&](ExpressionSweep& sweep) { store(pass.places(), sweep, sweep.tangents, to); });
}

void Expression::pull_back(const AnglePoint& at, const OutputRows<const double>& cotangents,
                           const AngleTangents* tangents, double* by_weights, double* by_inputs) const {
    const ExpressionGraph& graph = *graph_;
    std::fill_n(by_weights, graph.weights * (at.weights_by_row ? at.batch : 1), 0.0);
    std::fill_n(by_inputs, graph.inputs * at.batch, 0.0);
    if (at.batch == 0) return;
    Pass pass(graph, at, at.weights_by_row, tangents, true);
    pass.for_tiles(tangents != nullptr ? 8 : 3, [&](ExpressionSweep& sweep) {
        pass.clear_adjoints(sweep);
        pass.seed(sweep, cotangents);
        pass.reverse(sweep);
        const NodeArrays& found = tangents != nullptr ? sweep.adjoint_tangents : sweep.adjoints;
        for (const int leaf : pass.places().varying_leaves) {
            const bool weight = graph.node(leaf).kind == ExpressionKind::weight;
            pass.collect(sweep, found, leaf, weight ? by_weights : by_inputs,
                         weight ? graph.weights : graph.inputs);
        }
    });
    if (!at.weights_by_row) pass.finish(by_weights);
}

void Expression::pull_back(const AnglePoint& at, const double* by_angles,
                           const std::complex<double>* by_states, double* by_weights,
                           double* by_inputs) const {
    pull_back(at, apart(*this, by_angles, by_states), nullptr, by_weights, by_inputs);
}

void Expression::chain(const AnglePoint& at, std::ptrdiff_t rows, const double* by_angles,
                       const std::complex<double>* by_states, double* by_weights, double* by_inputs) const {
    const ExpressionGraph& graph = *graph_;
    const std::ptrdiff_t parts = 2 * static_cast<std::ptrdiff_t>(amplitudes());
    const auto* states = reinterpret_cast<const double*>(by_states);
    if (by_weights != nullptr) std::fill_n(by_weights, at.batch * rows * graph.weights, 0.0);
    if (by_inputs != nullptr) std::fill_n(by_inputs, at.batch * rows * graph.inputs, 0.0);
    Pass pass(graph, at, true, nullptr, true);
    pass.for_tiles(1.0 + 2.0 * static_cast<double>(rows), [&](ExpressionSweep& sweep) {
        for (std::ptrdiff_t m = 0; m < rows; ++m) {
            pass.clear_adjoints(sweep);
            pass.seed(sweep, {by_angles + m * graph.angles, rows * graph.angles,
                              states == nullptr ? nullptr : states + m * parts, rows * parts});
            pass.reverse(sweep);
            for (const int leaf : pass.places().varying_leaves) {
                const bool weight = graph.node(leaf).kind == ExpressionKind::weight;
                double* to = weight ? by_weights : by_inputs;
                const std::ptrdiff_t columns = weight ? graph.weights : graph.inputs;
                if (to != nullptr)
                    pass.collect(sweep, sweep.adjoints, leaf, to + m * columns, rows * columns);
            }
        }
    });
}

void Expression::jacobian(const AnglePoint& at, std::span<const int> rows, double* by_weights,
                          double* by_inputs) const {
    const ExpressionGraph& graph = *graph_;
    const auto count = static_cast<std::ptrdiff_t>(rows.size());
    if (by_weights != nullptr) std::fill_n(by_weights, at.batch * count * graph.weights, 0.0);
    if (by_inputs != nullptr) std::fill_n(by_inputs, at.batch * count * graph.inputs, 0.0);
    Pass pass(graph, at, true, nullptr, true);
    // From one output alone: the adjoints of what it does not need are not 0 times an infinite derivative.
    std::vector<std::vector<int>> found;
    std::vector<std::span<const int>> cones;
    std::vector<int> seen(graph.nodes.size(), -1);
    found.reserve(rows.size());
    for (const int row : rows) {
        const auto index = static_cast<std::size_t>(row);
        if (index >= graph.cones.size()) {
            std::size_t arguments = 0;
            found.push_back(
                graph.cone(graph.outputs[index], seen, static_cast<int>(found.size()), arguments));
        }
        cones.emplace_back(index < graph.cones.size() ? graph.cones[index] : found.back());
    }
    const double one = 1;
    pass.for_tiles(1.0 + 2.0 * static_cast<double>(count), [&](ExpressionSweep& sweep) {
        for (std::ptrdiff_t r = 0; r < count; ++r) {
            const auto row = static_cast<std::size_t>(r);
            const int output = graph.outputs[static_cast<std::size_t>(rows[row])];
            const std::span<const int> cone = cones[row];
            if (cone.empty()) continue;
            for (const int node : cone) sweep.clear(sweep.adjoints, node);
            sweep.seed(sweep.adjoints, output, &one, 0);
            for (const int node : cone) {
                sweep.reverse(node, false);
                const ExpressionKind kind = graph.node(node).kind;
                if (kind == ExpressionKind::weight && by_weights != nullptr) {
                    pass.collect(sweep, sweep.adjoints, node, by_weights + r * graph.weights,
                                 count * graph.weights);
                } else if (kind == ExpressionKind::input && by_inputs != nullptr) {
                    pass.collect(sweep, sweep.adjoints, node, by_inputs + r * graph.inputs,
                                 count * graph.inputs);
                }
            }
        }
    });
}

}  // namespace fubini
