// SPDX-License-Identifier: Apache-2.0
// The transform to an eigenbasis, and that of its probabilities: up to three qubits per pass over the state.
#include <algorithm>
#include <array>
#include <cstring>

#include "core/constants.hpp"
#include "core/eigenbasis.hpp"
#include "core/kernels_rows.hpp"
#include "core/sweep.hpp"

namespace fubini {
namespace {

using rows::sign_bit;
using rows::sign_rows;

/// (a, b) <- (a + b, a - b), for a bit that the lanes count.
Vec lane_butterfly(const Vec& v, int bit) {
    IntVec upper{};
    for (int l = 0; l < lanes; ++l) upper[l] = (l >> bit & 1) != 0 ? sign_bit : 0;
    const Vec partner = bit == 0 ? permuted<1>(v) : bit == 1 ? permuted<2>(v) : permuted<4>(v);
    return partner + flipped(v, upper);
}

/// The same for the first `wanted` bits of the index into v.
template <int bits, int wanted, int b = 0>
[[gnu::always_inline]] inline void butterflies(Vec* v) {
    if constexpr (b < wanted) {
#pragma GCC unroll 8
        for (int j = 0; j < 1 << bits; ++j) {
            if ((j >> b & 1) != 0) continue;
            const Vec sum = v[j] + v[j | 1 << b];
            v[j | 1 << b] = v[j] - v[j | 1 << b];
            v[j] = sum;
        }
        butterflies<bits, wanted, b + 1>(v);
    }
}

/// Rows whose `bits` row bits are combined at once; amplitudes over the first `pivots` of them only.
struct Pass {
    int bits = 0;
    int pivots = 0;
    std::array<std::size_t, 3> stride{};
    std::size_t blocked = 0;

    void add(int row_bit, bool is_pivot) {
        stride[static_cast<std::size_t>(bits)] = std::size_t{1} << row_bit;
        blocked |= std::size_t{1} << row_bit;
        ++bits;
        if (is_pivot) ++pivots;
    }
    [[nodiscard]] std::size_t next(std::size_t base) const { return ((base | blocked) + 1) & ~blocked; }
    /// The index-th base: the bits of `index` in the places that are not blocked.
    [[nodiscard]] std::size_t base(std::size_t index) const {
        std::size_t r = 0;
        for (std::size_t at = 0; index != 0; ++at) {
            if ((blocked >> at & 1) != 0) continue;
            r |= (index & 1) << at;
            index >>= 1;
        }
        return r;
    }
    [[nodiscard]] std::size_t offset(std::size_t j) const {
        return (j & 1) * stride[0] + (j >> 1 & 1) * stride[1] + (j >> 2) * stride[2];
    }
};

/// What K^c X^t |0> is for a block of y with the same high bits: flips by `x` and those of the low bits, and
/// a power of i for each of the low bits' values.
struct Block {
    Mask x = 0;
    std::array<std::uint8_t, std::size_t{1} << low_bits> phases;

    Block(const Eigenbasis& basis, Mask y) {
        if (y == 0) {
            std::copy(basis.low_phases.begin(), basis.low_phases.end(), phases.begin());
            return;
        }
        const Mask t = y & ~basis.pivots;
        Word word;
        for (Mask rest = y & basis.pivots; rest != 0; rest &= rest - 1) {
            word = word * basis.axes[static_cast<std::size_t>(std::countr_zero(rest))];
        }
        x = word.x ^ t;
        // Low bits whose axes do not commute with the high ones change the order's sign.
        phases[0] = static_cast<std::uint8_t>((word.phase + 2 * parity(word.z & t)) & 3);
        for (std::size_t bit = 0, count = 1; count < basis.low_phases.size(); ++bit, count *= 2) {
            const Word& axis = basis.axes[bit];
            const int crosses = 2 * parity((word.z & axis.x) ^ (axis.z & t));
            for (std::size_t i = 0; i < count; ++i) {
                phases[count + i] = static_cast<std::uint8_t>(phases[i] ^ crosses);
            }
        }
        for (std::size_t i = 0; i < basis.low_phases.size(); ++i) {
            phases[i] = static_cast<std::uint8_t>((phases[i] + basis.low_phases[i]) & 3);
        }
    }
};

/// Where a pass has its amplitudes from: the state, the state in the eigenbasis, or the pass before.
enum class Source { ket, eigenbasis, work };

class Transform {
  public:
    Transform(const Eigenbasis& basis, const Tile& tile, const double* state)
        : basis_(basis),
          tile_(tile),
          layout_(tile.layout),
          ket_(state),
          work_(tile.scratch()),
          plane_(tile.scratch() + tile.layout.rows() * row_doubles) {
        for (std::size_t l = 0; l < lanes; ++l) {
            const std::size_t from = basis.low_flips[l & layout_.lane_mask()];
            lane_of_[l] = static_cast<int>((l & ~layout_.lane_mask()) | from);
            plain_lanes_ = plain_lanes_ && from == (l & layout_.lane_mask());
        }
    }

    const double* run() {
        std::size_t pivots = basis_.pivots >> layout_.lane_bits;
        std::size_t others = (layout_.rows() - 1) & ~pivots;
        const auto take = [](Pass& pass, std::size_t& bits, std::size_t allowed, bool pivot) {
            for (; pass.bits < 3 && (bits & allowed) != 0; bits &= bits - 1) {
                pass.add(std::countr_zero(bits), pivot);
            }
        };
        // The first pass gathers amplitudes from where the basis has them, block by block of low bits.
        std::size_t allowed = (std::size_t{1} << (low_bits - layout_.lane_bits)) - 1;
        bool first = true;
        while (true) {
            Pass pass;
            take(pass, pivots, allowed, true);
            const bool last = pivots == 0;
            if (last) take(pass, others, allowed, false);  // probabilities also need the other bits
            combine(pass, first, last);
            if (last) {
                others = (layout_.rows() - 1) & ~pass.blocked;
                break;
            }
            first = false;
            allowed = ~std::size_t{0};
        }
        while (others != 0) {
            Pass pass;
            take(pass, others, ~std::size_t{0}, false);
            fold(pass);
        }
        return plane_;
    }

  private:
    /// i^-phase times the amplitudes of |y~> and, in the lanes, of those after it.
    void load(const Block& block, std::size_t y, Vec& re, Vec& im) const {
        const std::size_t low = y & (basis_.low_flips.size() - 1);
        const std::size_t from = block.x ^ basis_.low_flips[low];
        const double* row = ket_ + (from >> layout_.lane_bits) * row_doubles;
        if (layout_.lane_bits == 0) {
            // (-i)^phase: an odd one swaps the parts.
            const std::size_t phase = block.phases[low];
            const std::size_t odd = (phase & 1) * lanes;
            re = flipped(vec(row + odd), sign_row(phase >> 1));
            im = flipped(vec(row + (odd ^ lanes)), sign_row((phase + 1) >> 1 & 1));
            return;
        }
        re = vec(row);
        im = vec(row + lanes);
        if (!plain_lanes_ || (from & layout_.lane_mask()) != 0) {
            const Vec a = re, b = im;
            const auto flip = static_cast<int>(from & layout_.lane_mask());
            for (std::size_t l = 0; l < lanes; ++l) {
                re[l] = a[lane_of_[l] ^ flip];
                im[l] = b[lane_of_[l] ^ flip];
            }
        }
        typedef std::uint8_t Bytes __attribute__((vector_size(lanes)));
        Bytes bytes;
        if (layout_.lane_bits == max_lane_bits) {
            std::memcpy(&bytes, block.phases.data() + low, lanes);
        } else {
            for (std::size_t l = 0; l < lanes; ++l) bytes[l] = block.phases[low | (l & layout_.lane_mask())];
        }
        const IntVec phases = __builtin_convertvector(bytes, IntVec);
        const IntVec odd = -(phases & 1);
        const IntVec a = std::bit_cast<IntVec>(re), b = std::bit_cast<IntVec>(im);
        re = std::bit_cast<Vec>(((a & ~odd) | (b & odd)) ^ ((phases & 2) << 62));
        im = std::bit_cast<Vec>(((b & ~odd) | (a & odd)) ^ (((phases + 1) & 2) << 62));
        for (int bit = 0; bit < layout_.lane_bits; ++bit) {
            if ((basis_.pivots >> bit & 1) == 0) continue;
            re = lane_butterfly(re, bit);
            im = lane_butterfly(im, bit);
        }
    }
    static const IntVec& sign_row(std::size_t negative) {
        return reinterpret_cast<const IntVec&>(sign_rows[negative]);
    }

    /// One group of rows: amplitudes, and then, with `squared`, their probabilities.
    template <int bits, int pivots, Source source, bool squared>
    [[gnu::always_inline]] inline void combine_group(const Pass& pass, const Block* block,
                                                     std::size_t base) const {
        constexpr std::size_t count = std::size_t{1} << bits;
        Vec re[count], im[count];
#pragma GCC unroll 8
        for (std::size_t j = 0; j < count; ++j) {
            const std::size_t r = base | pass.offset(j);
            if constexpr (source == Source::eigenbasis) {
                load(*block, r << layout_.lane_bits, re[j], im[j]);
            } else {
                const double* row = (source == Source::ket ? ket_ : work_) + r * row_doubles;
                re[j] = vec(row);
                im[j] = vec(row + lanes);
            }
        }
        butterflies<bits, pivots>(re);
        butterflies<bits, pivots>(im);
        if constexpr (squared) {
#pragma GCC unroll 8
            for (std::size_t j = 0; j < count; ++j) {
                re[j] = re[j] * re[j] + im[j] * im[j];
                for (int bit = 0; bit < layout_.lane_bits; ++bit) re[j] = lane_butterfly(re[j], bit);
            }
            butterflies<bits, bits>(re);
        }
#pragma GCC unroll 8
        for (std::size_t j = 0; j < count; ++j) {
            const std::size_t r = base | pass.offset(j);
            if constexpr (squared) {
                vec(plane_ + r * lanes) = re[j];
            } else {
                vec(work_ + r * row_doubles) = re[j];
                vec(work_ + r * row_doubles + lanes) = im[j];
            }
        }
    }

    template <int bits, int pivots, Source source, bool squared>
    void combine_rows(const Pass& pass) const {
        const std::size_t rows = layout_.rows();
        if constexpr (source == Source::eigenbasis) {
            const std::size_t size = std::min(rows, std::size_t{1} << (low_bits - layout_.lane_bits));
            const auto work = [&](std::size_t begin, std::size_t end) {
                for (std::size_t b = begin; b < end; ++b) {
                    const Block block(basis_, b * size << layout_.lane_bits);
                    for (std::size_t base = 0; base < size; base = pass.next(base)) {
                        combine_group<bits, pivots, source, squared>(pass, &block, b * size | base);
                    }
                }
            };
            tile_.over_rows(rows / size, work, std::max<std::size_t>(row_chunk / size, 1));
        } else {
            const auto work = [&](std::size_t begin, std::size_t end) {
                std::size_t base = pass.base(begin);
                for (std::size_t i = begin; i < end; ++i, base = pass.next(base)) {
                    combine_group<bits, pivots, source, squared>(pass, nullptr, base);
                }
            };
            tile_.over_rows(rows >> bits, work, row_chunk >> bits);
        }
    }

    template <Source source, bool squared>
    void combine_with(const Pass& pass) const {
        with_constant<4>(pass.bits, [&]<int bits>() {
            if constexpr (squared) {
                with_constant<bits + 1>(
                    pass.pivots, [&]<int pivots>() { combine_rows<bits, pivots, source, true>(pass); });
            } else {
                combine_rows<bits, bits, source, false>(pass);
            }
        });
    }
    void combine(const Pass& pass, bool first, bool squared) const {
        if (!first) {
            squared ? combine_with<Source::work, true>(pass) : combine_with<Source::work, false>(pass);
        } else if (basis_.pivots != 0) {
            squared ? combine_with<Source::eigenbasis, true>(pass)
                    : combine_with<Source::eigenbasis, false>(pass);
        } else {
            combine_with<Source::ket, true>(pass);
        }
    }

    template <int bits>
    void fold_rows(const Pass& pass) const {
        const auto work = [&](std::size_t begin, std::size_t end) {
            std::size_t base = pass.base(begin);
            for (std::size_t i = begin; i < end; ++i, base = pass.next(base)) {
                constexpr std::size_t count = std::size_t{1} << bits;
                Vec v[count];
#pragma GCC unroll 8
                for (std::size_t j = 0; j < count; ++j) v[j] = vec(plane_ + (base | pass.offset(j)) * lanes);
                butterflies<bits, bits>(v);
#pragma GCC unroll 8
                for (std::size_t j = 0; j < count; ++j) vec(plane_ + (base | pass.offset(j)) * lanes) = v[j];
            }
        };
        tile_.over_rows(layout_.rows() >> bits, work, row_chunk >> bits);
    }
    void fold(const Pass& pass) const {
        with_constant<4>(pass.bits, [&]<int bits>() {
            if constexpr (bits > 0) fold_rows<bits>(pass);
        });
    }

    const Eigenbasis& basis_;
    const Tile& tile_;
    Layout layout_;
    const double* ket_;
    double* work_;
    double* plane_;
    std::array<int, lanes> lane_of_{};
    bool plain_lanes_ = true;
};

}  // namespace

std::size_t eigenbasis_scratch(std::size_t rows) { return rows * (row_doubles + lanes); }

const double* walsh_plane(const Eigenbasis& basis, const Tile& tile, const double* state) {
    return Transform(basis, tile, state).run();
}

}  // namespace fubini
