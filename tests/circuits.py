"""Circuits that several test modules share, and the oracle for metrics."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pennylane as qml
import torch

DEVICES = ["default.qubit", "lightning.qubit"]

# One-angle gates and gates without an angle, with the number of wires they take.
ANGLE_GATES: list[tuple[Callable[..., Any], int]] = [
    (qml.RX, 1),
    (qml.RY, 1),
    (qml.RZ, 1),
    (qml.PhaseShift, 1),
    (qml.CRX, 2),
    (qml.CRY, 2),
    (qml.CRZ, 2),
    (qml.ControlledPhaseShift, 2),
    (qml.CPhaseShift00, 2),
    (qml.IsingXX, 2),
    (qml.IsingYY, 2),
    (qml.IsingZZ, 2),
    (qml.IsingXY, 2),
    (qml.SingleExcitation, 2),
    (qml.SingleExcitationPlus, 2),
    (qml.PSWAP, 2),
    (lambda t, wires: qml.PauliRot(t, "XYZ", wires=wires), 3),
    (lambda t, wires: qml.MultiRZ(t, wires=wires), 3),
    (lambda t, wires: qml.ctrl(qml.RX(t, wires=wires[2]), control=wires[:2]), 3),
    (qml.DoubleExcitation, 4),
]
THREE_ANGLE_GATES: list[tuple[Callable[..., Any], int]] = [(qml.Rot, 1), (qml.U3, 1), (qml.CRot, 2)]
FIXED_GATES: list[tuple[Callable[..., Any], int]] = [
    (qml.Hadamard, 1),
    (qml.S, 1),
    (qml.SX, 1),
    (qml.CNOT, 2),
    (qml.CZ, 2),
    (qml.SWAP, 2),
    (qml.ISWAP, 2),
    (qml.Toffoli, 3),
]


@dataclass(frozen=True)
class RandomCircuit:
    """A random circuit whose angles come from weights, inputs, and arithmetic of both.

    Attributes:
        gates: Queues the gates for (inputs, weights).
        wires: Number of wires.
        weights: Number of weights; each drives exactly one gate unless ``shared``.
        features: Number of input features.
    """

    gates: Callable[..., None]
    wires: int
    weights: int
    features: int = 3

    def state(self, inputs: Any, weights: Any) -> Any:
        self.gates(inputs, weights)
        return qml.state()

    def qnode(self, device: str = "default.qubit", **kwargs: Any) -> Any:
        return qml.QNode(self.state, qml.device(device, wires=self.wires), **kwargs)

    def draw(self, seed: int, batch: int | None) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.features,) if batch is None else (batch, self.features)
        inputs = torch.randn(shape, generator=generator, dtype=torch.float64)
        weights = torch.randn(self.weights, generator=generator, dtype=torch.float64)
        return inputs, weights.requires_grad_()


def random_circuit(seed: int, *, shared: bool = False, gates: int = 14) -> RandomCircuit:
    """Draw a circuit on 2 to 4 wires from the gate tables."""
    rng = np.random.default_rng(seed)
    wires = int(rng.integers(2, 5))
    steps: list[tuple[Any, list[int], tuple[str, ...], list[int], float]] = []
    weights = 0
    kinds = ["weight", "scaled", "sum", "product", "input", "sine"]
    while len(steps) < gates or weights == 0:
        table = [ANGLE_GATES, ANGLE_GATES, THREE_ANGLE_GATES, FIXED_GATES][int(rng.integers(4))]
        gate, size = table[int(rng.integers(len(table)))]
        if size > wires:
            continue
        chosen = rng.permutation(wires)[:size].tolist()
        count = 0 if table is FIXED_GATES else 3 if table is THREE_ANGLE_GATES else 1
        sources = tuple(str(rng.choice(kinds)) for _ in range(count))
        indices = []
        for source in sources:
            reuse = shared and weights and rng.random() < 0.3
            indices.append(int(rng.integers(weights)) if reuse else weights)
            weights += 0 if reuse or source in ("input", "sine") else 1
        steps.append((gate, chosen, sources, indices, float(rng.normal())))

    def angle(source: str, index: int, scale: float, inputs: Any, w: Any) -> Any:
        x = inputs[..., index % 3]
        return {
            "weight": lambda: w[index],
            "scaled": lambda: scale * w[index] + 0.3,
            "sum": lambda: w[index] + x,
            "product": lambda: w[index] * x,
            "input": lambda: x,
            "sine": lambda: qml.math.sin(x) * scale,
        }[source]()

    def queue(inputs: Any, weights: Any) -> None:
        qml.Hadamard(0)
        for gate, chosen, sources, indices, scale in steps:
            angles = [
                angle(s, i, scale, inputs, weights) for s, i in zip(sources, indices, strict=True)
            ]
            gate(*angles, wires=chosen)
        for wire in range(wires):
            qml.Identity(wire)

    return RandomCircuit(queue, wires, weights)


def metric_by_autodiff(qnode: Any, inputs: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Full metric over the weights from PennyLane's state and torch's Jacobian: (batch, P, P) or (P, P).

    Shares no code with fubini, and contains all classical processing inside the QNode. Runs input by input, because
    PennyLane cannot differentiate a batched IsingXY.
    """
    if inputs.ndim > 1:
        return torch.stack([metric_by_autodiff(qnode, x, weights) for x in inputs])
    flat = weights.detach().reshape(-1)

    def state(w: torch.Tensor) -> torch.Tensor:
        return torch.view_as_real(qnode(inputs, w.reshape(weights.shape)))

    jacobian = torch.autograd.functional.jacobian(state, flat)
    derivatives = torch.complex(jacobian[..., 0, :], jacobian[..., 1, :])
    psi = torch.view_as_complex(state(flat).contiguous())
    overlaps = torch.einsum("...n,...nj->...j", psi.conj(), derivatives)
    gram = torch.einsum("...ni,...nj->...ij", derivatives.conj(), derivatives)
    return (gram - overlaps.conj()[..., :, None] * overlaps[..., None, :]).real
