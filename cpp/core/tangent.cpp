// SPDX-License-Identifier: Apache-2.0
#include "core/tangent.hpp"

#include <algorithm>

#include "core/observable.hpp"

namespace fubini {
namespace {

/// w with d U U^dagger = -(i/2) w.Q for the block, from the tangents of its rotations (first one first).
void block_tangent(const Tile& tile, const Step& step, Vec w[4]) {
    for (int i = step.first; i < step.first + step.count; ++i) {
        const BlockRotation& rotation = tile.plan.rotations[static_cast<std::size_t>(i)];
        const int a = rotation.axis, b = a % 3 + 1, c = b % 3 + 1;
        if (i > step.first) {
            const Vec half_sine = tile.half_angle(i)[0];
            const Vec half_cosine = tile.half_angle(i)[1];
            const Vec sine = 2.0 * half_sine * half_cosine;
            const Vec cosine = half_cosine * half_cosine - half_sine * half_sine;
            const Vec after_b = cosine * w[b] - sine * w[c];
            w[c] = cosine * w[c] + sine * w[b];
            w[b] = after_b;
        }
        if (rotation.slot >= 0) w[a] += rotation.coefficient * tile.slots()[rotation.slot];
    }
}

/// out += 2 Re <bra|ket> for every sample, in rows order.
Vec twice_real_overlap(const Layout& layout, const double* bra, const double* ket) {
    Vec sum{};
    for (std::size_t r = 0; r < layout.rows(); ++r) {
        const std::size_t at = r * row_doubles;
        sum += vec(bra + at) * vec(ket + at) + vec(bra + at + lanes) * vec(ket + at + lanes);
    }
    return 2.0 * sum;
}

double over_sample(const Vec& v, const Layout& layout, int sample) {
    double sum = 0;
    const int width = 1 << layout.lane_bits;
    for (int low = 0; low < width; ++low) sum += v[sample * width + low];
    return sum;
}

}  // namespace

void jvp(const Program& program, const Batch& batch, const double* tangents,
         const std::complex<double>* state_tangents, double* out) {
    const auto angles = static_cast<std::size_t>(program.angles());
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    const auto outputs = program.outputs();
    bool squares = false;
    for (const Output& output : outputs) squares = squares || output.square >= 0;
    for_tiles(program, batch, 3, [&](Tile& tile) {
        double* ket = tile.state(0);
        double* tangent = tile.state(1);
        double* bra = tile.state(2);
        tile.load_initial(ket);
        if (state_tangents != nullptr) {
            load_states(tile.layout, state_tangents + static_cast<std::size_t>(tile.first) * amplitudes, amplitudes,
                        tile.samples, tangent);
        } else {
            std::fill_n(tangent, tile.layout.rows() * row_doubles, 0.0);
        }
        for (std::size_t a = 0; a < angles; ++a) {
            for (int l = 0; l < lanes; ++l) {
                tile.slots()[a][l] = tangents[static_cast<std::size_t>(tile.element(l)) * angles + a];
            }
        }
        for (std::size_t s = 0; s < tile.plan.steps.size(); ++s) {
            tile.checkpoint(s);
            const Step& step = tile.plan.steps[s];
            tile.apply(s, ket);
            tile.apply(s, tangent);
            if (step.kind != Step::Kind::block) continue;
            Vec w[4] = {};
            block_tangent(tile, step, w);
            for (Vec& component : w) component *= 0.5;
            const Geometry& where = tile.geometry(s);
            const Mix m = generator(where, w);
            tile.over_rows(where.count, [&](std::size_t begin, std::size_t end) {
                mix_add(where, m, ket, tangent, begin, end);
            });
        }
        // One pass per moment: the weights pick it out.
        if (squares) measure(program, tile.layout, ket, tile.moments(), tile.scratch());
        const auto slope = [&](int moment) {
            std::fill_n(tile.weights(), program.moments(), Vec{});
            tile.weights()[moment] = splat(1);
            apply_observables(program, tile.layout, tile.weights(), ket, bra, tile.scratch());
            return twice_real_overlap(tile.layout, bra, tangent);
        };
        for (std::size_t m = 0; m < outputs.size(); ++m) {
            const Vec first = slope(outputs[m].moment);
            const Vec second = outputs[m].square >= 0 ? slope(outputs[m].square) : Vec{};
            for (int sample = 0; sample < tile.samples; ++sample) {
                double value = over_sample(first, tile.layout, sample);
                if (outputs[m].square >= 0) {
                    const double mean = tile.moments()[outputs[m].square][sample << tile.layout.lane_bits];
                    value -= 2 * mean * over_sample(second, tile.layout, sample);
                }
                out[static_cast<std::size_t>(tile.first + sample) * outputs.size() + m] = value;
            }
        }
    });
}

}  // namespace fubini
