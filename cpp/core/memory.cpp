// SPDX-License-Identifier: Apache-2.0
#include "core/memory.hpp"

#include <algorithm>
#include <atomic>
#include <fstream>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace fubini {
namespace {

std::atomic<double> requested_limit{0};

double available_memory() {
    double bytes = 8e9;
#if defined(_SC_PHYS_PAGES) && defined(_SC_PAGESIZE)
    bytes = static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
#endif
    // A container may be granted less than the machine has.
    for (const char* path : {"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"}) {
        std::ifstream file(path);
        double limit = 0;
        if (file >> limit && limit > 0) bytes = std::min(bytes, limit);
    }
    return bytes;
}

}  // namespace

void set_memory_limit(double bytes) { requested_limit.store(bytes); }

double memory_limit() {
    const double requested = requested_limit.load();
    static const double available = available_memory();
    return requested > 0 ? requested : 0.75 * available;
}

}  // namespace fubini
