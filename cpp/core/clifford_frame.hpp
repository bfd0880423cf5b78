// SPDX-License-Identifier: Apache-2.0
// The Clifford gates that a compiler has met and not emitted: what they make of the words behind them.
#pragma once

#include <span>
#include <vector>

#include "core/program.hpp"

namespace fubini {

/// C, by the images C^dagger X C and C^dagger Z C of every qubit's X and Z.
class CliffordFrame {
  public:
    explicit CliffordFrame(int qubits) : qubits_(qubits) { reset(); }

    void reset();
    /// C^dagger word C.
    [[nodiscard]] Word image(const Word& word) const;
    /// Takes a gate into C, if it is a Clifford gate that maps Z words to Z words.
    [[nodiscard]] bool absorb(const Operation& gate);
    [[nodiscard]] bool is_trivial_on(Mask support) const;
    /// The subspace in the frame, when every fixed qubit's Z is the Z of one qubit there.
    [[nodiscard]] bool map_fixed(const Operation& operation, Mask& fixed, Mask& value) const;
    /// The terms in the present frame, in the order that the measuring kernels need.
    [[nodiscard]] std::vector<PauliTerm> images(std::span<const PauliTerm> terms) const;
    [[nodiscard]] const std::vector<Word>& z_images() const { return z_images_; }

  private:
    int qubits_;
    std::vector<Word> x_images_;
    std::vector<Word> z_images_;
};

}  // namespace fubini
