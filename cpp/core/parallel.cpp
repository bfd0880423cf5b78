// SPDX-License-Identifier: Apache-2.0
#include "core/parallel.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <memory>
#include <mutex>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace fubini {
namespace {

thread_local bool inside_parallel = false;

int default_threads() {
#if defined(__linux__)
    // The affinity mask counts what a container or taskset grants; hardware_concurrency may not.
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
    return std::max(1U, std::thread::hardware_concurrency());
}

/// One round of work: parts are claimed by index, so that a late worker never delays the others.
struct Round {
    const std::function<void(std::ptrdiff_t, std::ptrdiff_t)>* body = nullptr;
    std::ptrdiff_t count = 0;
    std::ptrdiff_t parts = 0;
    std::atomic<std::ptrdiff_t> next{0};
    std::atomic<std::ptrdiff_t> finished{0};
    std::vector<std::exception_ptr> errors;

    void run() {
        inside_parallel = true;
        for (std::ptrdiff_t part = next.fetch_add(1); part < parts; part = next.fetch_add(1)) {
            try {
                (*body)(count* part / parts, count * (part + 1) / parts);
            } catch (...) {
                errors[static_cast<std::size_t>(part)] = std::current_exception();
            }
            finished.fetch_add(1);
        }
        inside_parallel = false;
    }
};

/// How long a thread looks for work, or for the others to finish, before it sleeps. A training step comes
/// back within this time, and waking a thread takes about as long.
constexpr std::chrono::microseconds spin_time{100};

void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
}

/// Waits actively until ready() or until spin_time is over; returns ready().
template <typename Ready>
bool spin_until(const Ready& ready) {
    const auto end = std::chrono::steady_clock::now() + spin_time;
    do {
        for (int i = 0; i < 64; ++i) {
            if (ready()) return true;
            pause();
        }
    } while (std::chrono::steady_clock::now() < end);
    return ready();
}

class Pool {
  public:
    /// Fewer threads where the system grants no more.
    explicit Pool(int workers) : wanted_(workers) {
        threads_.reserve(static_cast<std::size_t>(workers));
        try {
            for (int i = 0; i < workers; ++i) threads_.emplace_back([this] { work(); });
        } catch (const std::system_error&) {
        } catch (const std::bad_alloc&) {
        }
    }
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;
    ~Pool() {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

    [[nodiscard]] int wanted() const { return wanted_; }

    /// In the child of a fork, which has none of the threads, and maybe a mutex that one of them held.
    void abandon() { abandoned_.store(true); }

    void run(Round& round) {
        {
            const std::lock_guard lock(mutex_);
            round_ = &round;
            generation_.fetch_add(1);
        }
        wake_.notify_all();
        round.run();
        if (abandoned_.load()) return;  // the body forked
        {
            // Every part is claimed: a worker that has not come yet is not waited for.
            const std::lock_guard lock(mutex_);
            round_ = nullptr;
        }
        if (spin_until([this] { return active_.load() == 0; })) return;
        std::unique_lock lock(mutex_);
        done_.wait(lock, [this] { return active_.load() == 0; });
    }

  private:
    void work() {
        std::size_t seen = 0;
        while (true) {
            const auto called = [&] { return generation_.load() != seen; };
            spin_until(called);
            std::unique_lock lock(mutex_);
            wake_.wait(lock, called);
            if (stopping_) return;
            seen = generation_.load();
            Round* round = round_;
            if (round == nullptr) continue;
            active_.fetch_add(1);
            lock.unlock();
            round->run();
            lock.lock();
            if (active_.fetch_sub(1) == 1) done_.notify_one();
        }
    }

    // Guards round_ and stopping_; the counters are atomic because waiting threads read them.
    std::mutex mutex_;
    std::condition_variable wake_;
    std::condition_variable done_;
    std::vector<std::thread> threads_;
    int wanted_;
    Round* round_ = nullptr;
    std::atomic<std::size_t> generation_{0};
    std::atomic<int> active_{0};  // workers inside the current round
    std::atomic<bool> abandoned_{false};
    bool stopping_ = false;
};

/// The pool, and who has it at the moment.
struct Owner {
    std::mutex mutex;
    std::unique_ptr<Pool> pool;  // guarded by mutex
};

std::atomic<int> requested_threads{0};  // 0: not decided yet
// Never destroyed: a thread may still be in a sweep when the process ends.
std::atomic<Owner*> owner{new Owner};

#if defined(__unix__) || defined(__APPLE__)
// After fork only the calling thread exists in the child: it starts a pool of its own. What was there is left
// as it is: its threads cannot be joined, and its mutex may be locked for good. Nothing is locked before the
// fork: a thread in a sweep may hold the mutex and wait for what the forking thread holds, such as Python's
// lock.
void after_fork_child() {
    Owner* before = owner.exchange(new Owner);
    if (before->pool) before->pool->abandon();
}
[[maybe_unused]] const int fork_handlers = pthread_atfork(nullptr, nullptr, after_fork_child);
#endif

}  // namespace

int num_threads() {
    int threads = requested_threads.load();
    if (threads == 0) {
        threads = default_threads();
        requested_threads.store(threads);
    }
    return threads;
}

void set_num_threads(int threads) {
    if (threads < 1 || threads > 1024) {
        throw std::invalid_argument("threads: expected 1 to 1024, got " + std::to_string(threads));
    }
    requested_threads.store(threads);
}

void parallel_for(std::ptrdiff_t count, std::ptrdiff_t grain,
                  const std::function<void(std::ptrdiff_t, std::ptrdiff_t)>& body) {
    if (count <= 0) return;
    const int threads = num_threads();
    // More parts than threads, so that a thread that comes late or is interrupted leaves its share to the
    // others.
    const std::ptrdiff_t parts =
        std::min<std::ptrdiff_t>(4 * threads, count / std::max<std::ptrdiff_t>(grain, 1));
    if (parts <= 1 || threads == 1 || inside_parallel) {
        body(0, count);
        return;
    }
    // Two Python threads may call at once: the second one works alone instead of waiting for the first.
    Owner& mine = *owner.load();
    const std::unique_lock lock(mine.mutex, std::try_to_lock);
    if (!lock.owns_lock()) {
        body(0, count);
        return;
    }
    if (!mine.pool || mine.pool->wanted() != threads - 1) {
        mine.pool.reset();
        mine.pool = std::make_unique<Pool>(threads - 1);
    }
    Round round;
    round.body = &body;
    round.count = count;
    round.parts = parts;
    round.errors.resize(static_cast<std::size_t>(parts));
    mine.pool->run(round);
    for (const std::exception_ptr& error : round.errors) {
        if (error) std::rethrow_exception(error);
    }
    if (round.finished.load() != parts) {
        throw std::runtime_error(
            "the process was forked in the middle of this computation, whose other threads are not in the "
            "child; "
            "compute it again");
    }
}

}  // namespace fubini
