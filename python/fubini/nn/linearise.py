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
from fubini.nn.gradients import batched_gradients
from fubini.nn.layer import QuantumLayer
from fubini.nn.layer_weights import layer_arguments
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
        return _stacked([_on_device(layer, x, want_inputs) for x in inputs.detach()])
    form = native._form(inputs[0] if alone else inputs)
    how = form.how
    compiled = isinstance(how, Compiled) and not (how.state_weighted or how.decisions)
    if compiled or not alone:
        return linearise_native(native, form, inputs, want_inputs)
    return _stacked([linearise_native(native, native._form(x), x, want_inputs) for x in inputs])


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
    layer: QuantumLayer, inputs: Tensor, weights: dict[str, Tensor] | None = None
) -> tuple[Circuit, Tensor, Tensor | None]:
    """Run a layer's quantum function.

    Args:
        layer: The layer.
        inputs: (L, d), or (d,).
        weights: By name, in place of the layer's own.

    Returns:
        The circuit, its angles (L, A) and initial states (L, N) or None, with their graphs.
    """
    if weights is None:
        weights = {name: w.detach().to(inputs) for name, w in layer.qnode_weights.items()}
    tape = user_tape(layer.qnode, (), layer_arguments(layer, inputs, weights))
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
        states = None if state is None else to_numpy(state, np.complex128)
        by_angles = _core.jacobian(circuit.program, to_numpy(angles), states)
        columns = [np.zeros((rows, size, w.numel())) for w in leaves]
        if angles.requires_grad:
            # Angle a of input b has its own row: it may depend on weights and inputs together.
            seeds = torch.eye(rows * size, dtype=torch.float64).reshape(-1, rows, size)
            for k, part in enumerate(batched_gradients(angles, leaves, seeds)):
                if part is not None:
                    columns[k] = to_numpy(part).reshape(rows, size, -1)
        by_weights = by_angles @ np.concatenate(columns, axis=2)
        by_inputs = None
        if want_inputs:  # row b depends on input b alone
            parts = [_gradient(column.sum(), [x]) for column in values.unbind(dim=1)]
            by_inputs = np.stack([part.reshape(rows, -1) for part in parts], axis=1)
    return Linearised(to_numpy(values), by_weights, by_inputs, _parts(kind, circuit))


def _on_device(layer: Any, one: Tensor, want_inputs: bool) -> Linearised:
    """At one input (d,), result by result."""
    with torch.enable_grad():
        x = one.clone().requires_grad_(want_inputs)
        if isinstance(layer, QuantumLayer):
            shaped = evaluated(layer) if layer.input_arg is None else evaluated(layer, x)
        else:
            shaped = type(layer).forward(layer, x)
        leaves = [*layer.qnode_weights.values(), x]
        jacobian = np.array([[_gradient(entry, leaves) for entry in shaped.reshape(-1)]])
    size = jacobian.shape[2] - len(x)
    return Linearised(
        to_numpy(shaped).reshape(1, -1),
        jacobian[:, :, :size],
        jacobian[:, :, size:] if want_inputs else None,
        len(shaped) if shaped.ndim > 1 else shaped.ndim,
    )


def _gradient(value: Tensor, leaves: list[Tensor]) -> Real:
    """The gradient by all leaves, side by side; zeros where there is no path."""
    parts = [torch.zeros_like(leaf) for leaf in leaves]
    moving = [k for k, leaf in enumerate(leaves) if leaf.requires_grad]
    if moving and value.requires_grad:
        found = torch.autograd.grad(
            value, [leaves[k] for k in moving], retain_graph=True, materialize_grads=True
        )
        for k, part in zip(moving, found, strict=True):
            parts[k] = part
    return np.concatenate([to_numpy(part).reshape(-1) for part in parts])


def evaluated(layer: QuantumLayer, *args: Any, **kwargs: Any) -> Tensor:
    """Return what a quantum layer's own forward returns, also in a Fisher pass, where another one takes its place."""
    instead = layer.__dict__.pop("_instead", None)
    try:
        return QuantumLayer.forward(layer, *args, **kwargs)
    finally:
        if instead is not None:
            layer.__dict__["_instead"] = instead
