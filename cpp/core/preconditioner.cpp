// SPDX-License-Identifier: Apache-2.0
#include "core/preconditioner.hpp"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/linear_algebra.hpp"
#include "core/solve_blocked.hpp"

namespace fubini {
namespace {

using Index = std::ptrdiff_t;

std::size_t entries(Index count) { return static_cast<std::size_t>(count); }

/// The Cholesky factor of a damped matrix.
struct Factor {
    detail::BlockedWorkspace memory;
    Index n = 0;

    bool make(const double* matrix, Index size, double damping) {
        n = size;
        return detail::factor_blocked(matrix, n, damping, memory);
    }

    /// x[at(i)] becomes the solution, for n unknowns.
    template <class At>
    void solve(double* x, std::vector<double>& padded, const At& at) const {
        padded.assign(entries(detail::factored_rows(n)), 0.0);
        for (Index i = 0; i < n; ++i) padded[entries(i)] = x[at(i)];
        detail::solve_factored(memory, padded.data());
        for (Index i = 0; i < n; ++i) x[at(i)] = padded[entries(i)];
    }
};

/// Unknowns `index` of a dense block: all n from `first` where it is empty.
struct Part {
    std::vector<Index> index;
    Index first = 0;
    Factor factor;
};

struct Kronecker {
    Index first = 0;
    KroneckerSystem shape;        // without its arrays
    std::vector<double> vectors;  // (groups, rows, rows)
    std::vector<Factor> factors;  // (groups, rows)
    std::vector<Index> still;     // unknowns that move nothing, from `first`
};

/// Unknowns by themselves: those of `index`, or all from `first` where it is empty.
struct Diagonal {
    Index first = 0;
    std::vector<double> inverse;
    std::vector<Index> index;

    /// Appends the inverse of a damped entry; that of an entry of zero is 1.
    bool add(double entry, double damping) {
        const double damped = entry == 0.0 ? 1.0 : entry + damping;
        inverse.push_back(1.0 / damped);
        return std::isfinite(damped) && damped > 0.0;
    }
};

/// Unknowns that nothing couples with others, part by part; no part at all where the first row has no zero.
std::vector<std::vector<Index>> independent(const double* matrix, Index n) {
    if (std::find(matrix, matrix + n, 0.0) == matrix + n) return {};
    std::vector<std::vector<Index>> parts;
    std::vector<Index> left(entries(n));
    for (Index i = 0; i < n; ++i) left[entries(i)] = i;
    while (!left.empty()) {
        std::vector<Index> part{left.front()}, others(left.begin() + 1, left.end());
        for (std::size_t next = 0; next < part.size() && !others.empty(); ++next) {
            const double* row = matrix + part[next] * n;
            const auto coupled =
                std::stable_partition(others.begin(), others.end(), [row](Index j) { return row[j] == 0.0; });
            part.insert(part.end(), coupled, others.end());
            others.erase(coupled, others.end());
        }
        std::sort(part.begin(), part.end());
        parts.push_back(std::move(part));
        left = std::move(others);
    }
    return parts;
}

}  // namespace

struct Preconditioner::Blocks {
    Index size = 0;
    std::vector<Part> parts;
    std::vector<Kronecker> products;
    std::vector<Diagonal> diagonals;
};

Preconditioner::Preconditioner() : blocks_(std::make_unique<Blocks>()) {}
Preconditioner::~Preconditioner() = default;

Index Preconditioner::size() const { return blocks_->size; }

void Preconditioner::add_identity(Index n) {
    if (n < 0 || n > std::numeric_limits<Index>::max() / 2 - blocks_->size)
        throw std::invalid_argument("n: expected a number of parameters, got " + std::to_string(n));
    blocks_->size += n;
}

bool Preconditioner::add_dense(const double* matrix, Index n, double damping) {
    std::vector<std::vector<Index>> parts = independent(matrix, n);
    std::vector<Part> made;
    Diagonal alone{blocks_->size, {}, {}};
    std::vector<double> piece;
    for (std::size_t k = 0; k < std::max<std::size_t>(parts.size(), 1); ++k) {
        if (!parts.empty() && parts[k].size() == 1) {
            alone.index.push_back(parts[k][0]);
            if (!alone.add(matrix[parts[k][0] * (n + 1)], damping)) return false;
            continue;
        }
        Part& part = made.emplace_back();
        part.first = blocks_->size;
        if (parts.size() <= 1) {
            if (!part.factor.make(matrix, n, damping)) return false;
            continue;
        }
        part.index = std::move(parts[k]);
        const auto count = static_cast<Index>(part.index.size());
        piece.resize(entries(count * count));
        for (Index i = 0; i < count; ++i) {
            const double* row = matrix + part.index[entries(i)] * n;
            for (Index j = 0; j < count; ++j) piece[entries(i * count + j)] = row[part.index[entries(j)]];
        }
        if (!part.factor.make(piece.data(), count, damping)) return false;
    }
    for (Part& part : made) blocks_->parts.push_back(std::move(part));
    if (!alone.index.empty()) blocks_->diagonals.push_back(std::move(alone));
    blocks_->size += n;
    return true;
}

bool Preconditioner::add_kronecker(const KroneckerSystem& system, double damping) {
    const Index groups = system.groups, rows = system.rows, columns = system.columns;
    Kronecker made{blocks_->size, {nullptr, nullptr, groups, rows, columns, system.widths}, {}, {}, {}};
    made.vectors.resize(entries(groups * rows * rows));
    made.factors.resize(entries(groups * rows));
    std::vector<double> values(entries(rows)), scaled(entries(columns * columns));
    for (Index g = 0; g < groups; ++g) {
        if (!symmetric_eigen(system.left + g * rows * rows, rows, values.data(),
                             made.vectors.data() + g * rows * rows)) {
            return false;
        }
        const double* right = system.right + g * columns * columns;
        for (Index i = 0; i < rows; ++i) {
            // Eigenvalues below zero are rounding.
            const double value = std::max(values[entries(i)], 0.0);
            for (Index k = 0; k < columns * columns; ++k) scaled[entries(k)] = value * right[k];
            if (!made.factors[entries(g * rows + i)].make(scaled.data(), columns, damping)) return false;
        }
    }
    system.for_unknowns([&](Index unknown, Index line, Index column) {
        if (system.still(line, column)) made.still.push_back(unknown);
    });
    blocks_->products.push_back(std::move(made));
    blocks_->size += system.size();
    return true;
}

bool Preconditioner::add_diagonal(const double* values, Index n, double damping) {
    Diagonal made{blocks_->size, {}, {}};
    for (Index i = 0; i < n; ++i) {
        if (!made.add(values[i], damping)) return false;
    }
    blocks_->diagonals.push_back(std::move(made));
    blocks_->size += n;
    return true;
}

double Preconditioner::apply(const double* g, double* x) const {
    const Index size = blocks_->size;
    std::copy_n(g, size, x);
    std::vector<double> padded;
    for (const Part& part : blocks_->parts) {
        double* block = x + part.first;
        if (part.index.empty()) {
            part.factor.solve(block, padded, [](Index i) { return i; });
        } else {
            part.factor.solve(block, padded, [&part](Index i) { return part.index[entries(i)]; });
        }
    }
    for (const Kronecker& one : blocks_->products) {
        const Index rows = one.shape.rows, columns = one.shape.columns;
        std::vector<double> matrices(entries(one.shape.size())), rotated(entries(rows * columns));
        double* own = x + one.first;
        one.shape.for_unknowns(
            [&](Index i, Index line, Index c) { matrices[entries(line * columns + c)] = own[i]; });
        for (Index group = 0; group < one.shape.groups; ++group) {
            const double* vectors = one.vectors.data() + group * rows * rows;
            double* mine = matrices.data() + group * rows * columns;
            product(vectors, mine, rows, rows, columns, rotated.data());
            for (Index i = 0; i < rows; ++i) {
                one.factors[entries(group * rows + i)].solve(rotated.data() + i * columns, padded,
                                                             [](Index k) { return k; });
            }
            product_of_transpose(vectors, rotated.data(), rows, rows, columns, mine);
        }
        one.shape.for_unknowns(
            [&](Index i, Index line, Index c) { own[i] = matrices[entries(line * columns + c)]; });
        for (const Index place : one.still) x[one.first + place] = g[one.first + place];
    }
    for (const Diagonal& one : blocks_->diagonals) {
        for (std::size_t i = 0; i < one.inverse.size(); ++i)
            x[one.first + (one.index.empty() ? static_cast<Index>(i) : one.index[i])] *= one.inverse[i];
    }
    double sum = 0.0, bad = 0.0;
    for (Index i = 0; i < size; ++i) {
        sum += g[i] * x[i];
        bad += (x[i] - x[i]) + (g[i] - g[i]);
    }
    return bad == 0.0 ? sum : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace fubini
