// SPDX-License-Identifier: Apache-2.0
#include "core/energy.hpp"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "core/adjoint.hpp"
#include "core/derivatives.hpp"
#include "core/gram.hpp"
#include "core/memory.hpp"
#include "core/metric_panel.hpp"
#include "core/observable.hpp"
#include "core/parallel.hpp"
#include "core/restricted.hpp"
#include "core/tangent_tile.hpp"
#include "core/workspace.hpp"

namespace fubini {
namespace {

thread_local Workspace states, own;

/// The weight of every moment.
std::vector<double> moment_weights(const Program& program, const double* weights) {
    std::vector<double> found(static_cast<std::size_t>(program.moments()));
    for (std::size_t m = 0; m < program.outputs().size(); ++m) {
        found[static_cast<std::size_t>(program.outputs()[m].moment)] += weights[m];
    }
    return found;
}

/// The same in all lanes.
std::vector<Vec> in_lanes(const std::vector<double>& values) {
    std::vector<Vec> found;
    for (const double value : values) found.push_back(splat(value));
    return found;
}

/// 2 Re <d_i psi|H psi> for the eight tangents of a tile.
Vec slopes(const double* tile, const double* image, std::size_t amplitudes) {
    Vec sum{};
    for (std::size_t r = 0; r < amplitudes; ++r) {
        const double* at = tile + r * amplitude_doubles;
        sum += image[2 * r] * vec(at) + image[2 * r + 1] * vec(at + lanes);
    }
    return 2.0 * sum;
}

/// What both ways of an element share: H, and where its results go.
struct Element {
    const Program& program;
    const Schedule& schedule;
    const std::vector<double>& weights;
    std::vector<Vec> spread;
    std::size_t k, scratch;
    double energy = 0;
    double *gradient = nullptr, *curvature = nullptr, *metric = nullptr;
    const Restricted* restricted = nullptr;  ///< where the states have few amplitudes

    [[nodiscard]] std::size_t angle(std::size_t tangent) const {
        return static_cast<std::size_t>(schedule.position[tangent]);
    }
};

bool any(const Vec& v) {
    const IntVec not_zero = v != 0.0;
    std::int64_t seen = 0;
    for (int l = 0; l < lanes; ++l) seen |= not_zero[l];
    return seen != 0;
}

/// The amplitudes that psi or a tangent of the panel has, ascending; none if they are more than half of all.
std::vector<std::uint32_t> occupied_rows(const std::complex<double>* psi, std::size_t amplitudes,
                                         const Panel& panel) {
    std::vector<std::uint32_t> rows;
    std::vector<bool> has(amplitudes);
    std::size_t count = 0;
    const auto add = [&](std::size_t r) {
        has[r] = true;
        return 2 * ++count <= amplitudes;
    };
    for (std::size_t r = 0; r < amplitudes; ++r) {
        if (psi[r] != 0.0 && !add(r)) return rows;
    }
    for (std::size_t g = 0; g < panel.groups(); ++g) {
        const double* tile = panel.of(0, g);
        for (std::size_t r = 0; r < amplitudes; ++r, tile += amplitude_doubles) {
            if (has[r] || !(any(vec(tile)) || any(vec(tile + lanes)))) continue;
            if (!add(r)) return rows;
        }
    }
    for (std::size_t r = 0; r < amplitudes; ++r) {
        if (has[r]) rows.push_back(static_cast<std::uint32_t>(r));
    }
    return rows;
}

/// Leaves these amplitudes alone in psi, in H psi (image) and in the panel, whose tiles become as short.
void keep_rows(const std::vector<std::uint32_t>& rows, std::complex<double>* psi, std::complex<double>* image,
               Panel& panel) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
        psi[i] = psi[rows[i]];
        image[i] = image[rows[i]];
    }
    double* to = panel.data;
    for (std::size_t g = 0; g < panel.groups(); ++g) {
        const double* tile = panel.of(0, g);
        for (const std::uint32_t r : rows) {
            const Vec re = vec(tile + r * amplitude_doubles), im = vec(tile + r * amplitude_doubles + lanes);
            vec(to) = re;
            vec(to + lanes) = im;
            to += amplitude_doubles;
        }
    }
    panel.tile = rows.size() * amplitude_doubles;
}

/// Groups of eight tangents in the lanes.
void multiply_groups(const Element& to, const double* data, std::size_t tile, const double* image) {
    const std::size_t groups = to.schedule.groups.size();
    parallel_for(static_cast<std::ptrdiff_t>(groups), 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        const ReleaseAfter guard(own);
        double* applied = own.reserve(tile + to.scratch + groups * gram_doubles);
        double* sums = applied + tile;
        double* free = sums + groups * gram_doubles;
        for (auto g = static_cast<std::size_t>(begin); g < static_cast<std::size_t>(end); ++g) {
            const double* mine = data + g * tile;
            if (to.restricted != nullptr) {
                to.restricted->apply(mine, applied);
            } else {
                apply_uniform(to.program, to.weights.data(), mine, applied, free);
            }
            for (std::size_t at = 0; at < tile; at += lanes) {
                vec(applied + at) = 2.0 * (vec(applied + at) - to.energy * vec(mine + at));
            }
            const auto multiply = [&](const double* left, double* matrix) {
                std::fill_n(sums, (g + 1) * gram_doubles, 0.0);
                gram_row(left, data, g + 1, tile, tile / lanes, sums);
                scatter(to.schedule, g, 0, g + 1, sums, to.k, matrix);
            };
            multiply(applied, to.curvature);
            if (to.metric != nullptr) multiply(mine, to.metric);
            const Vec slope = slopes(mine, image, tile / amplitude_doubles);
            for (std::size_t i = 0; i < lanes && g * lanes + i < to.schedule.position.size(); ++i) {
                to.gradient[to.angle(g * lanes + i)] = slope[static_cast<int>(i)];
            }
        }
    });
}

/// Tangents one by one, with their amplitudes in the lanes; psi and H psi (image) likewise.
template <bool with_metric>
void multiply_singles(const Element& to, double* data, const Layout& layout, const double* psi,
                      const double* image) {
    constexpr std::size_t block = 4, sums_of = with_metric ? 2 * block : block, chunk = std::size_t{1} << 12;
    const std::size_t count = to.schedule.position.size(), k = to.k;
    const std::size_t state = layout.rows() * row_doubles;
    const auto sum = [](const Vec& v) {
        return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
    };
    parallel_for(static_cast<std::ptrdiff_t>(count), 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (auto p = static_cast<std::size_t>(begin); p < static_cast<std::size_t>(end); ++p) {
            double* tangent = data + p * state;
            project_out(layout, psi, tangent);
            Vec slope{};
            for (std::size_t at = 0; at < state; at += lanes) slope += vec(tangent + at) * vec(image + at);
            to.gradient[to.angle(p)] = 2 * sum(slope);
        }
    });
    const std::size_t blocks = (count + block - 1) / block;
    parallel_for(static_cast<std::ptrdiff_t>(blocks), 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        const ReleaseAfter guard(own);
        double* applied = own.reserve(block * state + to.scratch + sums_of * count * lanes);
        double* free = applied + block * state;
        Vec* sums = &vec(free + to.scratch);
        for (auto b = static_cast<std::size_t>(begin); b < static_cast<std::size_t>(end); ++b) {
            const std::size_t first = b * block, size = std::min(block, count - first), others = first + size;
            for (std::size_t i = 0; i < size; ++i) {
                const double* mine = data + (first + i) * state;
                double* image_of = applied + i * state;
                apply_observables(to.program, layout, to.spread.data(), mine, image_of, free);
                for (std::size_t at = 0; at < state; at += lanes) {
                    vec(image_of + at) = 2.0 * (vec(image_of + at) - to.energy * vec(mine + at));
                }
            }
            std::fill_n(sums, sums_of * others, Vec{});
            for (std::size_t from = 0; from < state; from += chunk) {
                const std::size_t to_end = std::min(state, from + chunk);
                for (std::size_t q = 0; q < others; ++q) {
                    const double* other = data + q * state;
                    Vec acc[sums_of] = {};
                    for (std::size_t at = from; at < to_end; at += lanes) {
                        const Vec v = vec(other + at);
                        for (std::size_t i = 0; i < block; ++i) {
                            const std::size_t row = std::min(i, size - 1) * state + at;
                            acc[i] += v * vec(applied + row);
                            if constexpr (with_metric) acc[block + i] += v * vec(data + first * state + row);
                        }
                    }
                    for (std::size_t i = 0; i < sums_of; ++i) sums[sums_of * q + i] += acc[i];
                }
            }
            for (std::size_t i = 0; i < size; ++i) {
                for (std::size_t q = 0; q <= first + i; ++q) {
                    const std::size_t r = to.angle(first + i), c = to.angle(q);
                    to.curvature[r * k + c] = to.curvature[c * k + r] = sum(sums[sums_of * q + i]);
                    if constexpr (with_metric) {
                        to.metric[r * k + c] = to.metric[c * k + r] = sum(sums[sums_of * q + block + i]);
                    }
                }
            }
        }
    });
}

}  // namespace

void energy_curvature(const Program& program, const Batch& batch, const double* weights,
                      const EnergyModel& out) {
    const auto k = static_cast<std::size_t>(program.angles());
    const auto size = static_cast<std::size_t>(batch.size);
    std::fill_n(out.gradient, size * k, 0.0);
    std::fill_n(out.curvature, size * k * k, 0.0);
    if (out.metric != nullptr) std::fill_n(out.metric, size * k * k, 0.0);
    std::vector<int> all(k);
    std::iota(all.begin(), all.end(), 0);
    const Directions directions = Directions::of(all);
    const Schedule schedule(program, directions, Frame::end);
    const std::size_t groups = schedule.groups.size();
    const bool apart = !schedule.singles.empty();
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    const std::size_t tile = amplitudes * amplitude_doubles;
    const std::size_t scratch = observable_scratch(program, {program.qubits(), 0});
    const auto threads = static_cast<std::size_t>(num_threads());
    const double bytes =
        8 * static_cast<double>((groups + 1 + threads) * tile + threads * (scratch + groups * gram_doubles));
    if (bytes > memory_limit()) {
        throw MemoryLimit("the curvature of the energy would take " + std::to_string(bytes / 1e9) +
                          " GB of memory, and may take " + std::to_string(memory_limit() / 1e9) +
                          " GB; use products with vectors");
    }
    const std::vector<double> moments = moment_weights(program, weights);
    Element element{program, schedule, moments, in_lanes(moments), k, scratch};
    const Layout layout{program.qubits(), std::min(max_lane_bits, program.qubits())};
    const std::size_t state = layout.rows() * row_doubles;
    const ReleaseAfter guard(states);
    double* data = states.reserve(groups * tile + 2 * state + scratch + 4 * amplitudes);
    double* ket = data + groups * tile;
    double* image = ket + state;
    double* free = image + state;
    auto* psi = reinterpret_cast<std::complex<double>*>(free + scratch);
    auto* moved = psi + amplitudes;
    for (std::size_t b = 0; b < size; ++b) {
        const Batch one = part_of(batch, program, static_cast<std::ptrdiff_t>(b), 1);
        Panel panel{data, 0, groups, tile, apart};
        if (groups == 0) {
            derivative_states(program, one, nullptr, psi);
        } else {
            fill_panel(program, one, schedule, panel, num_threads(), false, psi);
        }
        load_states(layout, psi, amplitudes, 1, ket);
        apply_observables(program, layout, element.spread.data(), ket, image, free);
        Vec energy{};
        for (std::size_t at = 0; at < state; at += lanes) energy += vec(ket + at) * vec(image + at);
        element.energy = 0;
        for (int l = 0; l < lanes; ++l) element.energy += energy[l];
        out.value[b] = element.energy;
        element.gradient = out.gradient + b * k;
        element.curvature = out.curvature + b * k * k;
        element.metric = out.metric == nullptr ? nullptr : out.metric + b * k * k;
        if (apart) {
            out.metric == nullptr ? multiply_singles<false>(element, data, layout, ket, image)
                                  : multiply_singles<true>(element, data, layout, ket, image);
            continue;
        }
        store_states(layout, image, splat(1), Vec{}, moved, 1);
        std::optional<Restricted> restricted;
        if (program.marginals().empty()) {
            const std::vector<std::uint32_t> rows = occupied_rows(psi, amplitudes, panel);
            if (!rows.empty()) {
                keep_rows(rows, psi, moved, panel);
                restricted.emplace(program, moments.data(), rows);
            }
        }
        element.restricted = restricted ? &*restricted : nullptr;
        centre_panel(1, panel.tile / amplitude_doubles, panel, psi);
        multiply_groups(element, data, panel.tile, reinterpret_cast<const double*>(moved));
    }
}

void energy_curvature_product(const Program& program, const Batch& batch, const double* weights,
                              const double* vectors, double* out) {
    const std::vector<Vec> moments = in_lanes(moment_weights(program, weights));
    for_tiles(program, batch, 3, [&](Tile& tile) {
        double *ket = tile.state(0), *tangent = tile.state(1), *image = tile.state(2);
        const std::size_t doubles = tile.layout.rows() * row_doubles;
        run_along(tile, vectors, ket, tangent);
        project_out(tile.layout, ket, tangent);
        measure(program, tile.layout, ket, tile.moments(), tile.scratch());
        Vec energy{};
        for (std::size_t m = 0; m < moments.size(); ++m) energy += moments[m] * tile.moments()[m];
        apply_observables(program, tile.layout, moments.data(), tangent, image, tile.scratch());
        for (std::size_t at = 0; at < doubles; at += lanes) vec(image + at) -= energy * vec(tangent + at);
        project_out(tile.layout, ket, image);
        run_back(tile, ket, image);
        store_slots(tile, out);
    });
}

}  // namespace fubini
