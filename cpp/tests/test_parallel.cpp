// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/parallel.hpp"

using fubini::parallel_for;

TEST_CASE("parallel_for covers every index once, for any number of threads") {
    for (const int threads : {1, 2, 7}) {
        fubini::set_num_threads(threads);
        for (const std::ptrdiff_t count : {0, 1, 2, 5, 100, 1001}) {
            std::vector<std::atomic<int>> hits(static_cast<std::size_t>(count));
            parallel_for(count, 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
                for (std::ptrdiff_t i = begin; i < end; ++i) ++hits[static_cast<std::size_t>(i)];
            });
            for (const auto& hit : hits) CHECK(hit == 1);
        }
    }
}

TEST_CASE("the lowest part's exception reaches the caller, and the pool works on") {
    fubini::set_num_threads(4);
    for (int round = 0; round < 50; ++round) {
        CHECK_THROWS_WITH_AS(parallel_for(8, 1,
                                          [](std::ptrdiff_t begin, std::ptrdiff_t) {
                                              throw std::runtime_error(begin == 0 ? "first" : "other");
                                          }),
                             "first", std::runtime_error);
        std::atomic<std::ptrdiff_t> sum{0};
        parallel_for(100, 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) { sum += end - begin; });
        CHECK(sum == 100);
    }
}

TEST_CASE("nested and concurrent calls finish") {
    fubini::set_num_threads(3);
    std::atomic<int> hits{0};
    auto outer = [&] {
        parallel_for(6, 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
            for (std::ptrdiff_t i = begin; i < end; ++i) {
                parallel_for(10, 1,
                             [&](std::ptrdiff_t b, std::ptrdiff_t e) { hits += static_cast<int>(e - b); });
            }
        });
    };
    std::thread other(outer);
    outer();
    other.join();
    CHECK(hits == 120);
}

TEST_CASE("set_num_threads refuses what is not a number of threads") {
    CHECK_THROWS_AS(fubini::set_num_threads(0), std::invalid_argument);
    CHECK_THROWS_AS(fubini::set_num_threads(2000), std::invalid_argument);
}
