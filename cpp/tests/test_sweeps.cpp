// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "core/adjoint.hpp"
#include "core/expval.hpp"
#include "core/memory.hpp"
#include "core/parallel.hpp"
#include "core/tangent.hpp"
#include "random_program.hpp"
#include "tests/reference.hpp"

using namespace fubini;
using tests::Complex;
using tests::Random;

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define FUBINI_COUNTS_ALLOCATIONS
namespace {
std::atomic<long> allocations{0};
void* counted(std::size_t size, std::size_t alignment) {
    ++allocations;
    void* p = std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
    if (p == nullptr) throw std::bad_alloc();
    return p;
}
}  // namespace
void* operator new(std::size_t size) { return counted(size, 16); }
void* operator new[](std::size_t size) { return counted(size, 16); }
void* operator new(std::size_t size, std::align_val_t a) {
    return counted(size, static_cast<std::size_t>(a));
}
void* operator new[](std::size_t size, std::align_val_t a) {
    return counted(size, static_cast<std::size_t>(a));
}
void operator delete(void* p) noexcept { std::free(p); }
void operator delete[](void* p) noexcept { std::free(p); }
void operator delete(void* p, std::size_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t) noexcept { std::free(p); }
void operator delete(void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::align_val_t) noexcept { std::free(p); }
void operator delete(void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
void operator delete[](void* p, std::size_t, std::align_val_t) noexcept { std::free(p); }
#endif

namespace {

/// A random program with a batch of inputs; angles are partly shared by the batch.
struct Case {
    Random random;
    int qubits;
    std::ptrdiff_t size;
    Program program;
    std::vector<double> angles, cotangents, tangents;
    std::vector<Complex> states, state_tangents;

    Case(unsigned seed, int n, int gates, std::ptrdiff_t batch, bool takes_state)
        : random(seed),
          qubits(n),
          size(batch),
          program(tests::random_program(random, n, gates, 7, takes_state)) {
        angles = random.vector(static_cast<std::size_t>(7 * batch));
        for (std::size_t b = 1; b < static_cast<std::size_t>(batch); ++b) {
            for (std::size_t a = 0; a < 3; ++a) angles[7 * b + a] = angles[a];
        }
        cotangents = random.vector(static_cast<std::size_t>(batch) * outputs(), 1);
        tangents = random.vector(angles.size(), 1);
        for (std::ptrdiff_t b = 0; takes_state && b < batch; ++b) {
            const std::vector<Complex> psi = random.state(n), direction = random.state(n);
            states.insert(states.end(), psi.begin(), psi.end());
            state_tangents.insert(state_tangents.end(), direction.begin(), direction.end());
        }
    }
    [[nodiscard]] std::size_t outputs() const { return program.outputs().size(); }
    [[nodiscard]] Batch batch() const {
        Batch result;
        result.angles = angles.data();
        result.size = size;
        if (program.takes_state()) result.states = states.data();
        return result;
    }
    [[nodiscard]] std::vector<double> angles_of(std::size_t b) const {
        return {angles.begin() + static_cast<std::ptrdiff_t>(7 * b),
                angles.begin() + static_cast<std::ptrdiff_t>(7 * b + 7)};
    }
    [[nodiscard]] reference::State initial(std::size_t b) const {
        if (!program.takes_state()) return reference::zero_state(program);
        const auto begin = states.begin() + static_cast<std::ptrdiff_t>(b << qubits);
        return {begin, begin + (std::ptrdiff_t{1} << qubits)};
    }
};

void check_close(double a, double b) { CHECK(std::abs(a - b) < 1e-12); }

}  // namespace

TEST_CASE("every sweep agrees with the dense reference, in every layout") {
    unsigned seed = 0;
    for (const int n : {1, 2, 3, 4, 5}) {
        for (const std::ptrdiff_t size : {1, 2, 3, 5, 9}) {
            for (const bool takes_state : {false, true}) {
                const Case c(++seed, n, 30, size, takes_state);
                CAPTURE(seed);
                const std::size_t m = c.outputs();
                const auto count = static_cast<std::size_t>(size);
                std::vector<double> values(count * m), again(count * m), gradient(count * 7),
                    pushed(count * m);
                std::vector<double> jacobians(count * m * 7);
                std::vector<Complex> final_states(count << n), state_gradient(count << n);
                expval(c.program, c.batch(), values.data());
                state(c.program, c.batch(), final_states.data());
                vjp(c.program, c.batch(), c.cotangents.data(), gradient.data(), again.data(),
                    takes_state ? state_gradient.data() : nullptr);
                jvp(c.program, c.batch(), c.tangents.data(), nullptr, pushed.data());
                jacobian(c.program, c.batch(), jacobians.data());
                for (std::size_t b = 0; b < count; ++b) {
                    const reference::State initial = c.initial(b);
                    const reference::State psi = reference::run(c.program, c.angles_of(b), initial);
                    const std::vector<double> expected =
                        reference::values(c.program, c.angles_of(b), initial);
                    const std::vector<double> slope = reference::jacobian(c.program, c.angles_of(b), initial);
                    for (std::size_t i = 0; i < psi.size(); ++i) {
                        CHECK(std::abs(psi[i] - final_states[(b << n) + i]) < 1e-13);
                    }
                    for (std::size_t o = 0; o < m; ++o) {
                        check_close(values[b * m + o], expected[o]);
                        check_close(again[b * m + o], expected[o]);
                        double along = 0;
                        for (std::size_t a = 0; a < 7; ++a) {
                            along += slope[o * 7 + a] * c.tangents[b * 7 + a];
                            check_close(jacobians[(b * m + o) * 7 + a], slope[o * 7 + a]);
                        }
                        check_close(pushed[b * m + o], along);
                    }
                    for (std::size_t a = 0; a < 7; ++a) {
                        double pulled = 0;
                        for (std::size_t o = 0; o < m; ++o)
                            pulled += c.cotangents[b * m + o] * slope[o * 7 + a];
                        check_close(gradient[b * 7 + a], pulled);
                    }
                }
                if (!takes_state) continue;
                // The gradient of the initial states is the transpose of the tangent sweep.
                const std::vector<double> still(count * 7);
                jvp(c.program, c.batch(), still.data(), c.state_tangents.data(), pushed.data());
                double forward = 0, reverse = 0;
                for (std::size_t i = 0; i < pushed.size(); ++i) forward += pushed[i] * c.cotangents[i];
                for (std::size_t i = 0; i < state_gradient.size(); ++i) {
                    reverse += (std::conj(state_gradient[i]) * c.state_tangents[i]).real();
                }
                check_close(forward, reverse);
            }
        }
    }
}

TEST_CASE("the Hessian product is the derivative of the gradient") {
    for (unsigned seed = 100; seed < 120; ++seed) {
        const Case c(seed, 1 + static_cast<int>(seed % 4), 25, 1 + static_cast<std::ptrdiff_t>(seed % 3),
                     seed % 2 == 0);
        CAPTURE(seed);
        std::vector<double> product(c.angles.size()), plus(c.angles.size()), minus(c.angles.size());
        hessian_product(c.program, c.batch(), c.cotangents.data(), c.tangents.data(), product.data());
        const double step = 1e-5;
        const auto shifted = [&](double by, std::vector<double>& gradient) {
            std::vector<double> angles = c.angles;
            for (std::size_t i = 0; i < angles.size(); ++i) angles[i] += by * c.tangents[i];
            Batch batch = c.batch();
            batch.angles = angles.data();
            vjp(c.program, batch, c.cotangents.data(), gradient.data());
        };
        shifted(step, plus);
        shifted(-step, minus);
        for (std::size_t i = 0; i < product.size(); ++i) {
            // Central difference: step^2 times a third derivative of up to some hundreds.
            CHECK(std::abs(product[i] - (plus[i] - minus[i]) / (2 * step)) < 1e-6);
        }
    }
}

TEST_CASE("the same bits come out for 1, 2 and 7 threads, over tiles and over rows") {
    for (const auto& [n, size] : {std::pair{4, 100}, std::pair{14, 3}, std::pair{15, 1}}) {
        const Case c(7, n, 40, size, false);
        std::vector<std::vector<double>> results;
        for (const int threads : {1, 2, 7}) {
            set_num_threads(threads);
            const auto count = static_cast<std::size_t>(size);
            std::vector<double> out(count * (2 * c.outputs() + 14));
            expval(c.program, c.batch(), out.data());
            vjp(c.program, c.batch(), c.cotangents.data(), out.data() + count * c.outputs());
            jvp(c.program, c.batch(), c.tangents.data(), nullptr, out.data() + count * (c.outputs() + 7));
            hessian_product(c.program, c.batch(), c.cotangents.data(), c.tangents.data(),
                            out.data() + count * (2 * c.outputs() + 7));
            results.push_back(std::move(out));
        }
        set_num_threads(2);
        CHECK(results[0] == results[1]);
        CHECK(results[0] == results[2]);
    }
}

#ifdef FUBINI_COUNTS_ALLOCATIONS
TEST_CASE("sweeps do not allocate per tile or per gate") {
    set_num_threads(1);
    std::vector<long> counts;
    for (const int gates : {20, 200}) {
        for (const std::ptrdiff_t size : {8, 800}) {
            const Case c(3, 5, gates, size, false);
            std::vector<double> out(static_cast<std::size_t>(size) * (c.outputs() + 7));
            for (int round = 0; round < 2; ++round) {
                const long before = allocations;
                expval(c.program, c.batch(), out.data());
                vjp(c.program, c.batch(), c.cotangents.data(), out.data());
                jvp(c.program, c.batch(), c.tangents.data(), nullptr, out.data());
                hessian_product(c.program, c.batch(), c.cotangents.data(), c.tangents.data(), out.data());
                if (round == 1) counts.push_back(allocations - before);
            }
        }
    }
    for (const long count : counts) CHECK(count == counts[0]);
    CHECK(counts[0] <= 16);  // the callbacks of the four calls
}
#endif

TEST_CASE("a sweep stops when asked to, and refuses what does not fit") {
    const Case c(5, 10, 40, 64, false);
    std::vector<double> out(64 * c.outputs());
    Batch batch = c.batch();
    int calls = 0;
    batch.poll = [&] { return ++calls == 3; };
    set_num_threads(1);
    CHECK_THROWS_AS(expval(c.program, batch, out.data()), Interrupted);
    CHECK(calls == 3);
    set_memory_limit(1000);
    CHECK_THROWS_AS(expval(c.program, c.batch(), out.data()), MemoryLimit);
    set_memory_limit(0);
    expval(c.program, c.batch(), out.data());
}

TEST_CASE("an empty batch is fine") {
    const Case c(6, 3, 10, 0, false);
    expval(c.program, c.batch(), nullptr);
    vjp(c.program, c.batch(), nullptr, nullptr);
    jacobian(c.program, c.batch(), nullptr);
}

TEST_CASE("kept states save the forward sweep and change no bit of the gradient") {
    for (const int threads : {1, 2, 7}) {
        set_num_threads(threads);
        for (const std::ptrdiff_t size : {1, 3, 8, 21}) {
            Case c(40 + static_cast<unsigned>(size), 4, 30, size, size == 3);
            const Batch batch = c.batch();
            const std::size_t outputs = c.program.outputs().size();
            std::vector<double> values(static_cast<std::size_t>(size) * outputs), again(values);
            std::vector<double> gradient(c.angles.size()), expected(c.angles.size());
            vjp(c.program, batch, c.cotangents.data(), expected.data(), again.data());
            auto* kept = static_cast<double*>(
                ::operator new[](kept_doubles(c.program, size) * sizeof(double), std::align_val_t{64}));
            expval(c.program, batch, values.data(), kept);
            CHECK(values == again);
            vjp(c.program, batch, c.cotangents.data(), gradient.data(), nullptr, nullptr, kept);
            CHECK(gradient == expected);
            ::operator delete[](kept, std::align_val_t{64});
        }
    }
}
