"""Runs a quantum function under a Watch, from a module of its own, and objects that such functions read."""

from typing import Any

import pennylane as qml
import torch

from fubini.compile.watch import Watch

INPUTS = torch.tensor([[0.2, 0.4, 0.1], [0.7, 0.9, 0.3]], dtype=torch.float64)
WEIGHTS = torch.tensor([[[0.1, 0.2, 0.3]] * 3], dtype=torch.float64, requires_grad=True)


def watched(function: Any, *args: Any) -> Watch:
    """The watch of one run of function(inputs, weights)."""
    watch = Watch(function)
    with qml.queuing.AnnotatedQueue(), watch:
        function(*(args or (INPUTS, WEIGHTS)))
    return watch


def angle(read: Any) -> Any:
    """A quantum function that adds what read() gives to its angle."""

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.RX(inputs[..., 0] + read(), 0)
        return qml.expval(qml.Z(0))

    return circuit


class Strict:
    depth = 3

    def __getattribute__(self, name: str) -> Any:
        return object.__getattribute__(self, name)


class Meta(type):
    hidden = 3

    @property
    def depth(cls) -> int:
        return cls.hidden


class WithMeta(metaclass=Meta):
    pass
