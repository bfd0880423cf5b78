// SPDX-License-Identifier: Apache-2.0
#include "core/restricted.hpp"

#include "core/kernels.hpp"
#include "core/observable_groups.hpp"

namespace fubini {

Restricted::Restricted(const Program& program, const double* weights, std::span<const std::uint32_t> rows) {
    constexpr std::uint32_t absent = ~std::uint32_t{0};
    std::vector<std::uint32_t> place(std::size_t{1} << program.qubits(), absent);
    for (std::size_t i = 0; i < rows.size(); ++i) place[rows[i]] = static_cast<std::uint32_t>(i);
    const Terms terms = program.plan().terms;
    std::vector<double> factors;
    for (const PauliTerm& term : terms) {
        factors.push_back(term.coefficient * word_factor(term) *
                          weights[static_cast<std::size_t>(term.moment)]);
    }
    for (const std::uint32_t to : rows) {
        starts_.push_back(entries_.size());
        for_groups(terms, [&](const Group& group) {
            const std::uint32_t from = place[to ^ group.x];
            if (from == absent) return;
            double value = 0;
            const double* factor = factors.data() + (group.terms.data() - terms.data());
            for (std::size_t t = 0; t < group.terms.size(); ++t) {
                value += parity(group.terms[t].z & to) != 0 ? -factor[t] : factor[t];
            }
            if (value != 0) entries_.push_back({from, group.odd, value});
        });
    }
    starts_.push_back(entries_.size());
}

void Restricted::apply(const double* ket, double* bra) const {
    for (std::size_t r = 0; r + 1 < starts_.size(); ++r) {
        Vec re{}, im{};
        for (std::size_t e = starts_[r]; e < starts_[r + 1]; ++e) {
            const Entry& entry = entries_[e];
            const double* at = ket + entry.from * row_doubles;
            const Vec &a = vec(at), &b = vec(at + lanes);
            re += entry.value * (entry.odd ? b : a);
            im += entry.value * (entry.odd ? -a : b);
        }
        vec(bra + r * row_doubles) = re;
        vec(bra + r * row_doubles + lanes) = im;
    }
}

}  // namespace fubini
