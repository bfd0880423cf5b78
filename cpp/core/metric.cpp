// SPDX-License-Identifier: Apache-2.0
#include "core/metric.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <string>
#include <thread>
#include <vector>

#include "core/gram.hpp"
#include "core/memory.hpp"
#include "core/metric_panel.hpp"
#include "core/parallel.hpp"
#include "core/sweep.hpp"
#include "core/workspace.hpp"

namespace fubini {
namespace {

constexpr double panel_budget = 1 << 30;    // bytes that tangents may take, where the limit allows it
constexpr double element_budget = 1 << 22;  // an element with a larger panel gets all threads for itself
constexpr double slab_bytes = 1 << 18;      // elements with smaller panels share one
constexpr double sums_budget = 1 << 26;     // bytes for sums over parts of the batch
constexpr std::ptrdiff_t least_parts = 8, most_parts = 32;
constexpr std::size_t most_cuts = 8;  // parts that a Gram product is cut into along the amplitudes
constexpr double least_work = 5e5;    // multiply-adds of a part

thread_local Workspace panels, sums_of_row, cut_sums;

std::size_t triangle(std::size_t rows) { return rows * (rows + 1) / 2; }

/// The products of two blocks of groups, over some of the amplitudes.
struct Product {
    std::size_t row, rows;        // groups of the left panel
    std::size_t column, columns;  // groups of the right panel
    std::size_t begin, end;       // rows of the tiles

    [[nodiscard]] std::size_t columns_of(std::size_t r, bool same) const {
        return same && row == column ? r + 1 : columns;
    }
    [[nodiscard]] std::size_t doubles() const { return rows * columns * gram_doubles; }
};

void multiply_block(const Panel& left, const Panel& right, bool same, const Product& block, double* sums) {
    for (std::size_t first = block.begin; first < block.end; first += gram_chunk) {
        const std::size_t rows = std::min(gram_chunk, block.end - first);
        for (std::size_t r = 0; r < block.rows; ++r) {
            gram_row(left.data + (block.row + r) * left.tile + first * lanes,
                     right.data + block.column * right.tile + first * lanes, block.columns_of(r, same),
                     right.tile, rows, sums + r * block.columns * gram_doubles);
        }
    }
}

/// Adds the products of two panels of one batch element to a (k, k) matrix, with all threads. Panels are
/// larger than the caches, so that all products of a block are made while its rows are near.
void multiply(const Schedule& schedule, const Panel& left, const Panel& right, std::size_t k,
              double* matrix) {
    const bool same = left.data == right.data;
    const std::size_t amplitudes = left.tile / lanes;
    std::vector<Product> blocks;
    for (std::size_t r = 0; r < left.groups(); r += gram_block) {
        for (std::size_t c = 0; c < (same ? r + 1 : right.groups()); c += gram_block) {
            blocks.push_back({r, std::min(gram_block, left.groups() - r), c,
                              std::min(gram_block, right.groups() - c), 0, amplitudes});
        }
    }
    // Few blocks are cut along the amplitudes: into as many parts for any number of threads, since the sums
    // of the parts are added in their order.
    const Product& head = blocks.front();
    const double work = static_cast<double>(head.doubles()) * static_cast<double>(amplitudes);
    const std::size_t parts = std::clamp<std::size_t>(
        std::min(most_cuts / blocks.size(), static_cast<std::size_t>(work / least_work)), 1,
        std::max<std::size_t>(amplitudes / gram_chunk, 1));
    const std::size_t doubles = head.doubles();
    double* parts_sums = parts > 1 ? cut_sums.reserve(blocks.size() * parts * doubles) : nullptr;
    const auto add = [&](const Product& block, const double* sums) {
        for (std::size_t r = 0; r < block.rows; ++r) {
            scatter(schedule, left.first + block.row + r, right.first + block.column,
                    block.columns_of(r, same), sums + r * block.columns * gram_doubles, k, matrix);
        }
    };
    const auto grain = static_cast<std::ptrdiff_t>(least_work * static_cast<double>(parts) / work) + 1;
    parallel_for(static_cast<std::ptrdiff_t>(blocks.size() * parts), grain,
                 [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
                     for (auto i = static_cast<std::size_t>(begin); i < static_cast<std::size_t>(end); ++i) {
                         Product block = blocks[i / parts];
                         block.begin = amplitudes * (i % parts) / parts;
                         block.end = amplitudes * (i % parts + 1) / parts;
                         double* sums =
                             parts > 1 ? parts_sums + i * doubles : sums_of_row.reserve(block.doubles());
                         std::fill_n(sums, block.doubles(), 0.0);
                         multiply_block(left, right, same, block, sums);
                         if (parts == 1) add(block, sums);
                     }
                 });
    if (parts == 1) return;
    for (std::size_t b = 0; b < blocks.size(); ++b) {
        double* sums = parts_sums + b * parts * doubles;
        for (std::size_t part = 1; part < parts; ++part) {
            for (std::size_t i = 0; i < blocks[b].doubles(); ++i) sums[i] += sums[part * doubles + i];
        }
        add(blocks[b], sums);
    }
}

/// One element after the other, each with all threads, and panel by panel where tangents do not fit together.
void element_by_element(const Program& program, const Batch& batch, const Schedule& schedule,
                        std::size_t fits, bool mean, bool centred, std::size_t k, double* out) {
    const std::size_t groups = schedule.groups.size();
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    const std::size_t tile = amplitudes * amplitude_doubles;
    const std::size_t width = groups <= fits ? groups : std::max<std::size_t>(fits / 2, 1);
    const ReleaseAfter guard(panels);
    double* first_panel = panels.reserve((groups <= fits ? groups : 2 * width) * tile + 2 * amplitudes);
    double* second_panel = first_panel + width * tile;
    auto* psi =
        reinterpret_cast<std::complex<double>*>(groups <= fits ? second_panel : second_panel + width * tile);
    for (std::ptrdiff_t b = 0; b < batch.size; ++b) {
        const Batch one = part_of(batch, program, b, 1);
        double* matrix = out + (mean ? 0 : static_cast<std::size_t>(b) * k * k);
        for (std::size_t first = 0; first < groups; first += width) {
            const Panel left{first_panel, first, std::min(first + width, groups), tile};
            fill_panel(program, one, schedule, left, num_threads(), centred, psi);
            multiply(schedule, left, left, k, matrix);
            for (std::size_t other = 0; other < first; other += width) {
                const Panel right{second_panel, other, other + width, tile};
                fill_panel(program, one, schedule, right, num_threads(), centred, psi);
                multiply(schedule, left, right, k, matrix);
            }
        }
    }
}

/// Where the tangents of a panel's tile go in a factor of the mean metric.
struct FactorWriter {
    const Schedule& schedule;
    std::size_t amplitudes;
    std::size_t columns;
    double scale;
    double* out;

    void write(const double* tile, std::size_t group, std::size_t element) const {
        double* rows[lanes];
        std::size_t count = 0;
        for (std::size_t p = group * lanes; p < schedule.position.size() && count < lanes; ++p) {
            rows[count++] =
                out + static_cast<std::size_t>(schedule.position[p]) * columns + element * 2 * amplitudes;
        }
        for (std::size_t r = 0; r < amplitudes; ++r) {
            for (std::size_t i = 0; i < count; ++i) {
                rows[i][r] = scale * tile[r * amplitude_doubles + i];
                rows[i][amplitudes + r] = scale * tile[r * amplitude_doubles + lanes + i];
            }
        }
    }
};

/// Elements whose tangents stay in a core's cache: shared among threads as wholes.
class SmallElements {
  public:
    SmallElements(const Program& program, const Batch& batch, const Schedule& schedule, bool centred)
        : program_(program),
          batch_(batch),
          schedule_(schedule),
          centred_(centred),
          owner_(std::this_thread::get_id()) {
        const double bytes = panel_bytes();
        slab_ = std::max<std::ptrdiff_t>(static_cast<std::ptrdiff_t>(slab_bytes / bytes), 1);
    }
    [[nodiscard]] double panel_bytes() const { return static_cast<double>(groups_ * tile_) * sizeof(double); }
    [[nodiscard]] double bytes_per_thread() const {
        return static_cast<double>(slab_) * static_cast<double>(groups_ * tile_ + 2 * amplitudes_) *
               sizeof(double);
    }
    [[nodiscard]] std::size_t sums() const { return triangle(groups_) * gram_doubles; }
    /// How many parts of the batch have sums of their own: the same for any number of threads.
    [[nodiscard]] std::ptrdiff_t parts() const {
        const double each = static_cast<double>(sums() * sizeof(double));
        return std::min(batch_.size,
                        std::clamp(static_cast<std::ptrdiff_t>(sums_budget / each), least_parts, most_parts));
    }

    /// Writes the factor's columns of every element.
    void factor(const FactorWriter& writer) const {
        parallel_for(batch_.size, 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
            for_slabs(begin, end, [&](std::ptrdiff_t first, const Panel& panel, std::size_t size) {
                for (std::size_t b = 0; b < size; ++b) {
                    for (std::size_t group = 0; group < groups_; ++group) {
                        writer.write(panel.of(b, group), group, static_cast<std::size_t>(first) + b);
                    }
                }
            });
        });
    }

    void each(std::size_t k, double* out) const {
        parallel_for(batch_.size, 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
            double* sums = sums_of_row.reserve(this->sums());
            for_slabs(begin, end, [&](std::ptrdiff_t first, const Panel& panel, std::size_t size) {
                for (std::size_t b = 0; b < size; ++b) {
                    std::fill_n(sums, this->sums(), 0.0);
                    add(panel, b, sums);
                    spread(sums, k, out + (static_cast<std::size_t>(first) + b) * k * k);
                }
            });
        });
    }

    void mean(std::size_t k, double* out) const {
        const std::ptrdiff_t parts = this->parts();
        Workspace memory;
        const std::size_t doubles = static_cast<std::size_t>(parts) * this->sums();
        double* sums = memory.reserve(doubles);
        std::fill_n(sums, doubles, 0.0);
        parallel_for(parts, 1, [&](std::ptrdiff_t from, std::ptrdiff_t to) {
            for (std::ptrdiff_t part = from; part < to; ++part) {
                double* mine = sums + static_cast<std::size_t>(part) * this->sums();
                for_slabs(batch_.size * part / parts, batch_.size * (part + 1) / parts,
                          [&](std::ptrdiff_t, const Panel& panel, std::size_t size) {
                              for (std::size_t b = 0; b < size; ++b) add(panel, b, mine);
                          });
            }
        });
        for (std::size_t part = 1; part < static_cast<std::size_t>(parts); ++part) {
            for (std::size_t i = 0; i < this->sums(); ++i) sums[i] += sums[part * this->sums() + i];
        }
        spread(sums, k, out);
    }

  private:
    template <typename Body>
    void for_slabs(std::ptrdiff_t begin, std::ptrdiff_t end, const Body& body) const {
        const auto most = static_cast<std::size_t>(std::min(slab_, end - begin));
        double* data = panels.reserve(most * (groups_ * tile_ + 2 * amplitudes_));
        auto* psi = reinterpret_cast<std::complex<double>*>(data + most * groups_ * tile_);
        const Panel panel{data, 0, groups_, tile_};
        for (std::ptrdiff_t first = begin; first < end; first += slab_) {
            Batch part = part_of(batch_, program_, first, std::min(slab_, end - first));
            // A caller who wants to stop is asked on its own thread only; the others follow.
            if (batch_.poll) {
                part.poll = [this] {
                    if (std::this_thread::get_id() == owner_ && batch_.poll()) stop_ = true;
                    return stop_.load();
                };
            }
            fill_panel(program_, part, schedule_, panel, 1, centred_, psi);
            body(first, panel, static_cast<std::size_t>(part.size));
        }
    }
    void add(const Panel& panel, std::size_t element, double* sums) const {
        for (std::size_t group = 0; group < groups_; ++group) {
            gram_row(panel.of(element, group), panel.of(element, 0), group + 1, tile_, tile_ / lanes,
                     sums + triangle(group) * gram_doubles);
        }
    }
    void spread(const double* sums, std::size_t k, double* matrix) const {
        for (std::size_t group = 0; group < groups_; ++group) {
            scatter(schedule_, group, 0, group + 1, sums + triangle(group) * gram_doubles, k, matrix);
        }
    }

    const Program& program_;
    const Batch& batch_;
    const Schedule& schedule_;
    bool centred_;
    std::thread::id owner_;
    mutable std::atomic<bool> stop_{false};
    std::size_t groups_ = schedule_.groups.size();
    std::size_t amplitudes_ = std::size_t{1} << program_.qubits();
    std::size_t tile_ = amplitudes_ * amplitude_doubles;
    std::ptrdiff_t slab_ = 1;
};

/// Bytes that panels may take. Throws MemoryLimit if two tiles are too many.
double budget_for(const Program& program) {
    const double tile = static_cast<double>(amplitude_doubles * sizeof(double) << program.qubits());
    const double sweep = sweep_bytes(program, static_cast<std::ptrdiff_t>(lanes) * num_threads(), 2);
    const double least = sweep + 2 * tile + tile / 8;  // two panels of eight tangents, and psi
    if (least > memory_limit()) {
        throw MemoryLimit("the metric would take at least " + std::to_string(least / 1e9) +
                          " GB of memory for " + std::to_string(program.qubits()) + " qubits, and may take " +
                          std::to_string(memory_limit() / 1e9) +
                          " GB; use metric_vector_product, fewer qubits or fewer threads");
    }
    return std::min(panel_budget, memory_limit() - least + 2 * tile);
}

}  // namespace

void metric_full(const Program& program, const Batch& batch, const Directions& directions, bool mean,
                 bool centred, double* out) {
    const std::size_t k = directions.size();
    const std::size_t matrices = mean ? 1 : static_cast<std::size_t>(batch.size);
    std::fill_n(out, matrices * k * k, 0.0);
    const Schedule schedule(program, directions);
    if (batch.size <= 0 || schedule.groups.empty()) return;
    const double budget = budget_for(program);
    const SmallElements elements(program, batch, schedule, centred);
    const double sums_bytes = static_cast<double>(elements.sums() * sizeof(double));
    const double together =
        num_threads() * elements.bytes_per_thread() +
        sums_bytes * static_cast<double>(mean ? elements.parts() : std::ptrdiff_t{num_threads()});
    if (batch.size > 1 && elements.panel_bytes() <= element_budget &&
        sums_bytes * static_cast<double>(least_parts) <= sums_budget && together <= budget) {
        if (mean) {
            elements.mean(k, out);
        } else {
            elements.each(k, out);
        }
    } else {
        const double tile = static_cast<double>(amplitude_doubles * sizeof(double) << program.qubits());
        element_by_element(program, batch, schedule, static_cast<std::size_t>(budget / tile), mean, centred,
                           k, out);
    }
    if (mean) {
        for (std::size_t i = 0; i < k * k; ++i) out[i] /= static_cast<double>(batch.size);
    }
}

void metric_factor(const Program& program, const Batch& batch, const Directions& directions, double* out) {
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    const std::size_t columns = static_cast<std::size_t>(batch.size) * 2 * amplitudes;
    std::fill_n(out, directions.size() * columns, 0.0);
    const Schedule schedule(program, directions);
    if (batch.size <= 0 || schedule.groups.empty()) return;
    const double budget = budget_for(program);
    const FactorWriter writer{schedule, amplitudes, columns, 1 / std::sqrt(static_cast<double>(batch.size)),
                              out};
    const SmallElements elements(program, batch, schedule, true);
    if (batch.size > 1 && elements.panel_bytes() <= element_budget &&
        num_threads() * elements.bytes_per_thread() <= budget) {
        elements.factor(writer);
        return;
    }
    const std::size_t groups = schedule.groups.size();
    const std::size_t tile = amplitudes * amplitude_doubles;
    const auto fits = static_cast<std::size_t>(budget / static_cast<double>(tile * sizeof(double)));
    const std::size_t width = std::min(groups, std::max<std::size_t>(fits, 1));
    const ReleaseAfter guard(panels);
    double* data = panels.reserve(width * tile + 2 * amplitudes);
    auto* psi = reinterpret_cast<std::complex<double>*>(data + width * tile);
    for (std::ptrdiff_t b = 0; b < batch.size; ++b) {
        for (std::size_t first = 0; first < groups; first += width) {
            const Panel panel{data, first, std::min(first + width, groups), tile};
            fill_panel(program, part_of(batch, program, b, 1), schedule, panel, num_threads(), true, psi);
            for (std::size_t group = panel.first; group < panel.last; ++group) {
                writer.write(panel.of(0, group), group, static_cast<std::size_t>(b));
            }
        }
    }
}

}  // namespace fubini
