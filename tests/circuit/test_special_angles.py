"""Angles of zero, of multiples of pi, and equal ones: the circuit and its derivatives are what they are elsewhere.

PennyLane's decompositions skip rotations by zero and merge others, so that a controlled power at a weight of zero once
had gradient 0 and weights initialised to zeros never moved. The reference is the derivative of the operation's own
matrix, applied to a random state.
"""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from fubini.errors import UnsupportedCircuitError
from fubini.metric import circuits
from fubini.native.circuit import Circuit
from special_angles import ANGLES, FORMS, GATES, WIRES, OwnRotation, matrix_of

# Products of some tens of matrices with entries below 1.
TOLERANCE = 1e-11
WORDS = [qml.X(0), qml.Z(0) @ qml.Y("c"), qml.Y(0)]


def operation(gate: str, form: str, angles: Any) -> Any:
    with qml.QueuingManager.stop_recording():
        return FORMS[form](GATES[gate][1](*angles))


def reference(
    gate: str, form: str, angles: torch.Tensor, psi: torch.Tensor, wires: list[Any]
) -> Any:
    """State, values of the words, their derivatives, and the metric."""

    def state(values: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(matrix_of(operation(gate, form, values), wires) @ psi)

    out = torch.view_as_complex(state(angles))
    jacobian = torch.autograd.functional.jacobian(state, angles).transpose(1, 2)
    slopes = torch.view_as_complex(jacobian.contiguous())  # (N, k)
    words = [torch.as_tensor(qml.matrix(w, wire_order=wires)).to(out) for w in WORDS]
    values = torch.stack([(out.conj() @ w @ out).real for w in words])
    gradient = torch.stack([2 * (out.conj() @ w @ slopes).real for w in words])
    overlap = slopes.conj().T @ out
    metric = (slopes.conj().T @ slopes - torch.outer(overlap, overlap.conj())).real
    return values, gradient, metric


def start(gate: str, form: str, seed: int) -> tuple[list[Any], torch.Tensor]:
    op = operation(gate, form, torch.ones(GATES[gate][0], dtype=torch.float64))
    wires = [w for w in WIRES if w in {*op.wires, 0, "c"}]
    rng = np.random.default_rng(seed)
    psi = rng.normal(size=2 ** len(wires)) + 1j * rng.normal(size=2 ** len(wires))
    return wires, torch.from_numpy(psi / np.linalg.norm(psi))


def angles_of(gate: str, at: str) -> torch.Tensor:
    return torch.tensor(ANGLES[at][: GATES[gate][0]], dtype=torch.float64)


@pytest.mark.parametrize(
    "at",
    [a if a in ("zero", "equal") else pytest.param(a, marks=pytest.mark.slow) for a in ANGLES],
)
@pytest.mark.parametrize("form", FORMS)
def test_native_derivatives_at_special_angles(form: str, at: str) -> None:
    for gate in GATES:
        wires, psi = start(gate, form, 1)
        angles = angles_of(gate, at)
        values, gradient, metric = reference(gate, form, angles, psi, wires)
        w = angles.clone().requires_grad_()
        op = operation(gate, form, w)
        tape = qml.tape.QuantumScript(
            [qml.StatePrep(psi, wires), op], [qml.expval(word) for word in WORDS]
        )
        circuit = Circuit.from_tape(tape, wires)
        live = circuit.angles_of(tape)
        flat = live.detach().numpy()
        chain = torch.stack(
            [
                torch.autograd.grad(a, w, retain_graph=True, materialize_grads=True)[0]
                if a.requires_grad
                else torch.zeros_like(w)
                for a in live
            ]
        ).numpy()
        np.testing.assert_allclose(circuit.expval(flat, psi), values, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(
            circuit.jacobian(flat, psi) @ chain, gradient, rtol=0, atol=TOLERANCE, err_msg=gate
        )
        pulled = chain.T @ circuits.metric(circuit, flat, state=psi.numpy()) @ chain
        np.testing.assert_allclose(pulled, metric, rtol=0, atol=TOLERANCE, err_msg=gate)


DEVICE_FORMS = ["controlled", "controlled power", "controlled adjoint", "sequence"]


@pytest.mark.parametrize("form", DEVICE_FORMS)
@pytest.mark.parametrize("gate", ["PhaseShift", "U2", "U3", "Rot", "CRot", "product", "own gate"])
def test_metric_of_the_device_engine_at_special_angles(gate: str, form: str) -> None:
    wires, psi = start(gate, form, 2)
    device = qml.device("default.qubit", wires=wires)

    @qml.qnode(device)
    def circuit(w: Any) -> Any:
        qml.StatePrep(psi, wires)
        qml.apply(operation(gate, form, w))
        return qml.expval(qml.Z(0))

    for at in ("zero", "pi", "equal"):
        w = angles_of(gate, at).requires_grad_()
        _, _, metric = reference(gate, form, w.detach(), psi, wires)
        for engine in ("device", "native"):
            found = fubini.metric_tensor(circuit, engine=engine)(w)
            np.testing.assert_allclose(found.detach(), metric, rtol=0, atol=TOLERANCE, err_msg=at)


@pytest.mark.parametrize("gate", ["RX", "Rot", "own gate", "Select"])
def test_second_derivatives_at_zero(gate: str) -> None:
    count = GATES[gate][0]
    wires, psi = start(gate, "controlled power", 3)

    def value(w: torch.Tensor) -> torch.Tensor:
        out = matrix_of(operation(gate, "controlled power", w), wires) @ psi
        word = torch.as_tensor(qml.matrix(WORDS[1], wire_order=wires)).to(out)
        return (out.conj() @ word @ out).real

    @qml.qnode(qml.device("default.qubit", wires=wires))
    def circuit(inputs: Any, w: Any) -> Any:
        qml.StatePrep(psi, wires)
        qml.apply(operation(gate, "controlled power", w))
        qml.RX(0.0 * inputs[..., 0], 0)
        return qml.expval(WORDS[1])

    layer = fubini.QuantumLayer(circuit, {"w": (count,)}, {"w": torch.zeros(count)}).double()
    (slope,) = torch.autograd.grad(
        layer(torch.ones(1, dtype=torch.float64)), layer.w, create_graph=True
    )
    rows = [torch.autograd.grad(s, layer.w, retain_graph=True)[0] for s in slope]
    zero = torch.zeros(count, dtype=torch.float64)
    expected = torch.autograd.functional.hessian(value, zero)
    torch.testing.assert_close(torch.stack(rows), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "gate",
    ["RX", "PhaseShift"]
    + [pytest.param(g, marks=pytest.mark.slow) for g in ("RY", "RZ", "U1", "GlobalPhase")],
)
def test_rotations_with_six_controls(gate: str) -> None:
    """Too many wires for the words of the generator: the first call of a metric once refused, or lost, what the second had."""
    values = [1, 0, 1, 1, 1, 0]

    def body(w: Any) -> list[Any]:
        base = qml.GlobalPhase(w[0]) if gate == "GlobalPhase" else getattr(qml, gate)(w[0], 6)
        gates = [qml.RY(1.2 + 0.1 * k, k) for k in range(7)]
        return [*gates, qml.ctrl(base, range(6), control_values=values), qml.RX(w[1], 6)]

    @qml.qnode(qml.device("default.qubit", wires=7))
    def circuit(w: Any) -> Any:
        body(w)
        return qml.expval(qml.Z(0))

    def state(w: torch.Tensor) -> torch.Tensor:
        psi = torch.zeros(128, dtype=torch.complex128)
        psi[0] = 1.0
        with qml.QueuingManager.stop_recording():
            for op in body(w):
                psi = matrix_of(op, list(range(7))) @ psi
        return torch.view_as_real(psi)

    for at in (0.0, 0.7):
        w = torch.tensor([at, 0.4], dtype=torch.float64, requires_grad=True)
        slopes = torch.autograd.functional.jacobian(state, w.detach()).transpose(1, 2)
        d, psi = (
            torch.view_as_complex(slopes.contiguous()),
            torch.view_as_complex(state(w.detach())),
        )
        overlap = d.conj().T @ psi
        expected = (d.conj().T @ d - torch.outer(overlap, overlap.conj())).real
        for engine in ("native", "device", "native"):
            found = fubini.metric_tensor(circuit, engine=engine)(w)
            torch.testing.assert_close(found.detach(), expected, rtol=0, atol=1e-12)


class Branching(OwnRotation):
    """A decomposition with another structure at zero."""

    @staticmethod
    def compute_decomposition(t: Any, wires: Any) -> Any:
        return [] if qml.math.allclose(t, 0.0) else [qml.RX(t, wires)]


@pytest.mark.parametrize("wrapped", [lambda op: op, lambda op: qml.ctrl(op, 1), qml.adjoint])
def test_decomposition_that_looks_at_values_is_refused(wrapped: Any) -> None:
    w = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    tape = qml.tape.QuantumScript([wrapped(Branching(w[0], 0))], [qml.expval(qml.Z(0))])
    with pytest.raises(UnsupportedCircuitError, match="Branching: its decomposition looks at"):
        Circuit.from_tape(tape)


def test_layer_leaves_it_to_the_device() -> None:
    @qml.qnode(qml.device("default.qubit", wires=2), diff_method="backprop")
    def circuit(inputs: Any, w: Any) -> Any:
        qml.RY(inputs[..., 0], 0)
        Branching(w[0], 0)
        return qml.expval(qml.Y(0))

    layer = fubini.QuantumLayer(circuit, {"w": (1,)}, {"w": torch.zeros(1)}).double()
    x = torch.tensor([[0.3], [0.9]], dtype=torch.float64)
    layer(x).sum().backward()
    assert layer.engine == "device"
    assert "looks at the values" in layer.explain()
    # <Y> = -sin(w) cos(x)
    torch.testing.assert_close(layer.w.grad, -torch.cos(x).sum(0), rtol=0, atol=1e-12)
