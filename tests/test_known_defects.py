"""Cases that PennyLane gets silently wrong or refuses, each with the true value.

The true value is the metric from explicit derivative states, computed here by torch's Jacobian of the state.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from circuits import DEVICES, metric_by_autodiff

APPROXIMATIONS = [None, "block-diag", "diag"]


def state_qnode(function: Callable[..., Any], wires: int, device: str = "default.qubit") -> Any:
    def with_state(*args: Any, **kwargs: Any) -> Any:
        function(*args, **kwargs)
        return qml.state()

    return qml.QNode(with_state, qml.device(device, wires=wires))


def everywhere(qnode: Any, approx: Any = None, **options: Any) -> Callable[..., Any]:
    """The metric on both engines, and what the Fisher information and the geometric tensor say about it."""

    def call(*args: Any, **kwargs: Any) -> Any:
        native = fubini.metric_tensor(qnode, approx, engine="native", **options)(*args, **kwargs)
        device = fubini.metric_tensor(qnode, approx, engine="device", **options)(*args, **kwargs)
        torch.testing.assert_close(native.detach(), device, rtol=0, atol=1e-12)
        fisher = fubini.quantum_fisher(qnode, approx, engine="native", **options)(*args, **kwargs)
        torch.testing.assert_close(fisher, 4 * native, rtol=0, atol=1e-12)
        if approx is None:
            tensors = [
                fubini.geometric_tensor(qnode, engine=engine, **options)(*args, **kwargs).detach()
                for engine in ("native", "device")
            ]
            torch.testing.assert_close(tensors[0], tensors[1], rtol=0, atol=1e-12)
            torch.testing.assert_close(tensors[0].real, native.detach(), rtol=0, atol=1e-12)
        return native.detach()

    return call


def metric_by_autodiff_of(
    function: Callable[[Any], Any], wires: int, w: torch.Tensor
) -> torch.Tensor:
    qnode = state_qnode(lambda _, v: function(v), wires)
    return metric_by_autodiff(qnode, torch.zeros(1), w)


def check_one_angle(
    function: Callable[[Any], Any], expected: float, wires: int, device: str
) -> None:
    w = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    for approx in APPROXIMATIONS:
        metric = everywhere(state_qnode(lambda v: function(v[0]), wires, device), approx)(w)
        assert metric.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [4, 32, 3])
def test_batched_inputs_in_block_diag(device: str, batch: int) -> None:
    """The batch was read as wires: diagonal 1.0 for 4 inputs, 8.0 for 32."""

    def function(x: Any, w: Any) -> None:
        qml.AngleEmbedding(x, wires=range(2))
        qml.RX(w[0], 0)
        qml.RZ(w[1], 1)
        qml.CNOT([0, 1])
        qml.RY(w[2], 1)

    x = torch.linspace(0.1, 1.9, 2 * batch, dtype=torch.float64).reshape(batch, 2)
    w = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64, requires_grad=True)
    full = metric_by_autodiff(state_qnode(function, 2), x, w)
    metric = everywhere(state_qnode(function, 2, device), "block-diag")(x, w)
    mask = torch.block_diag(torch.ones(2, 2), torch.ones(1, 1))
    torch.testing.assert_close(metric, full * mask, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gate", [qml.CRX, qml.CRY, qml.CRZ])
@pytest.mark.parametrize("wires", [[0, 1], [1, 0]])
def test_controlled_rotations_in_any_wire_order(device: str, gate: Any, wires: list[int]) -> None:
    """The order of the generator's wires was dropped, so control before target gave the wrong covariance."""

    def function(t: Any) -> None:
        qml.RY(0.4, 0)
        qml.RX(0.2, 1)
        qml.RY(1.1, 1)
        gate(t, wires=wires)

    w = torch.tensor([0.7], dtype=torch.float64)
    check_one_angle(
        function, metric_by_autodiff_of(lambda v: function(v[0]), 2, w).item(), 2, device
    )


@pytest.mark.parametrize("device", DEVICES)
def test_ctrl_of_a_rotation(device: str) -> None:
    def function(t: Any) -> None:
        qml.RY(0.4, 0)
        qml.RY(1.1, 1)
        qml.ctrl(qml.RY, control=0)(t, wires=1)

    w = torch.tensor([0.7], dtype=torch.float64)
    check_one_angle(
        function, metric_by_autodiff_of(lambda v: function(v[0]), 2, w).item(), 2, device
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "gates",
    [
        lambda v: (qml.PhaseShift(v[0], 0), qml.RX(v[1], 0), qml.PhaseShift(v[2], 1)),
        lambda v: qml.U3(v[0], v[1], v[2], wires=0),
        lambda v: (qml.U2(v[0], v[1], wires=0), qml.RX(v[2], 1)),
        lambda v: qml.CRot(v[0], v[1], v[2], wires=[0, 1]),
        lambda v: qml.ctrl(qml.U3(v[0], v[1], v[2], wires=1), control=0),
    ],
    ids=["PhaseShift", "U3", "U2", "CRot", "C(U3)"],
)
def test_phase_gates_and_composite_gates(device: str, gates: Any) -> None:
    """Off-diagonals of PhaseShift in the full metric were wrong; composite gates had no exact diagonal."""

    def function(v: Any) -> None:
        qml.RY(0.8, 0)
        qml.RY(1.3, 1)
        qml.CNOT([0, 1])
        gates(v)
        qml.CNOT([1, 0])

    w = torch.tensor([0.3, 0.9, -0.5], dtype=torch.float64)
    true = metric_by_autodiff_of(function, 2, w)
    w.requires_grad_()
    full = everywhere(state_qnode(function, 2, device))(w)
    torch.testing.assert_close(full, true, rtol=0, atol=1e-12)
    assert torch.linalg.eigvalsh(full).min() > -1e-12
    for approx in ("block-diag", "diag"):
        part = everywhere(state_qnode(function, 2, device), approx)(w)
        torch.testing.assert_close(part.diagonal(), true.diagonal(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "prepare",
    [
        lambda: qml.BasisState(np.array([1, 1]), wires=[0, 1]),
        lambda: qml.StatePrep(np.array([0.6, 0.0, 0.0, 0.8]), wires=[0, 1]),
        lambda: qml.AmplitudeEmbedding(
            np.array([1.0, 2.0, 2.0]), wires=[0, 1], pad_with=0.0, normalize=True
        ),
        lambda: qml.AngleEmbedding([0.3, 0.4], wires=[0, 1]),
        lambda: (qml.Hadamard(0), qml.Barrier([0, 1])),
        lambda: qml.IQPEmbedding([0.3, 0.4], wires=[0, 1]),
    ],
    ids=[
        "BasisState",
        "StatePrep",
        "AmplitudeEmbedding",
        "AngleEmbedding",
        "Barrier",
        "IQPEmbedding",
    ],
)
def test_preparations_before_the_gates(device: str, prepare: Any) -> None:
    """adjoint_metric_tensor raises MatrixUndefinedError for these."""

    def function(v: Any) -> None:
        prepare()
        qml.RX(v[0], 0)
        qml.DoubleExcitation(v[1], [0, 1, 2, 3])
        qml.CRY(v[2], [1, 2])

    w = torch.tensor([0.3, 0.9, -0.5], dtype=torch.float64)
    true = metric_by_autodiff_of(function, 4, w)
    metric = everywhere(state_qnode(function, 4, device))(w.requires_grad_())
    torch.testing.assert_close(metric, true, rtol=0, atol=1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_inputs_that_need_no_gradient_and_keywords(device: str) -> None:
    """pennylane#1991: RuntimeError for non-trainable inputs on torch, QuantumFunctionError for keywords."""

    def function(x: Any, w: Any) -> None:
        qml.RX(x[..., 0], 0)
        qml.RY(w[0] * x[..., 1], 0)
        qml.RZ(2 * w[1] + x[..., 0], 0)

    x = torch.rand(3, 2, dtype=torch.float64)
    w = torch.rand(2, dtype=torch.float64, requires_grad=True)
    true = metric_by_autodiff(state_qnode(function, 1), x, w)
    for diff_method in ("best", "parameter-shift", "adjoint", None):
        qnode = qml.QNode(
            state_qnode(function, 1).func, qml.device(device, wires=1), diff_method=diff_method
        )
        with torch.no_grad():
            torch.testing.assert_close(everywhere(qnode)(x, w), true)
            torch.testing.assert_close(everywhere(qnode)(x=x, w=w), true)


def test_templates_with_amplitude_data_per_input() -> None:
    def function(x: Any, w: Any) -> None:
        qml.AmplitudeEmbedding(x, wires=range(2), normalize=True)
        qml.StronglyEntanglingLayers(w, wires=range(2))

    x = torch.rand(5, 4, dtype=torch.float64)
    w = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    metric = everywhere(state_qnode(function, 2))(x, w)
    true = metric_by_autodiff(state_qnode(function, 2), x, w)
    torch.testing.assert_close(metric.reshape(5, 12, 12), true, rtol=0, atol=1e-12)


EXPONENTS = {
    "exp": lambda p: qml.exp(qml.Z(0) @ qml.X(1), 1j * p[0]),
    "exp of complex": lambda p: qml.exp(
        qml.Z(0) @ qml.X(1), torch.complex(torch.zeros_like(p[0]), p[0])
    ),
    "ctrl of exp": lambda p: qml.ctrl(qml.exp(qml.X(1), 1j * p[0]), 0),
    "evolve": lambda p: qml.evolve(qml.Z(0) @ qml.Z(1) + 0.5 * qml.X(0), p[0]),
    "adjoint of evolve": lambda p: qml.adjoint(
        qml.evolve(qml.Z(0) @ qml.Z(1) + 0.5 * qml.X(0), p[0])
    ),
    "trainable coefficients": lambda p: qml.TrotterProduct(
        qml.dot([p[0], 0.5], [qml.Z(0) @ qml.Z(1), qml.X(0)]), 1.0, n=2
    ),
    "product": lambda p: qml.prod(qml.RX(p[0], 0), qml.RY(0.3, 1)),
    "power": lambda p: qml.pow(qml.RX(p[0], 0), 2),
}


@pytest.mark.parametrize("name", EXPONENTS)
def test_weights_inside_exponents(name: str) -> None:
    """The metric of these was zero, or the extraction broke: the weight is complex or part of an operator."""

    def function(p: Any) -> None:
        qml.RY(0.4, 0)
        qml.RY(0.7, 1)
        qml.CNOT([0, 1])
        EXPONENTS[name](p)
        qml.RX(p[1], 1)

    w = torch.tensor([0.3, 0.5], dtype=torch.float64)
    true = metric_by_autodiff_of(function, 2, w)
    w.requires_grad_()
    qnode = state_qnode(function, 2)
    metric = everywhere(qnode)(w)
    torch.testing.assert_close(metric, true, rtol=0, atol=1e-12)


def test_scalar_weights_and_things_that_are_no_qnode() -> None:
    a = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    metric = everywhere(state_qnode(lambda t: qml.RX(t, 0), 1))(a)
    torch.testing.assert_close(metric, torch.tensor(0.25, dtype=torch.float64))
    with pytest.raises(
        TypeError, match="qnode: expected a QNode, a QuantumLayer or a TorchLayer, got function"
    ):
        fubini.metric_tensor(lambda t: t)


@pytest.mark.parametrize("argnum", [[2], 3, [2, 5], None])
def test_argnum_counts_constants_too(argnum: Any) -> None:
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(w: Any) -> Any:
        qml.RY(0.4, 0)
        qml.RY(0.7, 1)
        qml.RX(w[0], 0)
        qml.RX(w[1], 0)
        qml.RZ(w[0], 1)
        qml.RZ(w[2], 1)
        return qml.expval(qml.Z(0))

    w = torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64, requires_grad=True)
    expected = qml.metric_tensor(circuit, approx="block-diag", argnum=argnum)(w).detach()
    torch.testing.assert_close(
        everywhere(circuit, "block-diag", argnum=argnum, layers="queue")(w), expected
    )


@pytest.mark.parametrize("rule", ["wires", "maximal"])
def test_blocks_do_not_depend_on_the_order_of_the_queue(rule: Any) -> None:
    """pennylane#1738: RY RZ wire by wire and RY on all wires, then RZ, had different blocks."""

    def circuit(w: Any, by_wire: bool) -> None:
        for layer in range(2):
            angles = [(qml.RY, 0, k) for k in range(3)] + [(qml.RZ, 1, k) for k in range(3)]
            for gate, row, k in sorted(angles, key=lambda a: a[2]) if by_wire else angles:
                gate(w[layer, row, k], k)
            for k in range(2):
                qml.CZ([k, k + 1])

    w = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    blocks = [
        everywhere(state_qnode(lambda v, o=order: circuit(v, o), 3), "block-diag", layers=rule)(w)
        for order in (False, True)
    ]
    torch.testing.assert_close(blocks[0], blocks[1], rtol=0, atol=1e-12)
    full = everywhere(state_qnode(lambda v: circuit(v, True), 3))(w).reshape(12, 12)
    block = blocks[0].reshape(12, 12)
    assert 12 < (block.abs() > 1e-9).sum() <= 36  # four blocks of three
    torch.testing.assert_close(block[block != 0], full[block != 0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "gates",
    [
        lambda v: (qml.RX(2 * v[0], 0), qml.RY(v[1] ** 2, 1), qml.RZ(v[0] * v[1], 0)),
        lambda v: (qml.adjoint(qml.RX(v[0], 0)), qml.adjoint(qml.CRY)(v[1], [1, 0])),
        lambda v: (qml.adjoint(qml.IsingXY(v[0] + v[1], [0, 1])), qml.RX(v[0] - 1, 0)),
        lambda v: (qml.Rot(v[0], v[1], v[0], 0), qml.CRX(v[1], [0, 1])),
    ],
    ids=["multiples and products", "adjoint", "adjoint of a sum", "a weight in several gates"],
)
def test_classical_processing_and_adjoints(gates: Any) -> None:
    """The inner derivative was lost in compiled QNodes, and the sign in adjoints (pennylane#3576)."""

    def function(v: Any) -> None:
        qml.RY(0.8, 0)
        qml.RX(1.3, 1)
        gates(v)
        qml.CNOT([0, 1])

    w = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    true = metric_by_autodiff_of(function, 2, w.detach())
    torch.testing.assert_close(everywhere(state_qnode(function, 2))(w), true, rtol=0, atol=1e-12)
