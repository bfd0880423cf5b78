// SPDX-License-Identifier: Apache-2.0
#include <doctest/doctest.h>

#include <stdexcept>

#include "core/plan.hpp"
#include "core/program.hpp"

using namespace fubini;

namespace {

using Wires = std::vector<int>;
const std::vector<Parameter> none;

}  // namespace

TEST_CASE("Clifford gates that permute basis states cost nothing") {
    ProgramBuilder builder(5, 0, false);
    for (int w = 0; w < 5; ++w) builder.gate("CNOT", {Wires{w, (w + 1) % 5}}, none);
    builder.gate("SWAP", {Wires{0, 3}}, none);
    builder.gate("CZ", {Wires{1, 3}}, none);
    builder.gate("S", {Wires{2}}, none);
    builder.gate("PauliX", {Wires{2}}, none);
    builder.gate("ISWAP", {Wires{2, 4}}, none);
    builder.pauli_term(0, 1, "Z", Wires{0});
    builder.output(0);
    const Program program = builder.build();
    CHECK(program.plan().steps.empty());
    CHECK_FALSE(program.plan().tail.empty());
}

TEST_CASE("a layer of rotations is one pass per wire, whatever the queue order") {
    for (const bool by_wire : {false, true}) {
        ProgramBuilder builder(4, 12, false);
        int slot = 0;
        const auto add = [&](const char* name, int wire) {
            builder.gate(name, {Wires{wire}}, std::vector<Parameter>{{slot++, 1, 0}});
        };
        if (by_wire) {
            for (int w = 0; w < 4; ++w) add("RZ", w), add("RY", w), add("RZ", w);
        } else {
            for (const char* name : {"RZ", "RY", "RZ"}) {
                for (int w = 0; w < 4; ++w) add(name, w);
            }
        }
        CHECK(builder.build().plan().steps.size() == 4);
    }
}

TEST_CASE("rotations merge across the CNOT that they commute with") {
    ProgramBuilder builder(2, 2, false);
    builder.gate("RZ", {Wires{0}}, std::vector<Parameter>{{0, 1, 0}});
    builder.gate("CNOT", {Wires{0, 1}}, none);
    builder.gate("RZ", {Wires{0}}, std::vector<Parameter>{{1, 1, 0}});
    const Program program = builder.build();
    CHECK(program.plan().steps.size() == 1);
    CHECK(program.plan().rotations.size() == 2);
}

TEST_CASE("bad input is refused before the program is changed") {
    CHECK_THROWS_AS(ProgramBuilder(0, 0, false), std::invalid_argument);
    CHECK_THROWS_AS(ProgramBuilder(25, 0, false), std::invalid_argument);
    CHECK_THROWS_AS(ProgramBuilder(1, -1, false), std::invalid_argument);
    ProgramBuilder builder(2, 1, false);
    const std::vector<Parameter> one = {{0, 1, 0}};
    const std::vector<Parameter> outside = {{1, 1, 0}};
    const std::vector<Parameter> infinite = {{0, 1e308 * 10, 0}};
    const std::vector<std::complex<double>> ones(4, 1.0);
    CHECK_THROWS_WITH_AS(builder.gate("RX", {Wires{2}}, one), "wires: expected 0 to 1, got 2",
                         std::invalid_argument);
    CHECK_THROWS_AS(builder.gate("RX", {Wires{0, 1}}, one), std::invalid_argument);
    CHECK_THROWS_AS(builder.gate("RX", {Wires{0}}, none), std::invalid_argument);
    CHECK_THROWS_AS(builder.gate("RX", {Wires{0}}, outside), std::invalid_argument);
    CHECK_THROWS_AS(builder.gate("RX", {Wires{0}}, infinite), std::invalid_argument);
    CHECK_THROWS_AS(builder.gate("CNOT", {Wires{0, 0}}, none), std::invalid_argument);
    CHECK_THROWS_AS(builder.gate("RX", {Wires{0}, Wires{0}, Wires{1}}, one), std::invalid_argument);
    CHECK_THROWS_AS(builder.gate("RX", {Wires{0}, Wires{1}, Wires{2}}, one), std::invalid_argument);
    CHECK_THROWS_AS(builder.pauli_rotation("XQ", {Wires{0, 1}}, one[0]), std::invalid_argument);
    CHECK_THROWS_AS(builder.matrix(ones, {Wires{0}}), std::invalid_argument);
    CHECK_THROWS_AS(builder.matrix(ones, {Wires{0, 1}}), std::invalid_argument);
    CHECK_THROWS_AS(builder.diagonal(ones, {Wires{0}}), std::invalid_argument);
    CHECK_THROWS_AS(builder.pauli_term(0, 1, "ZZ", Wires{0}), std::invalid_argument);
    CHECK_THROWS_AS(builder.probability_term(0, 1, Wires{0}, 2), std::invalid_argument);
    CHECK_THROWS_AS(builder.output(-1), std::invalid_argument);
    CHECK(builder.build().operations().empty());
}
