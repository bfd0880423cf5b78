"""The three-qubit circuit: four angles, two of which share a block of the metric, and a known minimum."""

import math
from typing import Any

import pennylane as qml
import torch

from fubini.demo.training import MINIMIZE, Case, minimiser

START = (0.432, -0.123, 0.543, 0.233)
MINIMUM = -math.sin(math.pi / 4) * math.sin(math.pi / 3)
TOLERANCE = 1e-6


def make_circuit() -> Any:
    """Return the QNode; the last angle has no influence on its value."""

    def circuit(p: torch.Tensor) -> Any:
        for wire, angle in enumerate((math.pi / 4, math.pi / 3, math.pi / 7)):
            qml.RY(angle, wires=wire)
        qml.RZ(p[0], wires=0)
        qml.RZ(p[1], wires=1)
        qml.CNOT(wires=[0, 1])
        qml.CNOT(wires=[1, 2])
        qml.RY(p[2], wires=1)
        qml.RX(p[3], wires=2)
        qml.CNOT(wires=[0, 1])
        qml.CNOT(wires=[1, 2])
        return qml.expval(qml.Y(0))

    return qml.QNode(circuit, qml.device("default.qubit", wires=3), interface="torch")


def start(seed: int) -> torch.Tensor:
    """Return where to begin: for the seed 0 the fixed start, otherwise at random near it."""
    fixed = torch.tensor(START, dtype=torch.float64)
    if not seed:
        return fixed
    generator = torch.Generator().manual_seed(seed)
    return fixed + 0.3 * torch.randn(4, dtype=torch.float64, generator=generator)


CASE = Case(
    name="circuit",
    title="Three-qubit circuit",
    measure="error of <Y0>",
    target="error <= 1e-6",
    steps=200,
    quick_steps=5,
    grid=((0.01,), (0.03,), (0.1,), (0.3,), (1.0,), (3.0,)),
    rates={
        "SGD": (1.0,),
        "Adam": (1.0,),
        "QNG diag": (0.3,),
        "QNG block-diag": (0.1,),
        MINIMIZE: (),
    },
    log_scale=True,
    train=minimiser(make_circuit, start, lambda: MINIMUM, TOLERANCE),
)
