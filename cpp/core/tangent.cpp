// SPDX-License-Identifier: Apache-2.0
#include "core/tangent.hpp"

#include <algorithm>

#include "core/adjoint.hpp"
#include "core/observable.hpp"
#include "core/tangent_tile.hpp"

namespace fubini {

void block_tangent(const Tile& tile, const Step& step, Vec w[4]) {
    for (int i = step.first; i < step.first + step.count; ++i) {
        const BlockRotation& rotation = tile.plan.rotations[static_cast<std::size_t>(i)];
        const int a = rotation.axis, b = a % 3 + 1, c = b % 3 + 1;
        if (i > step.first) {
            const Vec sine = tile.sine(i), cosine = tile.cosine(i);
            const Vec after_b = cosine * w[b] - sine * w[c];
            w[c] = cosine * w[c] + sine * w[b];
            w[b] = after_b;
        }
        if (rotation.slot >= 0) w[a] += rotation.coefficient * tile.slots()[rotation.slot];
    }
}

void load_slots(const Tile& tile, const double* tangents) {
    const auto angles = static_cast<std::size_t>(tile.program.angles());
    for (std::size_t a = 0; a < angles; ++a) {
        for (int l = 0; l < lanes; ++l) {
            tile.slots()[a][l] = tangents[static_cast<std::size_t>(tile.element(l)) * angles + a];
        }
    }
}

void run_forward(const Tile& tile, double* ket, double* tangent) {
    for (std::size_t s = 0; s < tile.plan.steps.size(); ++s) {
        tile.checkpoint(s);
        const Step& step = tile.plan.steps[s];
        if (step.kind != Step::Kind::block) {
            tile.apply(s, ket);
            tile.apply(s, tangent);
            continue;
        }
        Vec w[4] = {};
        block_tangent(tile, step, w);
        for (Vec& component : w) component *= 0.5;
        const Geometry& where = tile.geometry(s);
        const Mix m = unitary(where, tile.quaternion(s));
        const Mix d = generator(where, w);
        const Flavor kind = flavor(step);
        tile.over_rows(where.count, [&](std::size_t begin, std::size_t end) {
            mix_tangent(where, kind, m, d, ket, tangent, begin, end);
        });
    }
}

void run_along(const Tile& tile, const double* tangents, double* ket, double* tangent) {
    tile.load_initial(ket);
    std::fill_n(tangent, tile.layout.rows() * row_doubles, 0.0);
    load_slots(tile, tangents);
    run_forward(tile, ket, tangent);
}

double over_sample(const Vec& v, const Layout& layout, int sample) {
    double sum = 0;
    const int width = 1 << layout.lane_bits;
    for (int low = 0; low < width; ++low) sum += v[sample * width + low];
    return sum;
}

namespace {

/// out += 2 Re <bra|ket> for every sample, in rows order.
Vec twice_real_overlap(const Layout& layout, const double* bra, const double* ket) {
    Vec sum{};
    for (std::size_t r = 0; r < layout.rows(); ++r) {
        const std::size_t at = r * row_doubles;
        sum += vec(bra + at) * vec(ket + at) + vec(bra + at + lanes) * vec(ket + at + lanes);
    }
    return 2.0 * sum;
}

/// The derivative of one moment in every lane's sample; `bra` is scratch.
Vec moment_slope(const Tile& tile, int moment, const double* ket, const double* tangent, double* bra) {
    std::fill_n(tile.weights(), tile.program.moments(), Vec{});
    tile.weights()[moment] = splat(1);
    apply_observables(tile.program, tile.layout, tile.weights(), ket, bra, tile.scratch());
    return twice_real_overlap(tile.layout, bra, tangent);
}

}  // namespace

void jvp(const Program& program, const Batch& batch, const double* tangents,
         const std::complex<double>* state_tangents, double* out) {
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    const auto outputs = program.outputs();
    const bool squares = has_variances(program);
    for_tiles(program, batch, 3, [&](Tile& tile) {
        double* ket = tile.state(0);
        double* tangent = tile.state(1);
        double* bra = tile.state(2);
        tile.load_initial(ket);
        if (state_tangents != nullptr) {
            load_states(tile.layout, state_tangents + static_cast<std::size_t>(tile.first) * amplitudes,
                        amplitudes, tile.samples, tangent);
        } else {
            std::fill_n(tangent, tile.layout.rows() * row_doubles, 0.0);
        }
        load_slots(tile, tangents);
        run_forward(tile, ket, tangent);
        // One pass per moment: the weights pick it out.
        if (squares) measure(program, tile.layout, ket, tile.moments(), tile.scratch());
        const auto slope = [&](int moment) { return moment_slope(tile, moment, ket, tangent, bra); };
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

namespace {

/// One block of the second-order reverse sweep: overlaps and their derivatives after the block, then all four
/// states before it. d<b|Q|k> = <db|Q|k> + <b|Q|dk>.
void step_back_twice(const Tile& tile, std::size_t s, double* const states[4], const Vec w[4], Vec overlap[4],
                     Vec slope[4]) {
    double *ket = states[0], *ket_tangent = states[1], *bra = states[2], *bra_tangent = states[3];
    const Geometry& where = tile.geometry(s);
    const Flavor kind = flavor(tile.plan.steps[s]);
    const Vec one[4] = {splat(1), Vec{}, Vec{}, Vec{}};
    const Mix identity = unitary(where, one);
    overlap_mix(where, kind, identity, ket, bra, overlap, 0, where.count);
    overlap_mix(where, kind, identity, ket, bra_tangent, slope, 0, where.count);
    overlap_mix(where, kind, identity, ket_tangent, bra, slope, 0, where.count);
    // phi = U phi_before, so d phi = U d phi_before - (i/2) w.Q phi for both states.
    const Vec back[4] = {Vec{}, -0.5 * w[1], -0.5 * w[2], -0.5 * w[3]};
    const Mix m = generator(where, back);
    mix_add(where, m, ket, ket_tangent, 0, where.count);
    mix_add(where, m, bra, bra_tangent, 0, where.count);
    const Mix undo = inverse(where, tile.quaternion(s));
    for (int i = 0; i < 4; ++i) mix(where, kind, undo, states[i], 0, where.count);
}

/// The recursion of the gradients inside a block, and its derivative. Tangents of the angles are in
/// tile.slots(), the result is added to `result`.
void add_slopes(const Tile& tile, const Step& step, Vec overlap[4], Vec slope[4], Vec* result) {
    for (int i = step.first + step.count - 1; i >= step.first; --i) {
        const BlockRotation& rotation = tile.plan.rotations[static_cast<std::size_t>(i)];
        const int a = rotation.axis, b = a % 3 + 1, c = b % 3 + 1;
        if (rotation.slot >= 0) result[rotation.slot] += rotation.coefficient * slope[a];
        const Vec sine = tile.sine(i), cosine = tile.cosine(i);
        const Vec speed = rotation.slot < 0 ? Vec{} : rotation.coefficient * tile.slots()[rotation.slot];
        const Vec before_b = cosine * overlap[b] + sine * overlap[c];
        const Vec before_c = cosine * overlap[c] - sine * overlap[b];
        const Vec slope_b = cosine * slope[b] + sine * slope[c] + speed * before_c;
        slope[c] = cosine * slope[c] - sine * slope[b] - speed * before_b;
        slope[b] = slope_b;
        overlap[b] = before_b;
        overlap[c] = before_c;
    }
}

/// tile.weights() <- derivative of the moments' weights; only variances have one. `scratch_state` is
/// overwritten.
bool set_weight_slopes(const Tile& tile, const double* cotangents, const double* ket, const double* tangent,
                       double* scratch_state) {
    const auto outputs = tile.program.outputs();
    bool any = false;
    std::fill_n(tile.moments(), tile.program.moments(), Vec{});
    for (std::size_t m = 0; m < outputs.size(); ++m) {
        if (outputs[m].square < 0) continue;
        any = true;
        const Vec lane_slope = moment_slope(tile, outputs[m].square, ket, tangent, scratch_state);
        for (int sample = 0; sample < tile.samples; ++sample) {
            const double slope = over_sample(lane_slope, tile.layout, sample);
            const double c = cotangents[static_cast<std::size_t>(tile.first + sample) * outputs.size() + m];
            const int width = 1 << tile.layout.lane_bits;
            for (int l = sample * width; l < (sample + 1) * width; ++l) {
                tile.moments()[outputs[m].square][l] -= 2 * c * slope;
            }
        }
    }
    std::copy_n(tile.moments(), tile.program.moments(), tile.weights());
    return any;
}

}  // namespace

void run_back_twice(const Tile& tile, double* const states[4]) {
    const auto angles = static_cast<std::size_t>(tile.program.angles());
    Vec* result = tile.more_slots();
    std::fill_n(result, angles, Vec{});
    for (std::size_t s = tile.plan.steps.size(); s-- > 0;) {
        tile.checkpoint(s);
        const Step& step = tile.plan.steps[s];
        if (step.kind != Step::Kind::block) {
            for (int i = 0; i < 4; ++i) tile.undo_constant(s, states[i]);
            continue;
        }
        Vec w[4] = {}, overlap[4] = {}, slope[4] = {};
        block_tangent(tile, step, w);
        step_back_twice(tile, s, states, w, overlap, slope);
        add_slopes(tile, step, overlap, slope, result);
    }
    std::copy_n(result, angles, tile.slots());
}

void hessian_product(const Program& program, const Batch& batch, const double* cotangents,
                     const double* tangents, double* out) {
    for_tiles(program, batch, 5, [&](Tile& tile) {
        double* const states[4] = {tile.state(0), tile.state(1), tile.state(2), tile.state(3)};
        double *ket = states[0], *ket_tangent = states[1], *bra = states[2], *bra_tangent = states[3];
        double* spare = tile.state(4);
        const std::size_t doubles = tile.layout.rows() * row_doubles;
        run_along(tile, tangents, ket, ket_tangent);
        measure(program, tile.layout, ket, tile.moments(), tile.scratch());
        set_weights(tile, cotangents);
        apply_observables(program, tile.layout, tile.weights(), ket, bra, tile.scratch());
        apply_observables(program, tile.layout, tile.weights(), ket_tangent, bra_tangent, tile.scratch());
        if (set_weight_slopes(tile, cotangents, ket, ket_tangent, spare)) {
            apply_observables(program, tile.layout, tile.weights(), ket, spare, tile.scratch());
            for (std::size_t i = 0; i < doubles; ++i) bra_tangent[i] += spare[i];
        }
        run_back_twice(tile, states);
        store_slots(tile, out);
    });
}

}  // namespace fubini
