"""The gates of a QNode called with JAX arrays, and the Jacobian of their angles by JAX. Imported only where JAX is."""

from typing import Any

import jax
import numpy as np
import pennylane as qml

from fubini.arrays import is_jax, to_numpy
from fubini.circuit.decompose import gate_operations, has_angle, is_trainable
from fubini.circuit.tape import GateTape, _batch_size, _finish, _put, user_tape
from fubini.circuit.unfold import rebind
from fubini.errors import UnsupportedCircuitError


def jax_tape(
    qnode: Any,
    args: list[Any],
    kwargs: dict[str, Any],
    weights: list[int | str],
    values: list[Any],
    pure: bool,
) -> GateTape:
    """Return the gates of a call, see ``fubini.circuit.tape.gate_tape``.

    Args:
        qnode: The QNode.
        args: Positional arguments.
        kwargs: Keyword arguments.
        weights: Which arguments are weights.
        values: The weights.
        pure: As there.

    Returns:
        The circuit at these arguments, its angles computed in float64.

    Raises:
        UnsupportedCircuitError: If the circuit depends on whether it is traced.
    """
    with jax.enable_x64(True):
        return _tape(qnode, args, kwargs, weights, values, pure)


def _tape(
    qnode: Any,
    args: list[Any],
    kwargs: dict[str, Any],
    weights: list[int | str],
    values: list[Any],
    pure: bool,
) -> GateTape:
    arrays = [to_numpy(v) for v in values]
    args = [_double(v) for v in args]
    kwargs = {name: _double(v) for name, v in kwargs.items()}

    def operations_of(flat: Any) -> tuple[Any, list[Any]]:
        parts, start = [], 0
        for array in arrays:
            parts.append(flat[start : start + array.size].reshape(array.shape))
            start += array.size
        _put(args, kwargs, weights, parts)
        tape = user_tape(qnode, args, kwargs, pure=pure)
        return tape, gate_operations(tape, pure)

    seen: list[tuple[list[tuple[str, bool]], list[int]]] = []

    def angles_of(flat: Any) -> Any:
        _, operations = operations_of(flat)
        angles = [op.data[0] for op in operations if has_angle(op) and is_trainable(op)]
        names = [(op.name, is_trainable(op)) for op in operations]
        seen.append((names, [int(qml.math.size(v)) for v in angles]))
        return jax.numpy.concatenate([jax.numpy.zeros(0), *(v.reshape(-1) for v in angles)])

    flat = jax.numpy.asarray(np.concatenate([a.reshape(-1) for a in arrays]))
    stacked = np.asarray(jax.jacrev(angles_of)(flat), dtype=float).reshape(-1, flat.size)
    names, sizes = seen[-1]
    tape, operations = operations_of(flat)
    if [op.name for op in operations] != [name for name, _ in names]:
        raise UnsupportedCircuitError(
            "qnode: it makes another circuit under JAX's tracing; it must not depend on values"
        )
    marked = [
        rebind(op, [qml.numpy.array(np.asarray(p), requires_grad=True) for p in op.data])
        if trainable
        else op
        for op, (_, trainable) in zip(operations, names, strict=True)
    ]
    jacobian = np.zeros((max(sizes, default=1), len(sizes), flat.size))
    for column, block in enumerate(np.split(stacked, np.cumsum(sizes)[:-1]) if sizes else []):
        jacobian[:, column, :] = block
    return _finish(tape, marked, _batch_size(tape), tuple(a.shape for a in arrays), jacobian)


def _double(value: Any) -> Any:
    if is_jax(value) and jax.numpy.issubdtype(value.dtype, jax.numpy.floating):
        return jax.numpy.asarray(np.asarray(value, dtype=np.float64))
    return value
