// SPDX-License-Identifier: Apache-2.0
// Derivative states of all angles in one frame, in a layout that a Gram matrix can be made from.
#pragma once

#include <complex>
#include <cstddef>

#include "core/metric_schedule.hpp"

namespace fubini {

constexpr std::size_t amplitude_doubles = 16;  ///< of a panel's tile: 8 real parts, 8 imaginary parts
constexpr double serial_work = 2e4;            ///< block rows below which work is not split among threads

/// Tangents [first, last) of the groups, for consecutive batch elements. Element b's group g is a tile of
/// (2^qubits, 16) doubles: real and imaginary parts of one amplitude of eight tangents.
struct Panel {
    double* data = nullptr;
    std::size_t first = 0;
    std::size_t last = 0;
    std::size_t tile = 0;  ///< doubles
    /// Where tangents have sweeps of their own, in the frame at the end: a tile is eight states one behind
    /// the other, each with its amplitudes in the lanes, as the sweeps leave them.
    bool apart = false;

    [[nodiscard]] std::size_t groups() const { return last - first; }
    [[nodiscard]] double* of(std::size_t element, std::size_t group) const {
        return data + (element * groups() + group - first) * tile;
    }
};

/// Computes the tangents of a panel's groups for every element of the batch, without their part along psi
/// where `centred`; psi (size, 2^qubits) becomes the states in the same frame. The groups of an element may
/// be shared among so many threads.
void fill_panel(const Program& program, const Batch& batch, const Schedule& schedule, const Panel& panel,
                int threads, bool centred, std::complex<double>* psi);

/// Takes the part along psi (size, amplitudes) off the tangents of a panel, in tiles of so many amplitudes.
void centre_panel(std::ptrdiff_t size, std::size_t amplitudes, const Panel& panel,
                  const std::complex<double>* psi);

}  // namespace fubini
