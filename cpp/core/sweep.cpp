// SPDX-License-Identifier: Apache-2.0
#include "core/sweep.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <utility>

#include "core/memory.hpp"
#include "core/observable.hpp"
#include "core/parallel.hpp"
#include "core/workspace.hpp"

namespace fubini {
namespace {

constexpr double cache_bytes = 1 << 20;  // two states of a tile should stay in this

thread_local Workspace tile_workspace;  // of the thread that works on a tile
thread_local Workspace call_workspace;  // of the thread that makes the call

std::size_t rounded(std::size_t doubles) { return (doubles + lanes - 1) / lanes * lanes; }

/// Where the parts of a tile's workspace begin.
struct Sizes {
    std::size_t state, moments, slots, quaternions, trig, scratch;

    Sizes(const Program& program, const Layout& layout) {
        std::size_t widest = 0;
        for (const Operation& operation : program.operations()) {
            if (operation.kind == Operation::Kind::matrix) widest = std::max(widest, operation.qubits.size());
        }
        state = layout.rows() * row_doubles;
        moments = static_cast<std::size_t>(program.moments()) * lanes;
        slots = static_cast<std::size_t>(program.angles()) * lanes;
        quaternions = program.plan().steps.size() * 4 * lanes;
        trig = program.plan().rotations.size() * 2 * lanes;
        scratch = std::max({observable_scratch(program, layout), row_doubles << widest,
                            3 * lanes * (layout.rows() / row_chunk + 1)});
    }
    [[nodiscard]] std::size_t total(int copies) const {
        return static_cast<std::size_t>(copies) * state + 2 * (moments + slots) + quaternions + trig +
               scratch;
    }
};

std::size_t geometry_doubles(std::size_t steps) {
    return rounded((steps * sizeof(Geometry) + sizeof(double) - 1) / sizeof(double));
}

}  // namespace

/// Few lanes of amplitudes for a small batch, so that lanes are not wasted; all lanes for a state that would
/// not stay in the cache eightfold.
Layout choose_layout(const Program& program, std::ptrdiff_t size, int least_lane_bits) {
    int lane_bits = std::max(size >= 5 ? 0 : size >= 3 ? 1 : size == 2 ? 2 : 3, least_lane_bits);
    const double pair = std::ldexp(2.0 * sizeof(double) * 2, program.qubits());
    while (lane_bits < max_lane_bits && pair * (lanes >> lane_bits) > cache_bytes * 2) ++lane_bits;
    return {program.qubits(), std::min(lane_bits, program.qubits())};
}

double sweep_bytes(const Program& program, std::ptrdiff_t size, int copies) {
    const Layout layout = choose_layout(program, size);
    const std::ptrdiff_t tiles = (size + layout.samples() - 1) / layout.samples();
    const bool by_rows = layout.rows() >= 2 * row_chunk && tiles < num_threads();
    const auto busy = static_cast<double>(by_rows ? 1 : std::min<std::ptrdiff_t>(tiles, num_threads()));
    return busy * static_cast<double>(Sizes(program, layout).total(copies) * sizeof(double));
}

/// Prepares the coefficients of tiles, one after the other, in a thread's workspace.
class TileRunner {
  public:
    TileRunner(const Program& program, const Layout& layout, const Batch& batch, const Geometry* geometries,
               const unsigned char* varies, int copies, bool by_rows, std::atomic<bool>& stop,
               std::thread::id owner)
        : tile_(program, layout), varies_(varies) {
        const Sizes sizes(program, layout);
        double* p = tile_workspace.reserve(sizes.total(copies));
        const auto take = [&](std::size_t doubles) { return std::exchange(p, p + doubles); };
        tile_.batch_ = &batch;
        tile_.geometries_ = geometries;
        tile_.state_doubles_ = sizes.state;
        tile_.states_ = take(sizes.state * static_cast<std::size_t>(copies));
        tile_.moments_ = &vec(take(sizes.moments));
        tile_.weights_ = &vec(take(sizes.moments));
        tile_.slots_ = &vec(take(2 * sizes.slots));
        tile_.quaternions_ = &vec(take(sizes.quaternions));
        tile_.trig_ = &vec(take(sizes.trig));
        tile_.scratch_ = take(sizes.scratch);
        tile_.by_rows_ = by_rows;
        tile_.stop_ = &stop;
        tile_.owner_ = owner;
        prepare_constant();
    }

    Tile& tile(std::ptrdiff_t index) {
        const int capacity = tile_.layout.samples();
        tile_.first = index * capacity;
        tile_.samples =
            static_cast<int>(std::min<std::ptrdiff_t>(capacity, tile_.batch_->size - tile_.first));
        for (std::size_t i = 0; i < tile_.plan.rotations.size(); ++i) {
            const BlockRotation& rotation = tile_.plan.rotations[i];
            if (varying(rotation)) set_angle(i, angle(rotation));
        }
        for (std::size_t s = 0; s < tile_.plan.steps.size(); ++s) {
            const Step& step = tile_.plan.steps[s];
            if (varying(step)) set_quaternion(s, step);
        }
        return tile_;
    }

  private:
    [[nodiscard]] bool varying(const BlockRotation& rotation) const {
        return rotation.slot >= 0 && varies_[rotation.slot] != 0;
    }
    [[nodiscard]] bool varying(const Step& step) const {
        for (int i = step.first; i < step.first + step.count; ++i) {
            if (varying(tile_.plan.rotations[static_cast<std::size_t>(i)])) return true;
        }
        return false;
    }

    /// What is the same for the whole batch: sines are computed eight rotations at a time.
    void prepare_constant() {
        const std::size_t count = tile_.plan.rotations.size();
        std::size_t pending[lanes];
        Vec half{};
        int filled = 0;
        const auto flush = [&] {
            Vec sine, cosine;
            sincos(half, sine, cosine);
            for (int l = 0; l < filled; ++l) {
                tile_.trig_[2 * pending[l]] = splat(sine[l]);
                tile_.trig_[2 * pending[l] + 1] = splat(cosine[l]);
            }
            filled = 0;
        };
        for (std::size_t i = 0; i < count; ++i) {
            const BlockRotation& rotation = tile_.plan.rotations[i];
            if (varying(rotation)) continue;
            const double value = rotation.slot < 0 ? 0 : tile_.batch_->angles[rotation.slot];
            pending[filled] = i;
            half[filled++] = 0.5 * (rotation.coefficient * value + rotation.offset);
            if (filled == lanes) flush();
        }
        if (filled > 0) flush();
        for (std::size_t s = 0; s < tile_.plan.steps.size(); ++s) {
            const Step& step = tile_.plan.steps[s];
            if (!varying(step)) set_quaternion(s, step);
        }
    }

    [[nodiscard]] Vec angle(const BlockRotation& rotation) const {
        Vec value;
        for (int l = 0; l < lanes; ++l) {
            const std::ptrdiff_t row = tile_.element(l) / tile_.batch_->repeat;
            value[l] = tile_.batch_->angles[row * tile_.program.angles() + rotation.slot];
        }
        return rotation.coefficient * value + rotation.offset;
    }

    void set_angle(std::size_t i, const Vec& angle) const {
        sincos(0.5 * angle, tile_.trig_[2 * i], tile_.trig_[2 * i + 1]);
    }

    void set_quaternion(std::size_t s, const Step& step) const {
        Vec q[4] = {splat(1), Vec{}, Vec{}, Vec{}};
        for (int i = step.first; i < step.first + step.count; ++i) {
            const int a = tile_.plan.rotations[static_cast<std::size_t>(i)].axis;
            const int b = a % 3 + 1;
            const int c = b % 3 + 1;
            const Vec sine = tile_.half_angle(i)[0];
            const Vec cosine = tile_.half_angle(i)[1];
            // (cosine - i sine Q_a)(q0 - i q.Q), with Q_a Q_b = i Q_c
            const Vec q0 = cosine * q[0] - sine * q[a];
            const Vec qa = cosine * q[a] + sine * q[0];
            const Vec qb = cosine * q[b] - sine * q[c];
            const Vec qc = cosine * q[c] + sine * q[b];
            q[0] = q0;
            q[a] = qa;
            q[b] = qb;
            q[c] = qc;
        }
        std::copy_n(q, 4, tile_.quaternions_ + 4 * s);
    }

    Tile tile_;
    const unsigned char* varies_;
};

std::ptrdiff_t Tile::element(int lane) const {
    return first + std::min(lane >> layout.lane_bits, samples - 1);
}

void Tile::load_initial(double* target) const {
    if (!program.takes_state()) {
        set_zero_state(layout, target);
        return;
    }
    const std::size_t amplitudes = std::size_t{1} << layout.qubits;
    if (batch_->repeat == 1 || batch_->shared_state) {
        const std::size_t stride = batch_->shared_state ? 0 : amplitudes;
        load_states(layout, batch_->states + static_cast<std::size_t>(first) * stride, stride, samples,
                    target);
        return;
    }
    // Repeated elements: gather them lane by lane.
    std::fill_n(target, layout.rows() * row_doubles, 0.0);
    for (int l = 0; l < samples << layout.lane_bits; ++l) {
        const std::complex<double>* from =
            batch_->states + static_cast<std::size_t>(element(l) / batch_->repeat) * amplitudes;
        const std::size_t low = static_cast<std::size_t>(l) & layout.lane_mask();
        for (std::size_t r = 0; r < layout.rows(); ++r) {
            const std::complex<double> value = from[(r << layout.lane_bits) | low];
            target[r * row_doubles + static_cast<std::size_t>(l)] = value.real();
            target[r * row_doubles + lanes + static_cast<std::size_t>(l)] = value.imag();
        }
    }
}

void Tile::share_rows(std::size_t count, std::size_t grain,
                      const std::function<void(std::size_t, std::size_t)>& body) {
    const auto part = [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        body(static_cast<std::size_t>(begin), static_cast<std::size_t>(end));
    };
    parallel_for(static_cast<std::ptrdiff_t>(count), static_cast<std::ptrdiff_t>(grain), part);
}

void Tile::checkpoint(std::size_t step) const {
    // Small tiles finish in microseconds: there the clock is looked at once per tile.
    if (step + 1 != plan.steps.size() && layout.rows() < row_chunk) return;
    if (stop_->load(std::memory_order_relaxed)) throw Interrupted();
    if (batch_->poll && std::this_thread::get_id() == owner_ && batch_->poll()) {
        stop_->store(true);
        throw Interrupted();
    }
}

void Tile::apply(std::size_t s, double* target) const {
    const Step& step = plan.steps[s];
    const Geometry& where = geometry(s);
    if (step.kind == Step::Kind::block) {
        const Mix m = unitary(where, quaternion(s));
        const Flavor kind = flavor(step);
        over_rows(where.count,
                  [&](std::size_t begin, std::size_t end) { mix(where, kind, m, target, begin, end); });
    } else if (step.kind == Step::Kind::flip) {
        undo_constant(s, target);
    } else {
        const Operation& operation = program.operations()[static_cast<std::size_t>(step.operation)];
        if (step.kind == Step::Kind::matrix) {
            apply_matrix(layout, program.constant(operation), operation.qubits, step.fixed, step.value, false,
                         target, scratch());
        } else {
            apply_diagonal(layout, program.constant(operation), operation.qubits, step.fixed, step.value,
                           false, target);
        }
    }
}

void Tile::undo_constant(std::size_t s, double* target) const {
    const Step& step = plan.steps[s];
    if (step.kind == Step::Kind::flip) {
        const Geometry& where = geometry(s);
        const Mix m = flip(where, step);
        const Flavor kind = flavor(step);
        over_rows(where.count,
                  [&](std::size_t begin, std::size_t end) { mix(where, kind, m, target, begin, end); });
        return;
    }
    const Operation& operation = program.operations()[static_cast<std::size_t>(step.operation)];
    if (step.kind == Step::Kind::matrix) {
        apply_matrix(layout, program.constant(operation), operation.qubits, step.fixed, step.value, true,
                     target, scratch());
    } else {
        apply_diagonal(layout, program.constant(operation), operation.qubits, step.fixed, step.value, true,
                       target);
    }
}

void Tile::run_forward(double* target) const {
    for (std::size_t s = 0; s < plan.steps.size(); ++s) {
        checkpoint(s);
        apply(s, target);
    }
}

void for_tiles(const Program& program, const Batch& batch, int copies,
               const std::function<void(Tile&)>& body) {
    if (batch.size <= 0) return;
    const double bytes = sweep_bytes(program, batch.size, copies);
    if (bytes > memory_limit()) {
        throw MemoryLimit("the sweep would take " + std::to_string(bytes / 1e9) + " GB of memory for " +
                          std::to_string(program.qubits()) + " qubits, and may take " +
                          std::to_string(memory_limit() / 1e9) + " GB; use fewer qubits or fewer threads");
    }
    const Layout layout = choose_layout(program, batch.size, batch.lane_bits);
    const Plan& plan = program.plan();
    const auto angles = static_cast<std::size_t>(program.angles());
    double* call = call_workspace.reserve(geometry_doubles(plan.steps.size()) + rounded(angles / 8 + 1));
    auto* geometries = reinterpret_cast<Geometry*>(call);
    for (std::size_t s = 0; s < plan.steps.size(); ++s)
        new (geometries + s) Geometry(geometry(plan.steps[s], layout));
    // Angles that all elements share (weights, as a rule) need their sine and cosine only once.
    auto* varies = reinterpret_cast<unsigned char*>(call + geometry_doubles(plan.steps.size()));
    std::fill_n(varies, angles, static_cast<unsigned char>(0));
    for (std::ptrdiff_t b = 1; b < (batch.size + batch.repeat - 1) / batch.repeat; ++b) {
        const double* row = batch.angles + static_cast<std::size_t>(b) * angles;
        for (std::size_t a = 0; a < angles; ++a) {
            varies[a] = static_cast<unsigned char>(varies[a] | (row[a] == batch.angles[a] ? 0 : 1));
        }
    }
    std::atomic<bool> stop{false};
    const std::thread::id owner = std::this_thread::get_id();
    const std::ptrdiff_t tiles = (batch.size + layout.samples() - 1) / layout.samples();
    const bool by_rows = layout.rows() >= 2 * row_chunk && tiles < num_threads();
    const auto work = [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        const ReleaseAfter guard(tile_workspace);
        TileRunner runner(program, layout, batch, geometries, varies, copies, by_rows, stop, owner);
        for (std::ptrdiff_t i = begin; i < end; ++i) body(runner.tile(i));
    };
    if (by_rows) {
        work(0, tiles);
    } else {
        // Handing work to another thread takes about as long as some thousand block rows.
        const double work_per_tile =
            static_cast<double>(plan.steps.size()) * static_cast<double>(layout.rows());
        const auto grain = static_cast<std::ptrdiff_t>(std::ceil(5e3 / std::max(work_per_tile, 1.0)));
        parallel_for(tiles, grain, work);
    }
}

}  // namespace fubini
