"""Circuits whose weights a model passes to ``fubini.compiled(qnode)``, and the same models with layers."""

from collections.abc import Callable
from typing import Any

import pennylane as qml
import torch

import fubini

Tensor = torch.Tensor
WIRES = 3
SHAPE = (2, WIRES)
# The same angles, and sums in another order.
EXACT = {"rtol": 0.0, "atol": 1e-12}
X = torch.rand(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def body(inputs: Tensor, w: Tensor) -> None:
    for i in range(WIRES):
        qml.RY(inputs[..., i], i)
    for layer in w:
        for i in range(WIRES):
            qml.RY(layer[i], i)
            qml.RZ(0.5 * layer[i], i)
        for i in range(WIRES - 1):
            qml.CNOT([i, i + 1])


def observables() -> Any:
    return [qml.expval(qml.Z(i)) for i in range(WIRES)]


def device(name: str = "default.qubit") -> Any:
    return qml.device(name, wires=WIRES)


@qml.qnode(device())
def node(inputs: Tensor, w: Tensor) -> Any:
    body(inputs, w)
    return observables()


circuit = fubini.compiled(node)


def first_weights() -> Tensor:
    return torch.rand(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def batch(q: Any, x: Tensor, w: Any) -> Tensor:
    return torch.stack(q(x, w), -1)


def rows(q: Any, x: Tensor, w: Any) -> Tensor:
    return torch.stack([torch.hstack(q(row, w)) for row in x])


class Bare(torch.nn.Module):
    """As in PennyLane's tutorial on transfer learning: the weights are the model's own."""

    def __init__(self, call: Callable[..., Tensor] = batch, q: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pre, self.post = torch.nn.Linear(5, WIRES).double(), torch.nn.Linear(WIRES, 2).double()
        self.w = torch.nn.Parameter(first_weights())
        self.call = call
        if q is not None:
            self.q = q

    def weight(self) -> Any:
        return self.w

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.pre(x)) * torch.pi / 2
        q = getattr(self, "q", circuit)
        return self.post(self.call(q, x, self.weight()).to(x))


class Layered(Bare):
    """The same with a layer."""

    def __init__(self, qnode: Any = node, **options: Any) -> None:
        super().__init__()
        del self.w
        self.q = fubini.QuantumLayer(qnode, {"w": SHAPE}, {"w": first_weights()}, **options)

    def forward(self, x: Tensor) -> Tensor:
        return self.post(self.q(torch.tanh(self.pre(x)) * torch.pi / 2))


def trained(model: torch.nn.Module, steps: int = 3, x: Tensor = X, **options: Any) -> Any:
    """Take steps; the optimizer, and all parameters in one vector: those of the circuit first."""
    usual = {} if "loss" in options else {"metric": "quantum"}
    opt = fubini.QNGOptimizer(model, 0.1, **{**usual, **options})
    for _ in range(steps):
        opt.zero_grad()
        torch.nn.functional.mse_loss(model(x), Y[: len(x)]).backward()
        opt.step()
    named = sorted(model.named_parameters(), key=lambda pair: pair[0].replace("q.w", "w"))
    return opt, torch.cat([p.detach().reshape(-1) for _, p in named])


# -- several calls and circuits -------------------------------------------------------------------------------------
def energy_of(w: Tensor) -> Any:
    body(torch.zeros(WIRES), w)
    return qml.expval(qml.Z(0) @ qml.Z(1) + 0.3 * qml.X(2))


def other_energy_of(w: Tensor) -> Any:
    body(torch.ones(WIRES), torch.sin(w))
    return qml.expval(qml.X(1))


energy = fubini.compiled(qml.QNode(energy_of, device()))
other_energy = fubini.compiled(qml.QNode(other_energy_of, device()))
