// SPDX-License-Identifier: Apache-2.0
// Calls of the core without the GIL, which control-C interrupts.
#pragma once

#include <chrono>

#include "bind/module.hpp"
#include "core/batch.hpp"

namespace fubini::bind {

/// Asks Python for pending signals, at most every 50 ms.
class Signals {
  public:
    bool operator()() {
        const auto now = std::chrono::steady_clock::now();
        if (now - last_ < std::chrono::milliseconds(50)) return false;
        last_ = now;
        const py::gil_scoped_acquire gil;
        return PyErr_CheckSignals() != 0;
    }

  private:
    std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

/// Runs a sweep without the GIL; turns what it throws into Python's exceptions.
template <typename Sweep>
void run(const Sweep& sweep) {
    bool interrupted = false;
    {
        const py::gil_scoped_release release;
        try {
            sweep();
        } catch (const Interrupted&) {
            interrupted = true;
        }
    }
    if (interrupted) throw py::error_already_set();
}

}  // namespace fubini::bind
