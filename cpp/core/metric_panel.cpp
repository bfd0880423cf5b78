// SPDX-License-Identifier: Apache-2.0
#include "core/metric_panel.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/constants.hpp"
#include "core/gram.hpp"
#include "core/parallel.hpp"
#include "core/tangent_tile.hpp"

namespace fubini {

namespace {

/// Applies step s, or undoes it, to a state in any layout whose lanes all belong to one batch element.
void apply(const Tile& tile, const Layout& layout, const Geometry* geometries, std::size_t s, bool undo,
           double* state) {
    tile.checkpoint(s);
    const Step& step = tile.plan.steps[s];
    if (step.kind == Step::Kind::block || step.kind == Step::Kind::flip) {
        const Geometry& where = geometries[s];
        const Mix m = step.kind == Step::Kind::flip ? flip(where, step)
                      : undo                        ? inverse(where, tile.quaternion(s))
                                                    : unitary(where, tile.quaternion(s));
        const Flavor kind = flavor(step);
        const auto part = [&](std::size_t begin, std::size_t end) { mix(where, kind, m, state, begin, end); };
        if (geometries == &tile.geometry(0)) {
            tile.over_rows(where.count, part);
        } else {
            part(0, where.count);
        }
        return;
    }
    const Operation& operation = tile.program.operations()[static_cast<std::size_t>(step.operation)];
    const auto values = tile.program.constant(operation);
    if (step.kind == Step::Kind::matrix) {
        apply_matrix(layout, values, operation.qubits, step.fixed, step.value, undo, state, tile.scratch());
    } else {
        apply_diagonal(layout, values, operation.qubits, step.fixed, step.value, undo, state);
    }
}

/// psi of one batch element, and the number of steps it has taken. The way to a step is always the same
/// (forward from the start, or back from the end), so that its bits do not depend on what was asked before.
/// Where a tile's samples, which all are this element, leave room, the amplitudes lie in the lanes.
class Ket {
  public:
    Ket(const Tile& tile, const Schedule& schedule, const Batch& batch, std::size_t element)
        : tile_(tile),
          batch_(batch),
          element_(element),
          narrow_(tile.layout.lane_bits <= 1 && tile.layout.qubits > 1),
          layout_(narrow_ ? schedule.narrow : tile.layout),
          geometries_(narrow_ ? schedule.narrow_geometries.data() : &tile.geometry(0)),
          state_(tile.state(0)) {
        restart();
    }

    void restart() {
        at_ = 0;
        if (!narrow_) {
            tile_.load_initial(state_);
        } else if (batch_.states == nullptr) {
            set_zero_state(layout_, state_);
        } else {
            const std::size_t from = batch_.shared_state ? 0 : element_;
            load_states(layout_, batch_.states + (from << layout_.qubits), 0, layout_.samples(), state_);
        }
    }
    [[nodiscard]] int at() const { return at_; }
    void forward(int to) {
        for (; at_ < to; ++at_) apply(tile_, layout_, geometries_, step(at_), false, state_);
    }
    void back(int to) {
        for (; at_ > to; --at_) apply(tile_, layout_, geometries_, step(at_ - 1), true, state_);
    }
    void store(std::complex<double>* psi) const { store_states(layout_, state_, splat(1), Vec{}, psi, 1); }

    /// tangent += the derivative that the block which was just applied makes along tile.slots().
    void create(double* tangent) const {
        const std::size_t s = step(at_ - 1);
        Vec w[4] = {};
        block_tangent(tile_, tile_.plan.steps[s], w);
        for (Vec& component : w) component *= 0.5;
        if (!narrow_) {
            const Geometry& where = tile_.geometry(s);
            const Mix m = generator(where, w);
            tile_.over_rows(where.count, [&](std::size_t begin, std::size_t end) {
                mix_add(where, m, state_, tangent, begin, end);
            });
            return;
        }
        // -i Q_a psi for every axis that some lane turns about.
        const std::size_t doubles = layout_.rows() * row_doubles;
        double* products = state_ + doubles;
        Vec weights[3] = {};
        int count = 0;
        for (int axis = 1; axis <= 3; ++axis) {
            if (!any(w[axis])) continue;
            Vec one[4] = {};
            one[axis] = splat(1);
            double* product = products + static_cast<std::size_t>(count) * doubles;
            std::fill_n(product, doubles, 0.0);
            const Geometry& where = geometries_[s];
            mix_add(where, generator(where, one), state_, product, 0, where.count);
            weights[count++] = w[axis];
        }
        if (tile_.layout.lane_bits != 0) {
            for (int i = 0; i < count; ++i) {
                add_spread(products + static_cast<std::size_t>(i) * doubles, weights[i], tangent);
            }
        } else {
            with_constant<4>(count, [&]<int number>() {
                if constexpr (number > 0) add_products<number>(products, weights, tangent);
            });
        }
    }

  private:
    static std::size_t step(int index) { return static_cast<std::size_t>(index); }
    static bool any(const Vec& v) {
        for (int l = 0; l < lanes; ++l) {
            if (v[l] != 0) return true;
        }
        return false;
    }
    /// tangent += weights[i] * product i, where each row of the tangent is one amplitude.
    template <int count>
    void add_products(const double* products, const Vec* weights, double* tangent) const {
        const std::size_t doubles = layout_.rows() * row_doubles;
        const std::size_t width = std::size_t{1} << layout_.lane_bits;
        for (std::size_t row = 0; row < doubles; row += row_doubles) {
            for (std::size_t l = row; l < row + width; ++l, tangent += row_doubles) {
                Vec re = vec(tangent);
                Vec im = vec(tangent + lanes);
#pragma GCC unroll 3
                for (int i = 0; i < count; ++i) {
                    const double* at = products + static_cast<std::size_t>(i) * doubles + l;
                    re += weights[i] * at[0];
                    im += weights[i] * at[lanes];
                }
                vec(tangent) = re;
                vec(tangent + lanes) = im;
            }
        }
    }
    /// The same for one product, where a row of the tangent has several amplitudes.
    void add_spread(const double* product, const Vec& weight, double* tangent) const {
        for (std::size_t r = 0; r < tile_.layout.rows(); ++r) {
            Vec re, im;
            for (std::size_t l = 0; l < lanes; ++l) {
                const std::size_t amplitude = r << tile_.layout.lane_bits | (l & tile_.layout.lane_mask());
                const double* at = product + (amplitude >> layout_.lane_bits) * row_doubles +
                                   (amplitude & layout_.lane_mask());
                re[l] = at[0];
                im[l] = at[lanes];
            }
            vec(tangent + r * row_doubles) += weight * re;
            vec(tangent + r * row_doubles + lanes) += weight * im;
        }
    }

    const Tile& tile_;
    const Batch& batch_;
    std::size_t element_;
    bool narrow_;
    Layout layout_;
    const Geometry* geometries_;
    double* state_;
    int at_ = 0;
};

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
    Filler(const Tile& tile, const Schedule& schedule, const Batch& batch, const Panel& panel,
           std::size_t element)
        : tile_(tile),
          schedule_(schedule),
          panel_(panel),
          element_(element),
          ket_(tile, schedule, batch, element) {
        std::fill_n(tile.slots(), tile.program.angles(), Vec{});
    }

    void run(std::size_t begin, std::size_t end, std::complex<double>* psi) {
        for (std::size_t unit = begin; unit < end; ++unit) {
            const std::vector<int>& steps = group(unit).early;
            if (steps.empty()) {
                if (group(unit).late.empty()) clear(unit);
                continue;
            }
            if (ket_.at() > steps.front() + 1) ket_.restart();
            start(unit, false);
            int at = 0;
            for (const int s : steps) {
                if (s != steps.front()) advance(at, s + 1);
                at = s + 1;
                ket_.forward(at);
                ket_.create(tangent_);
            }
            advance(at, schedule_.middle);
            finish(unit, false);
        }
        ket_.forward(schedule_.middle);
        if (psi != nullptr) ket_.store(psi);
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
            start(unit, !group(unit).early.empty());
            int at = 0;
            for (auto s = steps.rbegin(); s != steps.rend(); ++s) {
                if (s != steps.rbegin()) retreat(at, *s + 1);
                at = *s + 1;
                ket_.back(at);
                ket_.create(tangent_);
            }
            retreat(at, schedule_.middle);
            finish(unit, !group(unit).early.empty());
        }
    }

  private:
    [[nodiscard]] const Group& group(std::size_t unit) const {
        return schedule_.singles.empty() ? schedule_.groups[unit >> tile_.layout.lane_bits]
                                         : schedule_.singles[unit];
    }
    [[nodiscard]] std::size_t first_tangent(std::size_t unit) const {
        return unit * static_cast<std::size_t>(tile_.layout.samples());
    }
    void set(std::size_t unit, double value) const {
        const auto count = static_cast<std::size_t>(tile_.layout.samples());
        const Directions& all = schedule_.directions;
        for (std::size_t i = 0; i < count && first_tangent(unit) + i < schedule_.position.size(); ++i) {
            const auto p = static_cast<std::size_t>(schedule_.position[first_tangent(unit) + i]);
            for (auto e = static_cast<std::size_t>(all.start[p]);
                 e < static_cast<std::size_t>(all.start[p + 1]); ++e) {
                Vec& direction = tile_.slots()[all.slot[e]];
                for (std::size_t l = i << tile_.layout.lane_bits; l < (i + 1) << tile_.layout.lane_bits;
                     ++l) {
                    direction[l] = value * all.coefficient[e];
                }
            }
        }
    }
    /// Tangents that fill a panel's tile alone are made in place.
    void start(std::size_t unit, bool add) {
        in_place_ = panel_.apart || (tile_.layout.lane_bits == 0 && !add);
        tangent_ = in_place_ ? panel_tile(unit) : tile_.state(1);
        std::fill_n(tangent_, tile_.layout.rows() * row_doubles, 0.0);
        set(unit, 1);
    }
    /// A place of a panel's tile that no tangent takes.
    void clear(std::size_t unit) {
        start(unit, false);
        finish(unit, false);
    }
    void finish(std::size_t unit, bool add) const {
        set(unit, 0);
        if (in_place_) return;
        store(tile_.layout, tangent_, add, static_cast<int>(first_tangent(unit) % lanes), panel_tile(unit));
    }
    [[nodiscard]] double* panel_tile(std::size_t unit) const {
        double* tile = panel_.of(element_, unit >> tile_.layout.lane_bits);
        return panel_.apart ? tile + unit % lanes * (panel_.tile / lanes) : tile;
    }
    void advance(int from, int to) const {
        for (int s = from; s < to; ++s) {
            if (s + 1 < to && two_steps(s, s + 1, false)) {
                ++s;
            } else {
                one_step(s, false);
            }
        }
    }
    void retreat(int from, int to) const {
        for (int s = from - 1; s >= to; --s) {
            if (s > to && two_steps(s, s - 1, true)) {
                --s;
            } else {
                one_step(s, true);
            }
        }
    }
    void one_step(int s, bool undo) const {
        apply(tile_, tile_.layout, &tile_.geometry(0), static_cast<std::size_t>(s), undo, tangent_);
    }
    /// Both steps at once, if they are two blocks for which there is a kernel.
    [[nodiscard]] bool two_steps(int first, int second, bool undo) const {
        const auto a = static_cast<std::size_t>(first), b = static_cast<std::size_t>(second);
        const auto& steps = tile_.plan.steps;
        if (steps[a].kind != Step::Kind::block || steps[b].kind != Step::Kind::block) return false;
        const Geometry &here = tile_.geometry(a), &there = tile_.geometry(b);
        if (!can_mix_two(tile_.layout, here, there)) return false;
        tile_.checkpoint(a);
        const auto coefficients = [&](const Geometry& where, std::size_t s) {
            return undo ? inverse(where, tile_.quaternion(s)) : unitary(where, tile_.quaternion(s));
        };
        const Mix one = coefficients(here, a), two = coefficients(there, b);
        tile_.over_rows(tile_.layout.rows() / 4, [&](std::size_t begin, std::size_t end) {
            mix_two(here, one, there, two, tangent_, begin, end);
        });
        return true;
    }

    const Tile& tile_;
    const Schedule& schedule_;
    const Panel& panel_;
    std::size_t element_;
    Ket ket_;
    double* tangent_ = nullptr;
    bool in_place_ = false;
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
                int threads, bool centred, std::complex<double>* psi) {
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    const double work = static_cast<double>(program.plan().steps.size()) * static_cast<double>(amplitudes);
    const std::ptrdiff_t parts = work < serial_work ? 1 : (threads + batch.size - 1) / batch.size;
    // All lanes of a tile have one element's angles: they hold different tangents.
    Batch wide = batch;
    wide.repeat = (schedule.singles.empty() ? lanes : 1) * parts;
    if (!schedule.singles.empty()) wide.lane_bits = max_lane_bits;
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
        Filler(tile, schedule, batch, panel, element)
            .run(begin + units * part / tiles, begin + units * (part + 1) / tiles,
                 part == 0 ? psi + element * amplitudes : nullptr);
    });
    if (centred) centre_panel(batch.size, amplitudes, panel, psi);
}

void centre_panel(std::ptrdiff_t size, std::size_t amplitudes, const Panel& panel,
                  const std::complex<double>* psi) {
    const auto tiles = size * static_cast<std::ptrdiff_t>(panel.groups());
    const auto grain = static_cast<std::ptrdiff_t>(serial_work / static_cast<double>(amplitudes)) + 1;
    parallel_for(tiles, grain, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (std::ptrdiff_t i = begin; i < end; ++i) {
            const auto at = static_cast<std::size_t>(i);
            project(psi + at / panel.groups() * amplitudes, amplitudes, panel.data + at * panel.tile);
        }
    });
}

}  // namespace fubini
