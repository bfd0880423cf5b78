// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include "core/eigenbasis.hpp"
#include "core/program.hpp"

namespace fubini {

/// A rotation inside a block: exp(-i t Q / 2) with t = coefficient * angles[slot] + offset, Q = Q_axis of the
/// block.
struct BlockRotation {
    int axis = 0;  ///< 1, 2, 3; 0 for a global phase (Q = 1)
    int slot = -1;
    double coefficient = 0;
    double offset = 0;
};

/// A block is a run of rotations about Q1, Q2, Q3, which multiply as X, Y, Z do: U = q0 - i (q1 Q1 + q2 Q2 +
/// q3 Q3) with real q. On amplitudes, with s3(r) = (-1)^parity(r & z3), s1(r) = (-1)^parity(r & z1):
///   (Q1 psi)[r] = s1 psi[r ^ x],  (Q2 psi)[r] = -i s1 s3 psi[r ^ x],  (Q3 psi)[r] = s3 psi[r]
/// where r or r ^ x has the qubits of `fixed` at `value`; elsewhere U = 1. With x = 0 there is only Q3.
/// A flip is (s1 s3 flip_real + i s1 flip_imaginary) psi[r ^ x] there, with one of the two being 0.
struct Step {
    enum class Kind { block, flip, matrix, diagonal };
    Kind kind = Kind::block;
    Mask x = 0;
    Mask z1 = 0;
    Mask z3 = 0;
    Mask fixed = 0;
    Mask value = 0;
    Mask idle = 0;  ///< qubits that are still |0> after this step: other amplitudes are 0 and need no work
    bool uses[4] = {};  ///< which axes the block's rotations have
    int first = 0;      ///< rotations [first, first + count) of the plan, in the order in which they act
    int count = 0;
    double flip_real = 0;
    double flip_imaginary = 0;
    int operation = -1;  ///< for matrix and diagonal
};

/// A stage of the program: its terms in the frame after `steps` steps, sorted as those of the plan.
struct Checkpoint {
    std::size_t steps = 0;
    std::vector<PauliTerm> terms;
    Eigenbasis basis;  ///< of the terms; empty where they are measured pass by pass
};

/// What is executed. Clifford gates that map Z words to Z words (X, Z, S, CNOT, CZ, SWAP, ...) are not: they
/// are commuted to the end, so the sweeps work on phi with psi = C phi, and every later generator and
/// observable is replaced by C^dagger (.) C, again a Pauli word. C itself is applied only when the state is
/// asked for.
struct Plan {
    std::vector<Step> steps;
    std::vector<BlockRotation> rotations;
    std::vector<BlockRotation> phases;  ///< global phases: they matter for the state only
    std::vector<Step> tail;             ///< C, as steps; its rotations are constants
    /// Sorted by (x, odd number of Y, z without its top x bit), which is the order the measuring kernels
    /// need.
    std::vector<PauliTerm> terms;
    std::vector<Checkpoint> checkpoints;  ///< one per stage
    std::vector<Word> z_images;           ///< C^dagger Z_q C for every qubit q: a signed Z word
};

[[nodiscard]] Plan compile(const Program& program);

}  // namespace fubini
