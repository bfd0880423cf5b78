// SPDX-License-Identifier: Apache-2.0
// The only files that know how amplitudes lie in memory: kernels*, observable, walsh, metric_panel.
//
// A tile holds the states of a few samples. Row r is 16 doubles: 8 real parts, then 8 imaginary parts. With
// lane_bits = k the lowest k qubits live in the lanes: lane l holds sample l >> k of the tile and amplitude
// (r << k) + (l mod 2^k). With k = 0 all lanes are samples, and each gate on each wire is a contiguous update
// of pairs of rows.
#pragma once

#include <complex>
#include <cstddef>
#include <span>

#include "core/lanes.hpp"
#include "core/pauli.hpp"

namespace fubini {

struct Step;

constexpr std::size_t row_doubles = 2 * lanes;
constexpr int max_lane_bits = 3;

struct Layout {
    int qubits = 0;
    int lane_bits = 0;

    [[nodiscard]] std::size_t rows() const { return std::size_t{1} << (qubits - lane_bits); }
    [[nodiscard]] int samples() const { return lanes >> lane_bits; }
    [[nodiscard]] Mask lane_mask() const { return (Mask{1} << lane_bits) - 1; }
};

/// Where a step finds its rows in one layout, and the signs that depend on the lane. Which signs: `a` belongs
/// to the imaginary part of the diagonal coefficient, `r` and `i` to the real and imaginary part of the
/// off-diagonal one.
struct Geometry {
    std::size_t x = 0;      ///< partner of row r: r ^ x; 0: the partner is in the same row
    int lane_x = 0;         ///< and in lane l ^ lane_x
    std::size_t fixed = 0;  ///< row bits that do not vary
    std::size_t value = 0;
    std::size_t count = 0;                           ///< rows to visit; each stands for the pair {r, r ^ x}
    std::size_t sign_a = 0, sign_r = 0, sign_i = 0;  ///< row sign masks
    bool signs = false;                              ///< whether any row sign varies
    IntVec lane_a[2] = {}, lane_r[2] = {},
           lane_i[2] = {};  ///< sign bits for the first and second row of a pair
    IntVec active[2] = {};  ///< lanes inside the subspace: all ones
    bool all_active = true;

    [[nodiscard]] std::size_t row(std::size_t index) const;  ///< the index-th row to visit
    [[nodiscard]] std::size_t next(std::size_t r) const { return (((r | fixed) + 1) & ~fixed) | value; }
};

[[nodiscard]] Geometry geometry(const Step& step, const Layout& layout);

/// Which coefficients are not zero: decides the kernel.
enum class Flavor { general, x_like, y_like, diagonal };
[[nodiscard]] Flavor flavor(const Step& step);

/// psi[r] <- (ar + i ai) psi[r] + (br + i bi) psi[r ^ x], for the first and the second row of a pair.
struct Mix {
    Vec ar[2], ai[2], br[2], bi[2];
};

/// U = q0 - i (q1 Q1 + q2 Q2 + q3 Q3); the identity on inactive lanes.
[[nodiscard]] Mix unitary(const Geometry& where, const Vec q[4]);
/// Its inverse.
[[nodiscard]] Mix inverse(const Geometry& where, const Vec q[4]);
/// -i (q1 Q1 + q2 Q2 + q3 Q3); zero on inactive lanes.
[[nodiscard]] Mix generator(const Geometry& where, const Vec q[4]);
/// A flip step: the operator itself, which is its own inverse.
[[nodiscard]] Mix flip(const Geometry& where, const Step& step);

/// The kernels take the visited rows [begin, end) of `where`; calls on disjoint ranges may run at the same
/// time.
void mix(const Geometry& where, Flavor kind, const Mix& m, double* state, std::size_t begin, std::size_t end);

/// Whether mix_two can take these two steps: both flip rows, different ones, and leave no row out.
[[nodiscard]] bool can_mix_two(const Layout& layout, const Geometry& first, const Geometry& second);

/// mix with `first` and then with `second` in one pass, for fours of rows [begin, end) of rows / 4.
void mix_two(const Geometry& first, const Mix& m, const Geometry& second, const Mix& then, double* state,
             std::size_t begin, std::size_t end);

/// target += m source for a generator m. Rows and lanes outside the subspace keep their value.
void mix_add(const Geometry& where, const Mix& m, const double* source, double* target, std::size_t begin,
             std::size_t end);

/// state <- m state, and tangent <- m tangent + d (m state), for a derivative d = generator(...) along axes
/// that `kind` has.
void mix_tangent(const Geometry& where, Flavor kind, const Mix& m, const Mix& d, double* state,
                 double* tangent, std::size_t begin, std::size_t end);

/// overlap[j] += Im <bra|Q_j|ket>, lane by lane (1 <= j <= 3; only those that `kind` has), then m on both
/// states.
void overlap_mix(const Geometry& where, Flavor kind, const Mix& m, double* ket, double* bra, Vec overlap[4],
                 std::size_t begin, std::size_t end);

/// A dense or diagonal constant on `qubits` (most significant first), applied or its adjoint.
/// `scratch` holds 2^k rows for k qubits.
void apply_matrix(const Layout& layout, std::span<const std::complex<double>> matrix,
                  std::span<const int> qubits, Mask fixed, Mask value, bool adjoint, double* state,
                  double* scratch);
void apply_diagonal(const Layout& layout, std::span<const std::complex<double>> diagonal,
                    std::span<const int> qubits, Mask fixed, Mask value, bool adjoint, double* state);

void set_zero_state(const Layout& layout, double* state);
/// `states` points to `samples` states of 2^qubits amplitudes, `stride` amplitudes apart; other lanes become
/// 0.
void load_states(const Layout& layout, const std::complex<double>* states, std::size_t stride, int samples,
                 double* state);
/// factor[l] (one complex number per lane) times the state.
void store_states(const Layout& layout, const double* state, const Vec& factor_real,
                  const Vec& factor_imaginary, std::complex<double>* states, int samples);

}  // namespace fubini
