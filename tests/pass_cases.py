"""A step against the graph of the very pass that the loss was computed from: the Jacobian row by row."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.testing import assert_close

import fubini
from models import entangler

Tensor = torch.Tensor
LAM, LR = 1e-2, 0.1
#: Rounding of a system with condition numbers up to 1e4.
EXACT = {"rtol": 1e-8, "atol": 1e-10}


def flat(values: Any) -> Tensor:
    return torch.cat([v.detach().reshape(-1) for v in values])


def jacobian(output: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    rows = []
    for one in output.reshape(-1):
        found = torch.autograd.grad(one, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(found, parameters, strict=True)
        rows.append(flat(torch.zeros_like(p) if g is None else g for g, p in pairs))
    return torch.stack(rows)


def check_step(
    model: nn.Module,
    passes: Sequence[Any],
    *,
    before_step: Callable[[], Any] = lambda: None,
    mask: Callable[[Tensor], Tensor] = lambda f: f,
    lam: float = LAM,
    **options: Any,
) -> None:
    """A step with the joint matrix is that of the explicit matrix of these passes, for the mean of squares."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    options = {"approx": None, "metric": "fisher", "likelihood": "gaussian", **options}
    opt = fubini.QNGOptimizer(model, lr=LR, lam=lam, **options)
    torch.manual_seed(5)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        outputs = [model(*(x if isinstance(x, tuple) else (x,))) for x in passes]
        count = sum(f.numel() for f in outputs)
        matrix: Any = sum((j := jacobian(f, parameters)).mT @ j * (2 / count) for f in outputs)
        loss: Any = sum((f - 1.0).square().sum() for f in outputs) / count
        loss.backward()
    gradient = flat(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)
    start = flat(parameters)
    before_step()
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    buffers = {n: b.clone() for n, b in model.named_buffers()}
    flags = [m.training for m in model.modules()]
    opt.step()
    direction = torch.linalg.solve(matrix + lam * torch.eye(len(start)), gradient)
    assert_close(start - flat(parameters), LR * mask(direction), **EXACT)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert flags == [m.training for m in model.modules()]
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def circuit() -> fubini.QuantumLayer:
    import pennylane as qml

    qnode = qml.QNode(entangler, qml.device("default.qubit", wires=2))
    return fubini.QuantumLayer(qnode, {"weights": (2, 2, 3)}).double()
