// SPDX-License-Identifier: Apache-2.0
#include "core/assemble.hpp"

#include <Eigen/Core>
#include <algorithm>
#include <bit>
#include <stdexcept>
#include <string>

#include "core/parallel.hpp"

namespace fubini {
namespace {

using Complex = std::complex<double>;
using RowMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

constexpr std::size_t chunk_rows = 1024;  // 16 kB per vector: a chunk of some dozen generators stays in L2

void check(const BlockRequest& request, const std::vector<Generator>& generators) {
    if (request.wires < 1 || request.wires > 30) {
        throw std::invalid_argument("wires: expected 1 to 30, got " + std::to_string(request.wires));
    }
    if (generators.empty()) throw std::invalid_argument("generators: expected at least one, got none");
    const std::uint64_t beyond = ~((std::uint64_t{1} << request.wires) - 1);
    for (std::size_t i = 0; i < generators.size(); ++i) {
        for (const GeneratorTerm& term : generators[i]) {
            if (((term.x | term.z) & beyond) != 0) {
                throw std::invalid_argument("generators: number " + std::to_string(i) +
                                            " acts on a wire beyond the " + std::to_string(request.wires) +
                                            " wires");
            }
        }
    }
}

double sign(std::uint64_t bits) { return (std::popcount(bits) & 1) != 0 ? -1.0 : 1.0; }

/// In place: values[m] <- sum_k (-1)^popcount(k & m) values[k], so probabilities become the means of all Z
/// words.
void walsh_hadamard(std::vector<double>& values) {
    for (std::size_t half = 1; half < values.size(); half *= 2) {
        for (std::size_t start = 0; start < values.size(); start += 2 * half) {
            for (std::size_t k = start; k < start + half; ++k) {
                const double a = values[k];
                const double b = values[k + half];
                values[k] = a + b;
                values[k + half] = a - b;
            }
        }
    }
}

double covariance(const std::vector<double>& means, const Generator& left, const Generator& right) {
    double sum = 0.0;
    for (const GeneratorTerm& a : left) {
        for (const GeneratorTerm& b : right) {
            sum += a.coefficient * b.coefficient * (means[a.z ^ b.z] - means[a.z] * means[b.z]);
        }
    }
    return sum;
}

/// The powers of i in front of X^x Z^z: Y = i X Z on every wire that is in both masks.
Complex y_phase(const GeneratorTerm& term) {
    static constexpr Complex powers[] = {{1, 0}, {0, 1}, {-1, 0}, {0, -1}};
    return powers[std::popcount(term.x & term.z) & 3];
}

/// (K psi)[row] for rows [begin, begin + count): real parts in re, imaginary parts in im.
void apply_rows(const Generator& generator, const Complex* state, std::size_t begin, std::size_t count,
                double* re, double* im) {
    std::fill(re, re + count, 0.0);
    std::fill(im, im + count, 0.0);
    for (const GeneratorTerm& term : generator) {
        const Complex factor = term.coefficient * y_phase(term);
        for (std::size_t r = 0; r < count; ++r) {
            const std::uint64_t source = (begin + r) ^ term.x;
            const Complex amplitude = sign(source & term.z) * state[source];
            re[r] += factor.real() * amplitude.real() - factor.imag() * amplitude.imag();
            im[r] += factor.real() * amplitude.imag() + factor.imag() * amplitude.real();
        }
    }
}

/// One input: block (k, k), or k variances.
class StateBlock {
  public:
    StateBlock(const BlockRequest& request, const std::vector<Generator>& generators)
        : request_(request),
          generators_(generators),
          rows_(std::min(chunk_rows, std::size_t{1} << request.wires)),
          count_(static_cast<Eigen::Index>(generators.size())),
          vectors_(count_, static_cast<Eigen::Index>(2 * rows_)),
          means_(count_) {}

    void compute(const Complex* state, double* out) {
        // Two passes, because centred vectors (K_i - <K_i>) psi give a block that is positive semi-definite
        // to rounding; <K_i K_j> - <K_i><K_j> cancels where the variance is small.
        means_.setZero();
        for_each_chunk(state, [&](const Complex* amplitudes, std::size_t count) {
            for (Eigen::Index i = 0; i < count_; ++i) {
                const double* re = vectors_.row(i).data();
                const double* im = re + count;
                double sum = 0.0;
                for (std::size_t r = 0; r < count; ++r) {
                    sum += amplitudes[r].real() * re[r] + amplitudes[r].imag() * im[r];
                }
                means_(i) += sum;
            }
        });
        if (request_.diagonal) {
            std::fill(out, out + count_, 0.0);
        } else {
            block_.setZero(count_, count_);
        }
        for_each_chunk(state, [&](const Complex* amplitudes, std::size_t count) {
            const auto width = static_cast<Eigen::Index>(2 * count);
            for (Eigen::Index i = 0; i < count_; ++i) {
                double* re = vectors_.row(i).data();
                double* im = re + count;
                for (std::size_t r = 0; r < count; ++r) {
                    re[r] -= means_(i) * amplitudes[r].real();
                    im[r] -= means_(i) * amplitudes[r].imag();
                }
                if (request_.diagonal) out[i] += vectors_.row(i).head(width).squaredNorm();
            }
            if (!request_.diagonal)
                block_.selfadjointView<Eigen::Lower>().rankUpdate(vectors_.leftCols(width));
        });
        if (!request_.diagonal) {
            Eigen::Map<RowMatrix> result(out, count_, count_);
            result = block_.selfadjointView<Eigen::Lower>();
        }
    }

  private:
    template <class Body>
    void for_each_chunk(const Complex* state, const Body& body) {
        const std::size_t total = std::size_t{1} << request_.wires;
        for (std::size_t begin = 0; begin < total; begin += rows_) {
            for (Eigen::Index i = 0; i < count_; ++i) {
                double* re = vectors_.row(i).data();
                apply_rows(generators_[static_cast<std::size_t>(i)], state, begin, rows_, re, re + rows_);
            }
            body(state + begin, rows_);
        }
    }

    const BlockRequest& request_;
    const std::vector<Generator>& generators_;
    std::size_t rows_;
    Eigen::Index count_;
    RowMatrix vectors_;  // row i: real parts, then imaginary parts, of K_i psi on the current chunk
    Eigen::VectorXd means_;
    RowMatrix block_;
};

std::size_t block_size(const BlockRequest& request, std::size_t generators) {
    return request.diagonal ? generators : generators * generators;
}

}  // namespace

void blocks_from_probabilities(const BlockRequest& request, const std::vector<Generator>& generators,
                               const double* probabilities, double* out) {
    check(request, generators);
    for (std::size_t i = 0; i < generators.size(); ++i) {
        for (const GeneratorTerm& term : generators[i]) {
            if (term.x != 0) {
                throw std::invalid_argument("generators: number " + std::to_string(i) +
                                            " is not diagonal in the measured basis");
            }
        }
    }
    const std::size_t outcomes = std::size_t{1} << request.wires;
    const std::size_t k = generators.size();
    const std::size_t size = block_size(request, k);
    parallel_for(
        static_cast<std::ptrdiff_t>(request.batch), 1, [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
            std::vector<double> means(outcomes);
            for (auto b = static_cast<std::size_t>(begin); b < static_cast<std::size_t>(end); ++b) {
                std::copy_n(probabilities + b * outcomes, outcomes, means.begin());
                walsh_hadamard(means);
                double* block = out + b * size;
                for (std::size_t i = 0; i < k; ++i) {
                    if (request.diagonal) {
                        block[i] = covariance(means, generators[i], generators[i]);
                        continue;
                    }
                    for (std::size_t j = 0; j <= i; ++j) {
                        block[i * k + j] = block[j * k + i] = covariance(means, generators[i], generators[j]);
                    }
                }
            }
        });
}

void blocks_from_states(const BlockRequest& request, const std::vector<Generator>& generators,
                        const std::complex<double>* states, double* out) {
    check(request, generators);
    const std::size_t amplitudes = std::size_t{1} << request.wires;
    const std::size_t size = block_size(request, generators.size());
    parallel_for(static_cast<std::ptrdiff_t>(request.batch), 1,
                 [&](std::ptrdiff_t begin, std::ptrdiff_t end) {
                     StateBlock block(request, generators);
                     for (auto b = static_cast<std::size_t>(begin); b < static_cast<std::size_t>(end); ++b) {
                         block.compute(states + b * amplitudes, out + b * size);
                     }
                 });
}

void mean_over_batch(std::size_t batch, std::size_t size, const double* values, double* out) {
    if (batch == 0) throw std::invalid_argument("batch: expected at least one input, got none");
    std::fill(out, out + size, 0.0);
    for (std::size_t b = 0; b < batch; ++b) {
        for (std::size_t i = 0; i < size; ++i) out[i] += values[b * size + i];
    }
    for (std::size_t i = 0; i < size; ++i) out[i] /= static_cast<double>(batch);
}

}  // namespace fubini
