"""The metric functions of a :class:`fubini.Circuit`, over its angles; A angles, B inputs, N amplitudes.

What ``fubini.metric_tensor(circuit)`` and its siblings call.
"""

from typing import Any

import numpy as np

from fubini import _core
from fubini.circuit.arguments import matrix_argument
from fubini.circuit.jacobian import Jacobian
from fubini.native import metric as native_metric
from fubini.native.circuit import Circuit
from fubini.native.derivative import along
from fubini.native.operator import MetricOperator
from fubini.native.pullback import Pullback
from fubini.options import Approx, Complex, Form, LayerRule, Real, Reduce
from fubini.runtime import FEWER_WEIGHTS, check_fits

_MATRIX_FREE = "use fubini.metric_operator(circuit, 'matrix-free')(angles)"


def check_of_circuit(**options: Any) -> None:
    """Check that what makes no sense for a circuit, whose angles are all it has, was left out."""
    for name, value in options.items():
        if value is not None and value not in ("auto", "native"):
            raise ValueError(
                f"{name}: expected none for a Circuit, which knows nothing but its angles, got {value!r}; leave it out, or "
                "pass the QNode"
            )


def metric(
    circuit: Circuit,
    angles: Any,
    approx: Approx = None,
    reduce: Reduce = None,
    layers: LayerRule = "wires",
    state: Any = None,
    scale: float = 1.0,
) -> Any:
    """Computes the Fubini-Study metric g = Re[<d_i psi|d_j psi> - <d_i psi|psi><psi|d_j psi>] over the angles.

    Args:
        circuit: The circuit.
        angles: Radians, shape (B, A) or (A,).
        approx: None for the full metric, ``"block-diag"`` for one block per layer of gates, ``"diag"`` for the
            diagonal. Blocks and diagonal are exact parts of the full metric.
        reduce: ``"mean"`` averages over the batch.
        layers: Which gates form a block: ``"wires"``, ``"maximal"`` or ``"queue"``, see :mod:`fubini.circuit.gate_layers`.
        state: Initial states, shape (B, N) or (N,), for a circuit that takes them.
        scale: Factor of what is returned.

    Returns:
        Full: (B, A, A); diagonal: (B, A); blocks: a list of pairs of angle indices and (B, k, k), which together
        have every angle once. There is no B for the mean or for angles of shape (A,).

    Raises:
        ValueError: For a wrong shape, an unknown name, or an angle that is NaN or infinite (names its position).
        MemoryError: If the result, or eight derivative states, do not fit into memory.
    """
    values, single = circuit.batch_of(angles)
    native_metric.check_request(values, approx, reduce, single)
    if approx is None:
        rows = 1 if reduce else len(values)
        shape = (rows, circuit.num_angles, circuit.num_angles)
        check_fits(f"{shape}: the metric", rows * circuit.num_angles**2, _MATRIX_FREE)
    states = circuit.states_of(state, len(values))
    first = single and reduce is None
    if approx == "block-diag":
        blocks = native_metric.metric_blocks(circuit, values, states, reduce, layers)
        if scale != 1.0:
            blocks = [(indices, scale * block) for indices, block in blocks]
        return [(indices, block[0] if first else block) for indices, block in blocks]
    if approx == "diag":
        result = native_metric.metric_diagonal(circuit, values, states, reduce, layers)
    else:
        result = native_metric.full_metric(circuit, values, states, reduce)
    result = result if scale == 1.0 else scale * result
    return result[0] if first else result


def metric_vector_product(
    circuit: Circuit,
    angles: Any,
    vectors: Any,
    reduce: Reduce = None,
    state: Any = None,
) -> Real:
    """Multiplies the full metric by vectors without forming it, by one forward and one reverse sweep.

    Args:
        circuit: The circuit.
        angles: Radians, shape (B, A) or (A,).
        vectors: Shape (B, A), or (A,) for the same vector for the whole batch.
        reduce: ``"mean"`` averages the products over the batch.
        state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

    Returns:
        g v, shape (B, A); (A,) for the mean or for angles of shape (A,).

    Raises:
        ValueError: For a wrong shape, or an entry that is NaN or infinite (names its position).
    """
    values, single = circuit.batch_of(angles)
    native_metric.check_request(values, None, reduce, single)
    directions = _directions(circuit, "vectors", vectors, len(values), single)
    states = circuit.states_of(state, len(values))
    mean = reduce == "mean"
    result = _core.metric_vector_product(circuit.program, values, directions, states, mean)
    return result[0] if single and not mean else result


def geometric_tensor(
    circuit: Circuit, angles: Any, reduce: Reduce = None, state: Any = None
) -> Complex:
    """Computes the quantum geometric tensor <d_i psi|(1 - |psi><psi|)|d_j psi> over the angles.

    Args:
        circuit: The circuit.
        angles: Radians, shape (B, A) or (A,).
        reduce: ``"mean"`` averages over the batch.
        state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

    Returns:
        (B, A, A), Hermitian; no B for the mean or for angles of shape (A,). The real part is the metric, and -2
        times the imaginary part the Berry curvature, see ``fubini.geometric_tensor``.

    Raises:
        ValueError: For a wrong shape, or an angle that is NaN or infinite (names its position).
        MemoryError: If the tensor is larger than the bound.
    """
    values, single = circuit.batch_of(angles)
    native_metric.check_request(values, None, reduce, single)
    return _pullback(circuit, values, state, single).geometric_tensor(reduce)


def metric_operator(
    circuit: Circuit,
    angles: Any,
    form: Form = "auto",
    layers: LayerRule = "wires",
    state: Any = None,
) -> MetricOperator:
    """Returns the full metric over the angles as an operator, averaged over the batch.

    Args:
        circuit: The circuit.
        angles: Radians, shape (B, A) or (A,).
        form: ``"dense"``, ``"dual"``, ``"matrix-free"``, or ``"auto"`` for what is predicted to be fastest.
        layers: Which gates form a block of ``blocks()`` and of the preconditioner.
        state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

    Returns:
        The operator, with products, diagonal, blocks and solutions.

    Raises:
        ValueError: For a wrong shape, or an angle that is NaN or infinite (names its position).
    """
    values, single = circuit.batch_of(angles)
    native_metric.check_request(values, None, "mean", single)
    return MetricOperator(_pullback(circuit, values, state, single), form, layers=layers)


def metric_derivative(
    circuit: Circuit,
    angles: Any,
    direction: Any,
    reduce: Reduce = None,
    state: Any = None,
) -> Real:
    """Computes d/dt g(angles + t direction) at t = 0, exactly.

    Args:
        circuit: The circuit.
        angles: Radians, shape (B, A) or (A,).
        direction: Shape (B, A), or (A,) for the same direction for the whole batch.
        reduce: ``"mean"`` averages over the batch.
        state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

    Returns:
        (B, A, A); no B for the mean or for angles of shape (A,).

    Raises:
        ValueError: For a wrong shape, or an entry that is NaN or infinite (names its position).
        MemoryError: If the result, or the derivative states of one input, do not fit into memory.
    """
    values, single = circuit.batch_of(angles)
    native_metric.check_request(values, None, reduce, single)
    directions = _directions(circuit, "direction", direction, len(values), single)
    states = circuit.states_of(state, len(values))
    every = np.arange(circuit.num_angles)
    mean = reduce == "mean"
    shape = (1 if mean else len(values), circuit.num_angles, circuit.num_angles)
    check_fits(f"{shape}: the derivative of the metric", float(np.prod(shape)), FEWER_WEIGHTS)
    result = np.zeros(shape)
    for b, (row, velocity) in enumerate(zip(values, directions, strict=True)):
        if not velocity.any():
            continue
        own = states if states is None or len(states) == 1 else states[b : b + 1]
        result[0 if mean else b] += along(circuit, row[None], own, every, velocity)
    if mean:
        result /= len(values)
    return result[0] if single or mean else result


def _directions(circuit: Circuit, name: str, vectors: Any, batch: int, single: bool) -> Real:
    shape = (batch, circuit.num_angles)
    given = np.asarray(vectors, dtype=np.float64)
    if given.shape == shape[1:]:
        given = np.broadcast_to(given, shape)
    result = matrix_argument(name, given, "(B, A)", shape, single)
    native_metric.check_finite(name, result, np.ndim(vectors) == 1)
    return result


def _pullback(circuit: Circuit, values: Real, state: Any, single: bool) -> Pullback:
    jacobian = Jacobian.identity(circuit.num_angles)
    states = circuit.states_of(state, len(values))
    batch = None if single else len(values)
    return Pullback(circuit, values, jacobian, states, batch, frozenset(range(circuit.num_angles)))
