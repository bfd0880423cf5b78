"""The rule of compiled QNodes that a model calls with its parameters, in a Fisher pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from fubini.fisher.passes import Pass
from fubini.fisher.quantum import QuantumCall, covariances
from fubini.nn.call_forms import CallForm, call_form
from fubini.nn.linearise import Linearised
from fubini.nn.watched_calls import WeightSeen, origins_of, slotted, weight_seen
from fubini.options import Approx, LayerRule, Real
from fubini.torch_private import is_wrapped

Tensor = torch.Tensor


class CompiledCall(QuantumCall):
    """A call of ``fubini.compiled(qnode)``.

    Args:
        name: As for Call.
        inputs: The argument for data, (d,) or (L, d); (0,) without.
        form: The compiled circuit.
        weights: The weights in the order of the form, parameters or entries of one each.

    Attributes:
        form: As above.
    """

    def __init__(
        self, name: str, inputs: Tensor, form: CallForm, weights: Sequence[WeightSeen]
    ) -> None:
        leaves = dict.fromkeys(w.leaves[0] for w in weights)
        starts = dict(zip(leaves, np.cumsum([0, *(p.numel() for p in leaves)]), strict=False))
        self.form, size = form, sum(p.numel() for p in leaves)
        self._jacobian = np.concatenate([w.jacobian(starts, size) for w in weights])
        self._is_plain = np.array_equal(self._jacobian, np.eye(size))
        module = SimpleNamespace(qnode_weights={str(k): p for k, p in enumerate(leaves)})
        super().__init__(module, name, inputs, alone=inputs.ndim == 1)

    def _evaluate(self, x: Tensor) -> Tensor:
        form = self.form
        values, by_weights, by_inputs = form.compiled.linearise(
            form.arrays, form.rows, self.inputs.requires_grad
        )
        by_weights = by_weights[:, :, form.columns]
        if not self._is_plain:
            by_weights = by_weights @ self._jacobian
        self.linear = Linearised(values, by_weights, by_inputs, 1)
        return torch.from_numpy(values).to(x.device).reshape(*x.shape[:-1], -1)

    def _covariances(self) -> Real:
        form = self.form
        angles = form.compiled.angles(form.arrays, form.rows)
        states = form.compiled.states(form.arrays, form.rows)
        return covariances(form.compiled.circuit, angles, states)

    def weighted_metric(self, weights: Real, approx: Approx, layers: LayerRule) -> Real:
        """Return the sum over the inputs of the metrics, each times a number, see QuantumCall."""
        metric = self.form.pullback(self.form.rows).weighted_sum(weights, approx, layers)
        return metric if self._is_plain else self._jacobian.T @ metric @ self._jacobian


def compiled_call(
    function: Any,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    parameters: Mapping[int, Tensor],
    notes: Pass,
) -> CompiledCall | None:
    """Return a call of a compiled QNode with parameters of a model, ready for a Fisher pass.

    Args:
        function: The ``QNodeFunction``.
        args: Positional arguments.
        kwargs: Keyword arguments.
        parameters: The model's, by identity.
        notes: The pass, where it is noted why there is no rule for a call.

    Returns:
        The call; None where torch has to differentiate through it.
    """
    call = slotted(args, kwargs)
    origins = origins_of(function, call, parameters)
    weights = {s: o for s, o in origins.items() if o.role == "weight"}
    if not weights:
        return None
    names = function.names_of(call)
    title = f"{getattr(function.qnode.func, '__name__', 'circuit')}({', '.join(names[s] for s in weights)})"

    def without(reason: str) -> CompiledCall | None:
        notes.uncut.add(title)
        for origin in weights.values():
            for p in origin.leaves:
                notes.uncalled[id(p)] = f"it is a weight of {title}, {reason}"
        return None

    seen = {s: weight_seen(call[s], o) for s, o in weights.items()}
    computed = [names[s] for s, w in seen.items() if w.entries is None]
    if computed:
        return without(
            f"whose argument {computed[0]} is computed from it, which has no rule for a Fisher block; pass the parameter and "
            "compute in the quantum function"
        )
    tensors = {s: v for s, v in call.items() if isinstance(v, Tensor)}
    if any(is_wrapped(v) for v in tensors.values()):
        return without(
            "which torch.func maps or differentiates; call it with a batch, (batch, features), as its one argument for data"
        )
    plain = {**call, **{s: v.detach() for s, v in tensors.items()}}
    fixed = [
        s for s, v in tensors.items() if isinstance(v, torch.nn.Parameter) and s not in weights
    ]
    form = call_form(function.qnode, names, plain, weights, fixed)
    if form is None or form.kind == "other":
        return without(
            "which is not compiled and so has no rule for a Fisher block; make it a layer, "
            "fubini.QuantumLayer(qnode, weight_shapes)"
        )
    moving = [s for s, v in tensors.items() if v.requires_grad and s not in weights]
    if any(s != form.data for s in moving):
        return without(
            f"whose argument {names[moving[0]]} is trained as well and no batch of inputs, (batch, features), or one of them, "
            "(features,), which has no rule for a Fisher block; make it a layer, fubini.QuantumLayer(qnode, weight_shapes)"
        )
    first = next(iter(tensors.values()))
    inputs = torch.empty(0, dtype=torch.float64, device=first.device)
    if form.data is not None:
        inputs = tensors[form.data]
    return CompiledCall(title, inputs, form, [seen[s] for s in form.slots])
