"""Puts QuantumLayers in the place of a model's TorchLayers."""

import functools
from collections.abc import Callable
from typing import Any

import pennylane as qml
import torch

from fubini.nn.evaluations import STAND_IN, TorchLayerHook, hide
from fubini.nn.layer import QuantumLayer
from fubini.options import Engine, check_engine

_OF_MODULES = frozenset(torch.nn.Module().__dict__)
_CONTENTS = ("_parameters", "_buffers", "_modules")
_OF_LAYERS = frozenset({"qnode", "qnode_weights", "_initialized"})


def replace_torch_layers(model: torch.nn.Module, *, engine: Engine = "auto") -> torch.nn.Module:
    """Replace every ``qml.qnn.TorchLayer`` in a model by a QuantumLayer with the same QNode and Parameters.

    The parameters stay the same objects, so torch's optimizers and state dictionaries stay valid. A layer that the model
    uses in several places is replaced by one layer in all of them, also in lists, tuples and dictionaries that are
    attributes of a module. Hooks, the training mode and further attributes go with the layer. A layer with code of its
    own (a subclass, a parametrised layer, a function put into one layer) stays the object that it is, and
    what it has of TorchLayer's evaluates by a QuantumLayer; where it calls its ``qnode`` itself, PennyLane does.

    Make a ``QNGOptimizer`` afterwards: one that was made before knows the layers that were replaced.

    Args:
        model: The model; changed in place.
        engine: As for QuantumLayer.

    Returns:
        The model; if the model is itself a TorchLayer, its replacement.

    Raises:
        TypeError: If model is no module, or a layer cannot be replaced; the model is then as it was.
        ValueError: For an unknown engine, or a layer that a QuantumLayer refuses; likewise.
        UnsupportedCircuitError: Likewise.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=1))
        ... def circuit(inputs, w):
        ...     qml.RX(inputs[..., 0], wires=0)
        ...     qml.RY(w, wires=0)
        ...     return qml.expval(qml.Z(0))
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1), qml.qnn.TorchLayer(circuit, {"w": ()}))
        >>> type(fubini.replace_torch_layers(model)[1]).__name__
        'QuantumLayer'
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    check_engine(engine)
    made: dict[int, _Replacement] = {}

    def found(path: str, layer: Any) -> Any:
        if id(layer) not in made:
            made[id(layer)] = _Replacement(path, layer, engine)
        return layer

    _exchange(model, found)  # an error comes before anything is changed
    for one in made.values():
        one.apply()
    result: torch.nn.Module = _exchange(model, lambda _, layer: made[id(layer)].result)
    return result


class _Replacement:
    """What becomes of one layer.

    Args:
        path: Where it was found, for messages.
        layer: The TorchLayer.
        engine: As for QuantumLayer.

    Attributes:
        result: What takes its place.
    """

    def __init__(self, path: str, layer: Any, engine: Engine) -> None:
        self._layer = layer
        self._extras = layer.__dict__.keys() - _OF_MODULES - _OF_LAYERS
        self._kind: Any = None
        if STAND_IN in layer.__dict__:
            self.result, self._new = layer, None
            return
        try:
            self._new = QuantumLayer.from_torch_layer(layer, engine=engine)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{path or 'model'}: {error}") from error
        self.result = self._new
        if type(layer) is qml.qnn.TorchLayer and not any(
            hasattr(kind, name) for kind in (self._new, qml.qnn.TorchLayer) for name in self._extras
        ):
            return
        kind: Any = type(layer)
        try:
            self._kind = _native(kind)
        except TypeError as error:
            raise TypeError(
                f"{path or 'model'}: expected a class that another one can be derived from, got {kind.__name__} ({error}); "
                "derive it from fubini.QuantumLayer"
            ) from error
        self.result = layer

    def apply(self) -> None:
        """Make the change."""
        old, new = self._layer, self._new
        if new is None:
            return
        if self._kind is not None:
            hide(new)
            old.__dict__[STAND_IN] = new
            old.__class__ = self._kind
            return
        for name in _OF_MODULES - set(_CONTENTS):
            if name in old.__dict__:
                new.__dict__[name] = old.__dict__[name]
        for hooks in (old._forward_hooks, old._forward_pre_hooks):
            for number, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), TorchLayerHook):
                    del hooks[number]
        for name in _CONTENTS:
            new.__dict__[name].update(old.__dict__[name])
        new.__dict__.update({name: old.__dict__[name] for name in self._extras})


@functools.cache
def _native(kind: Any) -> Any:
    """A class like a TorchLayer's, whose circuit is evaluated by a QuantumLayer."""
    bases = (_Native,) if kind is qml.qnn.TorchLayer else (kind, _Native)
    return type(kind.__name__, bases, {"__module__": kind.__module__, "_base": kind})


class _Native(qml.qnn.TorchLayer):  # type: ignore[misc]
    """What such classes have in common. It stands between their own code and TorchLayer's."""

    _base: Any = None

    def _evaluate_qnode(self, x: torch.Tensor) -> Any:
        layer: QuantumLayer = self.__dict__[STAND_IN]
        for name, weight in self.qnode_weights.items():
            layer._parameters[name] = weight
        return layer.evaluated(x)

    def __reduce__(self) -> Any:
        """For copies and pickles: the class is made anew from the original."""
        return _blank, (self._base,), self.__dict__


def _blank(kind: Any) -> Any:
    native = _native(kind)
    return native.__new__(native)


def _exchange(model: torch.nn.Module, by: Callable[[str, Any], Any]) -> Any:
    """The model with ``by(path, layer)`` in the place of every TorchLayer, also in containers that are attributes."""
    seen: set[int] = set()
    for path, module in list(model.named_modules()):
        start = f"{path}." if path else ""
        for name, child in module._modules.items():  # named_children() skips repetitions
            if isinstance(child, qml.qnn.TorchLayer):
                module._modules[name] = by(start + name, child)
        for name, value in list(module.__dict__.items()):
            if name not in _OF_MODULES and name != STAND_IN:
                here = functools.partial(by, start + name)
                module.__dict__[name] = _exchanged(value, here, seen)
    return by("", model) if isinstance(model, qml.qnn.TorchLayer) else model


def _exchanged(value: Any, replaced: Callable[[Any], Any], seen: set[int]) -> Any:
    """The same container with the layers in it replaced; a new one only where it cannot be changed."""
    if isinstance(value, qml.qnn.TorchLayer):
        return replaced(value)
    if not isinstance(value, dict | list | tuple | set):
        return value
    if not isinstance(value, tuple) and id(value) in seen:
        return value
    seen.add(id(value))
    if isinstance(value, dict):
        for key, one in list(value.items()):
            new = _exchanged(one, replaced, seen)
            if new is not one:
                value[key] = new
        return value
    items = list(value)
    changed = [_exchanged(one, replaced, seen) for one in items]
    if all(new is one for new, one in zip(changed, items, strict=True)):
        return value
    if isinstance(value, list):
        value[:] = changed
        return value
    if isinstance(value, set):
        value.clear()
        value.update(changed)
        return value
    make: Any = type(value)
    return make(*changed) if hasattr(value, "_fields") else make(changed)
