// SPDX-License-Identifier: Apache-2.0
#include "core/clifford_frame.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numbers>
#include <optional>
#include <tuple>

namespace fubini {
namespace {

constexpr double quarter = std::numbers::pi / 2;

Mask bit(int qubit) { return Mask{1} << qubit; }

/// Which quarter turn an angle is (0..3), if it is one to rounding.
std::optional<int> quarter_turns(double angle) {
    const double quarters = std::round(angle / quarter);
    if (std::abs(quarters) > 1e6 ||
        std::abs(angle - quarters * quarter) > 1e-15 * std::max(1.0, std::abs(angle))) {
        return std::nullopt;
    }
    return static_cast<int>((static_cast<long>(quarters) % 4 + 4) % 4);
}

std::optional<Word> pull_rotation(const Operation& g, const Word& word) {
    Word axis = g.word;
    double angle = g.offset;
    if (g.fixed != 0) {
        // A phase on one qubit's |value> is, up to a global phase, half a turn's worth of Z.
        if (std::popcount(g.fixed) != 1 || axis.x != 0 || axis.z != 0) return std::nullopt;
        axis = {0, g.fixed, g.value == 0 ? 0 : 2};
        angle /= 2;
        if (sign(g.word) < 0) angle = -angle;
    }
    const std::optional<int> quarters = quarter_turns(angle);
    if (!quarters || (axis.x != 0 && *quarters % 2 != 0)) return std::nullopt;
    if (commute(axis, word) || *quarters == 0) return word;
    if (*quarters == 2) return negated(word);
    Word result = word * axis;  // exp(i t A / 2) W exp(-i t A / 2) = W (cos t - i sin t A)
    result.phase = (result.phase + (*quarters == 1 ? 3 : 1)) & 3;
    return result;
}

/// g^dagger word g for a g that maps Z words to Z words; nothing when g is not such a Clifford.
std::optional<Word> pull(const Operation& g, const Word& word) {
    if (g.kind == Operation::Kind::rotation && g.slot < 0) return pull_rotation(g, word);
    if (g.kind != Operation::Kind::flip) return std::nullopt;
    const bool anticommutes = !commute(g.word, word);
    if (g.fixed == 0) return anticommutes ? negated(word) : word;
    if (std::popcount(g.fixed) == 1 && (g.fixed & g.word.x) == 0) {
        // 1 - 2 Pi = -+ Z on the control: + where the control value is 1.
        const Word control{0, g.fixed, g.value != 0 ? 0 : 2};
        Word result = word;
        if (!commute(control, word)) result = result * g.word;
        return anticommutes ? control * result : result;
    }
    if (std::popcount(g.fixed) == 2 && g.word == hermitian(g.fixed, 0) && std::popcount(g.value) == 1) {
        Word result = word;
        if (std::popcount(word.x & g.fixed) == 1) result.x ^= g.fixed;
        if (std::popcount(word.z & g.fixed) == 1) result.z ^= g.fixed;
        return result;
    }
    return std::nullopt;
}

}  // namespace

void CliffordFrame::reset() {
    x_images_.clear();
    z_images_.clear();
    for (int q = 0; q < qubits_; ++q) {
        x_images_.push_back({bit(q), 0, 0});
        z_images_.push_back({0, bit(q), 0});
    }
}

Word CliffordFrame::image(const Word& word) const {
    Word result{0, 0, word.phase};
    for (Mask rest = word.x; rest != 0; rest &= rest - 1) {
        result = result * x_images_[static_cast<std::size_t>(std::countr_zero(rest))];
    }
    for (Mask rest = word.z; rest != 0; rest &= rest - 1) {
        result = result * z_images_[static_cast<std::size_t>(std::countr_zero(rest))];
    }
    return result;
}

bool CliffordFrame::absorb(const Operation& g) {
    if (!pull(g, {})) return false;
    std::vector<Word> x = x_images_;
    std::vector<Word> z = z_images_;
    for (int q = 0; q < qubits_; ++q) {
        x[static_cast<std::size_t>(q)] = image(*pull(g, {bit(q), 0, 0}));
        z[static_cast<std::size_t>(q)] = image(*pull(g, {0, bit(q), 0}));
    }
    x_images_ = std::move(x);
    z_images_ = std::move(z);
    return true;
}

bool CliffordFrame::is_trivial_on(Mask support) const {
    for (int q = 0; q < qubits_; ++q) {
        if ((support & bit(q)) == 0) continue;
        const auto i = static_cast<std::size_t>(q);
        if (x_images_[i] != Word{bit(q), 0, 0} || z_images_[i] != Word{0, bit(q), 0}) return false;
    }
    return true;
}

bool CliffordFrame::map_fixed(const Operation& operation, Mask& fixed, Mask& value) const {
    for (Mask rest = operation.fixed; rest != 0; rest &= rest - 1) {
        const int qubit = std::countr_zero(rest);
        const Word& mapped = z_images_[static_cast<std::size_t>(qubit)];
        if (std::popcount(mapped.z) != 1) return false;
        fixed |= mapped.z;
        const bool one = ((operation.value >> qubit & 1) != 0) != (sign(mapped) < 0);
        if (one) value |= mapped.z;
    }
    return true;
}

std::vector<PauliTerm> CliffordFrame::images(std::span<const PauliTerm> terms) const {
    std::vector<PauliTerm> result;
    for (const PauliTerm& term : terms) {
        const Word mapped = image(hermitian(term.x, term.z));
        result.push_back({mapped.x, mapped.z, term.coefficient * sign(mapped), term.moment});
    }
    const auto key = [](const PauliTerm& term) {
        Mask z = term.z;
        if (term.x != 0) {  // the fold runs over the other qubits only
            const int top = static_cast<int>(std::bit_width(term.x)) - 1;
            z = (z & (bit(top) - 1)) | (z >> (top + 1) << top);
        }
        return std::tuple(term.x, std::popcount(term.x & term.z) & 1, z, term.moment);
    };
    std::sort(result.begin(), result.end(),
              [&](const PauliTerm& a, const PauliTerm& b) { return key(a) < key(b); });
    return result;
}

}  // namespace fubini
