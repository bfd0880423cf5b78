"""The curvature of an energy as the metric of a step: Rayleigh-Gauss-Newton, where the loss is an energy and nothing else."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.blocks import DenseBlock, OperatorBlock, distributed
from fubini.blocks.curvature import CurvatureBlock
from fubini.compile.compiled import Compiled
from fubini.energies.problem import NOISE, EnergyProblem, problem_of, reason_against
from fubini.errors import UnsupportedCircuitError
from fubini.metric.call_metric import CallLayer
from fubini.nn.evaluations import leaf_weights
from fubini.optim.energy_sum import REMEDY, EnergyJudge, EnergySum, Term
from fubini.optim.gather import Counted
from fubini.optim.quantum_source import (
    AnyLayer,
    QuantumSource,
    _Layer,
    is_plain,
    starts_of,
    weights_by_parameters,
)
from fubini.options import LayerRule, Real

Tensor = torch.Tensor

_DENSE = 1500  # numbers up to which the curvature is a matrix
_REMEMBERED = 16  # circuits over their weights


class EnergySource(QuantumSource):
    r"""The Gauss-Newton part of the Hessian of an energy, from the circuit that computed it.

    :math:`B_{ij} = 2 Re <d_i psi| P (H - E) P |d_j psi>`, see ``EnergyProblem.curvature``. The loss has to be the energy,
    plus a constant, or a multiple of it; several energies, each of a circuit of its own, their sum. That is seen from
    gradients, which must be a multiple c of the energy's, and, unless c is 1 or -1, from the loss, which must be c times
    the energy or have a graph that says so: of any other function of it, B would be half of the curvature.

    Args:
        model: The model; None: as for ``QuantumSource``.
        layers: As for ``QuantumSource``.
        dense: Whether the curvature is a matrix; None: up to 1500 numbers.
    """

    _is_plain = False

    def __init__(
        self, model: torch.nn.Module | None, layers: LayerRule, dense: bool | None = None
    ) -> None:
        super().__init__(model, None, layers)
        self._dense = dense
        self._owned: list[Tensor] = []
        self._known: dict[Any, tuple[Compiled, EnergyProblem]] = {}
        self._sum = EnergySum()
        self._loss: float | None = None
        self._result: Any = None
        self._sign = self._factor = 1.0
        self._judged = self._closure = False

    def attach(self, owner: Any, owned: AbstractSet[Tensor]) -> None:
        """See Source; layers that cannot give one energy are refused."""
        super().attach(owner, owned)
        self._owned = list(owned)
        for unit in self._units:
            for layer in unit:
                assert isinstance(layer, _Layer)
                _check_layer(layer)

    def begin(
        self, groups: Sequence[Mapping[str, Any]], names: Mapping[Any, str], **now: Any
    ) -> None:
        """See Source."""
        if now["metric_fn"] is not None:
            raise ValueError(
                "closure: expected the loss alone with metric='energy', which takes the curvature from the circuit, got a "
                "metric function besides; return the loss, of fubini.compiled(qnode) in place of the QNode"
            )
        if now["scale"] is not None:
            raise ValueError(
                "metric: expected another one than 'energy' with a GradScaler; leave the scaler out, energies are computed "
                "in double precision"
            )
        if distributed.active():
            raise RuntimeError(
                "metric: expected another one than 'energy' in several processes, whose energies are one and the same; "
                "train in one process"
            )
        if len({bool(g["maximize"]) for g in groups}) > 1:
            raise ValueError("maximize: expected the same in all groups with metric='energy'")
        self._sign = -1.0 if groups[0]["maximize"] else 1.0
        self._loss, self._judged, self._closure = now["loss"], now["judged"], now["closure"]
        self._result = now["result"]
        moving = [p for p in self._owned if p.grad is not None and bool(p.grad.any())]
        strange = [p for p in moving if not self.covers(p)]
        if strange:
            self._with_calls()  # asks which arguments are weights where that is why
            some = ", ".join(
                names.get(p, f"a parameter of shape {tuple(p.shape)}") for p in strange[:3]
            )
            raise UnsupportedCircuitError(
                f"metric: expected a loss that is one observable's expectation value with 'energy', got one that depends on {some}, "
                "no weight of a circuit that was seen; call the circuit as a QuantumLayer or by fubini.compiled(qnode), leave "
                "out classical layers" + REMEDY
            )

    def blocks(self, moving: Sequence[Tensor], targets: Any, step: int) -> list[Counted]:
        """See Source."""
        self._sum = EnergySum()
        found = super().blocks(moving, targets, step)
        result, self._result = self._result, None
        factor = self._factor = self._sum.factor(moving, self._loss, result, self._factor)
        factor *= self._sign
        shifts = not (self._judged and (self._closure or self.judge() is not None))
        scaled: list[Counted] = []
        for block, count in found:
            assert isinstance(block, CurvatureBlock)
            block = block if factor == 1.0 else block.scaled(factor)
            block.shifts = shifts
            scaled.append((block, count))
        return scaled

    def judge(self) -> EnergyJudge | None:
        """Return what evaluates the energy again after a step; None where that takes a closure."""
        terms = self._sum.terms
        if not terms or any(t.now() is None for t in terms):
            return None
        return EnergyJudge(terms, self._sum.energy, self._sign * self._factor)

    def explain(self) -> list[str]:
        """See Source."""
        loss = {1.0: "the energy", -1.0: "minus the energy"}.get(
            self._factor, f"{self._factor:g} times the energy"
        )
        line = (
            "metric='energy': B = 2 Re <d psi|(H - E)|d psi>, the Gauss-Newton part of the Hessian of the energy "
            f"(Rayleigh-Gauss-Newton); the loss is {loss}, but for a constant."
        )
        return [line]

    # -- circuits -----------------------------------------------------------------------------------------------------

    def _unit_block(self, unit: list[AnyLayer], parameters: list[Tensor]) -> Counted:
        starts, size = starts_of(parameters)
        terms = [term for layer in unit for term in self._terms(layer, starts)]
        device = parameters[0].device
        dense = size <= _DENSE if self._dense is None else self._dense
        gradient, matrix = np.zeros(size), np.zeros((size, size) if dense else (0, 0))
        for term in terms:
            if dense:
                energy, slope, curvature = term.problem.expansion(term.x)
                matrix += term.pulled_both(curvature)
            else:
                energy, slope = term.problem.value_and_gradient(term.x)
            self._sum.energy += term.count * energy
            gradient += term.pulled(slope)
        self._sum.gradients.update({p: gradient[s : s + p.numel()] for p, s in starts.items()})
        self._sum.terms += terms

        def apply(v: Tensor) -> Tensor:
            vector = to_numpy(v)
            total = np.sum([term.product(vector) for term in terms], axis=0)
            return torch.from_numpy(total).to(device)

        label = "energy of " + ", ".join(layer.name for layer in unit)
        inner: DenseBlock | OperatorBlock
        if dense:
            values = torch.from_numpy((matrix + matrix.T) / 2).to(device)
            inner = DenseBlock(parameters, values, label)
        else:
            inner = OperatorBlock(parameters, apply, label)
        return CurvatureBlock(inner, True, NOISE * sum(t.rounding for t in terms)), 1

    def _terms(self, layer: AnyLayer, starts: Mapping[Tensor, int]) -> Iterator[Term]:
        """The energies that a layer evaluated in the passes whose gradients are being applied."""
        if isinstance(layer, CallLayer):
            for call in layer.compiled_calls(starts, REMEDY):
                form = call.form
                if form.data is not None or len(form.rows) != 1:
                    raise UnsupportedCircuitError(
                        f"{layer.name}: expected a call without data with metric='energy', got tensors besides the weights, "
                        f"{layer.names[form.data] if form.data is not None else 'a batch'}; pass constants as numbers or "
                        f"NumPy arrays{REMEDY}"
                    )
                whole = np.concatenate([a.reshape(-1) for a in form.arrays]).astype(np.float64)
                yield self._term(
                    layer.name,
                    form.compiled,
                    whole,
                    form.columns,
                    call.jacobian,
                    call.count,
                    call.now,
                )
            return
        for part in self._inputs(layer):
            form = layer.module.compiled()
            if form is None:
                raise UnsupportedCircuitError(
                    f"{layer.name}: expected a circuit that is compiled with metric='energy'. {layer.module.explain()}"
                    + REMEDY.replace("; take", " Take", 1)
                )
            values = layer.module.qnode_weights if part.weights is None else part.weights
            arrays = [to_numpy(v).reshape(-1) for v in values.values()]
            whole = np.concatenate(arrays).astype(np.float64)
            plain = (
                part.weights is None and is_plain(layer) and len(starts) == len(layer.parameters)
            )
            jacobian = None if plain else weights_by_parameters(layer, part, starts)
            leaves = (
                [None] if part.weights is not None else list(leaf_weights(layer.module).values())
            )
            now = functools.partial(_flat, leaves)
            yield self._term(
                layer.name, form, whole, np.arange(len(whole)), jacobian, len(part.passes), now
            )

    def _term(
        self,
        name: str,
        form: Compiled,
        whole: Real,
        columns: Any,
        jacobian: Real | None,
        count: int,
        now: Callable[[], Real | None],
    ) -> Term:
        against = reason_against(form)
        if against:
            raise UnsupportedCircuitError(f"{name}: {against}, with metric='energy'{REMEDY}")
        fixed = whole.copy()
        fixed[columns] = 0.0
        key = (id(form), columns.tobytes(), fixed.tobytes())
        if key not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = form, problem_of(form, whole, columns)
        if form.decisions:  # other weights may have another circuit
            now = functools.partial(_flat, [None])
        return Term(self._known[key][1], whole[columns], jacobian, count, now)


def _flat(weights: Sequence[Tensor | None]) -> Real | None:
    """The weights side by side, (W,); None where one is computed."""
    parts = [to_numpy(w).reshape(-1) for w in weights if w is not None]
    return np.concatenate(parts).astype(np.float64) if len(parts) == len(weights) else None


def _check_layer(layer: _Layer) -> None:
    """Refuse what is known not to be one energy before the circuit is called."""
    module = layer.module
    if getattr(module, "input_arg", "") is not None:
        raise UnsupportedCircuitError(
            f"{layer.name}: expected a circuit without data with metric='energy', got a layer with the inputs "
            f"{module.input_arg!r}; write the circuit without them, QuantumLayer(qnode, weight_shapes) called as layer(), if "
            f"its loss is an energy{REMEDY}"
        )
    if module.engine == "device":
        raise UnsupportedCircuitError(
            f"{layer.name}: expected a circuit that the native engine runs with metric='energy'. {module.explain()} Use a "
            "simulator without noise and shots, such as default.qubit, or metric='quantum'"
        )
