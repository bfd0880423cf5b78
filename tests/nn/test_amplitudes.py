"""Gradients by amplitudes of the initial state off the native engine, where some of them are zero."""

from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini

D = torch.float64


def padded(x: torch.Tensor) -> Any:
    qml.AmplitudeEmbedding(x, wires=range(2), pad_with=0.0, normalize=True)


def normalised(x: torch.Tensor) -> Any:
    full = torch.cat([x, torch.zeros_like(x[..., :1])], dim=-1)
    state = full / torch.linalg.norm(full, dim=-1, keepdim=True)
    qml.StatePrep(state, wires=[1, 0], validate_norm=False)


def as_circuit(x: torch.Tensor) -> Any:
    full = torch.cat([x, torch.zeros_like(x[..., :1])], dim=-1)
    state = full / torch.linalg.norm(full, dim=-1, keepdim=True)
    if exact:  # whose own gradient is NaN
        qml.StatePrep(state, wires=[0, 1], validate_norm=False)
    else:
        qml.MottonenStatePreparation(state, wires=[0, 1])


exact = False


def complex_amplitudes(x: torch.Tensor) -> Any:
    full = torch.stack(
        [x[..., 0] + 0j, 1j * x[..., 1], 0 * x[..., 0] + 0j, x[..., 2] * (1 + 1j)], -1
    )
    state = full / torch.linalg.norm(full, dim=-1, keepdim=True)
    qml.StatePrep(state, wires=[0, 1], validate_norm=False)


PREPARATIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "padded": padded,
    "normalised": normalised,
    "complex": complex_amplitudes,
    "circuit": as_circuit,
}
PLACES = [
    ("default.qubit", "best", "auto"),
    ("default.qubit", "parameter-shift", "device"),
    ("lightning.qubit", "best", "device"),
    ("default.mixed", "parameter-shift", "auto"),
]
INPUTS = {
    "one": torch.tensor([0.3, -0.8, 0.4], dtype=D),
    "batch": torch.tensor([[0.3, -0.8, 0.4], [0.0, 0.6, 0.1]], dtype=D),
    "basis states": torch.tensor([[0.0, 0.0, -1.0], [1.0, 0.0, 0.0]], dtype=D),
}


def function(name: str) -> Any:
    def circuit(inputs: Any, w: Any) -> Any:
        PREPARATIONS[name](inputs)
        qml.StronglyEntanglingLayers(w, wires=range(2))
        return [qml.expval(qml.Z(0)), qml.var(qml.X(1)), qml.probs(wires=1)]

    return circuit


def reference(name: str, x: torch.Tensor, w: torch.Tensor, weights: torch.Tensor) -> Any:
    """By backpropagation through default.qubit."""
    global exact
    device = qml.device("default.qubit", wires=2)
    qnode = qml.QNode(function(name), device, diff_method="backprop", interface="torch")
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    exact = True
    z, v, p = qnode(*leaves)
    exact = False
    result = torch.cat([z[..., None], v[..., None], p], dim=-1)
    return result.detach(), torch.autograd.grad((result * weights).sum(), leaves)


@pytest.mark.parametrize(("device", "method", "engine"), PLACES)
@pytest.mark.parametrize("name", PREPARATIONS)
@pytest.mark.parametrize("at", INPUTS)
def test_gradient_by_amplitudes(at: str, name: str, device: str, method: str, engine: Any) -> None:
    x, w = INPUTS[at], torch.linspace(-1, 1, 6, dtype=D).reshape(1, 2, 3)
    weights = torch.tensor([0.7, -1.1, 0.4, 0.9], dtype=D)
    values, expected = reference(name, x, w, weights)
    qnode = qml.QNode(function(name), qml.device(device, wires=2), diff_method=method)
    layer = fubini.QuantumLayer(qnode, {"w": (1, 2, 3)}, {"w": w}, engine=engine).double()
    leaf = x.clone().requires_grad_()
    result = layer(leaf)
    found = torch.autograd.grad((result * weights).sum(), [leaf, layer.w])
    torch.testing.assert_close(result.detach(), values, rtol=0, atol=1e-10)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_gradient_by_amplitudes_from_shots() -> None:
    x, w = INPUTS["batch"], torch.linspace(-1, 1, 6, dtype=D).reshape(1, 2, 3)
    weights = torch.tensor([0.7, 0.0, 0.4, 0.9], dtype=D)
    _, expected = reference("padded", x, w, weights)
    qnode = qml.QNode(function("padded"), qml.device("default.qubit", wires=2, seed=1))
    layer = fubini.QuantumLayer(qml.set_shots(qnode, 40000), {"w": (1, 2, 3)}, {"w": w}).double()
    leaf = x.clone().requires_grad_()
    found = torch.autograd.grad((layer(leaf) * weights).sum(), [leaf, layer.w])
    # Sums of some results with errors of 1/200, times norms up to 4 and amplitudes' derivatives of about 2.
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0.15)


def test_state_prepared_later_is_refused() -> None:
    @qml.qnode(qml.device("lightning.qubit", wires=2))
    def circuit(inputs: Any, w: Any) -> Any:
        qml.RX(w[0], 1)
        qml.StatePrep(inputs / torch.linalg.norm(inputs), wires=[0], validate_norm=False)
        return qml.expval(qml.Z(0))

    layer = fubini.QuantumLayer(circuit, {"w": (1,)}, engine="device").double()
    with pytest.raises(ValueError, match="StatePrep on wires \\[0\\] depends on"):
        layer(torch.tensor([0.6, 0.8], dtype=D, requires_grad=True))


@pytest.mark.parametrize("angle", [torch.clone, torch.sin])
def test_a_state_without_parameters(angle):
    @qml.qnode(qml.device("default.qubit", wires=3))
    def circuit(w):
        qml.CosineWindow(wires=[2, 0])
        qml.RY(angle(w), wires=0)
        return qml.expval(qml.Z(0) @ qml.X(2))

    layer = fubini.QuantumLayer(circuit, {"w": ()}).double()
    assert layer().item() == pytest.approx(circuit(layer.w.detach()).item(), abs=1e-12)
    assert "compiled circuit" in layer.explain()
