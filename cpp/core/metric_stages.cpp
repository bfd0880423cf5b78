// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "core/metric.hpp"
#include "core/observable.hpp"

namespace fubini {
namespace {

/// One stage of one sample, from its moments (lane `lane` of each).
void store_covariances(const Vec* moments, int lane, std::size_t k, bool diagonal, double* out) {
    const auto value = [&](std::size_t m) { return moments[m][lane]; };
    if (diagonal) {
        for (std::size_t i = 0; i < k; ++i) out[i] = value(k + i) - value(i) * value(i);
        return;
    }
    std::size_t pair = k;
    for (std::size_t i = 0; i < k; ++i) {
        for (std::size_t j = 0; j <= i; ++j, ++pair) {
            out[i * k + j] = out[j * k + i] = value(pair) - value(i) * value(j);
        }
    }
}

}  // namespace

void stage_covariances(const Program& program, const Batch& batch, std::span<const int> counts, bool diagonal,
                       std::span<double* const> out) {
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
            std::fill_n(tile.moments(), program.moments(), Vec{});
            measure_terms(checkpoints[c].terms, tile.layout, ket, tile.moments(), tile.scratch());
            const auto k = static_cast<std::size_t>(counts[c]);
            const std::size_t size = diagonal ? k : k * k;
            for (int sample = 0; sample < tile.samples; ++sample) {
                store_covariances(tile.moments(), sample << tile.layout.lane_bits, k, diagonal,
                                  out[c] + static_cast<std::size_t>(tile.first + sample) * size);
            }
        }
    });
}

}  // namespace fubini
