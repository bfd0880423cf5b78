"""The table of structures: hybrid models as people write them, each built once with TorchLayer and once with ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pennylane as qml
import torch

#: From the class of the quantum layer to the model.
Make = Callable[[Any], torch.nn.Module]


@dataclass(frozen=True)
class Structure:
    """A model.

    Attributes:
        make: Builds it.
        shape: Of one sample.
        single: Whether the model takes a sample without a batch.
        positive: Whether the samples are in (0, 1).
        way: ``"compiled"``, ``"traced"`` or ``"device"``.
    """

    make: Make
    shape: tuple[int, ...]
    single: bool
    positive: bool
    way: str


STRUCTURES: dict[str, Structure] = {}


def structure(
    *shape: int, single: bool = False, positive: bool = False, way: str = "compiled"
) -> Callable[[Make], Make]:
    """Put a model into the table."""

    def register(make: Make) -> Make:
        STRUCTURES[make.__name__] = Structure(make, shape, single, positive, way)
        return make

    return register


def device(wires: Any) -> Any:
    return qml.device("default.qubit", wires=wires)


def node(function: Any, wires: Any, **options: Any) -> Any:
    return qml.QNode(function, device(wires), **{"interface": "torch", **options})
