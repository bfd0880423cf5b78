// SPDX-License-Identifier: Apache-2.0
#include "core/expval.hpp"

#include <cmath>

#include "core/observable.hpp"
#include "core/sweep.hpp"

namespace fubini {
namespace {

/// The product of the global phases of one batch element.
std::complex<double> global_phase(const Tile& tile, const Batch& batch, std::ptrdiff_t element) {
    double phase = 0;
    const double* angles = batch.angles + element / batch.repeat * tile.program.angles();
    for (const BlockRotation& rotation : tile.plan.phases) {
        const double angle = rotation.slot < 0 ? 0 : rotation.coefficient * angles[rotation.slot];
        phase -= 0.5 * (angle + rotation.offset);
    }
    return std::polar(1.0, phase);
}

/// The Clifford that the sweep left out; its rotations are constants.
void apply_tail(const Tile& tile, double* state) {
    for (const Step& step : tile.plan.tail) {
        const Geometry where = geometry(step, tile.layout);
        Mix m;
        if (step.kind == Step::Kind::flip) {
            m = flip(where, step);
        } else {
            Vec q[4] = {splat(1), Vec{}, Vec{}, Vec{}};
            for (int i = step.first; i < step.first + step.count; ++i) {
                const BlockRotation& rotation = tile.plan.rotations[static_cast<std::size_t>(i)];
                const double s = std::sin(0.5 * rotation.offset);
                const double c = std::cos(0.5 * rotation.offset);
                const int a = rotation.axis, b = a % 3 + 1, d = b % 3 + 1;
                const Vec q0 = c * q[0] - s * q[a], qa = c * q[a] + s * q[0];
                const Vec qb = c * q[b] - s * q[d], qd = c * q[d] + s * q[b];
                q[0] = q0, q[a] = qa, q[b] = qb, q[d] = qd;
            }
            m = unitary(where, q);
        }
        mix(where, flavor(step), m, state, 0, where.count);
    }
}

}  // namespace

void store_outputs(const Tile& tile, double* values) {
    const auto outputs = tile.program.outputs();
    for (int sample = 0; sample < tile.samples; ++sample) {
        const int lane = sample << tile.layout.lane_bits;
        double* row = values + static_cast<std::size_t>(tile.first + sample) * outputs.size();
        for (std::size_t m = 0; m < outputs.size(); ++m) {
            row[m] = tile.moments()[outputs[m].moment][lane];
            if (outputs[m].square >= 0) {
                const double mean = tile.moments()[outputs[m].square][lane];
                row[m] -= mean * mean;
            }
        }
    }
}

std::size_t kept_doubles(const Program& program, std::ptrdiff_t size) {
    const Layout layout = choose_layout(program, size);
    const auto tiles = static_cast<std::size_t>((size + layout.samples() - 1) / layout.samples());
    return tiles * layout.rows() * row_doubles;
}

void expval(const Program& program, const Batch& batch, double* values, double* kept) {
    for_tiles(program, batch, kept == nullptr ? 1 : 0, [&](Tile& tile) {
        double* ket = kept == nullptr ? tile.state(0) : tile.kept_state(kept);
        tile.load_initial(ket);
        tile.run_forward(ket);
        measure(program, tile.layout, ket, tile.moments(), tile.scratch());
        store_outputs(tile, values);
    });
}

void state(const Program& program, const Batch& batch, std::complex<double>* states) {
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    for_tiles(program, batch, 1, [&](Tile& tile) {
        tile.load_initial(tile.state(0));
        tile.run_forward(tile.state(0));
        apply_tail(tile, tile.state(0));
        Vec re{}, im{};
        for (int l = 0; l < lanes; ++l) {
            const std::complex<double> phase = global_phase(tile, batch, tile.element(l));
            re[l] = phase.real();
            im[l] = phase.imag();
        }
        store_states(tile.layout, tile.state(0), re, im,
                     states + static_cast<std::size_t>(tile.first) * amplitudes, tile.samples);
    });
}

}  // namespace fubini
