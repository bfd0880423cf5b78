// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <functional>

namespace fubini {

/// Number of threads that parallel_for may use (the calling thread included); at least 1. There may be fewer
/// where the system grants no more. Default: the number of processors that this process may run on.
int num_threads();

/// Throws std::invalid_argument unless 1 <= threads <= 1024.
void set_num_threads(int threads);

/// Calls body(begin, end) on contiguous parts of [0, count) until all of it is covered, and returns when all
/// parts are done. Parts are at least `grain` long, so that small work stays on the calling thread; they are
/// never split differently for reasons of timing, and since every index is computed independently of its
/// part, results do not depend on the number of threads. The first exception (lowest part) is rethrown on the
/// caller. A call from inside a body runs serially. Works after fork(), also while another thread is in here:
/// the child starts its own threads.
void parallel_for(std::ptrdiff_t count, std::ptrdiff_t grain,
                  const std::function<void(std::ptrdiff_t, std::ptrdiff_t)>& body);

}  // namespace fubini
