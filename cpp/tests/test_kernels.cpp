// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>

#include "core/kernels.hpp"
#include "core/plan.hpp"
#include "random_program.hpp"
#include "tests/reference.hpp"

using namespace fubini;
using tests::Complex;
using tests::Random;

namespace {

struct alignas(64) Buffer {
    Vec rows[64 * 2];
    double* data() { return &rows[0][0]; }
};

}  // namespace

TEST_CASE("sincos is right to two units in the last place, for any argument") {
    Random random(1);
    for (const double range : {0.5, 3.0, 50.0, 9e4, 1e7, 1e15}) {
        for (int i = 0; i < 2000; ++i) {
            Vec angle{}, sine, cosine;
            for (int l = 0; l < lanes; ++l) angle[l] = random.uniform(-range, range);
            sincos(angle, sine, cosine);
            for (int l = 0; l < lanes; ++l) {
                CHECK(std::abs(sine[l] - std::sin(angle[l])) < 4.5e-16);
                CHECK(std::abs(cosine[l] - std::cos(angle[l])) < 4.5e-16);
            }
        }
    }
    Vec angle{}, sine, cosine;
    angle[0] = std::nan("");
    sincos(angle, sine, cosine);
    CHECK(std::isnan(sine[0]));
    CHECK(sine[1] == 0);
    CHECK(cosine[1] == 1);
}

TEST_CASE("states go into every layout and come back") {
    Random random(2);
    for (int lane_bits = 0; lane_bits <= 3; ++lane_bits) {
        const Layout layout{4, lane_bits};
        Buffer buffer;
        std::vector<Complex> states, back(16 * 8);
        for (int s = 0; s < layout.samples(); ++s) {
            const std::vector<Complex> psi = random.state(4);
            states.insert(states.end(), psi.begin(), psi.end());
        }
        load_states(layout, states.data(), 16, layout.samples(), buffer.data());
        store_states(layout, buffer.data(), splat(1), Vec{}, back.data(), layout.samples());
        CHECK(std::equal(states.begin(), states.end(), back.begin()));
    }
}

TEST_CASE("mix agrees with the definition of a step, on any qubits, subspace and layout") {
    Random random(3);
    const int n = 4;
    for (int round = 0; round < 600; ++round) {
        // A rotation about a random word on a random subspace, as a step of one rotation.
        ProgramBuilder builder(n, 1, true);
        std::string word;
        for (int q = 0; q < n; ++q) word += "IIXYZ"[random.below(5)];
        const std::vector<int> order = random.wires(n, n);
        const int controls = random.below(3);
        std::vector<int> targets(order.begin() + controls, order.end());
        std::vector<int> control_wires(order.begin(), order.begin() + controls);
        std::vector<int> values;
        for (int c = 0; c < controls; ++c) values.push_back(random.below(2));
        word.resize(targets.size());
        builder.pauli_rotation(word, {targets, control_wires, values, false}, {0, 1, 0});
        const Program program = builder.build();
        if (program.plan().steps.size() != 1) continue;  // a global phase
        const Step& step = program.plan().steps[0];
        const BlockRotation& rotation = program.plan().rotations.back();
        const double angle = random.uniform(-3, 3);
        for (int lane_bits = 0; lane_bits <= 3; ++lane_bits) {
            const Layout layout{n, lane_bits};
            const Geometry where = geometry(step, layout);
            Buffer ket, bra;
            std::vector<Complex> states, bras, out(16 * 8);
            for (int s = 0; s < layout.samples(); ++s) {
                const std::vector<Complex> a = random.state(n), b = random.state(n);
                states.insert(states.end(), a.begin(), a.end());
                bras.insert(bras.end(), b.begin(), b.end());
            }
            load_states(layout, states.data(), 16, layout.samples(), ket.data());
            load_states(layout, bras.data(), 16, layout.samples(), bra.data());
            Vec q[4] = {splat(std::cos(0.5 * rotation.coefficient * angle)), Vec{}, Vec{}, Vec{}};
            q[rotation.axis] = splat(std::sin(0.5 * rotation.coefficient * angle));
            mix(where, flavor(step), unitary(where, q), ket.data(), 0, where.count);
            store_states(layout, ket.data(), splat(1), Vec{}, out.data(), layout.samples());
            // A phase on one qubit is split: the part that is no step is global.
            Complex global = 1;
            for (const BlockRotation& phase : program.plan().phases) {
                global *= std::polar(1.0, -0.5 * phase.coefficient * angle);
            }
            Vec overlap[4] = {};
            overlap_mix(where, flavor(step), inverse(where, q), ket.data(), bra.data(), overlap, 0,
                        where.count);
            std::vector<Complex> undone(16 * 8);
            store_states(layout, ket.data(), splat(1), Vec{}, undone.data(), layout.samples());
            for (int s = 0; s < layout.samples(); ++s) {
                const auto at = static_cast<std::size_t>(s) * 16;
                const reference::State before(states.begin() + s * 16, states.begin() + (s + 1) * 16);
                const reference::State after = reference::run(program, {angle}, before);
                const reference::State k_after = reference::apply_generator(program.operations()[0], after);
                double expected = 0;
                for (std::size_t i = 0; i < 16; ++i) {
                    CHECK(std::abs(global * out[at + i] - after[i]) < 1e-14);
                    CHECK(std::abs(undone[at + i] - before[i]) < 1e-14);
                    expected += (std::conj(bras[at + i]) * std::conj(global) * k_after[i]).imag();
                }
                if (!program.plan().phases.empty()) continue;
                double sum = 0;
                const int width = 1 << lane_bits;
                for (int l = s * width; l < (s + 1) * width; ++l) sum += overlap[rotation.axis][l];
                CHECK(rotation.coefficient * sum == doctest::Approx(expected).epsilon(1e-12));
            }
        }
    }
}
