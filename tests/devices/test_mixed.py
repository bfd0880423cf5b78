"""Metrics of mixed states: pure limits, closed forms, monotony, and SciPy's Lyapunov equation."""

import itertools
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import scipy.linalg

from circuits import random_circuit
from devices_common import tape_of
from fubini import UnsupportedCircuitError
from fubini.devices.executor import Executor
from fubini.devices.mixed import hilbert_schmidt, mixed_metric_job, sld_fisher
from fubini.devices.usage import Usage
from reference import geometric_tensor


def metric(function: Any, wires: int, weights: Any, inputs: Any = None, **options: Any) -> Any:
    dev = qml.device("default.mixed", wires=wires)
    tape = tape_of(function, dev, weights, inputs)
    return mixed_metric_job(tape, dev, **options).run(Executor(dev))


@pytest.mark.parametrize("kind", ["fisher", "hilbert-schmidt"])
@pytest.mark.parametrize("seed", range(8))
def test_noiseless_circuits_have_the_pure_metric(seed: int, kind: Any) -> None:
    circuit = random_circuit(3000 + seed, gates=8)
    inputs, weights = circuit.draw(seed, [None, 3][seed % 2])

    def function(x: Any, w: Any) -> Any:
        circuit.gates(x, w)
        return qml.expval(qml.Z(0))

    dev = qml.device("default.mixed", wires=circuit.wires)
    tape = tape_of(function, dev, weights.detach(), inputs)
    found = mixed_metric_job(tape, dev, kind=kind).run(Executor(dev))
    for b in range(len(found)):
        # Eigenvalues of a pure state are zero up to 1e-16, far below the cutoff.
        np.testing.assert_allclose(found[b], geometric_tensor(tape, b).real, rtol=0, atol=1e-8)


@pytest.mark.parametrize("p", [0.0, 0.05, 0.3, 0.7])
def test_a_depolarised_qubit(p: float) -> None:
    """The Bloch vector is shortened to r = 1 - 4p/3, and F = r^2 for a rotation across it."""

    def function(w: Any) -> Any:
        qml.RY(w[0], 0)
        qml.DepolarizingChannel(p, 0)
        return qml.expval(qml.Z(0))

    r = 1.0 - 4.0 * p / 3.0
    fisher = 4.0 * metric(function, 1, [0.7])
    np.testing.assert_allclose(fisher, [[[r**2]]], rtol=0, atol=1e-10)
    # Tr(d rho^2)/2 = |dr|^2/4.
    flat = metric(function, 1, [0.7], kind="hilbert-schmidt")
    np.testing.assert_allclose(flat, [[[r**2 / 4.0]]], rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.05, 0.3, 0.8])
@pytest.mark.parametrize("theta", [0.4, 2.0])
def test_an_amplitude_damped_qubit(gamma: float, theta: float) -> None:
    """F = |dr|^2 + (r.dr)^2 / (1 - |r|^2) for r = (sqrt(1-g) sin t, 0, g + (1-g) cos t)."""

    def function(w: Any) -> Any:
        qml.RY(w[0], 0)
        qml.AmplitudeDamping(gamma, 0)
        return qml.expval(qml.Z(0))

    r = np.array([np.sqrt(1 - gamma) * np.sin(theta), gamma + (1 - gamma) * np.cos(theta)])
    d = np.array([np.sqrt(1 - gamma) * np.cos(theta), -(1 - gamma) * np.sin(theta)])
    expected = d @ d + (r @ d) ** 2 / (1 - r @ r)
    found = 4.0 * metric(function, 1, [theta])[0, 0, 0]
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("channel", ["depolarise", "damp", "dephase"])
def test_information_falls_with_noise(channel: str) -> None:
    def function(p: float) -> Any:
        def circuit(w: Any) -> Any:
            for k in range(2):
                qml.RY(w[k], k)
                qml.RX(w[2 + k], k)
            qml.CRZ(w[4], [0, 1])
            qml.RY(w[5], 1)
            for k in range(2):  # at the end: all information passes the channel
                if channel == "depolarise":
                    qml.DepolarizingChannel(0.75 * p, k)
                elif channel == "damp":
                    qml.AmplitudeDamping(p, k)
                else:
                    qml.PhaseDamping(p, k)
            return qml.expval(qml.Z(0))

        return circuit

    weights = np.linspace(0.3, 2.0, 6)
    found = [metric(function(p), 2, weights)[0] for p in (0.0, 0.1, 0.25, 0.5, 0.8, 0.95)]
    for before, after in itertools.pairwise(found):
        # Monotone as a matrix: F(less noise) - F(more noise) is positive semi-definite.
        assert np.linalg.eigvalsh(before - after).min() >= -1e-9
        assert np.trace(after) < np.trace(before)


def test_against_the_lyapunov_equation() -> None:
    """L rho + rho L = 2 d rho; F_ij = Tr(rho {L_i, L_j})/2."""
    rng = np.random.default_rng(7)

    def hermitian() -> Any:
        a = rng.normal(size=(5, 5)) + 1j * rng.normal(size=(5, 5))
        return a + a.conj().T

    states, derivatives, expected = [], [], []
    for _ in range(3):
        root = hermitian()
        rho = root @ root
        rho = rho / np.trace(rho)
        moved = [m - np.trace(m) / 5 * np.eye(5) for m in (hermitian(), hermitian(), hermitian())]
        logs = [scipy.linalg.solve_continuous_lyapunov(rho, 2 * m) for m in moved]
        expected.append([[np.trace(rho @ (a @ b + b @ a)).real / 2 for b in logs] for a in logs])
        states.append(rho)
        derivatives.append(moved)
    found = sld_fisher(np.array(states), np.array(derivatives), 1e-12)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    traces = hilbert_schmidt(np.array(derivatives))
    flat = np.array(derivatives)
    np.testing.assert_allclose(traces, np.einsum("bikl,bjlk->bij", flat, flat).real, rtol=1e-12)


def test_counts_and_refusals() -> None:
    def function(x: Any, w: Any) -> Any:
        qml.RX(x[..., 0], 0)
        qml.RY(w[0], 0)
        qml.CRX(w[1], [0, 1])
        return qml.expval(qml.Z(0))

    dev = qml.device("default.mixed", wires=2)
    tape = tape_of(function, dev, [0.1, 0.2], np.array([[0.1], [0.2], [0.3]]))
    assert mixed_metric_job(tape, dev).cost(Executor(dev)) == Usage(1, 1, 3 * (2 + 4 + 1), 0)
    with pytest.raises(
        UnsupportedCircuitError, match=r"expected default\.mixed.*got 'default\.qubit'"
    ):
        mixed_metric_job(tape, qml.device("default.qubit", wires=2))
    for options, text in (({"kind": "bures"}, "kind"), ({"cutoff": 0.0}, "cutoff")):
        with pytest.raises(ValueError, match=f"{text}: expected"):
            mixed_metric_job(tape, dev, **options)
