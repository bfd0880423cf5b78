"""Tangents of states with operators among them, against explicit dense mathematics."""

from __future__ import annotations

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from fubini.circuit.pauli import applied
from fubini.geometry.ansatz import ansatz
from fubini.geometry.operators import masks, matrix, own_terms, terms_of
from fubini.geometry.tangents import expectations, states, tangents, times_minus_i
from geometry_cases import dense_tangents, qnode, random_circuit, random_hamiltonian


@pytest.mark.parametrize("wires", [1, 2, 3, 5])
def test_metric_gradient_and_variance_are_those_of_dense_mathematics(wires):
    rng = np.random.default_rng(wires)
    circuit = (
        random_circuit(wires, 7, rng) if wires > 1 else lambda w: [qml.RX(w[0], 0), qml.RZ(w[1], 0)]
    )
    hamiltonian, other = random_hamiltonian(wires, rng), random_hamiltonian(wires, rng)
    many = rng.normal(size=(3, 7))
    a = ansatz(qnode(circuit, wires, hamiltonian), many, batched=True)
    terms = [own_terms(a.circuit, ""), terms_of("other", other, a.circuit)]
    dense = [qml.matrix(o, wire_order=range(wires)) for o in (hamiltonian, other)]
    found = tangents(a, many, terms)
    metrics, by_weights = found.metric(), found.weights.transpose(0, 2, 1)
    overlaps = found.operators @ by_weights
    gradients = -2 * times_minus_i(found.operators) @ by_weights
    values = expectations(a, many, terms)
    for b, w in enumerate(many):
        psi, derivative = dense_tangents(circuit, wires, w)
        np.testing.assert_allclose(states(a, w[None])[0], psi, atol=1e-12)
        projected = derivative - np.outer(derivative @ psi.conj(), psi)
        np.testing.assert_allclose(metrics[b], (projected.conj() @ projected.T).real, atol=1e-12)
        moved = []
        for m, (h, words) in enumerate(zip(dense, terms, strict=True)):
            np.testing.assert_allclose(matrix(words, wires), h, atol=1e-14)
            np.testing.assert_allclose(applied(masks(words, wires), psi), h @ psi, atol=1e-13)
            moved.append(h @ psi - (psi.conj() @ h @ psi) * psi)
            np.testing.assert_allclose(values[b, m], (psi.conj() @ h @ psi).real, atol=1e-12)
            expected = (projected.conj() @ (-1j * moved[m])).real
            np.testing.assert_allclose(overlaps[b, m], expected, atol=1e-12)
            expected = 2 * (projected.conj() @ moved[m]).real
            np.testing.assert_allclose(gradients[b, m], expected, atol=1e-12)
        covariances = (np.conj(moved) @ np.transpose(moved)).real
        operators = found.operators[b]
        np.testing.assert_allclose(operators @ operators.T, covariances, atol=1e-12)


def _gates(w, inputs):
    qml.AngleEmbedding(inputs, [0, 1])
    qml.RY(w[0, 0] ** 2, 0)
    qml.CNOT([0, 1])
    qml.RX(w[0, 1] * w[0, 0], 1)
    return qml.expval(qml.Z(0) @ qml.Z(1))


def _data_free(w, scale):
    if float(scale) > 0:  # a decision by value: the function runs in every call
        qml.RY(scale * w[0], 0)
    qml.CNOT([0, 1])
    qml.RX(w[1], 1)
    return qml.expval(qml.Z(0))


DEVICE = qml.device("default.qubit", wires=2)
W, X = torch.tensor([[0.4, 1.1]], dtype=torch.float64), torch.tensor([0.3, -0.2]).double()


def test_every_kind_of_circuit_with_data_has_the_metric_of_the_metric_function():
    node = qml.QNode(_gates, DEVICE)
    expected = fubini.metric_tensor(node, joint=True)(W.clone().requires_grad_(), X).detach()
    shapes, initial = {"w": (1, 2)}, {"w": W}
    layers = [kind(node, shapes, initial) for kind in (fubini.QuantumLayer, qml.qnn.TorchLayer)]
    given = [(node, W, {"inputs": X}), (fubini.compiled(node), W.numpy(), {"inputs": X})]
    given += [(layer, None, X) for layer in layers]
    circuit = fubini.Circuit.from_qnode(node, W, X)
    for source, weights, inputs in given:
        a = ansatz(source, weights, inputs)
        assert a.circuit == circuit
        found = tangents(a, a.weights).metric()[0]
        # torch's layers keep their weights in float32
        np.testing.assert_allclose(found, expected, atol=1e-7 if weights is None else 1e-12)
        assert tuple(a.shaped(a.weights[0]).shape) == (1, 2)
    assert isinstance(ansatz(node, W, {"inputs": X}).shaped(np.zeros(2)), torch.Tensor)
    assert isinstance(ansatz(node, W.numpy(), {"inputs": X}).shaped(np.zeros(2)), np.ndarray)


def test_circuits_whose_function_runs_in_every_call_or_that_take_a_state():
    node = qml.QNode(_data_free, DEVICE)
    a = ansatz(node, np.array([0.4, 1.1]), {"scale": 0.5})
    assert isinstance(a.shaped(a.weights[0]), np.ndarray)
    w = torch.tensor([0.4, 1.1], dtype=torch.float64, requires_grad=True)
    expected = fubini.metric_tensor(node)(w, 0.5).detach()
    np.testing.assert_allclose(tangents(a, a.weights).metric()[0], expected, atol=1e-12)
    both = ansatz(node, (np.array([0.4, 1.1]), 0.5))  # both are trained
    assert both.size == 3
    assert [np.shape(part) for part in both.shaped(both.weights[0])] == [(2,), ()]
    w, scale = w.detach().requires_grad_(), torch.tensor(0.5).double().requires_grad_()
    expected = fubini.metric_tensor(node, joint=True)(w, scale).detach()
    np.testing.assert_allclose(tangents(both, both.weights).metric()[0], expected, atol=1e-12)

    def prepared(w):
        qml.StatePrep(np.array([0.6, 0, 0.8j, 0]), [0, 1])
        return _data_free(w, 0.5)

    node = qml.QNode(prepared, DEVICE)
    w = torch.tensor([0.4, 1.1], dtype=torch.float64, requires_grad=True)
    expected = fubini.metric_tensor(node)(w).detach()
    circuit = fubini.Circuit.from_qnode(node, w.detach())
    state = np.array([0.6, 0, 0.8j, 0])
    for a in (ansatz(node, w), ansatz(circuit, [0.2, 1.1], state)):
        assert a.initial is not None
        found = tangents(a, a.weights).metric()[0]
        factors = [0.5, 1.0] if a.templates[0] is not w else [1.0, 1.0]
        np.testing.assert_allclose(found * np.outer(factors, factors), expected, atol=1e-12)


NODE = qml.QNode(_gates, DEVICE)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ansatz(NODE, W), "inputs: the circuit's argument 'inputs' has no value"),
        (lambda: ansatz(NODE, W, X), "inputs: expected a dictionary"),
        (lambda: ansatz(NODE, W * np.nan, {"inputs": X}), "w: expected finite numbers"),
        (lambda: ansatz(NODE, W, {"inputs": X / 0}), "inputs: expected finite numbers"),
        (lambda: ansatz(NODE, W, {"x": X}), "inputs: expected arguments of the QNode"),
        (lambda: ansatz(NODE, (W, W, W), {"inputs": X}), "weights: expected at most 1"),
        (lambda: ansatz(NODE, torch.zeros(0, 2), {"inputs": X}), "weights: expected at least one"),
        (lambda: ansatz(NODE, None, {"inputs": X}), "weights: expected the QNode's arguments"),
        (lambda: ansatz(len, W), "circuit: expected a QNode"),
        (lambda: ansatz(torch.nn.Linear(1, 1)), "circuit: expected a QNode, a quantum layer"),
        (lambda: ansatz(fubini.QuantumLayer(NODE, {"w": (1, 2)})), "inputs: the layer has data"),
        (lambda: ansatz(qml.set_shots(NODE, 10), W, {"inputs": X}), "it has 10 shots"),
        (
            lambda: ansatz(NODE, W, {"inputs": torch.stack([X, X])}),
            "inputs: expected one input, a state that evolves, got a batch of 2",
        ),
    ],
)
def test_bad_arguments_are_named(call, words):
    with pytest.raises((TypeError, ValueError), match=words):
        call()


def test_operators_that_are_refused():
    circuit = fubini.Circuit.from_qnode(NODE, W, X)
    with pytest.raises(
        ValueError, match=r"on wires of the circuit, .0, 1., got one on .7. as well"
    ):
        terms_of("hamiltonian", qml.Z(7) + qml.Z(0), circuit)
    with pytest.raises(ValueError, match="hamiltonian: expected a Hermitian operator"):
        terms_of("hamiltonian", 1j * qml.Z(0), circuit)
    with pytest.raises(ValueError, match="hamiltonian: expected a Hermitian operator"):
        terms_of("hamiltonian", qml.S(0), circuit)
    with pytest.raises(ValueError, match=r"hamiltonian: expected finite coefficients"):
        terms_of("hamiltonian", np.nan * qml.Z(0), circuit)
    with pytest.raises(TypeError, match=r"for a matrix use qml.Hermitian"):
        terms_of("hamiltonian", np.eye(2), circuit)
    dense = qml.Hermitian(np.array([[0, 1j], [-1j, 0]]), 1)
    np.testing.assert_allclose(matrix(terms_of("o", dense, circuit), 2), qml.matrix(dense, [0, 1]))
    projector = qml.Projector([1, 0], [1, 0])
    node = qml.QNode(lambda w: [qml.RX(w, 0), qml.RX(w, 1), qml.expval(projector)][-1], DEVICE)
    own = own_terms(fubini.Circuit.from_qnode(node, 0.3), "")
    np.testing.assert_allclose(matrix(own, 2), qml.matrix(projector, [0, 1]), atol=1e-15)
    node = qml.QNode(lambda w: [qml.RX(w, 0), qml.probs(wires=[0])][-1], DEVICE)
    with pytest.raises(ValueError, match=r"one expectation value, got .'probs'.; say it"):
        own_terms(fubini.Circuit.from_qnode(node, 0.3), "say it")
