// SPDX-License-Identifier: Apache-2.0
#include "core/metric_panel.hpp"

#include <algorithm>
#include <cstring>

#include "core/parallel.hpp"
#include "core/tangent.hpp"

namespace fubini {

Schedule::Schedule(const Program& program, std::span<const int> angles) {
    const Plan& plan = program.plan();
    std::vector<std::vector<int>> steps_of(static_cast<std::size_t>(program.angles()));
    for (std::size_t s = 0; s < plan.steps.size(); ++s) {
        const Step& step = plan.steps[s];
        for (int i = step.first; i < step.first + step.count; ++i) {
            const BlockRotation& rotation = plan.rotations[static_cast<std::size_t>(i)];
            if (rotation.slot < 0 || rotation.coefficient == 0) continue;
            std::vector<int>& steps = steps_of[static_cast<std::size_t>(rotation.slot)];
            if (steps.empty() || steps.back() != static_cast<int>(s)) steps.push_back(static_cast<int>(s));
        }
    }
    const auto of = [&](int p) -> const std::vector<int>& {
        return steps_of[static_cast<std::size_t>(angles[static_cast<std::size_t>(p)])];
    };
    std::vector<int> all;
    for (int p = 0; p < static_cast<int>(angles.size()); ++p) {
        if (of(p).empty()) continue;  // the state does not depend on it: its row stays 0
        position.push_back(p);
        all.insert(all.end(), of(p).begin(), of(p).end());
    }
    if (position.empty()) return;
    std::stable_sort(position.begin(), position.end(),
                     [&](int a, int b) { return of(a).front() < of(b).front(); });
    for (const int p : position) slot.push_back(angles[static_cast<std::size_t>(p)]);
    // The median makes the ways to the middle shortest. Steps skip amplitudes in which qubits that are
    // still |0> are 1; tangents that are pulled back may have such amplitudes, so they stop where no
    // further qubit is reached.
    std::nth_element(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(all.size() / 2), all.end());
    middle = all[all.size() / 2];
    const Mask idle = plan.steps.back().idle;
    while (plan.steps[static_cast<std::size_t>(middle)].idle != idle) ++middle;
    for (std::size_t first = 0; first < position.size(); first += lanes) {
        Group group;
        for (std::size_t i = first; i < std::min(position.size(), first + lanes); ++i) {
            for (const int s : of(position[i])) (s < middle ? group.early : group.late).push_back(s);
        }
        for (std::vector<int>* steps : {&group.early, &group.late}) {
            std::sort(steps->begin(), steps->end());
            steps->erase(std::unique(steps->begin(), steps->end()), steps->end());
        }
        groups.push_back(std::move(group));
    }
}

namespace {

/// A state and the number of steps it has taken. The way to a step is always the same (forward from the
/// start, or back from the end), so that its bits do not depend on what was asked before.
class Walker {
  public:
    Walker(const Tile& tile, double* state) : tile_(tile), state_(state) { restart(); }

    void restart() {
        tile_.load_initial(state_);
        at_ = 0;
    }
    [[nodiscard]] int at() const { return at_; }
    void forward(int to) {
        for (; at_ < to; ++at_) step_forward(tile_, at_, state_);
    }
    void back(int to) {
        for (; at_ > to; --at_) step_back(tile_, at_ - 1, state_);
    }

    static void step_forward(const Tile& tile, int s, double* state) {
        tile.checkpoint(static_cast<std::size_t>(s));
        tile.apply(static_cast<std::size_t>(s), state);
    }
    static void step_back(const Tile& tile, int index, double* state) {
        const auto s = static_cast<std::size_t>(index);
        tile.checkpoint(s);
        const Step& step = tile.plan.steps[s];
        if (step.kind != Step::Kind::block) {
            tile.undo_constant(s, state);
            return;
        }
        const Geometry& where = tile.geometry(s);
        const Mix m = inverse(where, tile.quaternion(s));
        const Flavor kind = flavor(step);
        tile.over_rows(where.count,
                       [&](std::size_t begin, std::size_t end) { mix(where, kind, m, state, begin, end); });
    }

  private:
    const Tile& tile_;
    double* state_;
    int at_ = 0;
};

/// tangent += the derivative that the block makes along tile.slots(), after the block.
void create(const Tile& tile, int index, const double* ket, double* tangent) {
    const auto s = static_cast<std::size_t>(index);
    Vec w[4] = {};
    block_tangent(tile, tile.plan.steps[s], w);
    for (Vec& component : w) component *= 0.5;
    const Geometry& where = tile.geometry(s);
    const Mix m = generator(where, w);
    tile.over_rows(where.count,
                   [&](std::size_t begin, std::size_t end) { mix_add(where, m, ket, tangent, begin, end); });
}

/// Writes or adds the tangents in the lanes of a tile to a panel's tile, from tangent `offset` on.
void store(const Layout& layout, const double* tangent, bool add, int offset, double* to) {
    const std::size_t doubles = layout.rows() * row_doubles;
    if (layout.lane_bits == 0 && !add) {
        std::memcpy(to, tangent, doubles * sizeof(double));
        return;
    }
    for (std::size_t r = 0; r < layout.rows(); ++r) {
        const double* row = tangent + r * row_doubles;
        for (int l = 0; l < lanes; ++l) {
            const std::size_t amplitude =
                (r << layout.lane_bits) | (static_cast<std::size_t>(l) & layout.lane_mask());
            double* at = to + amplitude * amplitude_doubles + offset + (l >> layout.lane_bits);
            at[0] = row[l] + (add ? at[0] : 0);
            at[lanes] = row[lanes + l] + (add ? at[lanes] : 0);
        }
    }
}

/// One tile of the sweep: consecutive units of one batch element. A unit is as many tangents as the layout
/// has samples.
class Filler {
  public:
    Filler(const Tile& tile, const Schedule& schedule, const Panel& panel, std::size_t element)
        : tile_(tile), schedule_(schedule), panel_(panel), element_(element), ket_(tile, tile.state(0)) {
        std::fill_n(tile.slots(), tile.program.angles(), Vec{});
    }

    void run(std::size_t begin, std::size_t end, std::complex<double>* psi) {
        for (std::size_t unit = begin; unit < end; ++unit) {
            const std::vector<int>& steps = group(unit).early;
            if (steps.empty()) continue;
            if (ket_.at() > steps.front() + 1) ket_.restart();
            start(unit);
            int at = 0;
            for (const int s : steps) {
                if (s != steps.front()) advance(at, s + 1);
                at = s + 1;
                ket_.forward(at);
                create(tile_, s, tile_.state(0), tile_.state(1));
            }
            advance(at, schedule_.middle);
            finish(unit, false);
        }
        ket_.forward(schedule_.middle);
        if (psi != nullptr) store_states(tile_.layout, tile_.state(0), splat(1), Vec{}, psi, 1);
        const int last = static_cast<int>(tile_.plan.steps.size());
        bool walked = false;
        for (std::size_t unit = end; unit-- > begin;) {
            const std::vector<int>& steps = group(unit).late;
            if (steps.empty()) continue;
            if (!walked || ket_.at() < steps.back() + 1) {
                if (walked) ket_.restart();
                ket_.forward(last);
                walked = true;
            }
            start(unit);
            int at = 0;
            for (auto s = steps.rbegin(); s != steps.rend(); ++s) {
                if (s != steps.rbegin()) retreat(at, *s + 1);
                at = *s + 1;
                ket_.back(at);
                create(tile_, *s, tile_.state(0), tile_.state(1));
            }
            retreat(at, schedule_.middle);
            finish(unit, !group(unit).early.empty());
        }
    }

  private:
    [[nodiscard]] const Group& group(std::size_t unit) const {
        return schedule_.groups[unit >> tile_.layout.lane_bits];
    }
    [[nodiscard]] std::size_t first_tangent(std::size_t unit) const {
        return unit * static_cast<std::size_t>(tile_.layout.samples());
    }
    void set(std::size_t unit, double value) const {
        const auto count = static_cast<std::size_t>(tile_.layout.samples());
        for (std::size_t i = 0; i < count && first_tangent(unit) + i < schedule_.slot.size(); ++i) {
            Vec& direction = tile_.slots()[schedule_.slot[first_tangent(unit) + i]];
            for (std::size_t l = i << tile_.layout.lane_bits; l < (i + 1) << tile_.layout.lane_bits; ++l) {
                direction[l] = value;
            }
        }
    }
    void start(std::size_t unit) const {
        std::fill_n(tile_.state(1), tile_.layout.rows() * row_doubles, 0.0);
        set(unit, 1);
    }
    void finish(std::size_t unit, bool add) const {
        set(unit, 0);
        store(tile_.layout, tile_.state(1), add, static_cast<int>(first_tangent(unit) % lanes),
              panel_.of(element_, unit >> tile_.layout.lane_bits));
    }
    void advance(int from, int to) const {
        for (int s = from; s < to; ++s) Walker::step_forward(tile_, s, tile_.state(1));
    }
    void retreat(int from, int to) const {
        for (int s = from; s > to; --s) Walker::step_back(tile_, s - 1, tile_.state(1));
    }

    const Tile& tile_;
    const Schedule& schedule_;
    const Panel& panel_;
    std::size_t element_;
    Walker ket_;
};

/// d <- d - psi <psi|d> for the eight tangents of a panel's tile.
void project(const std::complex<double>* psi, std::size_t amplitudes, double* tile) {
    Vec real{}, imaginary{};
    for (std::size_t r = 0; r < amplitudes; ++r) {
        const Vec& re = vec(tile + r * amplitude_doubles);
        const Vec& im = vec(tile + r * amplitude_doubles + lanes);
        real += psi[r].real() * re + psi[r].imag() * im;
        imaginary += psi[r].real() * im - psi[r].imag() * re;
    }
    for (std::size_t r = 0; r < amplitudes; ++r) {
        vec(tile + r * amplitude_doubles) -= psi[r].real() * real - psi[r].imag() * imaginary;
        vec(tile + r * amplitude_doubles + lanes) -= psi[r].real() * imaginary + psi[r].imag() * real;
    }
}

}  // namespace

void fill_panel(const Program& program, const Batch& batch, const Schedule& schedule, const Panel& panel,
                std::complex<double>* psi) {
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    const double work = static_cast<double>(program.plan().steps.size()) * static_cast<double>(amplitudes);
    const std::ptrdiff_t threads = work < serial_work ? 1 : num_threads();
    const std::ptrdiff_t parts = (threads + batch.size - 1) / batch.size;
    // All lanes of a tile have one element's angles: they hold different tangents.
    Batch wide = batch;
    wide.repeat = lanes * parts;
    wide.size = batch.size * wide.repeat;
    for_tiles(program, wide, 2, [&](Tile& tile) {
        const auto samples = static_cast<std::size_t>(tile.layout.samples());
        const std::size_t tiles = static_cast<std::size_t>(wide.repeat) / samples;
        const std::size_t index = static_cast<std::size_t>(tile.first) / samples;
        const std::size_t element = index / tiles;
        const std::size_t part = index % tiles;
        const std::size_t begin = panel.first << tile.layout.lane_bits;
        const std::size_t units = panel.groups() << tile.layout.lane_bits;
        if (units * part / tiles == units * (part + 1) / tiles && part != 0) return;
        Filler(tile, schedule, panel, element)
            .run(begin + units * part / tiles, begin + units * (part + 1) / tiles,
                 part == 0 ? psi + element * amplitudes : nullptr);
    });
    const auto tiles = batch.size * static_cast<std::ptrdiff_t>(panel.groups());
    const auto grain = static_cast<std::ptrdiff_t>(serial_work / static_cast<double>(amplitudes)) + 1;
    parallel_for(tiles, grain, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (std::ptrdiff_t i = begin; i < end; ++i) {
            const auto at = static_cast<std::size_t>(i);
            project(psi + at / panel.groups() * amplitudes, amplitudes, panel.data + at * panel.tile);
        }
    });
}

}  // namespace fubini
