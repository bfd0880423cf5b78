// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/program.hpp"

namespace fubini {

/// The observable sum over m of weights[m] M_m between some basis states, as a sparse matrix. For states with
/// few amplitudes, such as those of a fixed number of particles. The program must have no marginals.
class Restricted {
  public:
    /// The basis states, ascending.
    Restricted(const Program& program, const double* weights, std::span<const std::uint32_t> rows);

    /// bra = H ket for tiles of (rows, 16): real and imaginary parts of eight states.
    void apply(const double* ket, double* bra) const;

  private:
    struct Entry {
        std::uint32_t from;
        bool odd;  ///< the factor is -i
        double value;
    };
    std::vector<std::size_t> starts_;
    std::vector<Entry> entries_;
};

}  // namespace fubini
