// SPDX-License-Identifier: Apache-2.0
// The natural-gradient step of small models that apply linear layers, functions of each entry and circuits in
// turn.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "core/batch.hpp"
#include "core/expression.hpp"
#include "core/gauss_newton.hpp"
#include "core/preconditioner.hpp"
#include "core/program.hpp"
#include "core/workspace.hpp"

namespace fubini {

/// Functions of each entry alone, as torch.nn has them.
enum class Elementwise : std::int8_t { relu, sigmoid, silu, tanh };

/// How the metric of a layer's parameters is kept: not at all, where they are not trained; as a matrix; as
/// its diagonal; or, of a linear layer, as the two factors of K-FAC.
enum class BlockForm : std::int8_t { none, dense, diagonal, kronecker };

/// Blocks of the generalised Gauss-Newton matrix of a chain of layers, averaged over steps, and the direction
/// that they give a gradient: what takes a call of gauss_newton.hpp and preconditioner.hpp for each layer, in
/// one. Parameters lie side by side in the order of the layers: the weight of a linear layer (outputs,
/// inputs) and then its bias, the weights of a circuit's map.
class FisherChain {
  public:
    /// What the outputs of the last layer are to the loss.
    explicit FisherChain(OutputFamily family) : family_(family) {}

    void add_linear(std::ptrdiff_t inputs, std::ptrdiff_t outputs, bool bias, BlockForm form);
    /// Not as the first layer; throws std::invalid_argument.
    void add_function(Elementwise function);
    /// Both must outlive the chain; the map makes no initial states.
    void add_circuit(const Program& program, const Expression& map, BlockForm form);

    /// Numbers of all parameters.
    [[nodiscard]] std::ptrdiff_t parameters() const { return parameters_; }
    /// Of those that are trained.
    [[nodiscard]] std::ptrdiff_t unknowns() const { return unknowns_; }
    /// Of the last layer.
    [[nodiscard]] std::ptrdiff_t outputs() const { return layers_.empty() ? -1 : layers_.back().outputs; }
    /// Shapes of the matrices that are averaged, in the order of the layers: one for a dense block, the
    /// diagonal alone for a diagonal one, left and right for a Kronecker product.
    [[nodiscard]] std::vector<std::vector<std::ptrdiff_t>> matrices() const;

    /// A forward pass of a circuit that was run before, for as many data.
    struct Known {
        const Program* program = nullptr;
        const double* angles = nullptr;  ///< (data, angles)
        const double* values = nullptr;  ///< (data, outputs)
        const double* kept = nullptr;    ///< its states, see expval
    };

    /// A step.
    struct Call {
        const double* inputs = nullptr;  ///< (data, inputs)
        std::ptrdiff_t data = 0;
        const double* parameters = nullptr;  ///< (parameters())
        const double* gradient = nullptr;    ///< (unknowns())
        double share = 1.0;                  ///< see output_factor
        double damping = 0.0;
        /// By which every matrix of earlier steps enters the average, 0 where there is none.
        const double* decays = nullptr;
        const double* const* before = nullptr;  ///< these matrices
        double* const* after = nullptr;         ///< receives the average
        /// Of the signs by which circuits combine the rows of every datum, see combine_rows.
        std::optional<std::uint64_t> seed;
        /// Which circuits do: those of several results from so many data times angles times amplitudes.
        double combine_from = 0.0;
        /// Passes whose states are taken where the angles are the same, up to rounding.
        std::vector<Known> known;
        std::function<bool()> poll = {};  ///< see Batch
    };

    /// change (unknowns()) = (average + damping)^-1 gradient. Returns their product, as
    /// Preconditioner::apply; not a number where a matrix is not positive definite or anything is not finite.
    /// `after` is then of no use.
    double direction(const Call& call, double* change);

  private:
    struct Layer {
        enum class Kind : std::int8_t { linear, function, circuit } kind = Kind::linear;
        BlockForm form = BlockForm::none;
        bool bias = false;
        Elementwise function = Elementwise::tanh;
        std::ptrdiff_t inputs = 0, outputs = 0;
        std::ptrdiff_t first = 0, count = 0;  // parameters
        std::ptrdiff_t rank = 0;              // of the curvature by the outputs, at most
        const Program* program = nullptr;
        const Expression* map = nullptr;
    };
    /// What a layer did to the data, in memory that stays from step to step.
    struct Run {
        std::vector<double> values;             // (data, outputs)
        std::vector<double> by_inputs;          // of a function its slope, (data, outputs)
        std::vector<double> by_weights;         // of a circuit as by_inputs, (data, rows, ...)
        std::vector<double> angles, by_angles;  // of a circuit
        bool along = false;                     // along the rows of the factor, not of the outputs
        Workspace memory;
        const double* kept = nullptr;  // the states, in memory or of a pass that is known
    };

    void add(Layer layer);
    [[nodiscard]] bool combines(const Layer& layer, const Call& call) const;
    void forward(const Call& call);
    [[nodiscard]] static Batch batch_of(const Run& run, const Call& call);
    void run_circuit(const Layer& layer, Run& run, const double* from, const Call& call);
    [[nodiscard]] static const Known* pass_of(const Layer& layer, const Run& run, const Call& call);
    void chain_rule(const Layer& layer, Run& run, const double* from, const Call& call, std::ptrdiff_t rows);
    /// A reverse sweep along each row of the factor, of which there are fewer than outputs.
    void sweep(const Layer& layer, Run& run, const double* from, const Call& call);
    void make_block(const Layer& layer, const Run& run, const double* from, double* const* to) const;
    /// Takes the factor from the outputs of a layer to its inputs.
    void pull(const Layer& layer, const Run& run, const Call& call);
    void replace_factor(std::ptrdiff_t rows, std::ptrdiff_t width);
    void average(const Call& call);
    [[nodiscard]] static bool solve_product(const Layer& layer, const double* left, const double* right,
                                            double damping, const double* g, double* x);

    OutputFamily family_;
    std::vector<Layer> layers_;
    std::vector<Run> runs_;
    std::ptrdiff_t parameters_ = 0, unknowns_ = 0;
    CurvatureFactor factor_;  // by the outputs of a layer, in values_
    std::vector<double> values_, pulled_, cotangents_, gradient_;
};

}  // namespace fubini
