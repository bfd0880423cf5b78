// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <complex>
#include <cstddef>

namespace fubini {

/// A batch of density matrices and their derivatives by k angles, row-major: states (batch, dim, dim) and
/// derivatives (batch, k, dim, dim), all Hermitian. Results are (batch, k, k), symmetric to the last bit.
struct MixedRequest {
    std::size_t batch = 0;
    std::size_t dim = 0;
    std::size_t angles = 0;
};

/// Quantum Fisher information by the symmetric logarithmic derivative,
/// F_ij = sum over a, b of 2 Re(<a|d_i rho|b><b|d_j rho|a>) / (l_a + l_b) in the eigenbasis of rho (Liu et
/// al. 2020, arXiv:1907.08037, eq. 23). Pairs with l_a + l_b <= cutoff are left out: where they would
/// contribute, the rank of rho changes, and the information is not continuous there. 4 g for a pure state
/// with metric g. Throws std::invalid_argument for a cutoff that is not positive and std::runtime_error where
/// the eigenvalues of a state cannot be found (NaN).
void sld_fisher(const MixedRequest& request, const std::complex<double>* states,
                const std::complex<double>* derivatives, double cutoff, double* out);

/// Tr(d_i rho d_j rho); 2 g for a pure state with metric g.
void hilbert_schmidt(const MixedRequest& request, const std::complex<double>* derivatives, double* out);

}  // namespace fubini
