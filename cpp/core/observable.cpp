// SPDX-License-Identifier: Apache-2.0
#include "core/observable.hpp"

#include <algorithm>
#include <array>
#include <span>

#include "core/observable_groups.hpp"

namespace fubini {
namespace {

constexpr std::int64_t sign_bit = std::int64_t{1} << 63;

/// The plane of a group has one Vec per row, or per pair of rows when the words flip a qubit that rows count.
struct Plane {
    std::size_t x;  ///< row flip
    int lane_x;
    int removed = -1;  ///< row bit that the plane leaves out; -1: none
    std::size_t rows;

    Plane(const Group& group, const Layout& layout)
        : x(group.x >> layout.lane_bits),
          lane_x(static_cast<int>(group.x & layout.lane_mask())),
          rows(layout.rows()) {
        if (x != 0) {
            removed = static_cast<int>(std::bit_width(x)) - 1;
            rows /= 2;
        }
    }
    [[nodiscard]] std::size_t row(std::size_t index) const {
        if (removed < 0) return index;
        const std::size_t low = (std::size_t{1} << removed) - 1;
        return (index & low) | (index & ~low) << 1;
    }
    /// The inverse of row, which does not look at the bit that the plane leaves out.
    [[nodiscard]] std::size_t index(std::size_t r) const {
        if (removed < 0) return r;
        const std::size_t low = (std::size_t{1} << removed) - 1;
        return (r & low) | (r >> (removed + 1) << removed);
    }
    /// The word's Z part as a mask over plane rows.
    [[nodiscard]] std::size_t mask(const PauliTerm& term, const Layout& layout) const {
        return index(term.z >> layout.lane_bits);
    }
};

Vec permuted_by(const Vec& v, int lane_x) {
    if (lane_x == 0) return v;
    Vec result;
    for (int l = 0; l < lanes; ++l) result[l] = v[l ^ lane_x];
    return result;
}

IntVec lane_signs(Mask z, const Layout& layout) {
    IntVec signs{};
    for (int l = 0; l < lanes; ++l) {
        if (parity(static_cast<Mask>(l) & layout.lane_mask() & z) != 0) signs[l] = sign_bit;
    }
    return signs;
}

/// The sum over the lanes of each sample, in every lane of it.
Vec sample_sum(Vec v, const Layout& layout) {
    for (int step = 1; step < 1 << layout.lane_bits; step *= 2) v += permuted_by(v, step);
    return v;
}

/// Words [begin, end) of a group, sorted by their mask, on a plane of 2^level rows: calls leaf(term, sum)
/// with the signed sum over the rows. Destroys the plane.
template <typename Leaf>
void fold(Vec* plane, std::size_t rows, const std::size_t* masks, std::size_t begin, std::size_t end,
          const Leaf& leaf) {
    if (rows == 1) {
        for (std::size_t t = begin; t < end; ++t) leaf(t, plane[0]);
        return;
    }
    const std::size_t half = rows / 2;
    const auto split = static_cast<std::size_t>(
        std::partition_point(masks + begin, masks + end, [&](std::size_t z) { return (z & half) == 0; }) -
        masks);
    if (split == end) {
        for (std::size_t r = 0; r < half; ++r) plane[r] += plane[r + half];
    } else if (split == begin) {
        for (std::size_t r = 0; r < half; ++r) plane[r + half] = plane[r] - plane[r + half];
    } else {
        for (std::size_t r = 0; r < half; ++r) {
            const Vec a = plane[r];
            const Vec b = plane[r + half];
            plane[r] = a + b;
            plane[r + half] = a - b;
        }
    }
    if (split > begin) fold(plane, half, masks, begin, split, leaf);
    if (split < end) fold(plane + half, half, masks, split, end, leaf);
}

/// The transpose: fills the plane with sum over words of leaf(term) * (-1)^parity(mask & r).
template <typename Value, typename Leaf>
void unfold(Value* plane, std::size_t rows, const std::size_t* masks, std::size_t begin, std::size_t end,
            const Leaf& leaf) {
    if (rows == 1) {
        Value sum{};
        for (std::size_t t = begin; t < end; ++t) sum += leaf(t);
        plane[0] = sum;
        return;
    }
    const std::size_t half = rows / 2;
    const auto split = static_cast<std::size_t>(
        std::partition_point(masks + begin, masks + end, [&](std::size_t z) { return (z & half) == 0; }) -
        masks);
    if (split > begin) unfold(plane, half, masks, begin, split, leaf);
    if (split < end) unfold(plane + half, half, masks, split, end, leaf);
    if (split == end) {
        for (std::size_t r = 0; r < half; ++r) plane[r + half] = plane[r];
    } else if (split == begin) {
        for (std::size_t r = 0; r < half; ++r) {
            plane[r] = plane[r + half];
            plane[r + half] = -plane[r + half];
        }
    } else {
        for (std::size_t r = 0; r < half; ++r) {
            const Value a = plane[r];
            const Value b = plane[r + half];
            plane[r] = a + b;
            plane[r + half] = a - b;
        }
    }
}

/// Which outcome an amplitude is counted under: linear in its bits, because the pending Clifford only
/// permutes basis states by a linear map and a shift.
class OutcomeMap {
  public:
    OutcomeMap(const Plan& plan, const Marginal& marginal, const Layout& layout) : layout_(layout) {
        const std::size_t k = marginal.qubits.size();
        outcomes_ = std::size_t{1} << k;
        for (std::size_t i = 0; i < k; ++i) {
            const Word& image = plan.z_images[static_cast<std::size_t>(marginal.qubits[i])];
            const std::size_t out = std::size_t{1} << (k - 1 - i);
            if (sign(image) < 0) shift_ ^= out;
            for (int q = 0; q < layout.qubits; ++q) {
                if ((image.z >> q & 1) != 0) columns_[static_cast<std::size_t>(q)] ^= out;
            }
        }
        for (int l = 0; l < lanes; ++l) {
            std::size_t index = shift_;
            for (int q = 0; q < layout.lane_bits; ++q) {
                if ((l >> q & 1) != 0) index ^= columns_[static_cast<std::size_t>(q)];
            }
            lane_part_[static_cast<std::size_t>(l)] = index;
        }
    }
    [[nodiscard]] std::size_t outcomes() const { return outcomes_; }
    [[nodiscard]] std::size_t lane_part(int l) const { return lane_part_[static_cast<std::size_t>(l)]; }

    /// Calls body(row, row's part of the outcome) for every row; outcome = row part ^ lane part.
    template <typename Body>
    void for_rows(const Body& body) const {
        std::array<std::size_t, max_qubits + 1>
            carried{};  // change of the outcome when a row count carries to bit t
        std::size_t sum = 0;
        for (int t = 0; t + layout_.lane_bits < layout_.qubits; ++t) {
            sum ^= columns_[static_cast<std::size_t>(t + layout_.lane_bits)];
            carried[static_cast<std::size_t>(t)] = sum;
        }
        std::size_t outcome = 0;
        const std::size_t rows = layout_.rows();
        for (std::size_t r = 0; r < rows; ++r) {
            body(r, outcome);
            outcome ^= carried[static_cast<std::size_t>(std::countr_zero(r + 1))];
        }
    }

  private:
    Layout layout_;
    std::size_t outcomes_ = 1;
    std::size_t shift_ = 0;
    std::array<std::size_t, max_qubits> columns_{};
    std::array<std::size_t, lanes> lane_part_{};
};

std::size_t largest_group(Terms terms) {
    std::size_t largest = 0;
    for_groups(terms, [&](const Group& group) { largest = std::max(largest, group.terms.size()); });
    return largest;
}

}  // namespace

std::size_t observable_scratch(const Program& program, const Layout& layout) {
    std::size_t outcomes = 0;
    for (const Marginal& marginal : program.marginals()) {
        outcomes = std::max(outcomes, std::size_t{1} << marginal.qubits.size());
    }
    std::size_t words = largest_group(program.plan().terms);
    std::size_t transforms = 0;
    for (const Checkpoint& checkpoint : program.plan().checkpoints) {
        if (checkpoint.basis.empty()) {
            words = std::max(words, largest_group(checkpoint.terms));
        } else {
            transforms = eigenbasis_scratch(layout.rows());
        }
    }
    const std::size_t masks = (words + lanes - 1) / lanes;
    return std::max(std::max(layout.rows() + masks, outcomes) * lanes, transforms);
}

void measure_terms(std::span<const PauliTerm> terms, const Layout& layout, const double* state, Vec* moments,
                   double* scratch) {
    Vec* plane = &vec(scratch);
    auto* masks = reinterpret_cast<std::size_t*>(scratch + layout.rows() * lanes);
    for_groups(terms, [&](const Group& group) {
        const Plane shape(group, layout);
        for (std::size_t t = 0; t < group.terms.size(); ++t) masks[t] = shape.mask(group.terms[t], layout);
        for (std::size_t index = 0; index < shape.rows; ++index) {
            const std::size_t r = shape.row(index);
            const double* a = state + r * row_doubles;
            const double* b = state + (r ^ shape.x) * row_doubles;
            const Vec& ar = vec(a);
            const Vec& ai = vec(a + lanes);
            if (group.x == 0) {
                plane[index] = ar * ar + ai * ai;
                continue;
            }
            const Vec br = permuted_by(vec(b), shape.lane_x);
            const Vec bi = permuted_by(vec(b + lanes), shape.lane_x);
            plane[index] = group.odd ? ar * bi - ai * br : ar * br + ai * bi;
        }
        const double pairs = shape.removed < 0 ? 1 : 2;
        fold(plane, shape.rows, masks, 0, group.terms.size(), [&](std::size_t t, const Vec& sum) {
            const PauliTerm& term = group.terms[t];
            moments[term.moment] += term.coefficient * pairs * word_factor(term) *
                                    sample_sum(flipped(sum, lane_signs(term.z, layout)), layout);
        });
    });
}

void measure(const Program& program, const Layout& layout, const double* state, Vec* moments,
             double* scratch) {
    const Plan& plan = program.plan();
    std::fill_n(moments, program.moments(), Vec{});
    measure_terms(plan.terms, layout, state, moments, scratch);
    Vec* plane = &vec(scratch);
    for (const Marginal& marginal : program.marginals()) {
        const OutcomeMap map(plan, marginal, layout);
        std::fill_n(plane, map.outcomes(), Vec{});
        map.for_rows([&](std::size_t r, std::size_t outcome) {
            const Vec& re = vec(state + r * row_doubles);
            const Vec& im = vec(state + r * row_doubles + lanes);
            plane[outcome] += re * re + im * im;
        });
        for (const Marginal::Entry& entry : marginal.entries) {
            Vec probability;
            for (int l = 0; l < lanes; ++l) probability[l] = plane[entry.index ^ map.lane_part(l)][l];
            moments[entry.moment] += entry.weight * sample_sum(probability, layout);
        }
    }
}

namespace {

/// A word that stands alone in its plane and flips qubits that rows count, as the fields of spin models do.
struct Alone {
    std::size_t x, z;  ///< over rows
    bool odd;
    Vec factor;

    static bool is(const Group& group, const Layout& layout) {
        return group.terms.size() == 1 && group.x != 0 && (group.x & layout.lane_mask()) == 0;
    }
};

double permuted_by(double v, int /*lane_x*/) { return v; }

/// bra += the words of a group on ket, with a weight for each: a number, or one for every lane.
template <typename Value, typename Weight>
void apply_group(const Group& group, const Layout& layout, const Weight& weight, const double* ket,
                 double* bra, Value* plane, std::size_t* masks) {
    const Plane shape(group, layout);
    for (std::size_t t = 0; t < group.terms.size(); ++t) masks[t] = shape.mask(group.terms[t], layout);
    unfold(plane, shape.rows, masks, 0, group.terms.size(),
           [&](std::size_t t) { return weight(group.terms[t]); });
    // With an odd number of Y the factor is -i, and the sign at r ^ x is the opposite of that at r.
    const auto add = [&](const Value& d, std::size_t to, std::size_t from) {
        const Vec re = permuted_by(vec(ket + from * row_doubles), shape.lane_x);
        const Vec im = permuted_by(vec(ket + from * row_doubles + lanes), shape.lane_x);
        vec(bra + to * row_doubles) += group.odd ? d * im : d * re;
        vec(bra + to * row_doubles + lanes) += group.odd ? -d * re : d * im;
    };
    for (std::size_t index = 0; index < shape.rows; ++index) {
        const std::size_t r = shape.row(index);
        add(plane[index], r, r ^ shape.x);
        if (shape.removed < 0) continue;
        const Value d = permuted_by(plane[index], shape.lane_x);
        add(group.odd ? -d : d, r ^ shape.x, r);
    }
}

/// So many at once; more go the way of other words.
constexpr std::size_t most_alone = 24;

/// bra = the sum of these words on ket: all of them for one row after the other, which is written once.
void apply_alone(std::span<const Alone> words, std::size_t rows, const double* ket, double* bra) {
    for (std::size_t r = 0; r < rows; ++r) {
        Vec re{}, im{};
        for (const Alone& word : words) {
            const double* from = ket + (r ^ word.x) * row_doubles;
            const IntVec sign = IntVec{} + (parity(word.z & r) != 0 ? sign_bit : 0);
            const Vec factor = flipped(word.factor, sign);
            const Vec &a = vec(from), &b = vec(from + lanes);
            re += factor * (word.odd ? b : a);
            im += factor * (word.odd ? -a : b);
        }
        vec(bra + r * row_doubles) = re;
        vec(bra + r * row_doubles + lanes) = im;
    }
}

}  // namespace

void apply_observables(const Program& program, const Layout& layout, const Vec* weights, const double* ket,
                       double* bra, double* scratch) {
    const Plan& plan = program.plan();
    const auto weight = [&](const PauliTerm& term) {
        return flipped(term.coefficient * word_factor(term) * weights[term.moment],
                       lane_signs(term.z, layout));
    };
    std::array<Alone, most_alone> words;  // no memory is asked for in a sweep
    std::size_t alone = 0;
    for_groups(plan.terms, [&](const Group& group) {
        if (alone == words.size() || !Alone::is(group, layout)) return;
        const PauliTerm& term = group.terms.front();
        words[alone++] = {group.x >> layout.lane_bits, term.z >> layout.lane_bits, group.odd, weight(term)};
    });
    apply_alone({words.data(), alone}, layout.rows(), ket, bra);
    std::size_t left = alone;
    Vec* plane = &vec(scratch);
    auto* masks = reinterpret_cast<std::size_t*>(scratch + layout.rows() * lanes);
    for_groups(plan.terms, [&](const Group& group) {
        if (left > 0 && Alone::is(group, layout)) {
            --left;
            return;
        }
        apply_group(group, layout, weight, ket, bra, plane, masks);
    });
    for (const Marginal& marginal : program.marginals()) {
        const OutcomeMap map(plan, marginal, layout);
        std::fill_n(plane, map.outcomes(), Vec{});
        for (const Marginal::Entry& entry : marginal.entries) {
            for (int l = 0; l < lanes; ++l) {
                plane[entry.index ^ map.lane_part(l)][l] += entry.weight * weights[entry.moment][l];
            }
        }
        map.for_rows([&](std::size_t r, std::size_t outcome) {
            vec(bra + r * row_doubles) += plane[outcome] * vec(ket + r * row_doubles);
            vec(bra + r * row_doubles + lanes) += plane[outcome] * vec(ket + r * row_doubles + lanes);
        });
    }
}

void apply_uniform(const Program& program, const double* weights, const double* ket, double* bra,
                   double* scratch) {
    const Layout layout{program.qubits(), 0};
    const std::size_t rows = layout.rows();
    std::fill_n(bra, rows * row_doubles, 0.0);
    auto* masks = reinterpret_cast<std::size_t*>(scratch + rows);
    const auto weight = [&](const PauliTerm& term) {
        return term.coefficient * word_factor(term) * weights[term.moment];
    };
    for_groups(program.plan().terms,
               [&](const Group& group) { apply_group(group, layout, weight, ket, bra, scratch, masks); });
    for (const Marginal& marginal : program.marginals()) {
        const OutcomeMap map(program.plan(), marginal, layout);
        std::fill_n(scratch, map.outcomes(), 0.0);
        for (const Marginal::Entry& entry : marginal.entries) {
            scratch[entry.index ^ map.lane_part(0)] += entry.weight * weights[entry.moment];
        }
        map.for_rows([&](std::size_t r, std::size_t outcome) {
            const double d = scratch[outcome];
            if (d == 0) return;
            vec(bra + r * row_doubles) += d * vec(ket + r * row_doubles);
            vec(bra + r * row_doubles + lanes) += d * vec(ket + r * row_doubles + lanes);
        });
    }
}

}  // namespace fubini
