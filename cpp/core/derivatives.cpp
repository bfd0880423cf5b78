// SPDX-License-Identifier: Apache-2.0
#include "core/derivatives.hpp"

#include <algorithm>

#include "core/adjoint.hpp"
#include "core/tangent_tile.hpp"

namespace fubini {
namespace {

void load_covectors(const Tile& tile, const std::complex<double>* covectors, double* bra) {
    const std::size_t amplitudes = std::size_t{1} << tile.program.qubits();
    load_states(tile.layout, covectors + static_cast<std::size_t>(tile.first) * amplitudes, amplitudes,
                tile.samples, bra);
}

}  // namespace

void derivative_states(const Program& program, const Batch& batch, const double* tangents,
                       std::complex<double>* out) {
    const std::size_t amplitudes = std::size_t{1} << program.qubits();
    for_tiles(program, batch, 2, [&](Tile& tile) {
        double *ket = tile.state(0), *tangent = tile.state(1);
        if (tangents != nullptr) {
            run_along(tile, tangents, ket, tangent);
        } else {
            tile.load_initial(ket);
            tile.run_forward(ket);
        }
        store_states(tile.layout, tangents != nullptr ? tangent : ket, splat(1), Vec{},
                     out + static_cast<std::size_t>(tile.first) * amplitudes, tile.samples);
    });
}

void overlap_gradient(const Program& program, const Batch& batch, const std::complex<double>* covectors,
                      double* out) {
    for_tiles(program, batch, 2, [&](Tile& tile) {
        tile.load_initial(tile.state(0));
        tile.run_forward(tile.state(0));
        load_covectors(tile, covectors, tile.state(1));
        run_back(tile, tile.state(0), tile.state(1));
        store_halved_slots(tile, out);
    });
}

void overlap_hessian(const Program& program, const Batch& batch, const std::complex<double>* covectors,
                     const double* tangents, double* out) {
    for_tiles(program, batch, 4, [&](Tile& tile) {
        double* const states[4] = {tile.state(0), tile.state(1), tile.state(2), tile.state(3)};
        run_along(tile, tangents, states[0], states[1]);
        load_covectors(tile, covectors, states[2]);
        std::fill_n(states[3], tile.layout.rows() * row_doubles, 0.0);
        run_back_twice(tile, states);
        store_halved_slots(tile, out);
    });
}

}  // namespace fubini
