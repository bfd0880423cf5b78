// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bind/angle_arrays.hpp"
#include "core/fisher_chain.hpp"

namespace fubini::bind {
namespace {

using Matrices = std::vector<RealArray>;
using FloatArray = py::array_t<float, py::array::c_style>;

BlockForm form_from(const std::string& name) {
    return member_of<BlockForm>("form", name, {"none", "dense", "diagonal", "kronecker"});
}

/// A chain with the memory of its parameters, which it looks at in every step.
class Chain {
  public:
    explicit Chain(const std::string& family)
        : chain_(member_of<OutputFamily>("family", family, {"categorical", "bernoulli", "gaussian"})) {}

    void add_linear(const py::array& weight, const std::optional<py::array>& bias, const std::string& form) {
        if (weight.ndim() != 2 || (bias && (bias->ndim() != 1 || bias->shape(0) != weight.shape(0)))) {
            throw py::value_error("weight, bias: expected shapes (outputs, inputs) and (outputs,)");
        }
        expect_inputs(weight.shape(1));
        const BlockForm kind = form_from(form);
        std::vector<py::array> parameters = {weight};
        if (bias) parameters.push_back(*bias);
        add_parameters(parameters, kind != BlockForm::none);
        chain_.add_linear(weight.shape(1), weight.shape(0), bias.has_value(), kind);
        if (chain_inputs_ < 0) chain_inputs_ = weight.shape(1);
    }

    void add_function(const std::string& name) {
        chain_.add_function(member_of<Elementwise>("function", name, {"relu", "sigmoid", "silu", "tanh"}));
    }

    void add_circuit(const py::object& circuit, const std::shared_ptr<Expression>& map,
                     const std::vector<py::array>& weights, const std::string& form) {
        const auto* program = circuit.cast<const Program*>();
        if (map->angles() != program->angles() || map->amplitudes() != 0 || program->takes_state()) {
            throw py::value_error("map: expected one that makes the angles of this program and no state");
        }
        expect_inputs(map->inputs());
        py::ssize_t count = 0;
        for (const py::array& w : weights) count += w.size();
        if (count != map->weights()) {
            throw py::value_error("weights: expected " + std::to_string(map->weights()) + " numbers, got " +
                                  std::to_string(count));
        }
        const BlockForm kind = form_from(form);
        if (kind == BlockForm::kronecker)
            throw py::value_error("form: expected 'none', 'dense' or 'diagonal'");
        add_parameters(weights, kind != BlockForm::none);
        programs_.push_back(circuit);
        maps_.push_back(map);
        chain_.add_circuit(*program, *map, kind);
        if (chain_inputs_ < 0) chain_inputs_ = map->inputs();
    }

    [[nodiscard]] std::vector<std::vector<py::ssize_t>> matrices() const {
        std::vector<std::vector<py::ssize_t>> shapes;
        for (const auto& shape : chain_.matrices()) shapes.emplace_back(shape.begin(), shape.end());
        return shapes;
    }

    /// Two sets of matrices, of which each step reads one and writes the other, and where gradient and
    /// direction go.
    void hold(const Matrices& even, const Matrices& odd, RealArray gradients, RealArray change) {
        const auto shapes = matrices();
        for (const Matrices* set : {&even, &odd}) {
            bool fits = set->size() == shapes.size();
            for (std::size_t m = 0; fits && m < shapes.size(); ++m) {
                const RealArray& one = (*set)[m];
                fits = one.writeable() &&
                       std::equal(shapes[m].begin(), shapes[m].end(), one.shape(), one.shape() + one.ndim());
            }
            if (!fits) throw py::value_error("even, odd: expected arrays of the shapes of `matrices`");
        }
        const py::ssize_t size = chain_.unknowns();
        expect_shape("gradients", gradients, "(2, n)", 2, size);
        expect_shape("change", change, "(1, n)", 1, size);
        gradients_ = std::move(gradients);
        held_ = {even, odd};
        change_ = std::move(change);
    }

    double direction(const RealArray& inputs, const std::vector<py::array>& gradients, int into,
                     const std::vector<double>& decays, double damping, double share,
                     std::optional<std::uint64_t> seed, double combine_from,
                     const std::optional<RealArray>& by_outputs, const std::vector<const Pass*>& passes) {
        if (inputs.ndim() != 2 || inputs.shape(1) != chain_inputs_ || inputs.shape(0) == 0)
            throw py::value_error("inputs: expected shape (data, " + std::to_string(chain_inputs_) + ")");
        if (into != 0 && into != 1) throw py::value_error("into: expected 0 or 1");
        if (held_[0].size() != chain_.matrices().size()) throw py::value_error("hold: expected to be called");
        if (decays.size() != held_[0].size()) throw py::value_error("decays: expected one for each matrix");
        std::vector<const double*> before;
        std::vector<double*> after;
        for (std::size_t m = 0; m < held_[0].size(); ++m) {
            before.push_back(held_[static_cast<std::size_t>(1 - into)][m].data());
            after.push_back(held_[static_cast<std::size_t>(into)][m].mutable_data());
        }
        if (by_outputs) {
            if (by_outputs->ndim() != 2 || by_outputs->shape(0) != inputs.shape(0))
                throw py::value_error("by_outputs: expected shape (data, outputs)");
            if (has_silent_row(*by_outputs)) return std::nan("");
        }
        double* gradient = gradients_.mutable_data() + into * chain_.unknowns();
        copy_gradients(gradients, gradient);
        copy_parameters();
        FisherChain::Call call;
        call.inputs = inputs.data();
        call.data = inputs.shape(0);
        call.parameters = parameters_.data();
        call.gradient = gradient;
        call.share = share;
        call.damping = damping;
        call.decays = decays.data();
        call.before = before.data();
        call.after = after.data();
        call.seed = seed;
        call.combine_from = combine_from;
        for (const Pass* pass : passes) {
            if (pass == nullptr || pass->angles.shape(0) != call.data) continue;
            call.known.push_back({pass->program, pass->angles.data(), pass->values.data(), pass->kept});
        }
        call.poll = Signals{};
        double* to = change_.mutable_data();
        double square = 0.0;
        run([&] { square = chain_.direction(call, to); });
        return square;
    }

    /// Adds the direction, times a number, to the parameters.
    void move(double rate) {
        if (change_.size() != chain_.unknowns()) throw py::value_error("hold: expected to be called");
        const double* from = change_.data();
        for (std::size_t k = 0; k < sources_.size(); ++k) {
            if (!trained_[k]) continue;
            py::array& source = sources_[k];
            if (source.itemsize() == sizeof(double)) {
                auto* to = static_cast<double*>(source.mutable_data());
                for (py::ssize_t i = 0; i < source.size(); ++i) to[i] += rate * from[i];
            } else {
                auto* to = static_cast<float*>(source.mutable_data());
                for (py::ssize_t i = 0; i < source.size(); ++i) to[i] += static_cast<float>(rate * from[i]);
            }
            from += source.size();
        }
    }

  private:
    void expect_inputs(py::ssize_t inputs) const {
        if (chain_.outputs() >= 0 && chain_.outputs() != inputs) {
            throw py::value_error("inputs: expected the " + std::to_string(chain_.outputs()) +
                                  " outputs of the layer before, got " + std::to_string(inputs));
        }
    }

    void add_parameters(const std::vector<py::array>& values, bool trained) {
        for (const py::array& one : values) {
            if (!(py::isinstance<RealArray>(one) || py::isinstance<FloatArray>(one)) || !is_plain(one))
                throw py::type_error("parameters: expected contiguous arrays of float64 or float32");
        }
        sources_.insert(sources_.end(), values.begin(), values.end());
        trained_.insert(trained_.end(), values.size(), trained);
    }

    template <class Number>
    static double* copy_numbers(const void* from, py::ssize_t count, double* to) {
        return std::copy_n(static_cast<const Number*>(from), count, to);
    }
    static double* copy_like(const py::array& like, const void* from, double* to) {
        return like.itemsize() == sizeof(double) ? copy_numbers<double>(from, like.size(), to)
                                                 : copy_numbers<float>(from, like.size(), to);
    }

    void copy_gradients(const std::vector<py::array>& gradients, double* to) {
        auto next = gradients.begin();
        for (std::size_t k = 0; k < sources_.size(); ++k) {
            if (!trained_[k]) continue;
            const py::array& source = sources_[k];
            if (next == gradients.end() || !next->dtype().equal(source.dtype()) ||
                next->size() != source.size() || !is_plain(*next)) {
                throw py::value_error("gradients: expected one like every trained parameter, contiguous");
            }
            to = copy_like(source, (next++)->data(), to);
        }
        if (next != gradients.end()) throw py::value_error("gradients: expected one for every parameter");
    }

    static bool has_silent_row(const RealArray& values) {
        const py::ssize_t width = values.shape(1);
        for (py::ssize_t n = 0; n < values.shape(0); ++n) {
            const double* row = values.data() + n * width;
            if (std::all_of(row, row + width, [](double g) { return g == 0.0; })) return true;
        }
        return false;
    }

    void copy_parameters() {
        parameters_.resize(static_cast<std::size_t>(chain_.parameters()));
        double* to = parameters_.data();
        for (const py::array& source : sources_) to = copy_like(source, source.data(), to);
    }

    FisherChain chain_;
    std::vector<py::array> sources_;
    std::vector<bool> trained_;
    std::vector<double> parameters_;
    std::vector<py::object> programs_;
    std::vector<std::shared_ptr<Expression>> maps_;
    std::array<Matrices, 2> held_;
    RealArray gradients_, change_;
    py::ssize_t chain_inputs_ = -1;
};

}  // namespace

void register_fisher_chain(py::module_& m) {
    py::class_<Chain>(
        m, "FisherChain", py::module_local(),
        "The natural-gradient step of linear layers, functions and circuits in turn, in one call. "
        "Parameters are looked at in their memory, in the order of the layers.")
        .def(py::init<const std::string&>(), "family"_a)
        .def("add_linear", &Chain::add_linear, "weight"_a, "bias"_a, "form"_a,
             "A linear layer, whose metric is 'dense', 'diagonal', 'kronecker' or 'none'.")
        .def("add_function", &Chain::add_function, "name"_a, "A function of each entry.")
        .def("add_circuit", &Chain::add_circuit, "program"_a.none(false), "map"_a.none(false), "weights"_a,
             "form"_a, "A circuit, whose metric is 'dense', 'diagonal' or 'none'.")
        .def_property_readonly("matrices", &Chain::matrices,
                               "Shapes of the averaged matrices, in the order of the layers.")
        .def(
            "hold", &Chain::hold, "even"_a, "odd"_a, "gradients"_a.noconvert(), "change"_a.noconvert(),
            "Gives the memory: two sets of averages and gradients (2, n), in turn, and the direction (1, n).")
        .def("direction", &Chain::direction, "inputs"_a.noconvert(), "gradients"_a, "into"_a, "decays"_a,
             "damping"_a, "share"_a, "seed"_a, "combine_from"_a, "by_outputs"_a.noconvert(), "passes"_a,
             "Makes the damped solution `change` for gradients that are arrays like the trained parameters, "
             "with the average in set `into`; returns its product with the gradient. States are taken of "
             "passes at the same angles. Not a number where anything is not finite, a block is not positive "
             "definite, or a row of by_outputs (data, outputs), the gradient by the outputs, is zero.")
        .def("move", &Chain::move, "rate"_a, "Adds rate times the direction to the parameters.");
}

}  // namespace fubini::bind
