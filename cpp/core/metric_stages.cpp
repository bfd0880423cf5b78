// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <memory>
#include <vector>

#include "core/metric.hpp"
#include "core/observable.hpp"
#include "core/sweep.hpp"

namespace fubini {
namespace {

constexpr std::ptrdiff_t slab = 1024;  // batch elements whose sums are kept apart, tile by tile, for a mean

/// The moments of a stage, equal in all lanes of a sample.
void measure_stage(const Checkpoint& checkpoint, const Tile& tile, const double* ket) {
    Vec* moments = tile.moments();
    std::fill_n(moments, tile.program.moments(), Vec{});
    const Eigenbasis& basis = checkpoint.basis;
    if (basis.empty()) {
        measure_terms(checkpoint.terms, tile.layout, ket, moments, tile.scratch());
        return;
    }
    const double* plane = walsh_plane(basis, tile, ket);
    const int k = tile.layout.lane_bits;
    for (const Eigenbasis::Reading& reading : basis.readings) {
        const Vec& row = vec(plane + (reading.mask >> k) * lanes);
        if (k == 0) {
            moments[reading.moment] += reading.coefficient * row;
            continue;
        }
        const int low = static_cast<int>(reading.mask & tile.layout.lane_mask());
        if (k == max_lane_bits) {
            moments[reading.moment] += splat(reading.coefficient * row[low]);
            continue;
        }
        for (int l = 0; l < lanes; ++l) {
            moments[reading.moment][l] += reading.coefficient * row[(l >> k << k) | low];
        }
    }
}

/// Calls body(i, j, covariance) for j <= i, or for j = i alone.
template <typename Body>
void for_covariances(const Vec* moments, std::size_t k, bool diagonal, const Body& body) {
    std::size_t pair = k;
    for (std::size_t i = 0; i < k; ++i) {
        for (std::size_t j = diagonal ? i : 0; j <= i; ++j, ++pair) {
            const Vec covariance = moments[pair] - moments[i] * moments[j];
            body(i, j, covariance);
        }
    }
}

/// The sum over a tile's samples.
double over_samples(const Vec& v, const Tile& tile) {
    if (tile.samples == lanes) {
        const Vec fours = v + permuted<4>(v);
        const Vec twos = fours + permuted<2>(fours);
        return twos[0] + twos[1];
    }
    double sum = 0;
    for (int sample = 0; sample < tile.samples; ++sample) sum += v[sample << tile.layout.lane_bits];
    return sum;
}

/// Calls body(tile, stage) when the stage's moments are in tile.moments().
template <typename Body>
void for_stages(const Program& program, const Batch& batch, const Body& body) {
    for_tiles(program, batch, 1, [&](Tile& tile) {
        double* ket = tile.state(0);
        tile.load_initial(ket);
        const auto& checkpoints = tile.plan.checkpoints;
        std::size_t step = 0;
        for (std::size_t c = 0; c < checkpoints.size(); ++c) {
            for (; step < checkpoints[c].steps; ++step) {
                tile.checkpoint(step);
                tile.apply(step, ket);
            }
            measure_stage(checkpoints[c], tile, ket);
            body(tile, c);
        }
    });
}

std::size_t covariance_count(std::size_t k, bool diagonal) { return diagonal ? k : k * (k + 1) / 2; }

}  // namespace

void stage_covariances(const Program& program, const Batch& batch, std::span<const int> counts, bool diagonal,
                       std::span<double* const> out) {
    for_stages(program, batch, [&](const Tile& tile, std::size_t stage) {
        const auto k = static_cast<std::size_t>(counts[stage]);
        const std::size_t size = diagonal ? k : k * k;
        double* first = out[stage] + static_cast<std::size_t>(tile.first) * size;
        for_covariances(tile.moments(), k, diagonal,
                        [&](std::size_t i, std::size_t j, const Vec& covariance) {
                            for (int sample = 0; sample < tile.samples; ++sample) {
                                double* to = first + static_cast<std::size_t>(sample) * size;
                                const double value = covariance[sample << tile.layout.lane_bits];
                                if (diagonal) {
                                    to[i] = value;
                                } else {
                                    to[i * k + j] = to[j * k + i] = value;
                                }
                            }
                        });
    });
}

void mean_stage_covariances(const Program& program, const Batch& batch, std::span<const int> counts,
                            bool diagonal, std::span<double* const> out) {
    std::vector<std::size_t> begins;
    std::size_t total = 0;
    for (const int count : counts) {
        begins.push_back(total);
        total += covariance_count(static_cast<std::size_t>(count), diagonal);
    }
    // Sums of tiles are added in order, so that they do not depend on the number of threads.
    std::vector<double> sums(total);
    const std::unique_ptr<double[]> parts(
        new double[static_cast<std::size_t>(std::min(slab, batch.size)) * total]);
    for (std::ptrdiff_t first = 0; first < batch.size; first += slab) {
        const Batch part = part_of(batch, program, first, std::min(slab, batch.size - first));
        std::atomic<std::ptrdiff_t> samples{1};  // per tile, the same for all
        for_stages(program, part, [&](const Tile& tile, std::size_t stage) {
            samples.store(tile.layout.samples(), std::memory_order_relaxed);
            const auto index = static_cast<std::size_t>(tile.first / tile.layout.samples());
            double* to = parts.get() + index * total + begins[stage];
            for_covariances(tile.moments(), static_cast<std::size_t>(counts[stage]), diagonal,
                            [&](std::size_t, std::size_t, const Vec& covariance) {
                                *to++ = over_samples(covariance, tile);
                            });
        });
        const std::ptrdiff_t tiles = (part.size + samples - 1) / samples;
        for (std::size_t t = 0; t < static_cast<std::size_t>(tiles); ++t) {
            for (std::size_t i = 0; i < total; ++i) sums[i] += parts[t * total + i];
        }
    }
    const double* sum = sums.data();
    for (std::size_t stage = 0; stage < counts.size(); ++stage) {
        const auto k = static_cast<std::size_t>(counts[stage]);
        for (std::size_t i = 0; i < k; ++i) {
            for (std::size_t j = diagonal ? i : 0; j <= i; ++j) {
                const double mean = *sum++ / static_cast<double>(batch.size);
                if (diagonal) {
                    out[stage][i] = mean;
                } else {
                    out[stage][i * k + j] = out[stage][j * k + i] = mean;
                }
            }
        }
    }
}

}  // namespace fubini
