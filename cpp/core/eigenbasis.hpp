// SPDX-License-Identifier: Apache-2.0
// Expectation values of many commuting Pauli words at once, from the probabilities in their common
// eigenbasis.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/program.hpp"

namespace fubini {

class Tile;

/// A basis in which all words of a list are products of Z.
///
/// The words K_p of `axes` commute, and K_p flips its pivot qubit p, no other pivot, and some of the other
/// qubits; an axis of a qubit that is no pivot is X. The vectors |y~> = K^c X^t |0>, where c and t are the
/// bits of y at the pivots and elsewhere, are basis states up to a power of i. On them K_p flips bit p of y
/// and has no sign, so a Walsh-Hadamard transform over the pivots makes it a Z; words without X need none.
struct Eigenbasis {
    /// A word is coefficient * (Z word `mask` on the y of the transformed state).
    struct Reading {
        Mask mask = 0;
        double coefficient = 0;
        int moment = 0;
    };
    Mask pivots = 0;
    std::vector<Word> axes;
    std::vector<std::uint32_t> low_flips;  ///< x of K^c X^t, for the lowest bits of y
    std::vector<std::uint8_t> low_phases;  ///< and its power of i
    std::vector<Reading> readings;         ///< sorted by moment

    [[nodiscard]] bool empty() const { return axes.empty(); }
};

constexpr int low_bits = 8;  ///< bits of y that Eigenbasis::low_flips and low_phases cover

/// The basis for the words of these terms; empty where they do not commute, or are so few that pass by pass
/// over the state is cheaper.
[[nodiscard]] Eigenbasis eigenbasis(int qubits, std::span<const PauliTerm> terms);

/// Doubles of scratch that walsh_plane needs.
[[nodiscard]] std::size_t eigenbasis_scratch(std::size_t rows);

/// The transform of the probabilities in the eigenbasis: the plane has one Vec per row of the layout, and
/// plane[mask >> lane_bits], in the lane of a sample whose low bits are those of the mask, is the value of Z
/// word `mask`. Scratch is the tile's.
[[nodiscard]] const double* walsh_plane(const Eigenbasis& basis, const Tile& tile, const double* state);

}  // namespace fubini
