"""QuantumLayers that stand in for TorchLayers: with the same QNode and weights, so that these are compiled once."""

import weakref
from typing import Any

import pennylane as qml

from fubini.nn.layer import QuantumLayer

# While the layers live.
_KNOWN: weakref.WeakKeyDictionary[Any, QuantumLayer] = weakref.WeakKeyDictionary()


def quantum_layer(layer: Any) -> QuantumLayer | None:
    """Return a QuantumLayer itself, for a TorchLayer its stand-in, or None where there is none."""
    if isinstance(layer, QuantumLayer):
        return layer
    if not isinstance(layer, qml.qnn.TorchLayer):
        return None
    known = _KNOWN.get(layer)
    if known is not None:
        same = known.qnode is layer.qnode and known.input_arg == layer.input_arg
        weights = known.qnode_weights
        if same and all(weights.get(n) is w for n, w in layer.qnode_weights.items()):
            return known
    try:
        known = QuantumLayer.from_torch_layer(layer)
    except (TypeError, ValueError):  # a TorchLayer may do what a QuantumLayer does not allow
        return None
    _KNOWN[layer] = known
    return known


def as_native(layer: Any) -> QuantumLayer | None:
    """Return the layer that evaluates this one on the native engine, or None where it runs on its device."""
    found = quantum_layer(layer)
    return found if found is not None and found.engine == "native" else None
