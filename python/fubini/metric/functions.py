"""The metric of QNodes and layers, with the calling convention of ``qml.metric_tensor``.

Functions of the same form, ``f(qnode, ...)(*args, **kwargs)``: the Fubini-Study metric g, the complex geometric tensor
whose real part it is, the quantum Fisher information 4 g, the metric as an operator, and its derivative along a
direction. ``layer_metric`` and ``layer_operator`` are what the optimizer asks for.
"""

from collections.abc import Callable
from typing import Any, Literal

from fubini.circuit.arguments import Argnums, returned
from fubini.errors import UnsupportedCircuitError
from fubini.metric import circuits
from fubini.metric.circuits import check_of_circuit
from fubini.metric.engines import Point
from fubini.metric.gradient import Wanted, with_gradient
from fubini.metric.operator import metric_operator
from fubini.metric.points import Argnum, over_calls, points
from fubini.native.circuit import Circuit
from fubini.options import (
    Approx,
    Engine,
    LayerRule,
    Real,
    Reduce,
    check_approx,
    check_reduce,
    check_rule,
)

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
    wanted = Wanted(approx, layers, reduce, joint)
    return _metric_function(qnode, wanted, argnum, argnums, engine)


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
    _check_pennylane(allow_nonunitary, hybrid)
    wanted = Wanted(approx, layers, reduce, joint, scale=4.0)
    return _metric_function(qnode, wanted, argnum, argnums, engine, mixed=True)


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
    wanted = Wanted(reduce=reduce, joint=joint, tensor=True)
    return _metric_function(qnode, wanted, argnum, argnums, engine)


def _metric_function(
    qnode: Any,
    wanted: Wanted,
    argnum: Argnum,
    argnums: Argnums,
    engine: Engine,
    mixed: bool = False,
) -> Callable[..., Any]:
    """A function of the QNode's arguments that returns the metric wanted; ``mixed``: also of mixed states."""
    approx, layers, reduce, scale = wanted.approx, wanted.layers, wanted.reduce, wanted.scale
    check_rule(layers)
    check_reduce(reduce)
    if isinstance(qnode, Circuit):
        check_of_circuit(argnum=argnum, argnums=argnums, engine=engine)
        if wanted.tensor:
            return lambda angles, state=None: circuits.geometric_tensor(
                qnode, angles, reduce, state
            )
        return lambda angles, state=None: circuits.metric(
            qnode, angles, approx, reduce, layers, state, scale
        )
    at = points(qnode, argnum, argnums, engine)

    def value(point: Point) -> Any:
        if wanted.tensor:
            found: Any = point.geometric_tensor(reduce)
        elif mixed and point.is_mixed():
            if approx is not None:
                raise UnsupportedCircuitError(
                    f"approx: expected None for a mixed state, which has no blocks of commuting gates, got {approx!r}"
                )
            found = scale * point.mixed_metric(reduce)
        else:
            found = scale * point.metric(approx, layers, reduce)
        return with_gradient(returned(found, point.weights, wanted.joint), point, wanted)

    def matrix(*args: Any) -> Real | None:
        point = at(args, {})
        native = point.pullback is not None and not wanted.tensor and scale == 1.0
        return point.metric(approx, layers, reduce) if native else None

    function = over_calls(qnode, at, value)
    setattr(function, MATRIX, matrix)
    return function
