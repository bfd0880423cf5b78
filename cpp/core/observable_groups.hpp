// SPDX-License-Identifier: Apache-2.0
// The words of an observable by the qubits that they flip.
#pragma once

#include <bit>
#include <span>

#include "core/plan.hpp"

namespace fubini {

using Terms = std::span<const PauliTerm>;

/// Words of one plane: they flip the same qubits and have an even, or an odd, number of Y.
struct Group {
    Mask x = 0;
    bool odd = false;
    Terms terms;
};

template <typename Body>
void for_groups(Terms terms, const Body& body) {
    std::size_t begin = 0;
    while (begin < terms.size()) {
        const Mask x = terms[begin].x;
        const bool odd = parity(x & terms[begin].z) != 0;
        std::size_t end = begin + 1;
        while (end < terms.size() && terms[end].x == x && (parity(x & terms[end].z) != 0) == odd) ++end;
        body(Group{x, odd, terms.subspan(begin, end - begin)});
        begin = end;
    }
}

/// i^k with k = -ny for the word: <P> is the real part of it times sum (-1)^parity(z & r) conj(psi[r]) psi[r
/// ^ x].
inline double word_factor(const PauliTerm& term) {
    const int ny = std::popcount(term.x & term.z) & 3;
    return ny == 0 || ny == 1 ? 1.0 : -1.0;  // (-i)^ny: 1, -i, -1, i; Re(-i q) = Im q
}

}  // namespace fubini
