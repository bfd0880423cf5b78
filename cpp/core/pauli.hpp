// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>

namespace fubini {

/// A set of qubits, or a basis state: bit q is qubit q; qubit 0 is the least significant one.
using Mask = std::uint64_t;

[[nodiscard]] inline int parity(Mask mask) { return std::popcount(mask) & 1; }

/// The operator i^phase X^x Z^z (Z acts first). Y on qubit q is {1 << q, 1 << q, 1}.
struct Word {
    Mask x = 0;
    Mask z = 0;
    int phase = 0;  ///< modulo 4

    friend bool operator==(const Word&, const Word&) = default;
};

[[nodiscard]] inline Word operator*(const Word& a, const Word& b) {
    return {a.x ^ b.x, a.z ^ b.z, (a.phase + b.phase + 2 * parity(a.z & b.x)) & 3};
}

[[nodiscard]] inline bool commute(const Word& a, const Word& b) { return parity((a.x & b.z) ^ (a.z & b.x)) == 0; }

/// The positive Hermitian Pauli word with these masks.
[[nodiscard]] inline Word hermitian(Mask x, Mask z) { return {x, z, std::popcount(x & z) & 3}; }

[[nodiscard]] inline bool is_hermitian(const Word& word) {
    return ((word.phase - std::popcount(word.x & word.z)) & 1) == 0;
}

/// +1 or -1: a Hermitian word is sign(word) * hermitian(word.x, word.z).
[[nodiscard]] inline double sign(const Word& word) {
    return ((word.phase - std::popcount(word.x & word.z)) & 2) == 0 ? 1.0 : -1.0;
}

[[nodiscard]] inline Word negated(Word word) {
    word.phase = (word.phase + 2) & 3;
    return word;
}

}  // namespace fubini
