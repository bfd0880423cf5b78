"""How the installed PennyLane's TorchLayer arranges a tuple of measurements of a batch."""

import functools
from typing import Any

import pennylane as qml
import torch


@functools.cache
def tuples_are_stacked() -> bool:
    """Return whether a tuple of measurements gets a new first axis; a list of them never does.

    PennyLane has changed this between versions, so the installed one is asked, by a layer of one wire, once.
    """

    def circuit(inputs: Any, w: Any) -> Any:
        qml.RX(inputs[..., 0], 0)
        qml.RY(w, 0)
        return qml.expval(qml.Z(0)), qml.expval(qml.X(0))

    with torch.no_grad(), qml.QueuingManager.stop_recording():
        qnode = qml.QNode(circuit, qml.device("default.qubit", wires=1))
        layer = qml.qnn.TorchLayer(qnode, {"w": ()}, {"w": torch.zeros(())})
        return int(layer(torch.zeros(3, 1)).shape[0]) == 2
