// SPDX-License-Identifier: Apache-2.0
#include "core/solve.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/parallel.hpp"
#include "core/solve_blocked.hpp"
#include "core/solve_dense.hpp"
#include "core/solve_lanes.hpp"

namespace fubini {
namespace {

using detail::DenseWorkspace;

void check_options(const SolveOptions& options) {
    if (std::isnan(options.rcond) || options.rcond >= 1.0) {
        throw std::invalid_argument("rcond: expected a number in [0, 1), got " +
                                    std::to_string(options.rcond) + "; leave it out for n * 2.2e-16");
    }
    if (!std::isfinite(options.exponent)) {
        throw std::invalid_argument("exponent: expected a finite number, got " +
                                    std::to_string(options.exponent));
    }
    if (!(options.tolerance >= 0.0) || options.max_iterations < 0) {
        throw std::invalid_argument("tolerance, max_iterations: expected numbers >= 0, got " +
                                    std::to_string(options.tolerance) + " and " +
                                    std::to_string(options.max_iterations));
    }
}

void check_damping(double damping) {
    if (!(damping >= 0.0) || !std::isfinite(damping)) {
        throw std::invalid_argument("damping: expected finite numbers >= 0, got " + std::to_string(damping));
    }
}

/// Floating-point operations, roughly, with what packing and checks cost; also that of n = 0.
double cost_of(std::ptrdiff_t n, std::ptrdiff_t columns, const SolveOptions& options) {
    const auto size = static_cast<double>(n);
    const double cholesky = size * size * (size / 3.0 + 8.0 + 2.0 * static_cast<double>(columns)) + 40.0;
    return options.method == SolveMethod::pinv || options.method == SolveMethod::power ? 30.0 * cholesky
                                                                                       : cholesky;
}

/// Less than this is not worth waking a thread for, which takes some microseconds.
constexpr double worthwhile = 3e5;

/// Systems that travel together: a register's width of small ones for Cholesky, else one.
std::ptrdiff_t width_of(std::ptrdiff_t n, const SolveOptions& options) {
    const bool cholesky = options.method == SolveMethod::automatic || options.method == SolveMethod::cholesky;
    return cholesky && n <= detail::largest_pack_size ? detail::lanes : 1;
}

/// Whether one of the fast Cholesky kernels may try.
bool tries_cholesky(std::ptrdiff_t n, std::ptrdiff_t columns, const SolveOptions& options) {
    return n >= 1 && columns >= 1 &&
           (options.method == SolveMethod::automatic || options.method == SolveMethod::cholesky);
}

/// The blocks' numbers with equal shapes side by side, in the order of the list within a shape.
std::vector<std::ptrdiff_t> by_shape(const SolveBlock* blocks, std::ptrdiff_t count) {
    std::vector<std::ptrdiff_t> order(static_cast<std::size_t>(count));
    std::ptrdiff_t largest = 0;
    bool single = true;  // one column each
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        largest = std::max(largest, blocks[i].n);
        single = single && blocks[i].columns == 1;
    }
    if (single && largest <= 4 * count) {  // by counting: comparisons would cost as much as small solves
        std::vector<std::ptrdiff_t> next(static_cast<std::size_t>(largest) + 2);
        for (std::ptrdiff_t i = 0; i < count; ++i) ++next[static_cast<std::size_t>(blocks[i].n) + 1];
        std::partial_sum(next.begin(), next.end(), next.begin());
        for (std::ptrdiff_t i = 0; i < count; ++i) {
            order[static_cast<std::size_t>(next[static_cast<std::size_t>(blocks[i].n)]++)] = i;
        }
        return order;
    }
    std::iota(order.begin(), order.end(), std::ptrdiff_t{0});
    std::stable_sort(order.begin(), order.end(), [&](std::ptrdiff_t i, std::ptrdiff_t j) {
        return blocks[i].n != blocks[j].n ? blocks[i].n < blocks[j].n : blocks[i].columns < blocks[j].columns;
    });
    return order;
}

/// Up to `lanes` blocks of one shape; status and info are reached through `index`.
struct PackSolver {
    const SolveOptions& options;
    SolveStatus* status;
    SolveInfo* info;
    DenseWorkspace dense;
    detail::LaneWorkspace interleaved;
    detail::BlockedWorkspace blocked;

    void operator()(const SolveBlock* blocks, const std::ptrdiff_t* index, int count) {
        const std::ptrdiff_t n = blocks[0].n;
        unsigned solved = 0;
        if (tries_cholesky(n, blocks[0].columns, options)) {
            // One lane of a register costs as much as all: a few larger systems go faster one by one.
            if (n <= detail::largest_pack_size &&
                (n <= 8 || (n <= 20 && count >= 2) || 2 * count >= detail::lanes)) {
                solved = detail::solve_pack(blocks, count, options, interleaved);
            } else {
                for (int i = 0; i < count; ++i) {
                    if (detail::solve_blocked(blocks[i], options, blocked)) solved |= 1U << i;
                }
            }
        }
        for (int i = 0; i < count; ++i) {
            SolveInfo* one = info == nullptr ? nullptr : info + index[i];
            if ((solved >> i & 1U) == 0U) {
                status[index[i]] = detail::solve_one(blocks[i], options, dense, one);
                continue;
            }
            status[index[i]] = SolveStatus::ok;
            if (one != nullptr) detail::describe_cholesky(blocks[i], options, dense, *one);
        }
    }
};

}  // namespace

const char* status_text(SolveStatus status) {
    switch (status) {
        case SolveStatus::ok:
            return "The system was solved.";
        case SolveStatus::used_pinv:
            return "The matrix is singular or indefinite to working precision, so the eigenvalue "
                   "pseudo-inverse was used; add damping if the smallest possible step is not what you want.";
        case SolveStatus::not_positive_definite:
            return "The damped matrix is not positive definite to working precision; increase the damping, "
                   "or use method='pinv' or method='auto'.";
        case SolveStatus::singular:
            return "The damped matrix is singular to working precision; increase the damping, or use "
                   "method='pinv'.";
        case SolveStatus::not_finite:
            return "The matrix, the right-hand side or the solution contains NaN or infinity; look for the "
                   "first "
                   "operation that produced it, a smaller learning rate often helps.";
        case SolveStatus::not_symmetric:
            return "The matrix is not symmetric; pass (matrix + matrix.T) / 2 if the difference is rounding.";
        case SolveStatus::not_converged:
            return "The iteration did not converge; allow more iterations, loosen the tolerance, increase "
                   "the damping "
                   "or pass a preconditioner.";
    }
    return "Unknown status.";
}

const char* method_name(SolveMethod method) {
    switch (method) {
        case SolveMethod::automatic:
            return "auto";
        case SolveMethod::cholesky:
            return "cholesky";
        case SolveMethod::ldlt:
            return "ldlt";
        case SolveMethod::pinv:
            return "pinv";
        case SolveMethod::power:
            return "power";
        case SolveMethod::cg:
            return "cg";
    }
    return "unknown";
}

void solve(const double* matrix, const double* rhs, double* x, std::ptrdiff_t batch, std::ptrdiff_t n,
           std::ptrdiff_t columns, const double* damping, std::ptrdiff_t damping_stride,
           const SolveOptions& options, SolveStatus* status, SolveInfo* info) {
    if (batch < 0 || n < 0 || columns < 0) {
        throw std::invalid_argument("batch, n, columns: expected numbers >= 0, got " + std::to_string(batch) +
                                    ", " + std::to_string(n) + " and " + std::to_string(columns));
    }
    check_options(options);
    if (batch > 0) {
        for (std::ptrdiff_t i = 0; i < (damping_stride == 0 ? 1 : batch); ++i) check_damping(damping[i]);
    }
    const std::ptrdiff_t width = width_of(n, options);
    const double pack_cost = cost_of(n, columns, options) * static_cast<double>(width);
    const auto grain = std::max<std::ptrdiff_t>(1, static_cast<std::ptrdiff_t>(worthwhile / pack_cost));
    parallel_for((batch + width - 1) / width, grain, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        PackSolver solver{options, status, info, {}, {}, {}};
        SolveBlock blocks[detail::lanes];
        std::ptrdiff_t index[detail::lanes];
        for (std::ptrdiff_t first = begin * width; first < std::min(end * width, batch); first += width) {
            const int count = static_cast<int>(std::min(width, batch - first));
            for (int l = 0; l < count; ++l) {
                const std::ptrdiff_t i = first + l;
                index[l] = i;
                blocks[l] = {
                    matrix + i * n * n,         rhs + i * n * columns, x + i * n * columns, n, columns,
                    damping[i * damping_stride]};
            }
            solver(blocks, index, count);
        }
    });
}

void solve_blocks(const SolveBlock* blocks, std::ptrdiff_t count, const SolveOptions& options,
                  SolveStatus* status, SolveInfo* info) {
    check_options(options);
    for (std::ptrdiff_t i = 0; i < count; ++i) {
        if (blocks[i].n < 0 || blocks[i].columns < 0) {
            throw std::invalid_argument("blocks: expected sizes >= 0, got " + std::to_string(blocks[i].n) +
                                        " and " + std::to_string(blocks[i].columns));
        }
        check_damping(blocks[i].damping);
    }

    // Blocks of one shape are brought together, cut into packs, and the packs shared out by their cost.
    const std::vector<std::ptrdiff_t> order = by_shape(blocks, count);
    struct Pack {
        std::size_t first;
        int size;
        double end_cost;  // of all packs up to this one
    };
    std::vector<Pack> packs;
    double total = 0.0;
    for (std::size_t i = 0; i < order.size();) {
        const SolveBlock& head = blocks[order[i]];
        std::size_t end = i + 1;
        while (end < order.size() && end - i < static_cast<std::size_t>(width_of(head.n, options)) &&
               blocks[order[end]].n == head.n && blocks[order[end]].columns == head.columns) {
            ++end;
        }
        total += cost_of(head.n, head.columns, options) * static_cast<double>(end - i);
        packs.push_back({i, static_cast<int>(end - i), total});
        i = end;
    }
    constexpr std::ptrdiff_t slices = 256;
    const auto grain = static_cast<std::ptrdiff_t>(std::min(
        static_cast<double>(slices), worthwhile * static_cast<double>(slices) / std::max(total, 1.0)));
    parallel_for(slices, grain, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        PackSolver solver{options, status, info, {}, {}, {}};
        const auto pack_at = [&](std::ptrdiff_t slice) {
            const double bound = total * static_cast<double>(slice) / static_cast<double>(slices);
            return std::partition_point(packs.begin(), packs.end(),
                                        [&](const Pack& p) { return p.end_cost <= bound; });
        };
        const auto last = end == slices ? packs.end() : pack_at(end);
        for (auto pack = pack_at(begin); pack != last; ++pack) {
            SolveBlock members[detail::lanes];
            const std::ptrdiff_t* index = order.data() + pack->first;
            for (int l = 0; l < pack->size; ++l) members[l] = blocks[index[l]];
            solver(members, index, pack->size);
        }
    });
}

}  // namespace fubini
