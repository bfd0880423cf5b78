"""Torch derivatives of the metric over weights: through the metric over angles, the angles, and their Jacobian.

The value is computed as ever. Only when torch asks for its derivative, the quantum function runs once more, with the
tensors of the call, and J^T g J is put together in torch operations around one autograd function for g. A backward pass
costs one second-order sweep per angle, whatever the approximation was: besides running the quantum function, 0.05, 9 and
77 ms for 24, 96 and 120 angles on 4, 8 and 10 qubits, where the full metric itself takes 0.01, 0.2 and 1.1 ms (one core).
Second derivatives of the metric are refused: a gradient that is asked for with ``create_graph=True`` has a graph, and
whoever differentiates it gets an error.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml
import torch
from torch.autograd.function import once_differentiable

from fubini import _core
from fubini.arrays import is_tensor, to_numpy
from fubini.circuit.arguments import returned_tensors
from fubini.circuit.decompose import gate_operations
from fubini.circuit.jacobian import Jacobian
from fubini.circuit.tape import user_tape
from fubini.metric.engines import Call, Point
from fubini.native.circuit import Circuit
from fubini.native.derivative import along, gradient, tangent_states, without_state
from fubini.native.layer_plan import layer_plan
from fubini.native.metric import check_finite
from fubini.native.pullback import Pullback
from fubini.options import Approx, Complex, Index, Reduce
from fubini.runtime import FEWER_WEIGHTS, check_fits

Tensor = torch.Tensor


@dataclass(frozen=True)
class Wanted:
    """Which matrix over the weights is differentiated.

    Attributes:
        approx: Which part of the metric over angles is pulled back.
        layers: Which gates form a block.
        reduce: ``"mean"`` averages over the inputs.
        joint: Whether the matrix is returned as a whole.
        scale: Factor of the metric.
        tensor: The complex geometric tensor instead of the metric.
    """

    approx: Approx = None
    layers: Any = "wires"
    reduce: Reduce = None
    joint: bool = False
    scale: float = 1.0
    tensor: bool = False


def with_gradient(result: Any, point: Point, wanted: Wanted) -> Any:
    """Connect a metric with the tensors of the call it came from.

    Args:
        result: Tensors as they are returned, one or a tuple.
        point: Where the metric was computed.
        wanted: What was computed.

    Returns:
        The same values, which torch can differentiate, if a tensor of the call requires grad and grad is enabled.
    """
    if not torch.is_grad_enabled() or point.pullback is None:
        return result
    leaves = [v for v in point.call.values() if is_tensor(v) and v.requires_grad]
    results = result if isinstance(result, tuple) else (result,)
    if not leaves or not all(is_tensor(r) for r in results):
        return result
    outputs = _Metric.apply(point, wanted, results, *leaves)  # type: ignore[no-untyped-call]
    return outputs if isinstance(result, tuple) else outputs[0]


class _Metric(torch.autograd.Function):
    """Results that are known already, as a function of the call's tensors."""

    @staticmethod
    def forward(ctx: Any, point: Point, wanted: Wanted, results: Any, *leaves: Tensor) -> Any:
        ctx.point, ctx.wanted = point, wanted
        ctx.save_for_backward(*leaves)
        return results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        again = torch.is_grad_enabled()  # create_graph=True
        with torch.enable_grad():
            copies = [leaf.detach().requires_grad_() for leaf in ctx.saved_tensors]
            call = ctx.point.call.replaced(copies)
            outputs = rebuilt(ctx.point, call, ctx.wanted)
            pairs = [(o, g) for o, g in zip(outputs, gradients, strict=True) if o.requires_grad]
            found: Any = [None] * len(copies)
            if pairs:
                found = torch.autograd.grad(
                    [o for o, _ in pairs],
                    copies,
                    [g.detach() for _, g in pairs],
                    allow_unused=True,
                )
        if again:
            # Of a linear function of the metric the incoming gradients are constants, and so would be the result.
            found = _Final.apply(len(found), *found, *ctx.saved_tensors, *gradients)  # type: ignore[no-untyped-call]
        return None, None, None, *found


class _Final(torch.autograd.Function):
    """The first tensors, which depend on all others in a way that torch must not take for constant; None stays."""

    @staticmethod
    def forward(ctx: Any, count: int, *tensors: Tensor | None) -> Any:
        return tuple(None if t is None else t.view_as(t) for t in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise NotImplementedError(
            "metric: second derivatives of a metric are not available; detach() the metric's gradient where its own "
            "dependence on the weights is not wanted, or take differences of exact first derivatives at shifted weights"
        )


def live_angles(point: Point, call: Call) -> tuple[Tensor, list[Tensor]]:
    """Run the quantum function with the call's tensors.

    Args:
        point: Where the metric was computed.
        call: The same call, with tensors that may carry a graph.

    Returns:
        Angles (batch, A) with their graph, and the weights in float64 that they depend on.

    Raises:
        RuntimeError: If the function does not compute what it computed before.
    """
    assert point.pullback is not None
    call = call.in_double()
    weights = [call.value(name) for name in call.weights]
    tape = user_tape(call.qnode, call.args, call.kwargs)
    circuit = point.pullback.circuit
    try:
        script = tape if call.compiled else qml.tape.QuantumScript(gate_operations(tape))
        angles = torch.as_tensor(circuit.angles_of(script), dtype=torch.float64, device="cpu")
    except ValueError as error:
        raise RuntimeError(
            "metric: its derivative needs the circuit that it was computed from, and the quantum function now makes "
            f"another one ({error}). Detach inputs that prepare the initial state, and do not branch on "
            "requires_grad."
        ) from error
    angles = angles.expand(len(point.pullback.angles), -1)
    if not np.allclose(to_numpy(angles), point.pullback.angles, rtol=0, atol=1e-9):
        raise RuntimeError(
            "metric: its derivative needs the angles that it was computed from, and the quantum function now computes "
            "others; call backward() before anything that the function captures changes"
        )
    return angles, weights


def rebuilt(point: Point, call: Call, wanted: Wanted) -> tuple[Tensor, ...]:
    """Return the metric again, in differentiable operations.

    Args:
        point: Where it was computed.
        call: The call, with tensors that require grad.
        wanted: What was computed.

    Returns:
        One tensor for each weight, or one for all.
    """
    pullback = point.pullback
    assert pullback is not None
    angles, weights = live_angles(point, call)
    rows = pullback.jacobian.rows
    jacobian = live_jacobian(angles, weights, pullback.jacobian)
    metric: Any = _AngleMetric.apply(  # type: ignore[no-untyped-call]
        angles, pullback.circuit, pullback.states, rows, pattern(pullback, wanted), wanted.tensor
    )
    j = jacobian.to(metric.dtype)
    pulled = wanted.scale * (j.mT @ metric @ j)
    matrix = pulled.mean(0) if wanted.reduce == "mean" or pullback.batch is None else pulled
    return returned_tensors(matrix, [call.value(name) for name in call.weights], wanted.joint)


def live_jacobian(angles: Tensor, weights: Sequence[Tensor], known: Jacobian) -> Tensor:
    """Return the Jacobian of angles by weights as a tensor that can be differentiated again.

    Args:
        angles: (batch, A) with their graph.
        weights: Any shapes, float64.
        known: Its values, which say which k angles to differentiate, and whether for one input or for all.

    Returns:
        (1 or batch, k, P).
    """
    rows, inputs = known.rows, known.inputs
    flat = angles[:inputs, torch.as_tensor(rows)].reshape(-1)
    if not flat.requires_grad:
        return torch.zeros(inputs, len(rows), sum(w.numel() for w in weights), dtype=torch.float64)
    parts = torch.autograd.grad(
        flat,
        list(weights),
        torch.eye(len(flat), dtype=flat.dtype),
        is_grads_batched=True,
        create_graph=True,
        allow_unused=True,
    )
    columns = [
        torch.zeros(len(flat), w.numel(), dtype=torch.float64)
        if part is None
        else part.to("cpu").reshape(len(flat), -1)
        for part, w in zip(parts, weights, strict=True)
    ]
    return torch.cat(columns, dim=1).reshape(inputs, len(rows), -1)


def pattern(pullback: Pullback, wanted: Wanted) -> npt.NDArray[np.float64] | None:
    """Return which entries of the metric over angles an approximation keeps: ones and zeros (k, k), or None for all."""
    if wanted.approx is None:
        return None
    rows = pullback.jacobian.rows
    if wanted.approx == "diag":
        return np.eye(len(rows))
    position = pullback.jacobian.position
    mask = np.zeros((len(rows), len(rows)))
    plan = layer_plan(pullback.circuit, wanted.layers, pullback.trainable)
    for block in plan.blocks:
        at = np.array([position[a] for a in block.angles if a in position], dtype=int)
        mask[at[:, None], at] = 1.0
    return mask


class _AngleMetric(torch.autograd.Function):
    """Metric or geometric tensor over the angles, (batch, k, k), of angles (batch, A)."""

    @staticmethod
    def forward(
        ctx: Any,
        angles: Tensor,
        circuit: Circuit,
        states: Complex | None,
        rows: Index,
        mask: npt.NDArray[np.float64] | None,
        tensor: bool,
    ) -> Tensor:
        ctx.values, ctx.arguments = to_numpy(angles), (circuit, states, rows, mask)
        if not tensor:
            metric = _core.metric(circuit.program, ctx.values, states, False, rows.tolist())
            return torch.from_numpy(metric if mask is None else metric * mask)
        values = []
        for b in range(len(ctx.values)):
            psi, tangents = tangent_states(circuit, ctx.values[b : b + 1], _row(states, b), rows)
            tangents = without_state(psi, tangents)
            values.append(tangents.conj() @ tangents.T)
        return torch.from_numpy(np.stack(values))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, cotangents: Tensor) -> Any:
        circuit, states, rows, mask = ctx.arguments
        # Torch's gradient G of a real L by complex values has dL = Re(conj(G) dQ).
        weights = to_numpy(cotangents, complex).conj()
        if mask is not None:
            weights = weights * mask
        result = np.stack(
            [
                gradient(circuit, ctx.values[b : b + 1], _row(states, b), rows, weights[b])
                for b in range(len(ctx.values))
            ]
        )
        return torch.from_numpy(result), None, None, None, None, None


def _row(states: Complex | None, b: int) -> Complex | None:
    return states if states is None or len(states) == 1 else states[b : b + 1]


def derivative_along(point: Point, direction: Sequence[Tensor], wanted: Wanted) -> Any:
    """Return d/dt of the metric at weights + t direction, over the flattened weights.

    Args:
        point: Where; its weights are torch tensors.
        direction: One tensor for each weight, of its shape.
        wanted: Which metric.

    Returns:
        (batch, P, P) or (P, P), as the metric itself; NumPy, float64.

    Raises:
        ValueError: If an angle is NaN or infinite; names its position.
        MemoryError: If it is larger than the bound.
    """
    pullback = point.pullback
    assert pullback is not None
    check_finite("angles", pullback.angles, pullback.batch is None)
    with torch.enable_grad():
        leaves = [
            torch.as_tensor(w).detach().to(torch.float64).requires_grad_() for w in point.weights
        ]
        call = point.call.detached().with_weights(leaves)
        angles, weights = live_angles(point, call)
        rows, inputs = pullback.jacobian.rows, pullback.jacobian.inputs
        jacobian = live_jacobian(angles, weights, pullback.jacobian)
        flat = torch.cat([d.detach().to("cpu", torch.float64).reshape(-1) for d in direction])
        moved = jacobian @ flat  # d angles / dt
        change = torch.zeros_like(jacobian)
        if moved.requires_grad:
            every = torch.zeros(len(moved), angles.shape[1], dtype=moved.dtype)
            every = every.index_copy(1, torch.as_tensor(rows), moved)
            change = live_jacobian(every, weights, pullback.jacobian)
    j, dj, speed = (to_numpy(t) for t in (jacobian, change, moved))
    mask = pattern(pullback, wanted)
    batch, size = len(pullback.angles), pullback.size
    mean = wanted.reduce == "mean" or pullback.batch is None
    shape = (1 if mean else batch, size, size)
    check_fits(f"{shape}: the derivative of the metric", float(np.prod(shape)), FEWER_WEIGHTS)
    total = np.zeros(shape)
    for b in range(batch):
        row, states = pullback.angles[b : b + 1], _row(pullback.states, b)
        at = b if inputs > 1 else 0
        to = total[0 if mean else b]
        if speed[at].any():
            velocity = np.zeros(pullback.circuit.num_angles)
            velocity[rows] = speed[at]
            rate = along(pullback.circuit, row, states, rows, velocity)
            to += j[at].T @ (rate if mask is None else rate * mask) @ j[at]
        if dj[at].any():
            metric = _core.metric(pullback.circuit.program, row, states, False, rows.tolist())[0]
            bent = dj[at].T @ (metric if mask is None else metric * mask) @ j[at]
            to += bent + bent.T
    if mean:
        return total[0] * (wanted.scale / batch)
    return wanted.scale * total
