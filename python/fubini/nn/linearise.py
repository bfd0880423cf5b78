"""The results of a quantum layer and their Jacobian, input by input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.circuit.tape import user_tape
from fubini.compile.compiled import Compiled, joined
from fubini.errors import UnsupportedCircuitError
from fubini.native.circuit import Circuit
from fubini.native.reading import read
from fubini.nn.expval import expval
from fubini.nn.layer import QuantumLayer
from fubini.nn.native_pass import started
from fubini.nn.stand_in import as_native
from fubini.options import Real

Tensor = torch.Tensor


@dataclass(frozen=True)
class Linearised:
    """A quantum layer at L inputs.

    Attributes:
        values: Results side by side, (L, M).
        by_weights: d values / d weights, the weights flattened and concatenated, (L, M, P).
        by_inputs: d values / d inputs, (L, M, d); None where not asked for.
        parts: How the layer returns the results: 0 for one number without an axis of its own, 1 for a vector, more for
            a tuple of so many vectors, which are stacked.
    """

    values: Real
    by_weights: Real
    by_inputs: Real | None
    parts: int


def linearise(layer: Any, inputs: Tensor, want_inputs: bool, *, alone: bool = False) -> Linearised:
    """Return a quantum layer's results and their Jacobian, input by input.

    Compiled circuits take one call of the native engine. Where the quantum function runs in every call, it runs once
    for the angles and their derivatives. Circuits on devices are differentiated result by result and input by input.

    Args:
        layer: A QuantumLayer or TorchLayer.
        inputs: (L, d).
        want_inputs: Whether the derivatives by the inputs are wanted.
        alone: Whether the quantum function gets the inputs one by one: it may be written for one sample.

    Returns:
        The results and derivatives, float64.
    """
    native = as_native(layer)
    if native is None:
        return _on_device(layer, inputs, want_inputs)
    if alone:
        form = native._form(inputs[0])
        if isinstance(form.how, Compiled) and not (form.how.state_weighted or form.how.decisions):
            return linearise_native(native, form, inputs, want_inputs)
        each = [linearise_native(native, native._form(x), x, want_inputs) for x in inputs]
        return _stacked(each)
    return linearise_native(native, native._form(inputs), inputs, want_inputs)


def linearise_native(
    layer: QuantumLayer, form: Any, inputs: Tensor, want_inputs: bool
) -> Linearised:
    """Return the results and derivatives of a layer on the native engine.

    Args:
        layer: The layer.
        form: How it evaluates these inputs.
        inputs: (L, d); or (d,) for a function that runs in every call.
        want_inputs: As for ``linearise``.

    Returns:
        As for ``linearise``.
    """
    if not isinstance(form.how, Compiled) or form.how.state_weighted:
        return _traced(layer, inputs, want_inputs, form.kind)
    weights = [to_numpy(w) for w in layer.qnode_weights.values()]
    values, by_weights, by_inputs = form.how.linearise(weights, to_numpy(inputs), want_inputs)
    return Linearised(values, by_weights, by_inputs, _parts(form.kind, form.how.circuit))


def _stacked(each: list[Linearised]) -> Linearised:
    by_inputs = [one.by_inputs for one in each if one.by_inputs is not None]
    return Linearised(
        np.concatenate([one.values for one in each]),
        np.concatenate([one.by_weights for one in each]),
        np.concatenate(by_inputs) if by_inputs else None,
        each[0].parts,
    )


def flat_weights(layer: QuantumLayer) -> Real:
    """Return the weights of a layer in one vector, (P,)."""
    return joined([to_numpy(w) for w in layer.qnode_weights.values()])


def trace(
    layer: QuantumLayer, inputs: Tensor, weights: dict[str, Tensor]
) -> tuple[Circuit, Tensor, Tensor | None]:
    """Run a layer's quantum function.

    Args:
        layer: The layer.
        inputs: (L, d), or (d,).
        weights: Weights by name, in place of the layer's own.

    Returns:
        The circuit, its angles (L, A) and initial states (L, N) or None, with their graphs.
    """
    constant = {name: w.detach().to(inputs) for name, w in layer.qnode_weights.items()}
    data = {} if layer.input_arg is None else {layer.input_arg: inputs}
    tape = user_tape(layer.qnode, (), {**data, **constant, **weights})
    count = len(inputs) if inputs.ndim > 1 else 1
    circuit, angles, state = started(read(tape, layer.qnode.device), (count,))
    return circuit, angles, None if state is None else state.expand(count, -1)


def _parts(kind: str, circuit: Circuit) -> int:
    shapes = circuit.output_shapes
    if kind == "tuple":
        return len(shapes)
    return 0 if kind == "single" and not shapes[0] else 1


def _traced(layer: QuantumLayer, inputs: Tensor, want_inputs: bool, kind: str) -> Linearised:
    with torch.enable_grad():
        x = inputs.detach().clone().requires_grad_(want_inputs)
        weights = {
            name: w.detach().to(inputs).clone().requires_grad_()
            for name, w in layer.qnode_weights.items()
        }
        circuit, angles, state = trace(layer, x, weights)
        leaves = list(weights.values())
        if state is not None and state.requires_grad:
            found = torch.autograd.grad(
                state.abs().sum(), leaves, retain_graph=True, allow_unused=True
            )
            if any(one is not None for one in found):
                raise UnsupportedCircuitError(
                    "weights: the initial state of a quantum layer depends on them, which has no Fisher block; "
                    "prepare it by gates"
                )
        values = expval(circuit, angles, state)
        rows, size = angles.shape
        by_angles = _core.jacobian(
            circuit.program,
            to_numpy(angles),
            None if state is None else to_numpy(state, np.complex128),
        )
        columns = [np.zeros((rows, size, w.numel())) for w in leaves]
        if angles.requires_grad:
            # Angle a of input b has its own row: it may depend on weights and inputs together.
            seeds = torch.eye(rows * size, dtype=torch.float64).reshape(-1, rows, size)
            parts = torch.autograd.grad(
                angles, leaves, seeds, is_grads_batched=True, retain_graph=True, allow_unused=True
            )
            columns = [
                zero if part is None else to_numpy(part).reshape(rows, size, -1)
                for zero, part in zip(columns, parts, strict=True)
            ]
        by_inputs = None
        if want_inputs:
            by_inputs = _input_jacobian(values, x)
    by_weights = by_angles @ np.concatenate(columns, axis=2)
    return Linearised(to_numpy(values), by_weights, by_inputs, _parts(kind, circuit))


def _input_jacobian(values: Tensor, inputs: Tensor) -> Real:
    """(L, M) by (L, d) or (d,), where row b depends on input b alone."""
    parts = [
        torch.autograd.grad(column.sum(), inputs, retain_graph=True, allow_unused=True)[0]
        for column in values.unbind(dim=1)
    ]
    zero = torch.zeros_like(inputs)
    rows = [zero if part is None else part for part in parts]
    return to_numpy(torch.stack([row.reshape(-1, inputs.shape[-1]) for row in rows], dim=1))


def _on_device(layer: Any, inputs: Tensor, want_inputs: bool) -> Linearised:
    weights = list(layer.qnode_weights.values())
    values, by_weights, by_inputs = [], [], []
    for one in inputs.detach():
        with torch.enable_grad():
            x = one.clone().requires_grad_(want_inputs)
            if isinstance(layer, QuantumLayer):
                shaped = evaluated(layer) if layer.input_arg is None else evaluated(layer, x)
            else:
                shaped = type(layer).forward(layer, x)
            result = shaped.reshape(-1)
            leaves = [w for w in weights if w.requires_grad] + [x] * want_inputs
            rows = [
                torch.autograd.grad(entry, leaves, retain_graph=True, allow_unused=True)
                if entry.requires_grad
                else (None,) * len(leaves)
                for entry in result
            ]
        values.append(to_numpy(result))
        table = [dict(zip(map(id, leaves), row, strict=True)) for row in rows]
        by_weights.append([_joined(weights, row) for row in table])
        by_inputs.append([_joined([x], row) for row in table])
    return Linearised(
        np.array(values),
        np.array(by_weights).reshape(len(inputs), len(table), sum(w.numel() for w in weights)),
        np.array(by_inputs).reshape(*np.shape(by_inputs)[:2], -1) if want_inputs else None,
        0 if shaped.ndim == 0 else 1 if shaped.ndim == 1 else len(shaped),
    )


def evaluated(layer: QuantumLayer, *args: Any, **kwargs: Any) -> Tensor:
    """Return what a quantum layer's own forward returns, also in a Fisher pass, where another one takes its place."""
    instead = layer.__dict__.pop("_instead", None)
    try:
        return QuantumLayer.forward(layer, *args, **kwargs)
    finally:
        if instead is not None:
            layer.__dict__["_instead"] = instead


def _joined(leaves: list[Tensor], row: dict[int, Tensor | None]) -> Real:
    parts = [row.get(id(leaf)) for leaf in leaves]
    return np.concatenate(
        [
            np.zeros(leaf.numel()) if part is None else to_numpy(part).reshape(-1)
            for leaf, part in zip(leaves, parts, strict=True)
        ]
    )
