// SPDX-License-Identifier: Apache-2.0
// Constant matrices, and states in and out of a tile.
#include <algorithm>
#include <array>

#include "core/kernels.hpp"

namespace fubini {
namespace {

using Complex = std::complex<double>;

/// The amplitude index whose bits at `qubits` (most significant first) spell `index`.
Mask scattered(std::size_t index, std::span<const int> qubits) {
    Mask result = 0;
    for (std::size_t i = 0; i < qubits.size(); ++i) {
        if ((index >> (qubits.size() - 1 - i) & 1) != 0) result |= Mask{1} << qubits[i];
    }
    return result;
}

Mask mask_of(std::span<const int> qubits) {
    Mask mask = 0;
    for (const int qubit : qubits) mask |= Mask{1} << qubit;
    return mask;
}

/// Lanes whose low amplitude bits agree with (fixed, value).
IntVec lanes_at(const Layout& layout, Mask fixed, Mask value) {
    IntVec active{};
    for (int l = 0; l < lanes; ++l) {
        const Mask low = static_cast<Mask>(l) & layout.lane_mask();
        active[l] = ((low ^ value) & fixed & layout.lane_mask()) == 0 ? -1 : 0;
    }
    return active;
}

Vec select(const IntVec& mask, const Vec& yes, const Vec& no) {
    return std::bit_cast<Vec>((std::bit_cast<IntVec>(yes) & mask) | (std::bit_cast<IntVec>(no) & ~mask));
}

/// Targets in rows only: every lane does the same work.
void matrix_on_rows(const Layout& layout, std::span<const Complex> matrix, std::span<const int> qubits, Mask fixed,
                    Mask value, bool adjoint, double* state, double* scratch) {
    const std::size_t dimension = std::size_t{1} << qubits.size();
    const IntVec active = lanes_at(layout, fixed, value);
    const std::size_t blocked = (mask_of(qubits) | fixed) >> layout.lane_bits;
    const std::size_t base = value >> layout.lane_bits;
    for (std::size_t r = base; r < layout.rows(); r = (((r | blocked) + 1) & ~blocked) | base) {
        for (std::size_t j = 0; j < dimension; ++j) {
            const double* row = state + (r | scattered(j, qubits) >> layout.lane_bits) * row_doubles;
            std::copy_n(row, row_doubles, scratch + j * row_doubles);
        }
        for (std::size_t i = 0; i < dimension; ++i) {
            Vec re{}, im{};
            for (std::size_t j = 0; j < dimension; ++j) {
                const Complex m = adjoint ? std::conj(matrix[j * dimension + i]) : matrix[i * dimension + j];
                const Vec& a = vec(scratch + j * row_doubles);
                const Vec& b = vec(scratch + j * row_doubles + lanes);
                re += m.real() * a - m.imag() * b;
                im += m.real() * b + m.imag() * a;
            }
            double* row = state + (r | scattered(i, qubits) >> layout.lane_bits) * row_doubles;
            vec(row) = select(active, re, vec(row));
            vec(row + lanes) = select(active, im, vec(row + lanes));
        }
    }
}

/// Some targets in lanes: amplitude by amplitude.
void matrix_on_amplitudes(const Layout& layout, std::span<const Complex> matrix, std::span<const int> qubits,
                          Mask fixed, Mask value, bool adjoint, double* state, double* scratch) {
    const std::size_t dimension = std::size_t{1} << qubits.size();
    const Mask blocked = mask_of(qubits) | fixed;
    const auto place = [&](Mask amplitude, int sample) {
        return state + (amplitude >> layout.lane_bits) * row_doubles +
               (static_cast<std::size_t>(sample) << layout.lane_bits | (amplitude & layout.lane_mask()));
    };
    const Mask end = Mask{1} << layout.qubits;
    for (int sample = 0; sample < layout.samples(); ++sample) {
        for (Mask base = value; base < end; base = (((base | blocked) + 1) & ~blocked) | value) {
            for (std::size_t j = 0; j < dimension; ++j) {
                const double* p = place(base | scattered(j, qubits), sample);
                scratch[2 * j] = p[0];
                scratch[2 * j + 1] = p[lanes];
            }
            for (std::size_t i = 0; i < dimension; ++i) {
                double re = 0, im = 0;
                for (std::size_t j = 0; j < dimension; ++j) {
                    const Complex m = adjoint ? std::conj(matrix[j * dimension + i]) : matrix[i * dimension + j];
                    re += m.real() * scratch[2 * j] - m.imag() * scratch[2 * j + 1];
                    im += m.real() * scratch[2 * j + 1] + m.imag() * scratch[2 * j];
                }
                double* p = place(base | scattered(i, qubits), sample);
                p[0] = re;
                p[lanes] = im;
            }
        }
    }
}

}  // namespace

void apply_matrix(const Layout& layout, std::span<const Complex> matrix, std::span<const int> qubits, Mask fixed,
                  Mask value, bool adjoint, double* state, double* scratch) {
    if ((mask_of(qubits) & layout.lane_mask()) == 0) {
        matrix_on_rows(layout, matrix, qubits, fixed, value, adjoint, state, scratch);
    } else {
        matrix_on_amplitudes(layout, matrix, qubits, fixed, value, adjoint, state, scratch);
    }
}

void apply_diagonal(const Layout& layout, std::span<const Complex> diagonal, std::span<const int> qubits, Mask fixed,
                    Mask value, bool adjoint, double* state) {
    const auto gathered = [&](Mask amplitude) {
        std::size_t index = 0;
        for (const int qubit : qubits) index = index << 1 | (amplitude >> qubit & 1);
        return index;
    };
    std::array<std::size_t, lanes> low{};
    for (int l = 0; l < lanes; ++l) {
        low[static_cast<std::size_t>(l)] = gathered(static_cast<Mask>(l) & layout.lane_mask());
    }
    const IntVec active = lanes_at(layout, fixed, value);
    const std::size_t blocked = fixed >> layout.lane_bits;
    const std::size_t base = value >> layout.lane_bits;
    for (std::size_t r = base; r < layout.rows(); r = (((r | blocked) + 1) & ~blocked) | base) {
        const std::size_t high = gathered(static_cast<Mask>(r) << layout.lane_bits);
        Vec dr, di;
        for (int l = 0; l < lanes; ++l) {
            const Complex d = active[l] != 0 ? diagonal[high | low[static_cast<std::size_t>(l)]] : Complex(1);
            dr[l] = d.real();
            di[l] = adjoint ? -d.imag() : d.imag();
        }
        double* row = state + r * row_doubles;
        const Vec re = vec(row);
        const Vec im = vec(row + lanes);
        vec(row) = dr * re - di * im;
        vec(row + lanes) = dr * im + di * re;
    }
}

void set_zero_state(const Layout& layout, double* state) {
    std::fill_n(state, layout.rows() * row_doubles, 0.0);
    for (int sample = 0; sample < layout.samples(); ++sample) state[sample << layout.lane_bits] = 1;
}

void load_states(const Layout& layout, const Complex* states, std::size_t stride, int samples, double* state) {
    const std::size_t low_count = std::size_t{1} << layout.lane_bits;
    for (std::size_t r = 0; r < layout.rows(); ++r) {
        double* row = state + r * row_doubles;
        std::fill_n(row, row_doubles, 0.0);
        for (int sample = 0; sample < samples; ++sample) {
            const Complex* from = states + static_cast<std::size_t>(sample) * stride + (r << layout.lane_bits);
            double* to = row + (static_cast<std::size_t>(sample) << layout.lane_bits);
            for (std::size_t low = 0; low < low_count; ++low) {
                to[low] = from[low].real();
                to[low + lanes] = from[low].imag();
            }
        }
    }
}

void store_states(const Layout& layout, const double* state, const Vec& factor_real, const Vec& factor_imaginary,
                  Complex* states, int samples) {
    const std::size_t low_count = std::size_t{1} << layout.lane_bits;
    const std::size_t amplitudes = std::size_t{1} << layout.qubits;
    for (std::size_t r = 0; r < layout.rows(); ++r) {
        const Vec& a = vec(state + r * row_doubles);
        const Vec& b = vec(state + r * row_doubles + lanes);
        const Vec re = factor_real * a - factor_imaginary * b;
        const Vec im = factor_real * b + factor_imaginary * a;
        for (int sample = 0; sample < samples; ++sample) {
            Complex* to = states + static_cast<std::size_t>(sample) * amplitudes + (r << layout.lane_bits);
            for (std::size_t low = 0; low < low_count; ++low) {
                const auto lane = static_cast<std::size_t>(sample) << layout.lane_bits | low;
                to[low] = {re[lane], im[lane]};
            }
        }
    }
}

}  // namespace fubini
