// SPDX-License-Identifier: Apache-2.0
#include "core/peak.hpp"

#include <atomic>

#include "core/parallel.hpp"
#include "core/solve_simd.hpp"

namespace fubini {

using detail::Vec;

double multiply_add(std::int64_t rounds) {
    // Two units with a latency of four cycles need eight chains; twelve fit the registers of AVX2 as well.
    constexpr int chains = 12;
    const int threads = num_threads();
    std::atomic<double> kept{0.0};
    parallel_for(threads, 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
        for (std::ptrdiff_t part = begin; part < end; ++part) {
            Vec sum[chains];
            for (int i = 0; i < chains; ++i) sum[i] = detail::splat(static_cast<double>(i + part));
            const Vec factor = detail::splat(0.999);
            const Vec term = detail::splat(0.001);
            for (std::int64_t round = 0; round < rounds; ++round) {
                for (Vec& one : sum) one = one * factor + term;
            }
            for (const Vec& one : sum) kept.store(one[0], std::memory_order_relaxed);
        }
    });
    return 2.0 * chains * detail::lanes * static_cast<double>(rounds) * threads;
}

}  // namespace fubini
