"""From a call of a QNode to the Jacobian of its gates' angles by the weights.

The quantum function runs once, with the tensors of the user's framework, so that whatever it computes from weights and
inputs (``2 * w``, ``w * x``, ``sin(x)``) is differentiated by that framework. Weights are what the user trains; inputs
and constants are everything else, whether they carry ``requires_grad`` for other reasons or not.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.arrays import is_jax, is_tensor, to_numpy
from fubini.circuit.any_angle import rebind
from fubini.circuit.arguments import place
from fubini.circuit.decompose import PREPARATIONS, gate_operations, has_angle, is_trainable
from fubini.circuit.tape import GateTape, batch_size, finish, user_tape
from fubini.errors import UnsupportedCircuitError
from fubini.options import Real


def gate_tape(
    qnode: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    weights: Sequence[int | str],
    *,
    pure: bool = True,
    as_passed: bool = False,
) -> GateTape:
    """Run a QNode's quantum function and return its gates and their Jacobian.

    Args:
        qnode: The QNode; any interface, any ``diff_method``.
        args: Positional arguments.
        kwargs: Keyword arguments.
        weights: Which arguments are weights: indices into args and names in kwargs, in the order wanted.
        pure: Whether the circuit must prepare a pure state and be analytic; False also takes channels and shots.
        as_passed: Whether the function gets float32 tensors as they are, so that it decides by their values as it does
            where it is evaluated; otherwise it gets float64 and angles are not rounded.

    Returns:
        The circuit at these arguments.

    Raises:
        UnsupportedCircuitError: For mid-circuit measurements, trainable operations without a generator and, if pure,
            shots and channels; names the operation.
        ValueError: If the batch is empty, an angle is not finite, or no angle depends on a weight.
    """
    call = _Call(qnode, list(args), dict(kwargs), list(weights), pure)
    if any(is_tensor(v) for v in [*args, *kwargs.values()]):
        return _torch_tape(call, as_passed)
    if any(is_jax(v) for v in [*args, *kwargs.values()]):
        return _jax_tape(call)
    return _autograd_tape(call)


def angle_tape(
    qnode: Any, kwargs: dict[str, Any]
) -> tuple[GateTape, list[torch.Tensor], torch.Tensor | None]:
    """Run a QNode's quantum function and return its gates, with every differentiable angle as a weight of its own.

    Args:
        qnode: The QNode; channels and shots are taken.
        kwargs: Its arguments, torch tensors with their graph.

    Returns:
        The circuit, whose weights are its trainable angles in order; these angles with their graph, each () or
        (batch,), none where no argument requires grad; and the amplitudes of the initial state with their graph,
        (..., 2^k), None where they have none.

    Raises:
        ValueError: For a state that depends on a differentiated tensor and is prepared later than at the start.
    """
    tape = user_tape(qnode, (), kwargs, pure=False, results=True)
    late = [op for op in tape.operations[1:] if isinstance(op, PREPARATIONS) and is_trainable(op)]
    if late:
        raise ValueError(
            f"qnode: {late[0].name} on wires {late[0].wires.tolist()} depends on weights or inputs that require grad, and "
            "only the first operation may: make it the first one, detach its amplitudes, or use default.qubit with "
            "diff_method='backprop'"
        )
    operations = gate_operations(tape, pure=False, keep_preparation=True)
    angles = _trainable_angles(operations)
    jacobian = np.eye(len(angles))[None]
    batch = batch_size(tape)
    prepared = [op for op in operations[:1] if isinstance(op, PREPARATIONS) and is_trainable(op)]
    state = prepared[0].data[0] if prepared else None
    gates = finish(tape, operations, batch, ((len(angles),),), jacobian, constant=True)
    return gates, angles, state


@dataclass(frozen=True)
class _Call:
    """A call of a QNode whose weights are to be differentiated; attributes as for :func:`gate_tape`."""

    qnode: Any
    args: list[Any]
    kwargs: dict[str, Any]
    weights: list[int | str]
    pure: bool

    @property
    def values(self) -> list[Any]:
        """The weights."""
        return [self.args[w] if isinstance(w, int) else self.kwargs[w] for w in self.weights]

    def each(self, function: Callable[[Any], Any]) -> "_Call":
        """The call with another value for each argument."""
        kwargs = {name: function(v) for name, v in self.kwargs.items()}
        return replace(self, args=[function(v) for v in self.args], kwargs=kwargs)

    def gates(self, values: Sequence[Any]) -> tuple[Any, list[Any]]:
        """What the quantum function queues at other weights, and its gates."""
        args, kwargs = list(self.args), dict(self.kwargs)
        for weight, value in zip(self.weights, values, strict=True):
            place(args, kwargs, weight, value)
        tape = user_tape(self.qnode, args, kwargs, pure=self.pure)
        return tape, gate_operations(tape, self.pure)


def _trainable_angles(operations: list[Any]) -> list[Any]:
    return [op.data[0] for op in operations if has_angle(op) and is_trainable(op)]


def _detached(value: Any, as_passed: bool) -> Any:
    """Inputs enter as constants, so that only weights are differentiated."""
    if not is_tensor(value):
        return value
    value = value.detach()
    if value.is_floating_point() and not (as_passed and value.dtype is torch.float32):
        value = value.to(torch.float64)
    return value.clone() if value.is_inference() else value


def _torch_tape(call: _Call, as_passed: bool) -> GateTape:
    # Users may be inside torch.no_grad(), as in an optimizer step, or in inference mode.
    with torch.inference_mode(False), torch.enable_grad():
        leaves = [_detached(torch.as_tensor(v), as_passed).clone() for v in call.values]
        leaves = [(v if v.is_floating_point() else v.double()).requires_grad_() for v in leaves]
        tape, operations = call.each(lambda v: _detached(v, as_passed)).gates(leaves)
        angles = _trainable_angles(operations)
        batch = batch_size(tape)
        jacobian = _torch_jacobian(angles, leaves, batch)
    return finish(tape, operations, batch, tuple(tuple(v.shape) for v in leaves), jacobian)


def _torch_jacobian(
    angles: list[torch.Tensor], leaves: list[torch.Tensor], batch: int | None
) -> Real:
    """Rows by reverse mode; angles that differ between inputs need a row per input."""
    columns = sum(leaf.numel() for leaf in leaves)
    batched = [angle.ndim > 0 and batch is not None for angle in angles]
    jacobian = np.zeros(((batch or 1) if any(batched) else 1, len(angles), columns))
    for per_input in (False, True):
        chosen = [i for i, b in enumerate(batched) if b == per_input]
        if not chosen:
            continue
        flat = torch.cat([angles[i].reshape(-1) for i in chosen])
        parts = torch.autograd.grad(
            flat,
            leaves,
            torch.eye(len(flat), dtype=flat.dtype),
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        rows = [  # torch's own zeros would be those of one row
            np.zeros((len(flat), leaf.numel()))
            if part is None
            else to_numpy(part).reshape(len(flat), -1)
            for part, leaf in zip(parts, leaves, strict=True)
        ]
        block = np.concatenate(rows, axis=1)
        per_angle = block.reshape(len(chosen), -1, columns)  # (angles, 1 or batch, weights)
        jacobian[:, chosen, :] = per_angle.transpose(1, 0, 2)
    return jacobian


class _Angles:
    """The angles of a call that depend on weights, as a function of all weights side by side.

    Frameworks that differentiate functions call it with values of their own.

    Attributes:
        flat: The weights side by side.
        shapes: Their shapes.
        tape: What the last call queued.
        operations: Its gates.
        trainable: Whether each depends on weights.
        sizes: Entries of the angles that do.
    """

    def __init__(self, call: _Call) -> None:
        self._call = call
        arrays = [np.asarray(to_numpy(v)) for v in call.values]
        self.shapes = tuple(a.shape for a in arrays)
        self.flat = np.concatenate([np.zeros(0), *(a.reshape(-1) for a in arrays)])

    def run(self, flat: Any) -> tuple[Any, list[Any]]:
        """Return what the quantum function queues at these weights, and its gates."""
        parts, start = [], 0
        for shape in self.shapes:
            size = math.prod(shape)
            parts.append(qml.math.reshape(flat[start : start + size], shape))
            start += size
        return self._call.gates(parts)

    def __call__(self, flat: Any) -> Any:
        """Return the angles side by side."""
        self.tape, self.operations = self.run(flat)
        self.trainable = [is_trainable(op) for op in self.operations]
        angles = _trainable_angles(self.operations)
        self.sizes = [int(qml.math.size(v)) for v in angles]
        if not angles:
            return np.zeros(0)
        return qml.math.concatenate([qml.math.reshape(v, (-1,)) for v in angles])

    def jacobian(self, derivative: Callable[[Any], Any]) -> Real:
        """Return the Jacobian, (1 or batch, angles, entries of weights).

        Args:
            derivative: The framework's, of this function, at flat weights.
        """
        stacked = np.asarray(derivative(self.flat), dtype=float).reshape(-1, self.flat.size)
        jacobian = np.zeros((max(self.sizes, default=1), len(self.sizes), self.flat.size))
        for column, block in enumerate(np.split(stacked, np.cumsum(self.sizes))[:-1]):
            jacobian[:, column, :] = block
        return jacobian


def _autograd_tape(call: _Call) -> GateTape:
    from autograd import jacobian  # PennyLane's default interface depends on it

    def plain(value: Any) -> Any:
        # PennyLane's tensors refuse arithmetic with differentiated values.
        return np.array(value) if isinstance(value, np.ndarray) else value

    angles = _Angles(call.each(plain))
    derivatives = angles.jacobian(jacobian(angles))
    batch = batch_size(angles.tape)
    return finish(angles.tape, angles.operations, batch, angles.shapes, derivatives)


def _jax_tape(call: _Call) -> GateTape:
    import jax  # only where the caller has

    def double(value: Any) -> Any:
        if is_jax(value) and jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
            return jax.numpy.asarray(np.asarray(value, dtype=np.float64))
        return value

    with jax.enable_x64(True):
        angles = _Angles(call.each(double))
        derivatives = angles.jacobian(lambda flat: jax.jacrev(angles)(jax.numpy.asarray(flat)))
        # Those were traced: the values come from a run of their own.
        tape, operations = angles.run(jax.numpy.asarray(angles.flat))
        if [op.name for op in operations] != [op.name for op in angles.operations]:
            raise UnsupportedCircuitError(
                "qnode: it makes another circuit under JAX's tracing; it must not depend on values"
            )
        marked = [
            rebind(op, [qml.numpy.array(np.asarray(p), requires_grad=True) for p in op.data])
            if trainable
            else op
            for op, trainable in zip(operations, angles.trainable, strict=True)
        ]
        return finish(tape, marked, batch_size(tape), angles.shapes, derivatives)
