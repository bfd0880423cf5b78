// SPDX-License-Identifier: Apache-2.0
// What a sweep is asked for.
#pragma once

#include <complex>
#include <cstddef>
#include <functional>
#include <stdexcept>

#include "core/program.hpp"

namespace fubini {

/// The caller's poll function asked to stop.
struct Interrupted : std::runtime_error {
    Interrupted() : std::runtime_error("interrupted") {}
};

/// A batch of angles and, where the program takes them, initial states. All pointers stay the caller's.
struct Batch {
    const double* angles = nullptr;  ///< (size / repeat, angles) row-major, radians
    std::ptrdiff_t size = 0;
    std::ptrdiff_t repeat = 1;                     ///< element b uses row b / repeat of angles and states
    const std::complex<double>* states = nullptr;  ///< (size / repeat, 2^qubits), or one state for all
    bool shared_state = false;
    int lane_bits = 0;  ///< at least so many qubits lie in the lanes
    /// Called now and then on the calling thread; the sweep throws Interrupted when it returns true.
    std::function<bool()> poll = {};
};

/// Elements [first, first + size) of a batch whose repeat is 1.
[[nodiscard]] inline Batch part_of(const Batch& batch, const Program& program, std::ptrdiff_t first,
                                   std::ptrdiff_t size) {
    Batch part = batch;
    part.angles += first * program.angles();
    if (batch.states != nullptr && !batch.shared_state) part.states += first << program.qubits();
    part.size = size;
    return part;
}

/// Memory in bytes that a sweep with `copies` states per tile needs, for a batch of this size.
[[nodiscard]] double sweep_bytes(const Program& program, std::ptrdiff_t size, int copies);

}  // namespace fubini
