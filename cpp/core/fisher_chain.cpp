// SPDX-License-Identifier: Apache-2.0
#include "core/fisher_chain.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>

#include "core/adjoint.hpp"
#include "core/expval.hpp"

namespace fubini {
namespace {

using Index = std::ptrdiff_t;

std::size_t entries(Index count) { return static_cast<std::size_t>(count); }

/// Larger states are computed again, as in a backward pass.
constexpr std::size_t max_kept_doubles = (std::size_t{64} << 20) / sizeof(double);

/// y = f(x), and its slope.
void elementwise(Elementwise function, double x, double& y, double& slope) {
    const auto sigmoid = [](double z) {
        const double small = std::exp(-std::abs(z));  // without overflow
        return (z < 0.0 ? small : 1.0) / (1.0 + small);
    };
    switch (function) {
        case Elementwise::relu:
            y = x > 0.0 || std::isnan(x) ? x : 0.0;
            slope = x > 0.0 ? 1.0 : 0.0;
            return;
        case Elementwise::sigmoid:
            y = sigmoid(x);
            slope = y * sigmoid(-x);
            return;
        case Elementwise::silu: {
            const double s = sigmoid(x);
            y = x * s;
            slope = s + y * sigmoid(-x);
            return;
        }
        case Elementwise::tanh:
            y = std::tanh(x);
            slope = (1.0 - y) * (1.0 + y);
            return;
    }
}

}  // namespace

void FisherChain::add(Layer layer) {
    layer.first = parameters_;
    parameters_ += layer.count;
    if (layer.form != BlockForm::none) unknowns_ += layer.count;
    layers_.push_back(layer);
    runs_.emplace_back();
    // Curvature by the outputs of a layer has no higher rank than by those of any layer behind it.
    Index rank = layer.outputs - (family_ == OutputFamily::categorical ? 1 : 0);
    for (std::size_t i = layers_.size(); i-- > 0;) {
        layers_[i].rank = rank;
        rank = std::min(rank, layers_[i].inputs);
    }
}

void FisherChain::add_linear(Index inputs, Index outputs, bool bias, BlockForm form) {
    Layer layer;
    layer.kind = Layer::Kind::linear;
    layer.form = form;
    layer.bias = bias;
    layer.inputs = inputs;
    layer.outputs = outputs;
    layer.count = outputs * (inputs + (bias ? 1 : 0));
    add(layer);
}

void FisherChain::add_function(Elementwise function) {
    if (layers_.empty()) throw std::invalid_argument("function: expected another layer before it");
    Layer layer;
    layer.kind = Layer::Kind::function;
    layer.function = function;
    layer.inputs = layer.outputs = outputs();
    add(layer);
}

void FisherChain::add_circuit(const Program& program, const Expression& map, BlockForm form) {
    Layer layer;
    layer.kind = Layer::Kind::circuit;
    layer.form = form;
    layer.inputs = map.inputs();
    layer.outputs = static_cast<Index>(program.outputs().size());
    layer.count = map.weights();
    layer.program = &program;
    layer.map = &map;
    add(layer);
}

std::vector<std::vector<Index>> FisherChain::matrices() const {
    std::vector<std::vector<Index>> found;
    for (const Layer& layer : layers_) {
        if (layer.form == BlockForm::dense) found.push_back({layer.count, layer.count});
        if (layer.form == BlockForm::diagonal) found.push_back({layer.count});
        if (layer.form == BlockForm::kronecker) {
            const Index width = layer.inputs + (layer.bias ? 1 : 0);
            found.push_back({1, layer.outputs, layer.outputs});
            found.push_back({1, width, width});
        }
    }
    return found;
}

bool FisherChain::combines(const Layer& layer, const Call& call) const {
    if (!call.seed || layer.outputs < 2 || layer.rank == 1) return false;
    const double angles = static_cast<double>(call.data) * layer.program->angles();
    return std::ldexp(angles, layer.program->qubits()) >= call.combine_from;
}

const FisherChain::Known* FisherChain::pass_of(const Layer& layer, const Run& run, const Call& call) {
    // The pass before computed in another order: a difference by rounding changes results by as much.
    constexpr double rounding = 1e-12;
    const auto near = [](double a, double b) {
        return std::abs(a - b) <= rounding * std::max(1.0, std::abs(b));
    };
    for (const Known& pass : call.known) {
        if (pass.program != layer.program || pass.kept == nullptr) continue;
        if (std::equal(run.angles.begin(), run.angles.end(), pass.angles, near)) return &pass;
    }
    return nullptr;
}

Batch FisherChain::batch_of(const Run& run, const Call& call) {
    Batch batch;
    batch.angles = run.angles.data();
    batch.size = call.data;
    batch.poll = call.poll;
    return batch;
}

void FisherChain::run_circuit(const Layer& layer, Run& run, const double* from, const Call& call) {
    const AnglePoint point{call.parameters + layer.first, from, call.data, false};
    run.angles.resize(entries(call.data * layer.map->angles()));
    layer.map->evaluate(point, run.angles.data(), nullptr);
    const Batch batch = batch_of(run, call);
    run.along = layer.rank < layer.outputs || combines(layer, call);
    if (run.along) {
        if (const Known* pass = pass_of(layer, run, call)) {
            std::copy_n(pass->values, run.values.size(), run.values.begin());
            run.kept = pass->kept;
            return;
        }
        const std::size_t doubles = kept_doubles(*layer.program, call.data);
        double* kept = doubles <= max_kept_doubles ? run.memory.reserve(doubles) : nullptr;
        expval(*layer.program, batch, run.values.data(), kept);
        run.kept = kept;
        return;
    }
    run.by_angles.resize(entries(call.data * layer.outputs * layer.map->angles()));
    jacobian(*layer.program, batch, run.by_angles.data(), run.values.data());
    chain_rule(layer, run, from, call, layer.outputs);
}

void FisherChain::chain_rule(const Layer& layer, Run& run, const double* from, const Call& call, Index rows) {
    const AnglePoint point{call.parameters + layer.first, from, call.data, false};
    run.by_weights.resize(entries(call.data * rows * layer.count));
    run.by_inputs.resize(entries(call.data * rows * layer.inputs));
    layer.map->chain(point, rows, run.by_angles.data(), nullptr, run.by_weights.data(), run.by_inputs.data());
}

void FisherChain::sweep(const Layer& layer, Run& run, const double* from, const Call& call) {
    const bool combine = combines(layer, call);
    const Index rows = combine ? 1 : layer.rank, angles = layer.map->angles();
    if (combine && factor_.rows > 1) {
        pulled_.resize(entries(call.data * layer.outputs));
        combine_rows(factor_, *call.seed, pulled_.data());
        replace_factor(1, layer.outputs);
    } else if (factor_.rows > rows) {
        pulled_.resize(entries(call.data * rows * layer.outputs));
        reduce_rows(factor_, rows, pulled_.data());
        replace_factor(rows, layer.outputs);
    }
    const Batch batch = batch_of(run, call);
    const Index count = factor_.rows;
    run.by_angles.resize(entries(call.data * count * angles));
    cotangents_.resize(entries(call.data * layer.outputs));
    gradient_.resize(entries(call.data * angles));
    for (Index row = 0; row < count; ++row) {
        for (Index n = 0; n < call.data; ++n) {
            std::copy_n(factor_.values + (n * count + row) * layer.outputs, layer.outputs,
                        cotangents_.data() + n * layer.outputs);
        }
        vjp(*layer.program, batch, cotangents_.data(), gradient_.data(), nullptr, nullptr, run.kept);
        for (Index n = 0; n < call.data; ++n)
            std::copy_n(gradient_.data() + n * angles, angles,
                        run.by_angles.data() + (n * count + row) * angles);
    }
    chain_rule(layer, run, from, call, count);
}

void FisherChain::forward(const Call& call) {
    const double* from = call.inputs;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
        const Layer& layer = layers_[i];
        Run& run = runs_[i];
        run.values.resize(entries(call.data * layer.outputs));
        if (layer.kind == Layer::Kind::linear) {
            const double* weight = call.parameters + layer.first;
            linear_layer(from, call.data, layer.inputs, weight,
                         layer.bias ? weight + layer.outputs * layer.inputs : nullptr, layer.outputs,
                         run.values.data());
        } else if (layer.kind == Layer::Kind::function) {
            run.by_inputs.resize(run.values.size());
            for (std::size_t k = 0; k < run.values.size(); ++k)
                elementwise(layer.function, from[k], run.values[k], run.by_inputs[k]);
        } else {
            run_circuit(layer, run, from, call);
        }
        from = run.values.data();
    }
}

void FisherChain::replace_factor(Index rows, Index width) {
    values_.swap(pulled_);
    factor_ = {values_.data(), factor_.data, rows, width};
}

void FisherChain::make_block(const Layer& layer, const Run& run, const double* from,
                             double* const* to) const {
    const bool diagonal = layer.form == BlockForm::diagonal;
    if (layer.kind == Layer::Kind::circuit) {
        const double* rows = run.by_weights.data();
        const Index count = factor_.data * factor_.rows;
        if (run.along && diagonal) {
            rows_diagonal(rows, count, layer.count, to[0]);
        } else if (run.along) {
            rows_block(rows, count, layer.count, to[0]);
        } else if (diagonal) {
            jacobian_diagonal(factor_, rows, layer.count, to[0]);
        } else {
            jacobian_block(factor_, rows, layer.count, to[0]);
        }
    } else if (diagonal) {
        linear_diagonal(factor_, from, layer.inputs, layer.bias, to[0]);
    } else if (layer.form == BlockForm::dense) {
        linear_block(factor_, from, layer.inputs, layer.bias, to[0]);
    } else {
        kronecker_factors(factor_, from, layer.inputs, layer.bias, to[0], to[1]);
    }
}

void FisherChain::pull(const Layer& layer, const Run& run, const Call& call) {
    const Index rows = factor_.rows;
    pulled_.resize(entries(call.data * rows * layer.inputs));
    if (layer.kind == Layer::Kind::linear) {
        pull_factor_shared(factor_, call.parameters + layer.first, layer.inputs, pulled_.data());
    } else if (layer.kind == Layer::Kind::function) {
        for (Index n = 0; n < call.data; ++n) {
            const double* slope = run.by_inputs.data() + n * layer.inputs;
            for (Index k = n * rows * layer.inputs; k < (n + 1) * rows * layer.inputs; k += layer.inputs) {
                for (Index j = 0; j < layer.inputs; ++j)
                    pulled_[entries(k + j)] = factor_.values[k + j] * slope[j];
            }
        }
    } else if (run.along) {
        std::copy(run.by_inputs.begin(), run.by_inputs.end(), pulled_.begin());
    } else {
        pull_factor(factor_, run.by_inputs.data(), layer.inputs, pulled_.data());
    }
    replace_factor(rows, layer.inputs);
}

void FisherChain::average(const Call& call) {
    // Blocks are made from the last layer to the first one, matrices are in the order of the layers.
    const std::vector<std::vector<Index>> shapes = matrices();
    std::size_t next = shapes.size();
    std::size_t first = 0;
    while (layers_[first].form == BlockForm::none) ++first;
    for (std::size_t i = layers_.size(); i-- > first;) {
        const Layer& layer = layers_[i];
        const double* from = i == 0 ? call.inputs : runs_[i - 1].values.data();
        const bool moves = layer.form != BlockForm::none;
        if (layer.kind == Layer::Kind::circuit && runs_[i].along) sweep(layer, runs_[i], from, call);
        if (moves) {
            next -= layer.form == BlockForm::kronecker ? 2 : 1;
            make_block(layer, runs_[i], from, call.after + next);
        }
        if (i > first) pull(layer, runs_[i], call);
    }
    for (std::size_t m = 0; m < shapes.size(); ++m) {
        const double decay = call.decays[m];
        if (decay == 0.0) continue;
        Index count = 1;
        for (const Index side : shapes[m]) count *= side;
        const double* before = call.before[m];
        double* after = call.after[m];
        for (Index k = 0; k < count; ++k) after[k] += decay * (before[k] - after[k]);
    }
}

bool FisherChain::solve_product(const Layer& layer, const double* left, const double* right, double damping,
                                const double* g, double* x) {
    KroneckerSystem system{left,          right, 1, layer.outputs, layer.inputs + (layer.bias ? 1 : 0),
                           {layer.inputs}};
    if (layer.bias) system.widths.push_back(1);
    if (solve_kronecker(system, damping, g, x) != SolveStatus::ok) return false;
    system.for_unknowns([&](Index i, Index line, Index column) {
        if (system.still(line, column)) x[i] = g[i];  // see Preconditioner
    });
    return true;
}

double FisherChain::direction(const Call& call, double* change) {
    constexpr double none = std::numeric_limits<double>::quiet_NaN();
    if (unknowns_ == 0 || call.data == 0) return none;
    forward(call);
    const Index width = outputs();
    values_.resize(entries(call.data * width * width));
    output_factor(family_, runs_.back().values.data(), call.data, width, call.share, values_.data());
    factor_ = {values_.data(), call.data, width, width};
    average(call);
    // Unknowns of Kronecker products are left for what follows, the others are solved together.
    Preconditioner factors;
    double* const* matrix = call.after;
    for (const Layer& layer : layers_) {
        if (layer.form == BlockForm::dense) {
            if (!factors.add_dense(*matrix++, layer.count, call.damping)) return none;
        } else if (layer.form == BlockForm::diagonal) {
            if (!factors.add_diagonal(*matrix++, layer.count, call.damping)) return none;
        } else if (layer.form == BlockForm::kronecker) {
            factors.add_identity(layer.count);
            matrix += 2;
        }
    }
    factors.apply(call.gradient, change);
    matrix = call.after;
    Index start = 0;
    for (const Layer& layer : layers_) {
        if (layer.form == BlockForm::kronecker) {
            const double* g = call.gradient + start;
            if (!solve_product(layer, matrix[0], matrix[1], call.damping, g, change + start)) return none;
        }
        if (layer.form == BlockForm::none) continue;
        matrix += layer.form == BlockForm::kronecker ? 2 : 1;
        start += layer.count;
    }
    double square = 0.0, bad = 0.0;
    for (Index k = 0; k < unknowns_; ++k) {
        square += call.gradient[k] * change[k];
        bad += change[k] - change[k];
    }
    return bad == 0.0 ? square : none;
}

}  // namespace fubini
