// SPDX-License-Identifier: Apache-2.0
#include "core/adjoint.hpp"

#include <algorithm>

#include "core/expval.hpp"
#include "core/observable.hpp"
#include "core/parallel.hpp"
#include "core/sweep.hpp"

namespace fubini {
namespace {

/// overlap[j] = Im <bra|Q_j|ket> after the block, and both states are taken before the block.
void step_back(const Tile& tile, std::size_t s, double* ket, double* bra, Vec overlap[4]) {
    const Geometry& where = tile.geometry(s);
    const Mix m = inverse(where, tile.quaternion(s));
    const Flavor kind = flavor(tile.plan.steps[s]);
    if (where.count <= row_chunk) {
        overlap_mix(where, kind, m, ket, bra, overlap, 0, where.count);
        return;
    }
    // Chunk sums are stored and added in order, whichever thread makes them.
    const std::size_t chunks = (where.count + row_chunk - 1) / row_chunk;
    Vec* parts = &vec(tile.scratch());
    const auto sum_chunks = [&](std::size_t begin, std::size_t end) {
        for (std::size_t chunk = begin; chunk < end; ++chunk) {
            Vec part[4] = {};
            overlap_mix(where, kind, m, ket, bra, part, chunk * row_chunk,
                        std::min(where.count, (chunk + 1) * row_chunk));
            std::copy_n(part + 1, 3, parts + 3 * chunk);
        }
    };
    tile.over_rows(chunks, sum_chunks, 1);
    for (std::size_t chunk = 0; chunk < chunks; ++chunk) {
        for (std::size_t j = 0; j < 3; ++j) overlap[j + 1] += parts[3 * chunk + j];
    }
}

/// Turns the overlaps after a block into the derivatives with respect to its rotations, last one first:
/// before exp(-i t Q_a / 2) the operators Q_b, Q_c read cos t Q_b + sin t Q_c, cos t Q_c - sin t Q_b.
void add_gradients(const Tile& tile, const Step& step, Vec overlap[4]) {
    for (int i = step.first + step.count - 1; i >= step.first; --i) {
        const BlockRotation& rotation = tile.plan.rotations[static_cast<std::size_t>(i)];
        const int a = rotation.axis, b = a % 3 + 1, c = b % 3 + 1;
        if (rotation.slot >= 0) tile.slots()[rotation.slot] += rotation.coefficient * overlap[a];
        if (i == step.first) break;
        const Vec sine = tile.sine(i), cosine = tile.cosine(i);
        const Vec before_b = cosine * overlap[b] + sine * overlap[c];
        overlap[c] = cosine * overlap[c] - sine * overlap[b];
        overlap[b] = before_b;
    }
}

/// cotangent(b, m) of the outputs, as weights of the moments.
template <typename Cotangent>
void weigh(const Tile& tile, const Cotangent& cotangent) {
    const auto outputs = tile.program.outputs();
    std::fill_n(tile.weights(), tile.program.moments(), Vec{});
    for (int l = 0; l < tile.samples << tile.layout.lane_bits; ++l) {
        const std::ptrdiff_t element = tile.element(l);
        for (std::size_t m = 0; m < outputs.size(); ++m) {
            const double c = cotangent(element, m);
            tile.weights()[outputs[m].moment][l] += c;
            if (outputs[m].square >= 0) {
                tile.weights()[outputs[m].square][l] -= 2 * c * tile.moments()[outputs[m].square][l];
            }
        }
    }
}

template <typename Cotangent>
void reverse_sweep(const Program& program, const Batch& batch, const Cotangent& cotangent, double* gradient,
                   double* values, std::complex<double>* state_gradient, const double* kept) {
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    const bool needs_moments = values != nullptr || has_variances(program);
    for_tiles(program, batch, 2, [&](Tile& tile) {
        double *bra = tile.state(0), *ket = tile.state(1);
        if (kept == nullptr) {
            tile.load_initial(ket);
            tile.run_forward(ket);
        } else {
            // Read only.
            std::copy_n(tile.kept_state(const_cast<double*>(kept)), tile.layout.rows() * row_doubles, ket);
        }
        if (needs_moments) measure(program, tile.layout, ket, tile.moments(), tile.scratch());
        if (values != nullptr) store_outputs(tile, values);
        weigh(tile, cotangent);
        apply_observables(program, tile.layout, tile.weights(), ket, bra, tile.scratch());
        run_back(tile, ket, bra);
        store_slots(tile, gradient);
        if (state_gradient != nullptr) {
            store_states(tile.layout, bra, splat(2), Vec{},
                         state_gradient + static_cast<std::size_t>(tile.first) * amplitudes, tile.samples);
        }
    });
}

/// The Jacobian by one forward sweep and, from a copy of its state, a reverse sweep for each output.
void each_output(const Program& program, const Batch& batch, double* jacobian, double* values) {
    const auto angles = static_cast<std::size_t>(program.angles());
    const std::size_t outputs = program.outputs().size();
    const bool needs_moments = values != nullptr || has_variances(program);
    for_tiles(program, batch, 3, [&](Tile& tile) {
        double *final_state = tile.state(0), *ket = tile.state(1), *bra = tile.state(2);
        tile.load_initial(final_state);
        tile.run_forward(final_state);
        if (needs_moments) measure(program, tile.layout, final_state, tile.moments(), tile.scratch());
        if (values != nullptr) store_outputs(tile, values);
        for (std::size_t output = 0; output < outputs; ++output) {
            weigh(tile, [&](std::ptrdiff_t, std::size_t m) { return m == output ? 1.0 : 0.0; });
            std::copy_n(final_state, tile.layout.rows() * row_doubles, ket);
            apply_observables(program, tile.layout, tile.weights(), ket, bra, tile.scratch());
            run_back(tile, ket, bra);
            store_slots(tile, jacobian + output * angles, outputs);
        }
    });
}

}  // namespace

void run_back(const Tile& tile, double* ket, double* bra) {
    std::fill_n(tile.slots(), tile.program.angles(), Vec{});
    for (std::size_t s = tile.plan.steps.size(); s-- > 0;) {
        tile.checkpoint(s);
        const Step& step = tile.plan.steps[s];
        if (step.kind == Step::Kind::block) {
            Vec overlap[4] = {};
            step_back(tile, s, ket, bra, overlap);
            add_gradients(tile, step, overlap);
        } else {
            tile.undo_constant(s, ket);
            tile.undo_constant(s, bra);
        }
    }
}

void set_weights(const Tile& tile, const double* cotangents) {
    const std::size_t outputs = tile.program.outputs().size();
    weigh(tile, [&](std::ptrdiff_t element, std::size_t m) {
        return cotangents[static_cast<std::size_t>(element) * outputs + m];
    });
}

void store_slots(const Tile& tile, double* gradient, std::size_t every) {
    const auto angles = static_cast<std::size_t>(tile.program.angles());
    const int width = 1 << tile.layout.lane_bits;
    for (int sample = 0; sample < tile.samples; ++sample) {
        double* row = gradient + static_cast<std::size_t>(tile.first + sample) * every * angles;
        for (std::size_t a = 0; a < angles; ++a) {
            double sum = 0;
            for (int low = 0; low < width; ++low) sum += tile.slots()[a][sample * width + low];
            row[a] = sum;
        }
    }
}

void store_halved_slots(const Tile& tile, double* out) {
    for (int a = 0; a < tile.program.angles(); ++a) tile.slots()[a] *= 0.5;
    store_slots(tile, out);
}

void vjp(const Program& program, const Batch& batch, const double* cotangents, double* gradient,
         double* values, std::complex<double>* state_gradient, const double* kept) {
    const std::size_t outputs = program.outputs().size();
    const auto cotangent = [&](std::ptrdiff_t element, std::size_t m) {
        return cotangents[static_cast<std::size_t>(element) * outputs + m];
    };
    reverse_sweep(program, batch, cotangent, gradient, values, state_gradient, kept);
}

void jacobian(const Program& program, const Batch& batch, double* jacobian, double* values) {
    const auto outputs = static_cast<std::ptrdiff_t>(program.outputs().size());
    if (outputs == 0) return;
    if (batch.size >= static_cast<std::ptrdiff_t>(lanes) * num_threads()) {
        each_output(program, batch, jacobian, values);
        return;
    }
    // One element per output: their reverse sweeps fill the lanes of a tile. The same operations as above.
    if (values != nullptr) expval(program, batch, values);
    Batch wide = batch;
    wide.size = batch.size * outputs;
    wide.repeat = outputs;
    const auto cotangent = [&](std::ptrdiff_t element, std::size_t m) {
        return element % outputs == static_cast<std::ptrdiff_t>(m) ? 1.0 : 0.0;
    };
    reverse_sweep(program, wide, cotangent, jacobian, nullptr, nullptr, nullptr);
}

}  // namespace fubini
