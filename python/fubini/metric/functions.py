"""The metric of QNodes and layers, with the calling convention of ``qml.metric_tensor``.

Functions of the same form, ``f(qnode, ...)(*args, **kwargs)``: the Fubini-Study metric g, the complex geometric tensor
whose real part it is, the quantum Fisher information 4 g, the metric as an operator, and its derivative along a
direction. ``layer_metric`` and ``layer_operator`` are what the optimizer asks for.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pennylane as qml
import torch

from fubini.circuit.arguments import Argnums, check_finite_array, returned
from fubini.errors import UnsupportedCircuitError
from fubini.metric import circuits
from fubini.metric.engines import Point, at_inputs, at_single_inputs, compiled_pullback, points
from fubini.metric.gradient import Wanted, derivative_along, with_gradient
from fubini.native.circuit import Circuit
from fubini.native.operator import MetricOperator
from fubini.nn.qnode_function import plain_qnode
from fubini.options import (
    Approx,
    Engine,
    Form,
    LayerRule,
    Real,
    Reduce,
    check_approx,
    check_form,
    check_reduce,
    check_rule,
)
from fubini.torch_private import is_wrapped

__all__ = [
    "Approx",
    "geometric_tensor",
    "layer_metric",
    "metric_derivative",
    "metric_operator",
    "metric_tensor",
    "quantum_fisher",
]

Argnum = int | Sequence[int] | None
#: Attribute of metric functions: the same as a NumPy array over all weights, without a graph; None off the native engine.
MATRIX = "_fubini_matrix"


def _check_pennylane(allow_nonunitary: Any, hybrid: Any) -> None:
    """Check keywords that only ``qml.metric_tensor`` needs."""
    if not isinstance(allow_nonunitary, bool):
        raise TypeError(
            f"allow_nonunitary: expected True or False, which give the same here, got {allow_nonunitary!r}"
        )
    if hybrid is not True:
        raise ValueError(
            f"hybrid: expected True, the metric over the weights, got {hybrid!r}; for the metric over the gates' angles use "
            "fubini.metric_tensor(fubini.Circuit.from_qnode(qnode, *args))(angles)"
        )


def _check_of_circuit(**options: Any) -> None:
    """Check that what makes no sense for a circuit, whose angles are all it has, was left out."""
    for name, value in options.items():
        if value is not None and value not in ("auto", "native"):
            raise ValueError(
                f"{name}: expected none for a Circuit, which knows nothing but its angles, got {value!r}; leave it out, or "
                "pass the QNode"
            )


def metric_tensor(
    qnode: Any,
    approx: Approx | Literal["auto"] = None,
    *,
    argnum: Argnum = None,
    argnums: Argnums = None,
    layers: LayerRule = "wires",
    reduce: Reduce = None,
    joint: bool = False,
    engine: Engine = "auto",
    aux_wire: Any = None,
    device_wires: Any = None,
    allow_nonunitary: bool = True,
    hybrid: bool = True,
) -> Callable[..., Any]:
    r"""Return a function that computes the Fubini-Study metric of a QNode or layer.

    The metric is :math:`g_{ij} = \mathrm{Re}[\langle\partial_i\psi|\partial_j\psi\rangle -
    \langle\partial_i\psi|\psi\rangle\langle\psi|\partial_j\psi\rangle]` as in ``qml.metric_tensor`` (Stokes et al.
    2020, arXiv:1909.02108); the quantum Fisher information is 4 g. It is computed over the gates' angles and pulled
    back to the weights, input by input: :math:`g = J_b^T g_b J_b`.

    On the native engine the result can be differentiated by torch, by the weights and by every other tensor of the
    call that requires grad; ``torch.no_grad()`` spares the graph. See :mod:`fubini.metric.gradient` for what it costs.

    PennyLane's own optimizers take what is returned: ``qml.QNGOptimizer(0.1).step(cost, w,
    metric_tensor_fn=fubini.metric_tensor(cost))``, also ``step_and_cost``, ``qml.MomentumQNGOptimizer``, and with
    several weights, for which there it is one metric each; their own approximation is ``("block-diag",
    layers="queue")``. The cost may then be a function of the QNode's result. ``qml.QNSPSAOptimizer`` estimates a
    metric of its own and takes none; for circuits with shots see ``fubini.ShotQNGOptimizer`` and
    ``fubini.SignalToNoise``. A QNode that is handed over anew in every step is compiled once.

    Args:
        qnode: A QNode (any interface, any ``diff_method``; also as ``fubini.compiled`` returns it), a ``QuantumLayer`` or a
            ``qml.qnn.TorchLayer``. The QNode's measurements do not matter; with shots the metric is an estimate without
            bias. A :class:`fubini.Circuit` has a metric over its angles: the function then takes angles (B, A) or (A,)
            and, for a circuit that takes them, initial ``state``s; it returns NumPy arrays (B, A, A), for ``"diag"``
            (B, A), and for ``"block-diag"`` a list of pairs of angle indices and (B, k, k).
        approx: ``None`` for the full metric, ``"block-diag"`` for one block per layer of gates, ``"diag"`` for the
            variances only. The approximation is made between angles; where several angles share a weight, or one
            angle mixes several, the pulled-back matrix couples them. ``"auto"`` returns the full metric, joint and
            averaged over the inputs, as a :class:`MetricOperator` in the form that is predicted to be cheapest, see
            :func:`metric_operator`.
        argnum: Gate parameters to take, by their position among all parameters of the decomposed circuit; entries of
            all others are zero, as in ``qml.metric_tensor``. None for all.
        argnums: Positional arguments that are the weights, by position; None for the rule below.
        layers: Which gates form a block: ``"wires"``, ``"maximal"`` or ``"queue"``, see ``fubini.circuit.gate_layers``.
        reduce: ``"mean"`` averages over a batch of inputs; None keeps one metric per input.
        joint: Return one matrix over all weights, with the blocks between different arguments.
        engine: ``"native"`` computes in fubini's kernel, ``"device"`` runs circuits on the QNode's device;
            ``"auto"`` takes the native engine where the device is a noiseless simulator of state vectors and every
            operation is supported, and for a QuantumLayer the layer's own engine.
        aux_wire: Taken for calls of ``qml.metric_tensor`` to work as they are, like all that follow: the wire of its
            Hadamard tests, of which there are none here.
        device_wires: Where it looks for that wire.
        allow_nonunitary: Whether its circuits may have non-unitary gates; no circuit has any here.
        hybrid: True: the metric is one over the weights. False, over the gates' angles, is refused.

    Returns:
        A function with the QNode's arguments (a layer's: its inputs). Weights are the positional arguments that
        require grad (torch, ``pennylane.numpy``); if there are none, the keyword arguments that do; for JAX the first
        argument. It returns, for each weight, an array of shape ``(*w.shape, *w.shape)``, preceded by the batch where
        the circuit has one and ``reduce`` is None; a tuple for several weights; with ``joint=True`` one ``(P, P)``
        matrix over the flattened weights in order. Torch tensors of the weight's dtype and device for torch, JAX
        arrays for JAX, else NumPy arrays.

    Raises:
        TypeError: If qnode is no QNode or quantum layer.
        ValueError: For an unknown approx, layers, reduce or engine, or hybrid=False.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> w = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
        >>> fubini.metric_tensor(circuit)(w).detach().round(decimals=3)  # shape (*w.shape, *w.shape)
        tensor([[0.5000, 0.2500],
                [0.2500, 0.2500]], dtype=torch.float64)
    """
    _check_pennylane(allow_nonunitary, hybrid)
    check_approx(approx, auto=True)
    if approx == "auto":
        check_reduce(reduce)
        return metric_operator(qnode, argnum=argnum, argnums=argnums, layers=layers, engine=engine)
    check_rule(layers)
    wanted = Wanted(approx, layers, reduce, joint)
    if isinstance(qnode, Circuit):
        _check_of_circuit(argnum=argnum, argnums=argnums, engine=engine)
        return lambda angles, state=None: circuits.metric(
            qnode, angles, approx, reduce, layers, state
        )
    return _over_calls(qnode, wanted, argnum, argnums, engine)


def quantum_fisher(
    qnode: Any,
    approx: Approx = None,
    *,
    argnum: Argnum = None,
    argnums: Argnums = None,
    layers: LayerRule = "wires",
    reduce: Reduce = None,
    joint: bool = False,
    engine: Engine = "auto",
    aux_wire: Any = None,
    device_wires: Any = None,
    allow_nonunitary: bool = True,
    hybrid: bool = True,
) -> Callable[..., Any]:
    """Return a function that computes the quantum Fisher information of a QNode or layer: 4 g for a pure state.

    It bounds every classical Fisher information that a measurement of the state can have (Braunstein and Caves 1994;
    for circuits Meyer 2021, arXiv:2103.15191). For circuits with channels on default.mixed it is that of the mixed
    state, by the symmetric logarithmic derivative, see :mod:`fubini.devices.mixed`: the full matrix, which torch cannot
    differentiate.

    Args:
        qnode: As for :func:`metric_tensor`, like all that follow.
        approx: As there.
        argnum: As there.
        argnums: As there.
        layers: As there.
        reduce: As there.
        joint: As there.
        engine: As there.
        aux_wire: As there.
        device_wires: As there.
        allow_nonunitary: As there.
        hybrid: As there.

    Returns:
        As for :func:`metric_tensor`, times four: for each weight an array ``(*w.shape, *w.shape)``.

    Raises:
        TypeError: If qnode is no QNode or quantum layer.
        UnsupportedCircuitError: From the function, for a block or diagonal of a mixed state, and from shots.
        ValueError: For an unknown approx, layers, reduce or engine, or hybrid=False.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> w = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
        >>> fubini.quantum_fisher(circuit)(w).detach().round(decimals=3)
        tensor([[2., 1.],
                [1., 1.]], dtype=torch.float64)
    """
    check_approx(approx)
    check_rule(layers)
    _check_pennylane(allow_nonunitary, hybrid)
    if isinstance(qnode, Circuit):
        of_circuit = metric_tensor(
            qnode,
            approx,
            argnum=argnum,
            argnums=argnums,
            layers=layers,
            reduce=reduce,
            engine=engine,
        )
        return lambda angles, state=None: circuits.scaled(4.0, of_circuit(angles, state))
    wanted = Wanted(approx, layers, reduce, joint, scale=4.0)
    return _over_calls(qnode, wanted, argnum, argnums, engine, mixed=True)


def geometric_tensor(
    qnode: Any,
    *,
    argnum: Argnum = None,
    argnums: Argnums = None,
    reduce: Reduce = None,
    joint: bool = False,
    engine: Engine = "auto",
) -> Callable[..., Any]:
    r"""Return a function that computes the quantum geometric tensor of a QNode or layer.

    :math:`Q_{ij} = \langle\partial_i\psi|(1 - |\psi\rangle\langle\psi|)|\partial_j\psi\rangle` is Hermitian. Its real
    part is the metric g of :func:`metric_tensor`; its imaginary part is the Berry curvature up to a factor:
    :math:`F_{ij} = \partial_i A_j - \partial_j A_i = -2\,\mathrm{Im}\,Q_{ij}` for the connection :math:`A_i =
    i\langle\psi|\partial_i\psi\rangle` (Berry 1989; Kolodrubetz et al. 2017, arXiv:1602.01062, eq. 2.37). Within a
    layer of commuting generators the curvature is zero, so there is no approximation to choose.

    Args:
        qnode: As for :func:`metric_tensor`, like all that follow.
        argnum: As there.
        argnums: As there.
        reduce: As there.
        joint: As there.
        engine: As there.

    Returns:
        As for :func:`metric_tensor`: for each weight an array ``(*w.shape, *w.shape)``, here complex (complex64 for weights of
        float32).

    Raises:
        TypeError: If qnode is no QNode or quantum layer.
        ValueError: For an unknown reduce or engine.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=1))
        ... def circuit(w):
        ...     qml.RX(w[0], wires=0)
        ...     qml.RY(w[1], wires=0)
        ...     return qml.expval(qml.Z(0))
        >>> w = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
        >>> tensor = fubini.geometric_tensor(circuit)(w).detach()  # complex, (*w.shape, *w.shape)
        >>> round(abs(tensor[0, 1].imag.item()), 6)
        0.230265
    """
    if isinstance(qnode, Circuit):
        _check_of_circuit(argnum=argnum, argnums=argnums, engine=engine)
        return lambda angles, state=None: circuits.geometric_tensor(qnode, angles, reduce, state)
    wanted = Wanted(reduce=reduce, joint=joint, tensor=True)
    return _over_calls(qnode, wanted, argnum, argnums, engine)


def metric_operator(
    qnode: Any,
    form: Form = "auto",
    *,
    argnum: Argnum = None,
    argnums: Argnums = None,
    layers: LayerRule = "wires",
    engine: Engine = "auto",
) -> Callable[..., MetricOperator]:
    """Return a function that makes the full metric of a QNode or layer as an operator, averaged over the inputs.

    Args:
        qnode: As for :func:`metric_tensor`.
        form: ``"dense"`` forms the matrix, ``"dual"`` a factor X with g = X X^T, ``"matrix-free"`` neither;
            ``"auto"`` takes what is predicted to solve a system fastest within the memory bound, see ``fubini.cost``.
        argnum: As for :func:`metric_tensor`.
        argnums: As there.
        layers: Which gates form a block of the preconditioner and of ``blocks()``.
        engine: As there; the device knows only the dense form.

    Returns:
        A function with the QNode's arguments (a layer's: its inputs) that returns a :class:`MetricOperator` over all
        weights, flattened in order.

    Raises:
        TypeError: If qnode is no QNode or quantum layer.
        ValueError: For an unknown form, layers or engine.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> w = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
        >>> g = fubini.metric_operator(circuit)(w)
        >>> g.solve(torch.tensor([0.1, 0.2], dtype=torch.float64), damping=1e-3).round(decimals=3)
        tensor([-0.3940,  1.1890], dtype=torch.float64)
    """
    check_form(form)
    check_rule(layers)
    if isinstance(qnode, Circuit):
        _check_of_circuit(argnum=argnum, argnums=argnums, engine=engine)
        return lambda angles, state=None: circuits.metric_operator(
            qnode, angles, form, layers, state
        )
    at = points(qnode, argnum, argnums, engine)

    def call(*args: Any, **kwargs: Any) -> MetricOperator:
        _check_plain(args, kwargs)
        return _operator(at(args, kwargs), form, layers)

    return _named(qnode, call)


def metric_derivative(
    qnode: Any,
    direction: Any,
    approx: Approx = None,
    *,
    argnums: Argnums = None,
    layers: LayerRule = "wires",
    reduce: Reduce = None,
) -> Callable[..., Any]:
    r"""Return a function that computes d/dt g(w + t v) at t = 0, as geodesic corrections need it.

    These are the second-order terms of a step (Transtrum and Sethna 2012, arXiv:1201.5885). With D = dg/dt and L = v^T
    g v, the Christoffel symbol of the first kind along v is :math:`\Gamma_{k,ij} v^i v^j = (D v)_k - \frac12 \partial_k
    L`, and L is what torch differentiates. The derivative is exact, for angles that are any function of the weights; it
    costs one second-order sweep per angle.

    Args:
        qnode: As for :func:`metric_tensor`; its weights must be torch tensors.
        direction: v: a tensor of the weight's shape, for several weights a tuple, or one flat tensor for all.
        approx: As for :func:`metric_tensor`, like all that follow.
        argnums: As there.
        layers: As there.
        reduce: As there.

    Returns:
        A function with the QNode's arguments (a layer's: its inputs), which returns one matrix over all weights,
        flattened in order: (P, P), or (batch, P, P) for a batch of inputs without reduction; without a graph.

    Raises:
        TypeError: If qnode is no QNode or quantum layer.
        ValueError: For an unknown approx, layers or reduce.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=1))
        ... def circuit(w):
        ...     qml.RX(w[0], wires=0)
        ...     qml.RY(w[1], wires=0)
        ...     return qml.expval(qml.Z(0))
        >>> w = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
        >>> along = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> change = fubini.metric_derivative(circuit, along)(w)
        >>> tuple(change.shape), round(change[1, 1].item(), 6)
        ((2, 2), -0.179339)
    """
    check_approx(approx)
    check_rule(layers)
    check_reduce(reduce)
    if isinstance(qnode, Circuit):
        _check_of_circuit(argnums=argnums, approx=approx)
        return lambda angles, state=None: circuits.metric_derivative(
            qnode, angles, direction, reduce, state
        )
    at = points(qnode, None, argnums, "native")

    def call(*args: Any, **kwargs: Any) -> Any:
        _check_plain(args, kwargs)
        point = at(args, kwargs)
        if not all(isinstance(w, torch.Tensor) for w in point.weights):
            raise TypeError(
                "arguments: expected weights that are torch tensors, got "
                f"{', '.join(type(w).__name__ for w in point.weights)}; use torch.as_tensor, or "
                "fubini.metric_derivative(circuit, ...) for angles"
            )
        given = direction if isinstance(direction, tuple | list) else (direction,)
        parts = [torch.as_tensor(d) for d in given]
        size = sum(w.numel() for w in point.weights)
        shapes = [tuple(w.shape) for w in point.weights]
        if sum(d.numel() for d in parts) != size or (
            len(parts) > 1 and [tuple(d.shape) for d in parts] != shapes
        ):
            raise ValueError(
                f"direction: expected tensors of the weights' shapes {shapes}, or one of {size} numbers, got "
                f"{[tuple(d.shape) for d in parts]}"
            )
        for d in parts:
            check_finite_array("direction", d)
        value = derivative_along(point, parts, Wanted(approx, layers, reduce, True))
        return returned(value, point.weights, True)

    return _named(qnode, call)


def layer_metric(
    layer: Any,
    inputs: torch.Tensor,
    approx: Approx,
    layers: LayerRule = "wires",
    reduce: Reduce = None,
    weights: Mapping[str, Any] | None = None,
) -> Real:
    """Return the metric over the flattened weights of a QuantumLayer or TorchLayer.

    Args:
        layer: The layer.
        inputs: (features,) or (..., features); leading dimensions are one batch, as in the layer's forward.
        approx: Which part of the metric over angles to take.
        layers: Which gates form a block.
        reduce: ``"mean"`` averages over the inputs.
        weights: By name, instead of the layer's own.

    Returns:
        (batch, P, P), or (P, P) for the mean and for a single input.
    """
    pullback = compiled_pullback(layer, inputs) if weights is None else None
    point = at_inputs(layer, inputs, weights=weights) if pullback is None else pullback
    return point.metric(approx, layers, reduce)


def single_inputs_metric(
    layer: Any,
    inputs: torch.Tensor,
    approx: Approx,
    layers: LayerRule = "wires",
    weights: Mapping[str, Any] | None = None,
) -> Real:
    """Return the mean metric over inputs that the quantum function gets one by one, see ``layer_metric``.

    Args:
        layer: The layer.
        inputs: (batch, features).
        approx: Which part of the metric over angles to take.
        layers: Which gates form a block.
        weights: By name, instead of the layer's own.

    Returns:
        (P, P).
    """
    found = at_single_inputs(layer, inputs, weights)
    return np.mean([point.metric(approx, layers, "mean") for point in found], axis=0)  # type: ignore[no-any-return]


def layer_operator(layer: Any, inputs: torch.Tensor, layers: LayerRule = "wires") -> MetricOperator:
    """Return the full metric over the flattened weights of a QuantumLayer or TorchLayer in its cheapest form.

    Args:
        layer: The layer.
        inputs: (features,) or (..., features); the metric is averaged over them.
        layers: Which gates form a block of the preconditioner.

    Returns:
        The operator; dense where the circuit runs on its device.
    """
    return _operator(at_inputs(layer, inputs), "auto", layers)


def _operator(point: Point, form: Form, layers: LayerRule) -> MetricOperator:
    if point.pullback is None:
        if form not in ("auto", "dense"):
            raise ValueError(
                f"form: {form!r} needs the native engine, and the circuit runs on its device: {point.reason}"
            )
        return MetricOperator.of_matrix(point.metric(None, layers, "mean"), point.weights[0])
    return MetricOperator(point.pullback, form, layers=layers, like=point.weights[0])


# -- calls ------------------------------------------------------------------------------------------------------


def _over_calls(
    qnode: Any,
    wanted: Wanted,
    argnum: Argnum,
    argnums: Argnums,
    engine: Engine,
    mixed: bool = False,
) -> Callable[..., Any]:
    """A function of the QNode's arguments that returns the metric wanted; ``mixed``: also of mixed states."""
    check_reduce(wanted.reduce)
    at = points(qnode, argnum, argnums, engine)

    def call(*args: Any, **kwargs: Any) -> Any:
        _check_plain(args, kwargs)
        point = at(args, kwargs)
        if wanted.tensor:
            value: Any = point.geometric_tensor(wanted.reduce)
        elif mixed and point.is_mixed():
            if wanted.approx is not None:
                raise UnsupportedCircuitError(
                    f"approx: expected None for a mixed state, which has no blocks of commuting gates, got {wanted.approx!r}"
                )
            value = wanted.scale * point.mixed_metric(wanted.reduce)
        else:
            value = wanted.scale * point.metric(wanted.approx, wanted.layers, wanted.reduce)
        return with_gradient(returned(value, point.weights, wanted.joint), point, wanted)

    def matrix(*args: Any) -> Real | None:
        point = at(args, {})
        native = point.pullback is not None and not wanted.tensor and wanted.scale == 1.0
        return point.metric(wanted.approx, wanted.layers, wanted.reduce) if native else None

    named = _named(qnode, call)
    setattr(named, MATRIX, matrix)
    return named


def _check_plain(args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    if any(isinstance(v, torch.Tensor) and is_wrapped(v) for v in (*args, *kwargs.values())):
        raise NotImplementedError(
            "arguments: expected tensors with values, got ones inside of a transform of torch.func (grad, vmap, jacrev, hessian); "
            "differentiate a metric by torch.autograd, which has first derivatives"
        )


def _named(qnode: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    qnode = plain_qnode(qnode)
    return functools.wraps(qnode.func)(function) if isinstance(qnode, qml.QNode) else function
