// SPDX-License-Identifier: Apache-2.0
// A damped metric in blocks, factorised once for all the right-hand sides that meet it.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

#include "core/kronecker.hpp"

namespace fubini {

/// x = (G + D)^-1 g for a block-diagonal G, with the factors of every block kept.
///
/// Unknowns whose diagonal entry of G is zero move nothing: their x is their g, without damping. The blocks
/// are added in the order of their unknowns; one that is not positive definite beyond doubt is refused
/// (false) and leaves the object as it was.
class Preconditioner {
  public:
    Preconditioner();
    Preconditioner(const Preconditioner&) = delete;
    Preconditioner(Preconditioner&&) = delete;
    Preconditioner& operator=(const Preconditioner&) = delete;
    Preconditioner& operator=(Preconditioner&&) = delete;
    ~Preconditioner();

    /// A symmetric matrix (n, n). Parts that its zeros make independent
    /// are factorised on their own.
    [[nodiscard]] bool add_dense(const double* matrix, std::ptrdiff_t n, double damping);

    /// L kron R. In the eigenvectors of L every row has a factor of its own, so that rows * columns^2 numbers
    /// are kept, and not the arrays of the system.
    [[nodiscard]] bool add_kronecker(const KroneckerSystem& system, double damping);

    /// A diagonal (n).
    [[nodiscard]] bool add_diagonal(const double* values, std::ptrdiff_t n, double damping);

    /// The identity, undamped: x is g.
    void add_identity(std::ptrdiff_t n);

    /// Number of unknowns.
    [[nodiscard]] std::ptrdiff_t size() const;

    /// x (size) for g (size), which may not overlap. Returns the product of both: the squared length of x in
    /// G + D; not a number if anything in g or x is not finite.
    double apply(const double* g, double* x) const;

  private:
    struct Blocks;
    std::unique_ptr<Blocks> blocks_;
};

}  // namespace fubini
