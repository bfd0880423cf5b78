"""Arguments of evolutions, growth and reports that were taken for something else, or refused without their name."""

from __future__ import annotations

import pickle

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini


def node():
    @qml.qnode(qml.device("default.qubit", wires=1))
    def circuit(w):
        qml.RX(w[0], 0)
        qml.RZ(w[1], 0)
        return qml.expval(qml.Z(0) + 0.5 * qml.X(0))

    return circuit


W = np.array([0.3, 0.1])
FISHERS = np.eye(3)[None]
POOL = [qml.RY(0.0, 0)]


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("w", lambda: fubini.evolve(node(), W + 1j)),
        ("w", lambda: fubini.evolve(node(), torch.tensor(W) + 1j)),
        ("times", lambda: fubini.evolve(node(), W, 1j)),
        (
            "coefficients",
            lambda: fubini.evolve(node(), W, hamiltonian=[qml.X(0)], coefficients=[1j]),
        ),
        (
            r"coefficients\(0\)",
            lambda: fubini.evolve(node(), W, hamiltonian=[qml.X(0)], coefficients=lambda t: [1j]),
        ),
        ("times", lambda: fubini.grow(qml.Z(0), POOL, times=[0, 1j])),
        ("optimize", lambda: fubini.grow(qml.X(0), POOL, optimize=lambda e, w: w + 1j)),
        ("fishers", lambda: fubini.effective_dimension(FISHERS * 1j, 1000)),
        (r"weights\['w'\]", lambda: fubini.report(node(), weights={"w": W * 1j}, draws=2)),
    ],
)
def test_imaginary_parts_are_refused_and_not_dropped(name, call):
    with pytest.raises(TypeError, match=f"^{name}: expected real numbers, got complex"):
        call()


@pytest.mark.parametrize("batched", [False, True])
def test_weights_of_a_layer_have_its_shapes(batched):
    # Two weights in the wrong order were evolved as those of other gates.
    @qml.qnode(qml.device("default.qubit", wires=1))
    def circuit(a, b):
        for k in range(2):
            qml.RX(a[k], 0)
        for k in range(3):
            qml.RY(b[k], 0)
        return qml.expval(qml.Z(0))

    layer = fubini.QuantumLayer(circuit, {"a": 2, "b": 3})
    a, b = (np.full((2, n) if batched else n, 0.1) for n in (2, 3))
    fubini.evolve(layer, (a, b), 0.1, batched=batched)
    with pytest.raises(ValueError, match=r"^a: expected the layer's shape \(2,\), got"):
        fubini.evolve(layer, (b, a), 0.1, batched=batched)


def test_complex_amplitudes_among_the_arguments_keep_their_imaginary_parts():
    # The data of a QNode became real numbers: |0> + i|1> was evolved as |0>.
    @qml.qnode(qml.device("default.qubit", wires=1))
    def circuit(w, state):
        qml.StatePrep(state, 0)
        qml.RX(w[0], 0)
        return qml.expval(qml.Y(0))

    state = np.array([1, 1j]) / np.sqrt(2)
    result = fubini.evolve(circuit, np.array([0.2]), [0, 0.1], inputs={"state": state})
    np.testing.assert_allclose(result.energies[0], circuit(np.array([0.2]), state), atol=1e-12)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("w", lambda: fubini.evolve(node(), {"a": 0.1})),
        ("w", lambda: fubini.evolve(node(), [[1, 2], [3]])),
        ("times", lambda: fubini.evolve(node(), W, None)),
        (
            "coefficients",
            lambda: fubini.evolve(node(), W, hamiltonian=[qml.X(0)], coefficients="a"),
        ),
        ("optimize", lambda: fubini.grow(qml.X(0), POOL, optimize=3)),
        ("optimize", lambda: fubini.grow(qml.X(0), POOL, optimize=lambda e, w: None)),
        ("data", lambda: fubini.effective_dimension(FISHERS, "a")),
        ("data", lambda: fubini.report(node(), weights={"w": 2}, data="a")),
        ("init_method", lambda: fubini.report(node(), weights={"w": 2}, init_method=3)),
        ("radius", lambda: fubini.report(node(), weights={"w": 2}, radius="a")),
    ],
)
def test_other_kinds_are_refused_by_name(name, call):
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        call()


def test_weights_that_are_none_at_all_and_batches_without_entries_are_refused_by_name():
    empty = qml.QNode(lambda: qml.expval(qml.Z(0)), qml.device("default.qubit", wires=1))
    with pytest.raises(ValueError, match=r"^weights: expected at least one"):
        fubini.evolve(empty, ())
    with pytest.raises(ValueError, match=r"^w: expected an axis of trajectories"):
        fubini.evolve(node(), np.zeros((0, 2)), batched=True)


def test_coefficients_have_as_many_rows_at_all_times():
    with pytest.raises(ValueError, match=r"^coefficients: expected as many rows at all times, 1"):
        fubini.evolve(
            node(),
            W,
            hamiltonian=[qml.X(0)],
            coefficients=lambda t: [[1.0], [2.0]] if t else [1.0],
        )


def test_a_hamiltonian_that_jumps_is_refused_with_a_remedy_that_works():
    before, after = qml.X(0), qml.Z(0)
    message = "where hamiltonian.t. jumps"
    with pytest.raises(fubini.NumericalError, match=message):
        fubini.evolve(node(), W, 1.0, hamiltonian=lambda t: before if t < 0.37 else after)
    first = fubini.evolve(node(), W, [0, 0.37], hamiltonian=before)
    second = fubini.evolve(node(), first.weights[-1], [0.37, 1.0], hamiltonian=after)
    assert second.infidelity_bound[-1] < 1e-6


def test_features_of_another_number_are_refused_by_name():
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(inputs, w):
        qml.AngleEmbedding(inputs, [0, 1])
        qml.BasicEntanglerLayers(w, [0, 1])
        return qml.expval(qml.Z(0))

    layer = fubini.QuantumLayer(circuit, {"w": (1, 2)})
    layer(torch.ones(2))
    with pytest.raises(ValueError, match="inputs: expected 2 features, got 3"):
        fubini.evolve(layer, inputs=torch.ones(3))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [(-np.eye(2), "negative eigenvalues"), (np.array([[1.0, 1], [0, 1]]), "symmetric")],
)
def test_matrices_that_are_no_fisher_matrices_have_no_effective_dimension(matrix, message):
    with pytest.raises(ValueError, match=f"^fishers: expected .*{message}"):
        fubini.effective_dimension(matrix[None], 1000)


def test_what_an_evolution_says_of_pickling_works():
    # It named a class of the kernel.
    result = fubini.evolve(node(), W, [0, 0.2])
    with pytest.raises(TypeError, match=r"^Evolution: expected no pickling .*result\.final"):
        pickle.dumps(result)
    more = fubini.evolve(node(), result.final, [result.times[-1], 0.4])
    np.testing.assert_allclose(more.energies[-1], result.extend([0.4]).energies[-1], atol=1e-5)


@pytest.mark.parametrize("seed", ["a", None, -1, 1.5])
def test_seeds_that_are_none_are_refused_by_name(seed):
    with pytest.raises(ValueError, match=r"^seed: expected an integer of at least 0"):
        fubini.report(node(), weights={"w": 2}, draws=2, seed=seed)


def test_observables_with_one_name_do_not_replace_each_other():
    with pytest.raises(ValueError, match=r"^observables: expected names that differ"):
        fubini.evolve(node(), W, 0.1, observables={1: qml.X(0), "1": qml.Z(0)})
