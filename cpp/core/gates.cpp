// SPDX-License-Identifier: Apache-2.0
#include "core/gates.hpp"

#include <numbers>
#include <stdexcept>

namespace fubini {
namespace {

constexpr double pi = std::numbers::pi;

Factor rot(std::string_view pauli, std::string_view where, int parameter, double coefficient = 1) {
    return {Factor::Kind::rotation, pauli, where, parameter, coefficient, 0};
}
Factor turn(std::string_view pauli, std::string_view where, double angle) {
    return {Factor::Kind::rotation, pauli, where, -1, 0, angle};
}
Factor flip(std::string_view pauli, std::string_view where) {
    return {Factor::Kind::flip, pauli, where, -1, 0, 0};
}

// A phase exp(i p) on a subspace is rot("I..", where, p, -2), because K is then the projector itself.
const std::vector<Gate>& table() {
    static const std::vector<Gate> gates = {
        {"Identity", 1, 0, {}},
        {"PauliX", 1, 0, {flip("X", "-")}},
        {"PauliY", 1, 0, {flip("Y", "-")}},
        {"PauliZ", 1, 0, {flip("Z", "-")}},
        {"Hadamard", 1, 0, {flip("Z", "-"), turn("Y", "-", pi / 2)}},
        {"S", 1, 0, {turn("I", "1", -pi)}},
        {"T", 1, 0, {turn("I", "1", -pi / 2)}},
        {"SX", 1, 0, {turn("X", "-", pi / 2), turn("I", "-", -pi / 2)}},
        {"RX", 1, 1, {rot("X", "-", 0)}},
        {"RY", 1, 1, {rot("Y", "-", 0)}},
        {"RZ", 1, 1, {rot("Z", "-", 0)}},
        {"PhaseShift", 1, 1, {rot("I", "1", 0, -2)}},
        {"U1", 1, 1, {rot("I", "1", 0, -2)}},
        {"GlobalPhase", 0, 1, {rot("", "", 0, 2)}},
        {"Rot", 1, 3, {rot("Z", "-", 0), rot("Y", "-", 1), rot("Z", "-", 2)}},
        {"U2", 1, 2, {rot("I", "1", 1, -2), turn("Y", "-", pi / 2), rot("I", "1", 0, -2)}},
        {"U3", 1, 3, {rot("I", "1", 2, -2), rot("Y", "-", 0), rot("I", "1", 1, -2)}},
        {"CNOT", 2, 0, {flip("IX", "1-")}},
        {"CY", 2, 0, {flip("IY", "1-")}},
        {"CZ", 2, 0, {flip("IZ", "1-")}},
        {"CH", 2, 0, {turn("IY", "--", -pi / 4), flip("IZ", "1-"), turn("IY", "--", pi / 4)}},
        {"SWAP", 2, 0, {flip("XX", "01")}},
        {"ISWAP", 2, 0, {turn("II", "1-", -pi), turn("II", "-1", -pi), flip("IZ", "1-"), flip("XX", "01")}},
        {"SISWAP", 2, 0, {turn("XX", "01", -pi / 2)}},
        {"ECR", 2, 0, {turn("ZX", "--", pi / 2), flip("XI", "--")}},
        {"CSWAP", 3, 0, {flip("IXX", "101")}},
        {"CCZ", 3, 0, {flip("IIZ", "11-")}},
        {"Toffoli", 3, 0, {flip("IIX", "11-")}},
        {"CRX", 2, 1, {rot("IX", "1-", 0)}},
        {"CRY", 2, 1, {rot("IY", "1-", 0)}},
        {"CRZ", 2, 1, {rot("IZ", "1-", 0)}},
        {"CRot", 2, 3, {rot("IZ", "1-", 0), rot("IY", "1-", 1), rot("IZ", "1-", 2)}},
        {"ControlledPhaseShift", 2, 1, {rot("II", "11", 0, -2)}},
        {"CPhaseShift00", 2, 1, {rot("II", "00", 0, -2)}},
        {"CPhaseShift01", 2, 1, {rot("II", "01", 0, -2)}},
        {"CPhaseShift10", 2, 1, {rot("II", "10", 0, -2)}},
        {"IsingXX", 2, 1, {rot("XX", "--", 0)}},
        {"IsingYY", 2, 1, {rot("YY", "--", 0)}},
        {"IsingZZ", 2, 1, {rot("ZZ", "--", 0)}},
        {"IsingXY", 2, 1, {rot("XX", "01", 0, -1)}},
        {"PSWAP", 2, 1, {flip("XX", "01"), rot("II", "01", 0, -2), rot("II", "10", 0, -2)}},
        {"SingleExcitation", 2, 1, {rot("XY", "01", 0, -1)}},
        {"SingleExcitationPlus",
         2,
         1,
         {rot("XY", "01", 0, -1), rot("II", "00", 0, -1), rot("II", "11", 0, -1)}},
        {"SingleExcitationMinus",
         2,
         1,
         {rot("XY", "01", 0, -1), rot("II", "00", 0, 1), rot("II", "11", 0, 1)}},
        {"DoubleExcitation", 4, 1, {rot("XXXY", "0011", 0, -1)}},
        {"DoubleExcitationPlus",
         4,
         1,
         {rot("XXXY", "0011", 0, -1), rot("IIII", "----", 0, -1), rot("IIII", "0011", 0, 1),
          rot("IIII", "1100", 0, 1)}},
        {"DoubleExcitationMinus",
         4,
         1,
         {rot("XXXY", "0011", 0, -1), rot("IIII", "----", 0, 1), rot("IIII", "0011", 0, -1),
          rot("IIII", "1100", 0, -1)}},
        {"OrbitalRotation", 4, 1, {rot("XZYI", "0-1-", 0, -1), rot("IXZY", "-0-1", 0, -1)}},
        {"FermionicSWAP", 2, 1, {rot("XX", "01", 0, 1), rot("II", "1-", 0, -1), rot("II", "-1", 0, -1)}},
    };
    return gates;
}

}  // namespace

std::span<const Gate> gate_table() { return table(); }

const Gate& find_gate(std::string_view name) {
    for (const Gate& gate : table()) {
        if (gate.name == name) return gate;
    }
    throw std::invalid_argument("gate: expected a name of the gate table, got '" + std::string(name) + "'");
}

}  // namespace fubini
