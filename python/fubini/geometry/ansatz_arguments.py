"""What is passed for a circuit's weights and data, told apart and checked."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.circuit.arguments import check_finite_array, real_numbers

ONE_INPUT = "inputs: expected one input, a state that evolves, got {}; evolve each by itself"


def plain(name: str, value: Any) -> Any:
    """An argument that is no weight, without a graph."""
    if isinstance(value, torch.Tensor | np.ndarray):
        check_finite_array(name, value)
        kept = to_numpy(value, None)
        # Amplitudes of a state are complex.
        return torch.as_tensor(kept if kept.dtype.kind == "c" else to_numpy(value))
    return value


def argument_names(qnode: Any, given: Sequence[Any], others: Mapping[str, Any]) -> list[str]:
    """Return the names of the arguments of a QNode that are weights.

    Args:
        qnode: The QNode.
        given: Its positional arguments.
        others: Its other arguments.

    Raises:
        ValueError: For too many, too few, or unknown ones.
    """
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
    return names[: len(given)]


def layer_arguments(
    layer: Any, weights: Any, inputs: Any
) -> tuple[list[str], list[Any], torch.Tensor | None]:
    """Return the names of a layer's weights, their values, and its one input; see :func:`ansatz`.

    Args:
        layer: The layer.
        weights: None for its own.
        inputs: None for a layer without data.

    Returns:
        The names, the values, and the input (features,) or None.

    Raises:
        ValueError: For another number of weights; for data that are missing, not one input, or not expected.
    """
    own = dict(layer.qnode_weights)
    given = list(own.values()) if weights is None else weights
    given = list(given) if isinstance(given, list | tuple) else [given]
    if len(given) != len(own):
        raise ValueError(f"weights: expected one array for each of {list(own)}, got {len(given)}")
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
