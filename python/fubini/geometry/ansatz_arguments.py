"""What is passed for a circuit's weights and data, told apart and checked."""

import inspect
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.circuit.arguments import check_finite_array, real_numbers

ONE_INPUT = "inputs: expected one input, a state that evolves, got {}; evolve each by itself"


def qnode_arguments(
    qnode: Any, weights: Any, inputs: Any
) -> tuple[list[str], list[Any], dict[str, Any]]:
    """Return the names of a QNode's weights, their values, and its other arguments; see :func:`ansatz`.

    Args:
        qnode: The QNode.
        weights: Its positional arguments.
        inputs: Its other arguments, by name; None for none.

    Returns:
        The names, the values, and the others, without a graph.

    Raises:
        TypeError: If the inputs are no dictionary.
        ValueError: For too many, too few, or unknown ones.
    """
    if weights is None:
        raise ValueError("weights: expected the QNode's arguments, got None")
    given = list(weights) if isinstance(weights, tuple) else [weights]
    others = {} if inputs is None else inputs
    if not isinstance(others, Mapping):
        raise TypeError(
            f"inputs: expected a dictionary of the QNode's other arguments, got {type(inputs).__name__}; "
            "inputs={'x': x}"
        )
    parameters = inspect.signature(qnode.func).parameters
    positional = [
        n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    names = [n for n in positional if n not in others]
    unknown = [n for n in others if n not in parameters]
    if unknown:
        raise ValueError(f"inputs: expected arguments of the QNode, {positional}, got {unknown}")
    if len(given) > len(names):
        raise ValueError(
            f"weights: expected at most {len(names)} arguments, {names}, got a tuple of {len(given)}"
        )
    needed = [n for n in names[len(given) :] if parameters[n].default is inspect.Parameter.empty]
    if needed:
        raise ValueError(
            f"inputs: the circuit's argument {needed[0]!r} has no value; pass inputs={{{needed[0]!r}: ...}} if it is data, or "
            f"a tuple of weights ({', '.join(names)}) if it is trained"
        )
    return names[: len(given)], given, {n: _plain(n, v) for n, v in others.items()}


def _plain(name: str, value: Any) -> Any:
    """An argument that is no weight, without a graph."""
    if isinstance(value, torch.Tensor | np.ndarray):
        check_finite_array(name, value)
        kept = to_numpy(value, None)
        # Amplitudes of a state are complex.
        return torch.as_tensor(kept if kept.dtype.kind == "c" else to_numpy(value))
    return value


def layer_arguments(
    layer: Any, weights: Any, inputs: Any, batched: bool
) -> tuple[list[str], list[Any], torch.Tensor | None]:
    """Return the names of a layer's weights, their values, and its one input; see :func:`ansatz`.

    Args:
        layer: The layer.
        weights: None for its own.
        inputs: None for a layer without data.
        batched: Whether every weight has an axis in front of the layer's.

    Returns:
        The names, the values, and the input (features,) or None.

    Raises:
        ValueError: For another number of weights, or other shapes; for data that are missing, not one input, or not expected.
    """
    own = dict(layer.qnode_weights)
    given = list(own.values()) if weights is None else weights
    given = list(given) if isinstance(given, list | tuple) else [given]
    if len(given) != len(own):
        raise ValueError(f"weights: expected one array for each of {list(own)}, got {len(given)}")
    for (name, weight), value in zip(own.items(), given, strict=True):
        expected, got = tuple(weight.shape), np.shape(to_numpy(value))
        if (got[1:] if batched else got) != expected:
            raise ValueError(f"{name}: expected the layer's shape {expected}, got {got}")
    if layer.input_arg is None:
        if inputs is not None:
            raise ValueError("inputs: expected None for a layer without data")
        return list(own), given, None
    if inputs is None:
        raise ValueError(
            f"inputs: the layer has data, its argument {layer.input_arg!r}, and none was given; pass one input, inputs=x of "
            "shape (features,)"
        )
    real_numbers("inputs", inputs)
    x = torch.as_tensor(inputs).detach()
    check_finite_array("inputs", x)
    if x.ndim != 1:
        raise ValueError(ONE_INPUT.format(f"the shape {tuple(x.shape)}"))
    return list(own), given, x
