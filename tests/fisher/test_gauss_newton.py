"""The kernel's sums over data: Gauss-Newton blocks, covariances of observables, weighted metrics."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from fisher_cases import double_precision
from fubini import _core
from fubini.metric.points import at_inputs, layer_metric
from fubini.native.metric import observable_covariances
from fubini.nn.linearise import flat_weights
from quantum_layers import expvals, probabilities, quantum, squared

Tensor = torch.Tensor
_double = double_precision


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("bias", [False, True])
def test_sums_of_the_kernel_against_explicit_jacobians(rows: int, bias: bool) -> None:
    rng = np.random.default_rng(rows)
    data, width, count = 6, 4, 3
    factor = rng.normal(size=(data, rows, width))
    inputs = rng.normal(size=(data, count))
    jacobian = rng.normal(size=(data, width, 5))
    expected = sum(j.T @ s.T @ s @ j for s, j in zip(factor, jacobian, strict=True))
    np.testing.assert_allclose(_core.jacobian_block(factor, jacobian), expected, rtol=1e-13)
    pulled = np.stack([s @ j for s, j in zip(factor, jacobian, strict=True)])
    np.testing.assert_allclose(_core.pull_factor(factor, jacobian), pulled, rtol=1e-12, atol=1e-14)
    shared = _core.pull_factor(factor, jacobian[0])
    np.testing.assert_allclose(shared, factor @ jacobian[0], rtol=1e-12, atol=1e-14)

    def by_parameters(a: Any) -> Any:  # d (W a + b) / d (W, b)
        weight = np.kron(np.eye(width), a)
        return np.hstack([weight, np.eye(width)]) if bias else weight

    expected = sum(
        j.T @ s.T @ s @ j for s, a in zip(factor, inputs, strict=True) for j in [by_parameters(a)]
    )
    block = _core.linear_block(factor, inputs, bias)
    np.testing.assert_allclose(block, expected, rtol=1e-12, atol=1e-14)
    outer, inner = _core.kronecker_factors(factor, inputs, bias)
    ones = np.hstack([inputs, np.ones((data, 1))]) if bias else inputs
    flat = factor.reshape(-1, width)
    np.testing.assert_allclose(outer[0], flat.T @ flat, rtol=1e-13, atol=1e-14)
    np.testing.assert_allclose(inner[0], ones.T @ ones / data, rtol=1e-13, atol=1e-14)


def projected(inputs: Tensor, weights: Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return [
        qml.expval(qml.Projector([1, 0], wires=[1, 0])),
        qml.expval(qml.Z(0) + 0.5 * qml.Y(1) + 3.0 * qml.Identity(0)),
        qml.expval(qml.X(0)),
    ]


@pytest.mark.parametrize("function", [expvals, probabilities, projected])
def test_covariances_of_observables_against_their_matrices(function: Any) -> None:
    layer, inputs = quantum(function), torch.randn(4, 2)
    circuit = layer.compiled(inputs).circuit
    angles = layer.compiled(inputs).angles(flat_weights(layer), inputs.numpy())
    observables = [np.asarray(m) for m in MATRICES[function]]
    found = observable_covariances(circuit, angles, None)
    assert found is not None
    for psi, covariance in zip(_core.state(circuit.program, angles), found, strict=True):
        applied = [o @ psi for o in observables]
        means = [np.vdot(psi, a).real for a in applied]
        expected = [
            [np.vdot(a, b).real - m * n for b, n in zip(applied, means, strict=True)]
            for a, m in zip(applied, means, strict=True)
        ]
        np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-13)


def _word(*factors: Any) -> Any:
    return np.kron(*(qml.matrix(f) for f in factors))


def _outcome(first: int, second: int) -> Any:
    """|bits><bits| of wires 0 and 1."""
    matrix = np.zeros((4, 4))
    matrix[2 * first + second, 2 * first + second] = 1.0
    return matrix


MATRICES: dict[Any, list[Any]] = {
    expvals: [
        _word(qml.Z(0), qml.I(0)),
        _word(qml.X(0), qml.Y(0)),
        _word(qml.I(0), qml.Z(0)),
    ],
    # outcomes of wires 1 and 0, in this order
    probabilities: [_outcome(0, 0), _outcome(1, 0), _outcome(0, 1), _outcome(1, 1)],
    projected: [
        _outcome(0, 1),
        _word(qml.Z(0), qml.I(0)) + 0.5 * _word(qml.I(0), qml.Y(0)) + 3.0 * np.eye(4),
        _word(qml.X(0), qml.I(0)),
    ],
}


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
@pytest.mark.parametrize("function", [expvals, probabilities, squared])
def test_weighted_sums_of_metrics_are_sums_over_inputs(function: Any, approx: Any) -> None:
    layer, inputs = quantum(function), torch.randn(5, 2)
    weights = np.random.default_rng(1).uniform(size=5)
    pullback = at_inputs(layer, inputs).pullback
    assert pullback is not None
    expected = np.tensordot(weights, layer_metric(layer, inputs, approx), 1)
    found = pullback.weighted_sum(weights, approx)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_the_kernel_refuses_shapes_that_do_not_fit() -> None:
    factor = np.zeros((2, 3, 4))
    with pytest.raises(ValueError, match="jacobian: expected shape"):
        _core.jacobian_block(factor, np.zeros((2, 3, 5)))
    with pytest.raises(ValueError, match="jacobian: expected shape"):
        _core.pull_factor(factor, np.zeros((3, 5)))
    with pytest.raises(ValueError, match="inputs: expected shape"):
        _core.linear_block(factor, np.zeros((3, 5)), True)
    with pytest.raises(ValueError, match="factor: expected shape"):
        _core.kronecker_factors(np.zeros((3, 4)), np.zeros((3, 5)), True)
    with pytest.raises(ValueError, match="family: expected"):
        _core.output_factor("poisson", np.zeros((3, 5)), 1.0)
