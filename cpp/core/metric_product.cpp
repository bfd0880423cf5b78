// SPDX-License-Identifier: Apache-2.0
#include "core/adjoint.hpp"
#include "core/metric.hpp"
#include "core/tangent_tile.hpp"

namespace fubini {

void project_out(const Layout& layout, const double* ket, double* bra) {
    Vec real{}, imaginary{};
    for (std::size_t at = 0; at < layout.rows() * row_doubles; at += row_doubles) {
        const Vec &kr = vec(ket + at), &ki = vec(ket + at + lanes);
        const Vec &br = vec(bra + at), &bi = vec(bra + at + lanes);
        real += kr * br + ki * bi;
        imaginary += kr * bi - ki * br;
    }
    Vec re{}, im{};
    for (int l = 0; l < lanes; ++l) {
        const int sample = l >> layout.lane_bits;
        re[l] = over_sample(real, layout, sample);
        im[l] = over_sample(imaginary, layout, sample);
    }
    for (std::size_t at = 0; at < layout.rows() * row_doubles; at += row_doubles) {
        const Vec &kr = vec(ket + at), &ki = vec(ket + at + lanes);
        vec(bra + at) -= kr * re - ki * im;
        vec(bra + at + lanes) -= kr * im + ki * re;
    }
}

void metric_vector_product(const Program& program, const Batch& batch, const double* vectors, double* out) {
    for_tiles(program, batch, 2, [&](Tile& tile) {
        double* ket = tile.state(0);
        double* bra = tile.state(1);
        run_along(tile, vectors, ket, bra);
        // Without the part along psi, the overlaps with the derivatives are those of the metric.
        project_out(tile.layout, ket, bra);
        run_back(tile, ket, bra);
        store_halved_slots(tile, out);
    });
}

void berry_connection(const Program& program, const Batch& batch, double* out) {
    for_tiles(program, batch, 2, [&](Tile& tile) {
        double* ket = tile.state(0);
        double* bra = tile.state(1);
        tile.load_initial(ket);
        tile.run_forward(ket);
        // Im <i psi|K|psi> = -<K>, and d psi = -(i/2) K psi.
        for (std::size_t at = 0; at < tile.layout.rows() * row_doubles; at += row_doubles) {
            vec(bra + at) = -vec(ket + at + lanes);
            vec(bra + at + lanes) = vec(ket + at);
        }
        run_back(tile, ket, bra);
        store_halved_slots(tile, out);
    });
}

}  // namespace fubini
