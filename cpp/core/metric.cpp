// SPDX-License-Identifier: Apache-2.0
#include "core/metric.hpp"

#include <algorithm>
#include <memory>
#include <new>
#include <string>

#include "core/gram.hpp"
#include "core/metric_panel.hpp"
#include "core/parallel.hpp"

namespace fubini {
namespace {

constexpr double panel_budget = 1 << 30;     // bytes that tangents may take, where the limit allows it
constexpr double preferred_bytes = 1 << 25;  // several small batch elements share a panel of this size

struct AlignedFree {
    void operator()(double* p) const { ::operator delete[](p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<double[], AlignedFree>;

Buffer allocate(std::size_t doubles) {
    return Buffer(static_cast<double*>(::operator new[](doubles * sizeof(double), std::align_val_t{64})));
}

/// Adds the products of two panels to out, (size, k, k) or (k, k).
void multiply(const Schedule& schedule, const Panel& left, const Panel& right, std::ptrdiff_t size, bool mean,
              std::size_t k, double* out) {
    const bool same = left.data == right.data;
    const std::size_t rows = left.groups();
    // Rows i and rows - 1 - i of a triangle have the same work together.
    const std::size_t pairs = same ? (rows + 1) / 2 : rows;
    const auto elements = static_cast<std::size_t>(size);
    const std::size_t jobs = mean ? pairs : pairs * elements;
    const std::size_t stride = left.tile * left.groups();
    const auto row = [&](std::size_t group, std::size_t element, double* sums) {
        const std::size_t columns = same ? group + 1 : right.groups();
        std::fill_n(sums, columns * gram_doubles, 0.0);
        const std::size_t from = mean ? 0 : element;
        const std::size_t to = mean ? elements : element + 1;
        for (std::size_t b = from; b < to; ++b) {
            gram_row(left.data + b * stride + group * left.tile, right.data + b * right.groups() * right.tile,
                     columns, left.tile / lanes, sums);
        }
        double* matrix = out + (mean ? 0 : element * k * k);
        for (std::size_t c = 0; c < columns; ++c) {
            for (std::size_t i = 0; i < gram_doubles; ++i) {
                const std::size_t p = (left.first + group) * lanes + i / lanes;
                const std::size_t q = (right.first + c) * lanes + i % lanes;
                if (p >= schedule.position.size() || q > p) continue;
                const auto a = static_cast<std::size_t>(schedule.position[p]);
                const auto b = static_cast<std::size_t>(schedule.position[q]);
                matrix[a * k + b] += sums[c * gram_doubles + i];
                if (a != b) matrix[b * k + a] = matrix[a * k + b];
            }
        }
    };
    const double flops = static_cast<double>(right.groups()) * static_cast<double>(left.tile) * lanes *
                         (mean ? static_cast<double>(elements) : 1);
    const auto grain = static_cast<std::ptrdiff_t>(2e5 / flops) + 1;
    parallel_for(static_cast<std::ptrdiff_t>(jobs), grain, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        const Buffer sums = allocate(right.groups() * gram_doubles);
        for (std::ptrdiff_t i = begin; i < end; ++i) {
            const std::size_t pair = static_cast<std::size_t>(i) % pairs;
            const std::size_t element = static_cast<std::size_t>(i) / pairs;
            row(pair, element, sums.get());
            if (same && rows - 1 - pair != pair) row(rows - 1 - pair, element, sums.get());
        }
    });
}

}  // namespace

double metric_bytes(const Program& program) {
    const double tile = static_cast<double>(amplitude_doubles * sizeof(double) << program.qubits());
    return sweep_bytes(program, static_cast<std::ptrdiff_t>(lanes) * num_threads(), 2) + 2 * tile + tile / 8;
}

void metric_full(const Program& program, const Batch& batch, std::span<const int> angles, bool mean,
                 double* out) {
    const std::size_t k = angles.size();
    const std::size_t matrices = mean ? 1 : static_cast<std::size_t>(batch.size);
    std::fill_n(out, matrices * k * k, 0.0);
    const Schedule schedule(program, angles);
    const std::size_t groups = schedule.groups.size();
    if (batch.size <= 0 || groups == 0) return;
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    const std::size_t tile = amplitudes * amplitude_doubles;
    const double tile_bytes = static_cast<double>(tile * sizeof(double));
    const double least = metric_bytes(program);
    if (least > memory_limit()) {
        throw MemoryLimit("the metric would take at least " + std::to_string(least / 1e9) +
                          " GB of memory for " + std::to_string(program.qubits()) + " qubits, and may take " +
                          std::to_string(memory_limit() / 1e9) +
                          " GB; use metric_vector_product, fewer qubits or fewer threads");
    }
    const double budget = std::min(panel_budget, memory_limit() - least + 2 * tile_bytes);
    const auto fits = static_cast<std::size_t>(budget / tile_bytes);
    if (groups <= fits) {
        const double element_bytes = static_cast<double>(groups) * tile_bytes;
        const std::ptrdiff_t together = std::clamp<std::ptrdiff_t>(
            static_cast<std::ptrdiff_t>(std::min(preferred_bytes, budget) / element_bytes), 1, batch.size);
        const auto count = static_cast<std::size_t>(together);
        const Buffer data = allocate(count * groups * tile);
        const auto psi = std::make_unique<std::complex<double>[]>(count * amplitudes);
        const Panel panel{data.get(), 0, groups, tile};
        for (std::ptrdiff_t first = 0; first < batch.size; first += together) {
            const std::ptrdiff_t size = std::min(together, batch.size - first);
            fill_panel(program, part_of(batch, program, first, size), schedule, panel, psi.get());
            multiply(schedule, panel, panel, size, mean, k,
                     out + (mean ? 0 : static_cast<std::size_t>(first) * k * k));
        }
    } else {
        const std::size_t width = std::max<std::size_t>(fits / 2, 1);
        const Buffer data[2] = {allocate(width * tile), allocate(width * tile)};
        const auto psi = std::make_unique<std::complex<double>[]>(amplitudes);
        for (std::ptrdiff_t b = 0; b < batch.size; ++b) {
            const Batch one = part_of(batch, program, b, 1);
            double* matrix = out + (mean ? 0 : static_cast<std::size_t>(b) * k * k);
            for (std::size_t first = 0; first < groups; first += width) {
                const Panel left{data[0].get(), first, std::min(first + width, groups), tile};
                fill_panel(program, one, schedule, left, psi.get());
                multiply(schedule, left, left, 1, mean, k, matrix);
                for (std::size_t other = 0; other < first; other += width) {
                    const Panel right{data[1].get(), other, other + width, tile};
                    fill_panel(program, one, schedule, right, psi.get());
                    multiply(schedule, left, right, 1, mean, k, matrix);
                }
            }
        }
    }
    if (mean) {
        for (std::size_t i = 0; i < k * k; ++i) out[i] /= static_cast<double>(batch.size);
    }
}

}  // namespace fubini
