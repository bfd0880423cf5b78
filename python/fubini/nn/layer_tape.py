"""A layer's quantum function at given inputs, as gates with one angle each."""

from collections.abc import Mapping
from typing import Any

import torch

from fubini.circuit.angles import gate_tape
from fubini.circuit.tape import GateTape


def layer_arguments(layer: Any, inputs: torch.Tensor, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a layer's QNode by name; ``inputs``: left out for a layer without data."""
    data = {} if layer.input_arg is None else {layer.input_arg: inputs}
    return {**data, **weights}


def layer_tape(
    layer: Any,
    inputs: torch.Tensor,
    weights: Mapping[str, Any] | None = None,
    *,
    pure: bool = False,
) -> GateTape:
    """Return the gates of a layer's circuit, decided by values as in its forward.

    Args:
        layer: A QuantumLayer or TorchLayer.
        inputs: (features,) or (batch, features).
        weights: By name; they are what the Jacobian is by. None: the layer's own.
        pure: As for ``fubini.circuit.angles.gate_tape``.

    Returns:
        The circuit at these inputs and weights.
    """
    weights = layer.qnode_weights if weights is None else weights
    if inputs.is_floating_point():  # the layer, too, passes weights of the inputs' dtype
        weights = {name: w.to(inputs) for name, w in weights.items()}
    passed = layer_arguments(layer, inputs, weights)
    return gate_tape(layer.qnode, (), passed, list(weights), pure=pure, as_passed=True)
