// SPDX-License-Identifier: Apache-2.0
#include "core/plan.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "core/clifford_frame.hpp"

namespace fubini {
namespace {

constexpr double pi = std::numbers::pi;
constexpr std::size_t merge_window = 128;  // how many steps back a rotation may be moved; bounds compile time

/// A step under construction: its words are collected before axes are assigned.
struct Draft {
    Step step;
    struct Turn {
        Word word;
        BlockRotation rotation;
    };
    std::vector<Turn> turns;
    std::array<Word, 3> words{};  // distinct masks so far, as positive Hermitian words
    int num_words = 0;
    bool complete = false;  // z1 and z3 are determined
    Mask support = 0;
};

class Compiler {
  public:
    explicit Compiler(const Program& program) : program_(program), frame_(program.qubits()) {}

    Plan run() {
        std::size_t stage = 0;
        for (std::size_t i = 0; i <= program_.operations().size(); ++i) {
            for (; stage < program_.stages().size() && program_.stages()[stage].operations == i; ++stage) {
                std::vector<PauliTerm> terms = frame_.images(program_.stages()[stage].terms);
                Eigenbasis basis = eigenbasis(program_.qubits(), terms);
                plan_.checkpoints.push_back({drafts_.size(), std::move(terms), std::move(basis)});
            }
            if (i < program_.operations().size()) add(i);
        }
        plan_.terms = frame_.images(program_.terms());
        plan_.z_images.assign(frame_.z_images().begin(), frame_.z_images().end());
        emit(drafts_, plan_.steps, !program_.takes_state());
        // The pending Clifford as executable steps, for the state alone.
        std::vector<BlockRotation> phases;
        std::swap(phases, plan_.phases);
        drafts_.clear();
        std::vector<Checkpoint> checkpoints;
        std::swap(checkpoints, plan_.checkpoints);
        flush();
        emit(drafts_, plan_.tail, false);
        plan_.checkpoints = std::move(checkpoints);
        plan_.phases.insert(plan_.phases.begin(), phases.begin(), phases.end());
        return std::move(plan_);
    }

  private:
    void add(std::size_t index) {
        const Operation& operation = program_.operations()[index];
        if (frame_.absorb(operation)) {
            pending_.push_back(index);
            return;
        }
        if (operation.kind == Operation::Kind::matrix || operation.kind == Operation::Kind::diagonal) {
            if (!frame_.is_trivial_on(operation.support())) flush();
            add_physical(index);
            return;
        }
        if (operation.fixed == 0) {
            rotate(frame_.image(operation.word), 0, 0, operation, 1);
            return;
        }
        if (add_split_phase(operation)) return;
        Mask fixed = 0;
        Mask value = 0;
        if (frame_.map_fixed(operation, fixed, value)) {
            place(frame_.image(operation.word), fixed, value, operation);
        } else if (!expand(operation)) {
            flush();
            place(operation.word, operation.fixed, operation.value, operation);
        }
    }

    void add_physical(std::size_t index) {
        const Operation& operation = program_.operations()[index];
        if (operation.kind == Operation::Kind::rotation || operation.kind == Operation::Kind::flip) {
            if (operation.fixed == 0 && operation.kind == Operation::Kind::rotation) {
                rotate(operation.word, 0, 0, operation, 1);
            } else {
                place(operation.word, operation.fixed, operation.value, operation);
            }
            return;
        }
        Draft draft;
        draft.step.kind =
            operation.kind == Operation::Kind::matrix ? Step::Kind::matrix : Step::Kind::diagonal;
        draft.step.operation = static_cast<int>(index);
        draft.step.fixed = operation.fixed;
        draft.step.value = operation.value;
        draft.support = operation.support();
        drafts_.push_back(std::move(draft));
    }

    void flush() {
        const std::vector<std::size_t> pending = std::move(pending_);
        pending_.clear();
        frame_.reset();
        for (const std::size_t i : pending) add_physical(i);
    }

    /// A phase on one qubit is a Z rotation, which can join a block, and a global phase.
    bool add_split_phase(const Operation& operation) {
        if (operation.kind != Operation::Kind::rotation || std::popcount(operation.fixed) != 1 ||
            operation.word.x != 0 || operation.word.z != 0) {
            return false;
        }
        rotate({0, 0, operation.word.phase}, 0, 0, operation, 0.5);
        Word word{0, operation.fixed, operation.word.phase};
        if (operation.value != 0) word = negated(word);
        rotate(frame_.image(word), 0, 0, operation, 0.5);
        return true;
    }

    /// Writes K = P Pi as a sum of commuting words, when they are few.
    bool expand(const Operation& operation) {
        if (operation.kind != Operation::Kind::rotation) return false;
        const bool flips = (operation.word.x & operation.fixed) != 0;
        if (std::popcount(operation.fixed) - (flips ? 1 : 0) > 2) return false;
        for (const PauliTerm& term : expansion(operation))
            rotate(frame_.image(hermitian(term.x, term.z)), 0, 0, operation, term.coefficient);
        return true;
    }

    void place(const Word& word, Mask fixed, Mask value, const Operation& operation) {
        if (operation.kind == Operation::Kind::rotation) {
            rotate(word, fixed, value, operation, 1);
            return;
        }
        if (word.x == 0 && word.z != 0) {
            // A Z flip on a subspace is -1 on the smaller subspace where that qubit is 1, qubit by qubit. The
            // word's image may contain fixed qubits, whose Z is a sign.
            for (Mask rest = word.z & ~fixed; rest != 0; rest &= rest - 1) {
                const Mask one = rest & (~rest + 1);
                phase_flip(fixed | one, value | one);
            }
            if (parity(word.z & value) != 0) phase_flip(fixed, value);
            if (sign(word) < 0) phase_flip(fixed, value);
            return;
        }
        if (word.x == 0) {
            if (sign(word) < 0) phase_flip(fixed, value);
            return;
        }
        Draft draft;
        Step& step = draft.step;
        step.kind = Step::Kind::flip;
        step.x = word.x;
        step.fixed = fixed;
        step.value = value;
        // (P psi)[r] = (-i)^ny (-1)^parity(z & r) psi[r ^ x]
        const int ny = std::popcount(word.x & word.z) & 3;
        const double factor = sign(word) * (ny == 0 || ny == 3 ? 1.0 : -1.0);
        if ((ny & 1) == 0) {
            step.z3 = word.z;
            step.flip_real = factor;
        } else {
            step.z1 = word.z;
            step.flip_imaginary = factor;
        }
        draft.words[0] = hermitian(word.x, word.z);
        draft.num_words = 1;
        draft.support = word.x | word.z | fixed;
        drafts_.push_back(std::move(draft));
    }

    void phase_flip(Mask fixed, Mask value) {
        Operation half_turn;  // exp(-i pi Pi) = 1 - 2 Pi
        half_turn.offset = 2 * pi;
        rotate({}, fixed, value, half_turn, 1);
    }

    void rotate(const Word& word, Mask fixed, Mask value, const Operation& operation, double scale) {
        const double factor = scale * sign(word);
        const BlockRotation rotation{0, operation.slot, factor * operation.coefficient,
                                     factor * operation.offset};
        if (word.x == 0 && word.z == 0 && fixed == 0) {
            plan_.phases.push_back(rotation);
            return;
        }
        const Word positive = hermitian(word.x, word.z);
        std::size_t looked = 0;
        auto checkpoint = plan_.checkpoints.rbegin();
        for (auto draft = drafts_.rbegin(); draft != drafts_.rend() && looked < merge_window;
             ++draft, ++looked) {
            const auto steps = static_cast<std::size_t>(drafts_.rend() - draft);
            bool changes = false;
            for (; checkpoint != plan_.checkpoints.rend() && checkpoint->steps == steps; ++checkpoint) {
                changes = changes || !leaves(*checkpoint, positive, fixed);
            }
            if (changes) break;
            if (join(*draft, positive, fixed, value)) {
                draft->turns.push_back({positive, rotation});
                return;
            }
            if (!passes(*draft, positive, fixed)) break;
        }
        Draft draft;
        draft.step.fixed = fixed;
        draft.step.value = value;
        draft.words[0] = positive;
        draft.num_words = 1;
        draft.support = word.x | word.z | fixed;
        draft.turns.push_back({positive, rotation});
        drafts_.push_back(std::move(draft));
    }

    /// Whether a rotation about the word may be moved before a checkpoint: it leaves what is measured there.
    static bool leaves(const Checkpoint& checkpoint, const Word& word, Mask fixed) {
        return std::all_of(checkpoint.terms.begin(), checkpoint.terms.end(), [&](const PauliTerm& term) {
            return (term.x & fixed) == 0 && commute(word, hermitian(term.x, term.z));
        });
    }

    /// Whether the word belongs to the block's triple; extends a block of one word to a triple.
    static bool join(Draft& draft, const Word& word, Mask fixed, Mask value) {
        if (draft.step.kind != Step::Kind::block || draft.step.fixed != fixed || draft.step.value != value)
            return false;
        for (int i = 0; i < draft.num_words; ++i) {
            if (draft.words[static_cast<std::size_t>(i)] == word) return true;
        }
        if (draft.num_words != 1) return false;
        const Word& first = draft.words[0];
        const bool one_is_diagonal = word.x == 0 || first.x == 0 || word.x == first.x;
        if (commute(word, first) || !one_is_diagonal || ((word.x | first.x) & fixed) != 0) return false;
        draft.words[1] = word;
        draft.words[2] = hermitian(word.x ^ first.x, word.z ^ first.z);
        draft.num_words = 3;
        draft.support |= word.x | word.z;
        return true;
    }

    [[nodiscard]] bool passes(const Draft& draft, const Word& word, Mask fixed) const {
        if (((word.x | word.z | fixed) & draft.support) == 0) return true;
        if (draft.step.kind == Step::Kind::matrix) return false;
        if (draft.step.kind == Step::Kind::diagonal) return (word.x & draft.support) == 0;
        if ((word.x & draft.step.fixed) != 0) return false;
        for (int i = 0; i < draft.num_words; ++i) {
            const Word& other = draft.words[static_cast<std::size_t>(i)];
            if (!commute(other, word) || (other.x & fixed) != 0) return false;
        }
        return true;
    }

    /// Fixes the axes of a block: which word is Q1, Q2, Q3, and with which sign.
    static void assign_axes(Draft& draft) {
        Step& step = draft.step;
        Word flipping{};
        for (int i = 0; i < draft.num_words; ++i) {
            const Word& word = draft.words[static_cast<std::size_t>(i)];
            if (word.x != 0) flipping = word;
        }
        step.x = flipping.x;
        if (draft.num_words == 3) {
            for (const Word& word : draft.words) {
                if (word.x == 0) step.z3 = word.z;
            }
        } else if (step.x != 0) {
            step.z3 = std::bit_floor(step.x);  // any Z word that anticommutes completes the triple
        } else {
            step.z3 = draft.words[0].z;
        }
        if (step.x != 0) {
            step.z1 = flipping.z;
            if (parity(step.x & step.z1) != 0) step.z1 ^= step.z3;
        }
        for (Draft::Turn& turn : draft.turns) {
            double factor = 1;
            const int ny = std::popcount(turn.word.x & turn.word.z) & 3;
            if (turn.word.x == 0) {
                turn.rotation.axis = 3;
            } else if ((ny & 1) == 0) {
                turn.rotation.axis = 1;
                factor = ny == 0 ? 1 : -1;
            } else {
                turn.rotation.axis = 2;
                factor = ny == 1 ? 1 : -1;
            }
            turn.rotation.coefficient *= factor;
            turn.rotation.offset *= factor;
            step.uses[turn.rotation.axis] = true;
        }
    }

    void emit(std::vector<Draft>& drafts, std::vector<Step>& steps, bool from_zero) {
        const Mask all = (Mask{1} << program_.qubits()) - 1;
        Mask reached = from_zero ? 0 : all;
        for (Draft& draft : drafts) {
            if (draft.step.kind == Step::Kind::block) assign_axes(draft);
            draft.step.first = static_cast<int>(plan_.rotations.size());
            draft.step.count = static_cast<int>(draft.turns.size());
            for (const Draft::Turn& turn : draft.turns) plan_.rotations.push_back(turn.rotation);
            reached |= draft.step.x;
            if (draft.step.kind == Step::Kind::matrix) reached |= draft.support;
            draft.step.idle = all & ~reached;
            steps.push_back(draft.step);
        }
    }

    const Program& program_;
    Plan plan_;
    CliffordFrame frame_;
    std::vector<std::size_t> pending_;
    std::vector<Draft> drafts_;
};

}  // namespace

Plan compile(const Program& program) { return Compiler(program).run(); }

}  // namespace fubini
