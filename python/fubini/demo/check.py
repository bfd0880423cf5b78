"""``python -m fubini check model.py:build_model``: what of a model would run natively, what not, and why."""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pennylane.qnn.torch import TorchLayer

from fubini.fisher.rules import rule_for
from fubini.nn.layer import QuantumLayer
from fubini.nn.replace import replace_torch_layers


def check(target: str, shape: tuple[int, ...] | None = None) -> str:
    """Return a report on a model: one line for each layer that has parameters.

    The model is called once with random inputs, so that its circuits are compiled; a ``TorchLayer`` is looked at as the
    ``QuantumLayer`` that would take its place. Nothing of yours is changed: the report is on what the function returned.

    Args:
        target: ``file.py:name`` or ``package.module:name``: a function without arguments that returns the model, or the model
            and an example of its inputs; or the model itself.
        shape: Of random inputs, (batch, ...), where there is no example. None: (2, features) for a model that begins with
            a ``torch.nn.Linear``, else no call.

    Returns:
        The report.

    Raises:
        TypeError: If target names something else than a model.
        ValueError: If target names nothing, or the call of the model fails; says what to do.

    Example:
        >>> from fubini.demo.check import check
        >>> print(check("torch.nn:Identity"))
        Identity: no parameters
    """
    model, inputs = _model(target)
    replaced = {name for name, layer in model.named_modules() if isinstance(layer, TorchLayer)}
    model = replace_torch_layers(model)
    called = _call(model, inputs, shape)
    lines = list(_lines(model, replaced))
    if not lines:
        return f"{type(model).__name__}: no parameters"
    if not called and any(isinstance(layer, QuantumLayer) for layer in model.modules()):
        lines.append(
            "The model was not called, so that its circuits are not compiled yet: give --inputs 8,4 or the like,"
        )
        lines.append("or let the function return the model and an example of its inputs.")
    return "\n".join(lines)


def _lines(model: torch.nn.Module, replaced: set[str]) -> Iterator[str]:
    """Yield what is known of each layer that has parameters of its own."""
    for name, layer in model.named_modules():
        size = sum(parameter.numel() for parameter in layer.parameters(recurse=False))
        if not size:
            continue
        if isinstance(layer, QuantumLayer):
            said = layer.explain()
            if name in replaced and layer.engine == "native":
                said += " PennyLane runs it today, as a TorchLayer: fubini.replace_torch_layers(model) changes that."
        elif rule_for(layer) is not None:
            said = "Has a rule for its block of the Fisher matrix."
        else:
            said = "Has no rule for its block of the Fisher matrix: take approx=None, or fallback='diagonal'."
        yield f"{name or 'model'} ({type(layer).__name__}, {size} parameters): {said}"


def _model(target: str) -> tuple[torch.nn.Module, tuple[Any, ...] | None]:
    """Return the model that a target names, and its inputs where they come with it."""
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise ValueError(f"model: expected FILE.py:NAME or MODULE:NAME, got {target!r}")
    found: Any = _module(place)
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"model: expected {name!r} in {place}, found none")
        found = getattr(found, part)
    if callable(found) and not isinstance(found, torch.nn.Module):
        if inspect.signature(found).parameters:
            raise ValueError(
                f"model: expected a function without arguments, got {name}{inspect.signature(found)}"
            )
        found = found()
    inputs = None
    if isinstance(found, tuple) and len(found) == 2:
        found, inputs = found
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    if not isinstance(found, torch.nn.Module):
        raise TypeError(
            f"model: expected {name!r} to be or to return a torch.nn.Module, or it and its inputs, got {type(found).__name__}"
        )
    return found, inputs


def _module(place: str) -> ModuleType:
    """Import a file by its path, or a module by its name."""
    path = Path(place)
    if path.suffix != ".py":
        return importlib.import_module(place)
    if not path.is_file():
        raise ValueError(f"model: expected the file {place}, found none")
    specification = importlib.util.spec_from_file_location(path.stem, path)
    if specification is None or specification.loader is None:
        raise ValueError(f"model: expected {place} to be Python, got something else")
    module = importlib.util.module_from_spec(specification)
    sys.path.insert(0, str(path.parent.resolve()))  # what stands beside it
    try:
        specification.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def _call(
    model: torch.nn.Module, inputs: tuple[Any, ...] | None, shape: tuple[int, ...] | None
) -> bool:
    """Call the model; return whether there was something to call it with."""
    first = next((layer for layer in model.modules() if not list(layer.children())), None)
    if inputs is None:
        if shape is None and isinstance(first, torch.nn.Linear):
            shape = (2, first.in_features)
        if shape is not None:
            dtype = next((p.dtype for p in model.parameters()), torch.get_default_dtype())
            inputs = (torch.rand(shape, dtype=dtype),)
        elif isinstance(model, QuantumLayer) and model.input_arg is None:
            inputs = ()
        else:
            return False
    try:
        model(*inputs)
    except Exception as error:
        raise ValueError(
            f"inputs: expected that the model takes them, got {type(error).__name__}: {error}; give --inputs, or let the "
            "function return the model and an example of its inputs"
        ) from error
    return True
