"""The metric of QNodes called with JAX arrays; skipped where JAX is not installed."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini

jax = pytest.importorskip("jax")
# PennyLane reads tracers by names that JAX is about to remove.
pytestmark = pytest.mark.filterwarnings("ignore:jax.core:DeprecationWarning")
FUNCTIONS = [fubini.metric_tensor, fubini.geometric_tensor, fubini.quantum_fisher]


def circuit_of(library: Any) -> Any:
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(a: Any, b: Any, x: Any) -> Any:
        qml.AngleEmbedding(x, wires=range(2))
        qml.RX(library.sin(a[0]), 0)
        qml.RY(b * a[1] * x[..., 0], 0)
        qml.CNOT([0, 1])
        qml.RZ(a[0], 1)
        qml.U3(a[0], b, 0.2, wires=0)
        return qml.expval(qml.Z(0))

    return circuit


A, B = [0.1, 0.7], 0.2
X = [[0.3, 0.4], [0.5, 0.6], [0.7, 0.8]]


@pytest.mark.parametrize("inputs", [X, X[0]], ids=["batch", "single"])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_values_are_those_of_torch(function: Any, inputs: Any) -> None:
    a, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (A, B))
    x = torch.tensor(inputs, dtype=torch.float64)
    ja, jb, jx = (jax.numpy.array(v) for v in (A, B, inputs))
    with torch.no_grad():
        expected = function(circuit_of(torch))(a, b, x=x)
        joint = function(circuit_of(torch), joint=True)(a, b, x=x)
    jax_circuit = circuit_of(jax.numpy)
    got = function(jax_circuit, argnums=(0, 1))(ja, jb, x=jx)
    for mine, theirs in zip(got, expected, strict=True):
        assert isinstance(mine, jax.Array)
        np.testing.assert_allclose(np.asarray(mine), theirs.numpy(), rtol=0, atol=1e-6)
    got = function(jax_circuit, argnums=(0, 1), joint=True)(ja, jb, jx)
    np.testing.assert_allclose(np.asarray(got), joint.numpy(), rtol=0, atol=1e-6)
    first = function(jax_circuit)(ja, jb, jx)  # PennyLane's rule: the first argument
    np.testing.assert_allclose(np.asarray(first), expected[0].numpy(), rtol=0, atol=1e-6)
    assert first.dtype == (np.complex64 if function is fubini.geometric_tensor else np.float32)


def test_engines_agree() -> None:
    arguments = [jax.numpy.array(v) for v in (A, B, X)]
    native, device = (
        fubini.metric_tensor(circuit_of(jax.numpy), engine=engine)(*arguments)
        for engine in ("native", "device")
    )
    np.testing.assert_allclose(np.asarray(native), np.asarray(device), rtol=0, atol=1e-7)


def test_tracers_are_refused() -> None:
    metric = fubini.metric_tensor(circuit_of(jax.numpy))
    with pytest.raises(TypeError, match=r"got tracers; call the metric outside jax.jit"):
        jax.jit(lambda a: metric(a, jax.numpy.array(B), jax.numpy.array(X)))(jax.numpy.array(A))


def test_shots_reach_the_device() -> None:  # they were refused, as if the state were wanted
    @qml.set_shots(20_000)
    @qml.qnode(qml.device("default.qubit", wires=1, seed=1))
    def circuit(w: Any) -> Any:
        qml.RX(w[0], 0)
        qml.RY(w[1], 0)
        return qml.expval(qml.Z(0))

    w = jax.numpy.array([0.4, 0.9])
    metric = np.asarray(fubini.metric_tensor(circuit, "diag")(w))
    # var(X) = 1 and var(Y) = cos(w0)^2, over four; six standard errors of 20000 shots.
    np.testing.assert_allclose(np.diag(metric), [0.25, np.cos(0.4) ** 2 / 4], rtol=0, atol=6e-3)
