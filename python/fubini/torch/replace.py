"""Puts QuantumLayers in the place of a model's TorchLayers."""

from typing import Any

import pennylane as qml
import torch

from fubini.torch.layer import Engine, QuantumLayer


def replace_torch_layers(model: torch.nn.Module, *, engine: Engine = "auto") -> torch.nn.Module:
    """Replace every ``qml.qnn.TorchLayer`` in a model by a QuantumLayer with the same QNode and Parameters.

    The parameters stay the same objects, so torch's optimizers and state dictionaries stay valid. A layer that the model
    uses in several places is replaced by one layer in all of them. Hooks that were registered on a TorchLayer are not
    moved: make a ``QNGOptimizer``, which hooks its layers, afterwards.

    Args:
        model: The model; changed in place.
        engine: As for QuantumLayer.

    Returns:
        The model; if the model is itself a TorchLayer, its replacement.

    Raises:
        TypeError: If model is no module.
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    replaced: dict[Any, QuantumLayer] = {}

    def replacement(layer: Any) -> QuantumLayer:
        if layer not in replaced:
            replaced[layer] = QuantumLayer.from_torch_layer(layer, engine=engine)
        return replaced[layer]

    if isinstance(model, qml.qnn.TorchLayer):
        return replacement(model)
    for parent in list(model.modules()):
        if isinstance(parent, qml.qnn.TorchLayer):
            continue
        for name, child in parent._modules.items():  # named_children() skips repetitions
            if isinstance(child, qml.qnn.TorchLayer):
                parent._modules[name] = replacement(child)
    return model
