// SPDX-License-Identifier: Apache-2.0
// What one computation may take of the machine's memory.
#pragma once

#include <stdexcept>

namespace fubini {

/// The request does not fit into memory; the message has the size.
struct MemoryLimit : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/// Limits what sweeps may allocate, in bytes; 0 (the default): three quarters of the memory that this process
/// may use. Sweeps beyond it throw MemoryLimit before they allocate.
void set_memory_limit(double bytes);
[[nodiscard]] double memory_limit();

}  // namespace fubini
