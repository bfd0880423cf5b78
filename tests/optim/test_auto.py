"""approx="auto" of the optimizer: every form of the metric gives the step of the full matrix."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from fubini.blocks import DenseBlock, FactorBlock, OperatorBlock
from fubini.blocks.products import operator_block
from fubini.metric.operator import layer_operator, metric_operator

KINDS = {"dense": DenseBlock, "dual": FactorBlock, "matrix-free": OperatorBlock}


def layer_of(qubits: int = 2, layers: int = 6) -> fubini.QuantumLayer:
    @qml.qnode(qml.device("default.qubit", wires=qubits))
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(qubits))
        qml.StronglyEntanglingLayers(weights, wires=range(qubits))
        return [qml.expval(qml.Z(k)) for k in range(qubits)]

    torch.manual_seed(5)
    return fubini.QuantumLayer(circuit, {"weights": (layers, qubits, 3)}).double()


@pytest.mark.parametrize("form", KINDS)
def test_every_form_solves_like_the_matrix(form: Any) -> None:
    layer = layer_of()
    x = torch.rand(3, 2, dtype=torch.float64)
    operator = metric_operator(layer, form)(x)
    size = layer.weights.numel()
    other = torch.nn.Parameter(torch.zeros(0, dtype=torch.float64))
    block = operator_block(operator, [layer.weights, other], "layer")
    assert isinstance(block, KINDS[form])
    matrix = layer_operator(layer, x).dense().detach()
    rhs = torch.linspace(-1, 1, size, dtype=torch.float64)
    damping = torch.linspace(0.01, 0.03, size, dtype=torch.float64)
    found, info = block.solve(rhs, damping)
    expected = torch.linalg.solve(matrix + torch.diag(damping), rhs)
    # Conjugate gradients stop at a residual of 1e-10, and the damped matrix has a condition below 1e3.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert info.method == {"dense": "cholesky", "dual": "dual", "matrix-free": "cg"}[form]
    torch.testing.assert_close(block.product(rhs), matrix @ rhs, rtol=0, atol=1e-12)
    kept = block.restrict([True, False])
    torch.testing.assert_close(kept.solve(rhs, damping)[0], block.solve(rhs, damping)[0])


@pytest.mark.parametrize("form", KINDS)
def test_auto_ends_where_the_full_metric_ends(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {}
    for approx in (None, "auto"):
        if approx == "auto":
            monkeypatch.setattr(
                "fubini.optim.quantum_source.layer_operator",
                lambda layer, inputs, layers: metric_operator(layer, form, layers=layers)(inputs),  # type: ignore[arg-type]
            )
        layer = layer_of()
        model = torch.nn.Sequential(torch.nn.Linear(3, 2).double(), layer)
        with torch.no_grad():
            for p in model[0].parameters():
                p.copy_(torch.linspace(-0.5, 0.5, p.numel()).reshape(p.shape))
        opt = fubini.QNGOptimizer(model, lr=0.1, approx=approx, lam=1e-2, metric="quantum")  # type: ignore[arg-type]
        x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
        for _ in range(3):
            opt.zero_grad()
            (model(x) ** 2).sum().backward()
            opt.step()
        ends[approx] = layer.weights.detach().numpy().copy()
    np.testing.assert_allclose(ends["auto"], ends[None], atol=1e-6)
    assert {"dense": "cholesky", "dual": "dual", "matrix-free": "cg"}[form] in opt.explain()


def test_auto_chooses_by_itself_and_is_for_the_quantum_metric_only() -> None:
    layer = layer_of()
    opt = fubini.QNGOptimizer(layer, lr=0.1, approx="auto")
    assert opt.explain() == "No step has been taken yet."
    layer(torch.rand(3, 2, dtype=torch.float64)).sum().backward()
    opt.step()
    assert "36 x 36" in opt.explain()
    with pytest.raises(ValueError, match="approx: expected None"):
        fubini.QNGOptimizer(layer, metric="fisher", likelihood="gaussian", approx="auto")  # type: ignore[arg-type]
