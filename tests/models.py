"""Models that several test modules train."""

import functools
from collections.abc import Callable
from typing import Any

import pennylane as qml
import torch

import fubini


def entangler(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


def reuploading(inputs: Any, weights: Any, scale: Any) -> Any:
    for k in range(2):
        qml.RX(scale * inputs[..., 0], 0)
        qml.RY(weights[k, 0] * inputs[..., 1], 1)
        qml.CNOT([0, 1])
        qml.RY(weights[k, 1], 0)
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


def hybrid(
    device: str = "default.qubit",
    foreign: bool = False,
    second: bool = False,
    engine: Any = "auto",
) -> torch.nn.Sequential:
    dev = qml.device(device, wires=2)
    kind: Any = (
        qml.qnn.TorchLayer if foreign else functools.partial(fubini.QuantumLayer, engine=engine)
    )
    parts: list[torch.nn.Module] = [
        torch.nn.Linear(3, 2),
        kind(qml.QNode(entangler, dev), {"weights": (2, 2, 3)}),
    ]
    if second:
        parts += [kind(qml.QNode(reuploading, dev), {"weights": (2, 2), "scale": 1})]
    return torch.nn.Sequential(*parts, torch.nn.Linear(2, 1)).double()


def quadratic(
    opt_of: Callable[[torch.Tensor], Any], seed: int = 0, size: int = 4, factor: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Any, Callable[[], Any]]:
    """Loss x.Ax / 2 - sum x with another matrix G for a metric: parameters, A, G, optimizer, closure.

    Args:
        opt_of: Makes the optimizer of the parameters.
        seed: Of the matrices.
        size: Number of parameters.
        factor: Multiplies the loss.
    """
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(2, size, size, dtype=torch.float64, generator=generator)
    a, g = root @ root.mT + torch.eye(size, dtype=torch.float64)
    x = torch.randn(size, dtype=torch.float64, generator=generator).requires_grad_()
    opt = opt_of(x)

    def closure() -> Any:
        opt.zero_grad()
        loss = factor * (x @ a @ x / 2 - x.sum())
        loss.backward()
        return loss, lambda _: g

    return x, a, g, opt, closure
