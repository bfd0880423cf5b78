// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <complex>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace fubini {

/// One term coefficient * P of a generator. P is a Pauli word given by two bit masks over basis-state
/// indices: wire w of n owns bit n-1-w (the first wire is the most significant bit); x has the bits of the
/// wires with X or Y, z those with Z or Y.
struct GeneratorTerm {
    std::uint64_t x = 0;
    std::uint64_t z = 0;
    double coefficient = 0.0;
};

/// Hermitian generator K = sum of its terms. A gate U(t) = exp(-i t K) has derivative -i K U(t).
using Generator = std::vector<GeneratorTerm>;

/// Covariances of a layer's generators, which are the layer's block of the Fubini-Study metric:
/// g_ij = Re <K_i K_j> - <K_i><K_j> (Stokes et al. 2020, arXiv:1909.02108, eq. 9).
struct BlockRequest {
    std::size_t batch = 0;  ///< number of inputs
    int wires = 0;          ///< 1 to 30
    bool diagonal = false;  ///< only the variances
};

/// From probabilities (batch, 2^wires) measured in a basis in which all generators are diagonal, so that
/// every term has x == 0. Writes (batch, k, k), or (batch, k) if diagonal. Throws std::invalid_argument on a
/// term with x != 0, a mask beyond the wires, or an empty generator list.
void blocks_from_probabilities(const BlockRequest& request, const std::vector<Generator>& generators,
                               const double* probabilities, double* out);

/// From normalised states (batch, 2^wires); any generators, commuting or not. Output and errors as above.
/// Extra memory per thread: 2 * 1024 * (k + 1) doubles, independent of the number of wires.
void blocks_from_states(const BlockRequest& request, const std::vector<Generator>& generators,
                        const std::complex<double>* states, double* out);

/// Mean over the leading axis: (batch, size) -> (size), added in the order of the batch so that the result
/// does not depend on the number of threads. batch 0 is an error.
void mean_over_batch(std::size_t batch, std::size_t size, const double* values, double* out);

}  // namespace fubini
