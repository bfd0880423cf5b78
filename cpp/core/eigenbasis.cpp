// SPDX-License-Identifier: Apache-2.0
#include "core/eigenbasis.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <set>
#include <utility>

namespace fubini {
namespace {

/// Words whose flips are independent, each with a pivot that no other has.
struct Echelon {
    std::vector<std::pair<int, Word>> words;

    [[nodiscard]] Word reduced(Word word) const {
        for (const auto& [pivot, axis] : words) {
            if ((word.x >> pivot & 1) != 0) word = word * axis;
        }
        return word;
    }
    void add(const Word& word) {
        const Word rest = reduced(word);
        if (rest.x == 0) return;
        // The highest qubit as pivot: flips of low qubits stay low, where a row's lanes hold them.
        const int pivot = static_cast<int>(std::bit_width(rest.x)) - 1;
        for (auto& [other, axis] : words) {
            if ((axis.x >> pivot & 1) != 0) axis = axis * rest;
        }
        words.emplace_back(pivot, rest);
    }
};

/// Vec operations per amplitude for the words one plane (qubits that are flipped) after the other.
double cost_by_planes(int qubits, std::span<const PauliTerm> terms) {
    std::set<std::pair<Mask, int>> planes;
    for (const PauliTerm& term : terms) planes.insert({term.x, parity(term.x & term.z)});
    const double words = static_cast<double>(terms.size()) / static_cast<double>(planes.size());
    const double fold = 2 + std::min(std::log2(std::max(words, 1.0)), static_cast<double>(qubits));
    double cost = 0;
    for (const auto& plane : planes) cost += plane.first == 0 ? 2 + fold : 2 + fold / 2;
    return cost;
}

double cost_by_transform(int qubits, int pivots) { return 2 + pivots + 0.5 * qubits; }

}  // namespace

Eigenbasis eigenbasis(int qubits, std::span<const PauliTerm> terms) {
    if (terms.empty()) return {};
    Echelon echelon;
    for (const PauliTerm& term : terms) echelon.add(hermitian(term.x, term.z));
    if (cost_by_transform(qubits, static_cast<int>(echelon.words.size())) > cost_by_planes(qubits, terms)) {
        return {};
    }
    for (const auto& [pivot, axis] : echelon.words) {
        for (const auto& [other, word] : echelon.words) {
            if (!commute(axis, word)) return {};
        }
        for (const PauliTerm& term : terms) {
            if (!commute(axis, hermitian(term.x, term.z))) return {};
        }
    }
    Eigenbasis basis;
    for (int q = 0; q < qubits; ++q) basis.axes.push_back({Mask{1} << q, 0, 0});
    for (const auto& [pivot, axis] : echelon.words) {
        basis.axes[static_cast<std::size_t>(pivot)] = axis;
        basis.pivots |= Mask{1} << pivot;
    }
    // Each flipped amplitude lacks a factor 1/sqrt 2, so probabilities lack 1/2 per pivot.
    const double scale = std::ldexp(1.0, -std::popcount(basis.pivots));
    for (const PauliTerm& term : terms) {
        const Word word = hermitian(term.x, term.z);
        Word product;
        for (Mask rest = word.x & basis.pivots; rest != 0; rest &= rest - 1) {
            product = product * basis.axes[static_cast<std::size_t>(std::countr_zero(rest))];
        }
        const Mask z = word.z ^ product.z;
        product = product * Word{0, z, 0};
        const double sign = ((word.phase - product.phase) & 2) == 0 ? 1.0 : -1.0;
        basis.readings.push_back(
            {(word.x & basis.pivots) | (z & ~basis.pivots), term.coefficient * sign * scale, term.moment});
    }
    std::stable_sort(basis.readings.begin(), basis.readings.end(),
                     [](const auto& a, const auto& b) { return a.moment < b.moment; });
    for (std::size_t y = 0; y < std::size_t{1} << std::min(qubits, low_bits); ++y) {
        Word word;
        for (Mask rest = y & basis.pivots; rest != 0; rest &= rest - 1) {
            word = word * basis.axes[static_cast<std::size_t>(std::countr_zero(rest))];
        }
        const Mask t = y & ~basis.pivots;
        basis.low_flips.push_back(static_cast<std::uint32_t>(word.x ^ t));
        basis.low_phases.push_back(static_cast<std::uint8_t>((word.phase + 2 * parity(word.z & t)) & 3));
    }
    return basis;
}

}  // namespace fubini
