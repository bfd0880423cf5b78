"""Chains that train in whole steps of the kernel, beside copies of them that go block by block."""

import copy
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fubini
from fubini.optim.chain_step import ChainStep

D = torch.float64
FUNCTIONS: list[Callable[[], nn.Module]] = [nn.Tanh, nn.ReLU, nn.Sigmoid, nn.SiLU, nn.Identity]
LOSSES: list[tuple[Any, int]] = [
    (nn.CrossEntropyLoss(), 3),
    (nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1), 2),
    (nn.CrossEntropyLoss(), 5),
    (nn.BCEWithLogitsLoss(), 1),
    (nn.BCEWithLogitsLoss(reduction="sum"), 3),
    (nn.MSELoss(), 2),
    (nn.MSELoss(reduction="sum"), 1),
]


def circuit(wires: int, layers: int, foreign: bool = False) -> nn.Module:
    def function(inputs: Any, weights: Any, scale: Any) -> Any:
        for k in range(wires):
            qml.RX(scale * inputs[..., k], k)
        qml.StronglyEntanglingLayers(weights, range(wires))
        return [qml.expval(qml.Z(k)) for k in range(wires)]

    kind: Any = qml.qnn.TorchLayer if foreign else fubini.QuantumLayer
    qnode = qml.QNode(function, qml.device("default.qubit", wires=wires))
    return kind(qnode, {"weights": (layers, wires, 3), "scale": 1})  # type: ignore[no-any-return]


def drawn(seed: int, outputs: int) -> nn.Sequential:
    """A random chain of six inputs."""
    torch.manual_seed(seed)

    def pick(n: int) -> int:
        return int(torch.randint(n, ()))

    parts: list[nn.Module] = []
    width = 6
    if pick(4) == 0:
        wide = 24  # more rows than columns: not for the kernel's Kronecker products
        parts += [nn.Linear(width, wide), nn.Tanh()]
        width = wide
    for number in range(1 + pick(2)):
        wires = 2 + pick(2)
        parts.append(nn.Linear(width, wires, bias=pick(3) > 0))
        if pick(2):
            parts.append(FUNCTIONS[pick(len(FUNCTIONS))]())
        inner = circuit(wires, 1 + pick(2), foreign=pick(4) == 0)
        parts.append(nn.Sequential(inner) if number else inner)
        width = wires
    if pick(2):
        parts += [nn.Linear(width, 4), FUNCTIONS[pick(len(FUNCTIONS))]()]
        width = 4
    return nn.Sequential(*parts, nn.Linear(width, outputs, bias=pick(3) > 0))


def is_narrow(model: nn.Sequential) -> bool:
    """Whether no Kronecker product has more rows than the kernel takes."""
    return all(m.out_features <= 16 for m in model if isinstance(m, nn.Linear))


def batch(loss: Any, outputs: int, step: int, dtype: torch.dtype) -> tuple[Any, Any]:
    generator = torch.Generator().manual_seed(step)
    size = 7 if step % 4 == 3 else 12  # the last batch of an epoch
    x = torch.randn(size, 6, generator=generator, dtype=D).to(dtype)
    if isinstance(loss, nn.CrossEntropyLoss):
        return x, torch.randint(outputs, (size,), generator=generator)
    y = torch.randn(size, outputs, generator=generator, dtype=D).to(dtype)
    return x, y if isinstance(loss, nn.MSELoss) else (y > 0).to(dtype)


def train(
    model: nn.Module,
    opt: Any,
    loss: Any,
    outputs: int,
    steps: range,
    between: Callable[[int, Any], None] = lambda *_: None,
) -> None:
    dtype = next(model.parameters()).dtype
    for step in steps:
        x, y = batch(loss, outputs, step, dtype)
        opt.zero_grad()
        loss(model(x), y).backward()
        opt.step()
        between(step, opt)


def pair(model: nn.Module, loss: Any, **options: Any) -> tuple[Any, Any, nn.Module]:
    """Optimizers of a model and of its copy, the second of which goes block by block."""
    other = copy.deepcopy(model)
    mine = fubini.QNGOptimizer(model, loss=loss, **options)
    theirs = fubini.QNGOptimizer(other, loss=loss, **options)
    theirs._chain = None
    return mine, theirs, other


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Records of every step whether the kernel took it."""
    taken: list[bool] = []
    original = ChainStep.step

    def step(self: Any, groups: Any, state: Any) -> Any:
        found = original(self, groups, state)
        taken.append(found is not None)
        return found

    monkeypatch.setattr(ChainStep, "step", step)
    return taken


def assert_same(model: nn.Module, other: nn.Module, rtol: float = 1e-10) -> None:
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert_close(p, q, rtol=rtol, atol=rtol, msg=lambda text, name=name: f"{name}: {text}")


def small(outputs: int = 3) -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 2), circuit(2, 2), nn.Linear(2, outputs)).double()
