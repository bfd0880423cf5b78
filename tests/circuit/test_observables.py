"""Coefficients of observables that are weights, inputs, or change in place: results are linear in them."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from fubini.circuit.observables import words_of
from fubini.devices import gate_tape, gradient_job
from fubini.errors import UnsupportedCircuitError

WORDS = [qml.Z(0), qml.X(0) @ qml.X(1), qml.Y(1)]


def prepare(inputs: Any, w: Any) -> None:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.StronglyEntanglingLayers(w, wires=range(2))


def expectations(*observables: Any) -> Callable[[Any, Any], list[torch.Tensor]]:
    """Of the words one by one, by backpropagation through default.qubit."""
    device = qml.device("default.qubit", wires=2)

    @qml.qnode(device, interface="torch", diff_method="backprop")
    def circuit(inputs: Any, w: Any) -> Any:
        prepare(inputs, w)
        return [qml.expval(o) for o in observables]

    return circuit


#: What is measured, and what it is in terms of single words.
OBSERVABLES: dict[str, tuple[Callable[..., Any], Callable[..., torch.Tensor]]] = {
    "Hamiltonian": (
        lambda x, c: qml.expval(qml.Hamiltonian(c, WORDS)),
        lambda x, w, c: sum(a * v for a, v in zip(c, expectations(*WORDS)(x, w), strict=True)),
    ),
    "functions and a constant": (
        lambda x, c: qml.expval(c[0] * WORDS[0] + torch.sin(c[1]) * WORDS[1] + c[2] * qml.I(0)),
        lambda x, w, c: (
            c[0] * expectations(WORDS[0])(x, w)[0]
            + torch.sin(c[1]) * expectations(WORDS[1])(x, w)[0]
            + c[2]
        ),
    ),
    "inputs": (
        lambda x, c: qml.expval(x[..., 0] * WORDS[0] + c[1] * WORDS[2]),
        lambda x, w, c: (
            x[..., 0] * expectations(WORDS[0])(x, w)[0] + c[1] * expectations(WORDS[2])(x, w)[0]
        ),
    ),
    "product": (
        lambda x, c: qml.expval((c[0] * qml.Z(0) + c[1] * qml.X(0)) @ (c[2] * qml.Y(1))),
        lambda x, w, c: (
            c[0] * c[2] * expectations(qml.Z(0) @ qml.Y(1))(x, w)[0]
            + c[1] * c[2] * expectations(qml.X(0) @ qml.Y(1))(x, w)[0]
        ),
    ),
    # X0 X1 anticommutes with the other two words.
    "variance": (
        lambda x, c: qml.var(qml.Hamiltonian(c, WORDS)),
        lambda x, w, c: (
            (c**2).sum()
            + 2 * c[0] * c[2] * expectations(qml.Z(0) @ qml.Y(1))(x, w)[0]
            - sum(a * v for a, v in zip(c, expectations(*WORDS)(x, w), strict=True)) ** 2
        ),
    ),
    "matrix": (
        lambda x, c: qml.expval(
            qml.Hermitian(torch.stack([c[0], c[1], c[1], c[2]]).reshape(2, 2), 1)
        ),
        lambda x, w, c: (
            (c[0] + c[2]) / 2
            + (c[0] - c[2]) / 2 * expectations(qml.Z(1))(x, w)[0]
            + c[1] * expectations(qml.X(1))(x, w)[0]
        ),
    ),
}

PLACES = [
    ("default.qubit", "best", "auto"),
    ("default.qubit", "adjoint", "auto"),
    ("default.qubit", "parameter-shift", "device"),
    ("lightning.qubit", "best", "auto"),
    ("lightning.qubit", "adjoint", "device"),
    ("default.mixed", "best", "auto"),
    ("default.mixed", "parameter-shift", "auto"),
]


@pytest.mark.parametrize(("device", "method", "engine"), PLACES)
@pytest.mark.parametrize("name", OBSERVABLES)
def test_gradients_by_coefficients(name: str, device: str, method: str, engine: Any) -> None:
    measure, expected_of = OBSERVABLES[name]

    def circuit(inputs: Any, w: Any, c: Any) -> Any:
        prepare(inputs, w)
        return measure(inputs, c)

    rng = np.random.default_rng(4)
    w0, c0 = torch.from_numpy(rng.uniform(size=(1, 2, 3))), torch.tensor([0.5, -0.3, 0.8]).double()
    qnode = qml.QNode(circuit, qml.device(device, wires=2), diff_method=method)
    layer = fubini.QuantumLayer(
        qnode, {"w": (1, 2, 3), "c": (3,)}, {"w": w0, "c": c0}, engine=engine
    ).double()
    for shape in ((2,), (4, 2)):
        x = torch.from_numpy(rng.uniform(size=shape)).requires_grad_()
        result = layer(x)
        found = torch.autograd.grad(result.pow(2).sum(), [layer.w, layer.c, x])
        leaves = [t.detach().clone().requires_grad_() for t in (w0, c0, x)]
        expected = expected_of(leaves[2], leaves[0], leaves[1])
        wanted = torch.autograd.grad(expected.pow(2).sum(), leaves)
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-10)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_gradient_by_coefficients_from_shots() -> None:
    def circuit(inputs: Any, w: Any, c: Any) -> Any:
        prepare(inputs, w)
        return qml.expval(qml.Hamiltonian(c, WORDS))

    w0, c0 = torch.full((1, 2, 3), 0.4), torch.tensor([0.5, -0.3, 0.8])
    qnode = qml.set_shots(qml.QNode(circuit, qml.device("default.qubit", wires=2, seed=5)), 20000)
    layer = fubini.QuantumLayer(qnode, {"w": (1, 2, 3), "c": (3,)}, {"w": w0, "c": c0}).double()
    x = torch.tensor([[0.3, 0.9], [1.1, 0.2]], dtype=torch.float64)
    layer(x).sum().backward()
    expected = torch.stack([v.sum() for v in expectations(*WORDS)(x, w0.double())])
    # Standard error of a mean of two times 20,000 results +-1: 0.01; five of them.
    torch.testing.assert_close(layer.c.grad, expected, rtol=0, atol=0.05)


def test_derivatives_by_angles_alone_are_refused() -> None:
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(w: Any) -> Any:
        qml.RX(w[0], 0)
        return qml.expval(w[1] * qml.Z(0))

    tape = gate_tape(circuit, (torch.tensor([0.3, 0.4]),), {}, [0])
    with pytest.raises(UnsupportedCircuitError, match=r"coefficients of .* depend on weights"):
        gradient_job(tape)


# -- changed in place -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "device"])
@pytest.mark.parametrize("shots", [None, 200000])
def test_coefficients_annealed_in_place(engine: Any, shots: int | None) -> None:
    """PennyLane's Pauli representation of an observable keeps the coefficients of when it was made."""
    strength = torch.tensor(1.0, dtype=torch.float64)
    observable = strength * qml.Z(0) + qml.s_prod(strength, qml.X(0) @ qml.I(1))

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.RX(torch.sin(inputs[..., 0]), 0)
        qml.RY(weights[0], 0)
        return qml.expval(observable)

    device = qml.device("default.qubit", wires=2, seed=3)
    qnode = qml.set_shots(qml.QNode(circuit, device), shots=shots)
    w = torch.tensor([0.7, 0.9])
    layer = fubini.QuantumLayer(qnode, {"weights": (2,)}, {"weights": w}, engine=engine).double()
    x = torch.tensor([[0.2], [0.9]], dtype=torch.float64)
    z = torch.cos(torch.sin(x[:, 0])) * (np.cos(0.7) + np.sin(0.7))
    for value in (1.0, 0.5, -2.0):
        strength.fill_(value)
        tolerance = 1e-6 if shots is None else 0.05  # weights were float32; some standard errors
        torch.testing.assert_close(layer(x).detach(), value * z, rtol=0, atol=tolerance)


def test_generator_annealed_in_place() -> None:
    strength = torch.tensor(1.0, dtype=torch.float64)
    generators = [strength * qml.Z(0), strength * qml.X(0) + strength * qml.Z(0) @ qml.Y(1)]
    for generator in generators:
        for value in (1.0, -0.4):
            strength.fill_(value)
            tape = qml.tape.QuantumScript(
                [qml.Hadamard(0), qml.RX(0.3, 1), qml.evolve(generator, 0.7)], [qml.state()]
            )
            circuit = fubini.Circuit.from_tape(tape)
            start = circuit.state(circuit.angles_of(tape))
            matrix = sum(
                value * word.to_mat(wire_order=list(circuit.wires))
                for word in words_of(generator) or ()
            )
            psi = np.kron([1, 1], [np.cos(0.15), -1j * np.sin(0.15)]) / np.sqrt(2)
            values, vectors = np.linalg.eigh(matrix)
            expected = vectors @ (np.exp(-0.7j * values) * (vectors.conj().T @ psi))
            np.testing.assert_allclose(start, expected, rtol=0, atol=1e-12)
