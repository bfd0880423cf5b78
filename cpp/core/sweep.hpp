// SPDX-License-Identifier: Apache-2.0
// What the forward, reverse and tangent sweeps share: how a batch is cut into tiles, and one tile's
// coefficients.
#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <thread>

#include "core/batch.hpp"
#include "core/kernels.hpp"
#include "core/plan.hpp"
#include "core/program.hpp"

namespace fubini {

/// How a sweep over a batch of this size arranges amplitudes.
[[nodiscard]] Layout choose_layout(const Program& program, std::ptrdiff_t size, int least_lane_bits = 0);

/// Rows per part where rows are shared among threads. Sums over rows are made chunk by chunk of this size, so
/// that they do not depend on the number of threads.
constexpr std::size_t row_chunk = 2048;

class Tile;

/// Cuts the batch into tiles and calls body(tile) for each, in parallel over tiles; a batch of few large
/// states is worked off tile by tile instead, in parallel over rows. Results do not depend on the number of
/// threads. `copies`: how many states the body keeps per tile. Throws MemoryLimit, Interrupted.
void for_tiles(const Program& program, const Batch& batch, int copies,
               const std::function<void(Tile&)>& body);

/// The samples [first, first + samples) of a batch, with their coefficients, and workspace for the sweep.
class Tile {
  public:
    const Program& program;
    const Plan& plan;
    const Layout layout;
    std::ptrdiff_t first = 0;
    int samples = 0;

    /// State c of `copies`; 64-byte aligned.
    [[nodiscard]] double* state(int c) const {
        return states_ + static_cast<std::size_t>(c) * state_doubles_;
    }
    /// This tile's part of memory that holds the states of all tiles.
    [[nodiscard]] double* kept_state(double* all) const {
        return all + static_cast<std::size_t>(first / layout.samples()) * layout.rows() * row_doubles;
    }
    [[nodiscard]] Vec* moments() const { return moments_; }
    [[nodiscard]] Vec* weights() const { return weights_; }
    [[nodiscard]] Vec* slots() const { return slots_; }                          ///< one per angle
    [[nodiscard]] Vec* more_slots() const { return slots_ + program.angles(); }  ///< one more per angle
    [[nodiscard]] double* scratch() const { return scratch_; }

    /// q0..q3 of a block.
    [[nodiscard]] const Vec* quaternion(std::size_t step) const { return quaternions_ + 4 * step; }
    /// sine and cosine of half a rotation's angle.
    [[nodiscard]] const Vec* half_angle(int rotation) const { return trig_ + 2 * rotation; }
    [[nodiscard]] Vec sine(int rotation) const {
        const Vec* half = half_angle(rotation);
        return 2.0 * half[0] * half[1];
    }
    [[nodiscard]] Vec cosine(int rotation) const {
        const Vec* half = half_angle(rotation);
        return half[1] * half[1] - half[0] * half[0];
    }
    [[nodiscard]] const Geometry& geometry(std::size_t step) const { return geometries_[step]; }

    /// The batch element that a lane holds; lanes beyond the samples repeat the last one.
    [[nodiscard]] std::ptrdiff_t element(int lane) const;

    void load_initial(double* state) const;
    /// state <- U state for every step in order.
    void run_forward(double* state) const;
    void apply(std::size_t step, double* state) const;
    /// Undoes a step that has no parameters (flip, matrix, diagonal).
    void undo_constant(std::size_t step, double* state) const;
    /// Calls body(begin, end) on ranges that cover [0, count): one range, or in parallel where rows are
    /// shared among threads, each range at least `grain` long.
    template <typename Body>
    void over_rows(std::size_t count, const Body& body, std::size_t grain = row_chunk) const {
        if (by_rows_) {
            share_rows(count, grain, std::ref(body));
        } else {
            body(std::size_t{0}, count);
        }
    }
    /// Throws Interrupted when the caller wants to stop; to be called before every step.
    void checkpoint(std::size_t step) const;

  private:
    friend class TileRunner;
    static void share_rows(std::size_t count, std::size_t grain,
                           const std::function<void(std::size_t, std::size_t)>& body);
    Tile(const Program& p, const Layout& l) : program(p), plan(p.plan()), layout(l) {}

    const Batch* batch_ = nullptr;
    const Geometry* geometries_ = nullptr;
    double* states_ = nullptr;
    std::size_t state_doubles_ = 0;
    Vec* moments_ = nullptr;
    Vec* weights_ = nullptr;
    Vec* slots_ = nullptr;
    Vec* quaternions_ = nullptr;
    Vec* trig_ = nullptr;
    double* scratch_ = nullptr;
    bool by_rows_ = false;
    std::atomic<bool>* stop_ = nullptr;
    std::thread::id owner_;
};

}  // namespace fubini
