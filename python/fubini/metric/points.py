"""From the arguments of QNodes and layers to points: a circuit at given weights and inputs, whose metric is asked for."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.circuit.arguments import Argnums, check_finite_array
from fubini.metric.engines import Call, Point, at_call, of_gates
from fubini.native.pullback import Pullback
from fubini.nn.layer_weights import layer_arguments, layer_tape
from fubini.nn.qnode_function import plain_qnode
from fubini.nn.stand_in import as_native, quantum_layer
from fubini.options import Approx, Engine, LayerRule, Real, Reduce, check_engine
from fubini.torch_private import is_wrapped

Argnum = int | Sequence[int] | None
#: From positional and keyword arguments to the point that they are.
At = Callable[[Sequence[Any], dict[str, Any]], Point]

_EXPECTED = "qnode: expected a QNode, a QuantumLayer or a TorchLayer, got "


def points(qnode: Any, argnum: Argnum, argnums: Argnums, engine: Engine) -> At:
    """Return a function from the arguments of a QNode or layer to the point that they are.

    Args:
        qnode: A QNode, compiled or not, QuantumLayer or TorchLayer.
        argnum: Gate parameters that are differentiated; None for all.
        argnums: Positions of the weights, if the caller names them.
        engine: Which engine is asked for.

    Returns:
        A function of positional and keyword arguments.

    Raises:
        TypeError: If qnode is no QNode or quantum layer.
        ValueError: For an unknown engine, or argnums for a layer.
    """
    check_engine(engine)
    chosen = None if argnum is None else (argnum,) if isinstance(argnum, int) else tuple(argnum)
    if isinstance(qnode, torch.nn.Module):
        _check_layer(qnode)
        if argnums is not None:
            raise ValueError(
                "argnums: expected None for a layer, whose weights are its parameters, got "
                f"{argnums!r}"
            )

        def at_layer(args: Sequence[Any], kwargs: dict[str, Any]) -> Point:
            given = (*args, *kwargs.values())
            if qnode.input_arg is None:
                if given:
                    raise TypeError(
                        f"inputs: expected none for a layer without data, got {len(given)}; leave them out"
                    )
                return at_inputs(qnode, qnode.no_inputs(), engine, chosen)
            if len(given) != 1 or not set(kwargs) <= {"inputs", qnode.input_arg}:
                raise TypeError(
                    f"inputs: expected one argument, the layer's inputs, got {len(given)}"
                )
            return at_inputs(qnode, given[0], engine, chosen)

        return at_layer
    qnode = plain_qnode(qnode)
    if not isinstance(qnode, qml.QNode):
        raise TypeError(
            _EXPECTED + f"{type(qnode).__name__}; make one by qml.QNode(function, device)"
        )
    return lambda args, kwargs: at_call(qnode, args, kwargs, engine, chosen, argnums)


def over_calls(qnode: Any, at: At, value: Callable[[Point], Any]) -> Callable[..., Any]:
    """Return the function that takes the arguments of a QNode or layer, with its name, and returns a value of the point.

    Args:
        qnode: As for :func:`points`.
        at: What that returned.
        value: Of the point.
    """

    def call(*args: Any, **kwargs: Any) -> Any:
        for one in (*args, *kwargs.values()):
            if isinstance(one, torch.Tensor) and is_wrapped(one):
                raise NotImplementedError(
                    "arguments: expected tensors with values, got ones inside of a transform of torch.func (grad, vmap, jacrev, "
                    "hessian); differentiate a metric by torch.autograd, which has first derivatives"
                )
        return value(at(args, kwargs))

    qnode = plain_qnode(qnode)
    return functools.wraps(qnode.func)(call) if isinstance(qnode, qml.QNode) else call


def at_inputs(
    layer: Any,
    inputs: Any,
    engine: Engine = "auto",
    argnum: tuple[int, ...] | None = None,
    weights: Mapping[str, Any] | None = None,
) -> Point:
    """Return the point of a layer's inputs.

    Args:
        layer: A QuantumLayer or TorchLayer.
        inputs: (features,) or (..., features); leading dimensions are one batch, as in the layer's forward. A layer without
            data has one input without features, however many it is given here.
        engine: Which engine is asked for; ``"auto"`` takes the layer's own.
        argnum: Gate parameters that are differentiated.
        weights: By name, instead of the layer's own.

    Returns:
        The point.

    Raises:
        TypeError: If layer is no quantum layer, or inputs is no tensor.
    """
    _check_layer(layer)
    if not isinstance(inputs, torch.Tensor):
        raise TypeError(
            f"inputs: expected a torch tensor, got {type(inputs).__name__}; use torch.as_tensor"
        )
    if layer.input_arg is None:
        inputs = layer.no_inputs()
    elif inputs.ndim > 1:
        inputs = inputs.reshape(-1, inputs.shape[-1])
    weights = dict(layer.qnode_weights if weights is None else weights)
    for name, weight in [*weights.items(), ("inputs", inputs)]:
        check_finite_array(name, weight)
    compiling = quantum_layer(layer) or layer
    if engine == "auto" and getattr(compiling, "engine", "native") == "device":
        engine = "device"
    arguments = layer_arguments(layer, inputs, weights)
    call = Call(layer.qnode, (), arguments, tuple(weights))
    values = list(weights.values())
    if engine != "device" and argnum is None and hasattr(compiling, "compiled"):
        form = compiling.compiled(inputs)
        if form is not None:
            pullback = form.pullback([to_numpy(w) for w in values], to_numpy(inputs))
            return Point(values, replace(call, compiled=True), pullback)
    tape = layer_tape(layer, inputs, weights, pure=engine == "native")
    return replace(
        of_gates(call, tape, values, engine, argnum), executor=getattr(layer, "executor", None)
    )


def compiled_pullback(layer: Any, inputs: torch.Tensor) -> Pullback | None:
    """Return what ``at_inputs`` makes of a layer's usual inputs, without what is not needed for its metric.

    Args:
        layer: A QuantumLayer or TorchLayer.
        inputs: (batch, features).

    Returns:
        The pullback; None where ``at_inputs`` has to find the way, or the error.
    """
    native = as_native(layer)
    if native is None or native.input_arg is None or inputs.ndim != 2:
        return None
    rows, *weights = [to_numpy(v) for v in (inputs, *native.qnode_weights.values())]
    if _core.first_not_finite([rows, *weights]) >= 0:
        return None
    form = native.compiled(inputs)
    return None if form is None else form.pullback(weights, rows)


def layer_metric(
    layer: Any,
    inputs: torch.Tensor,
    approx: Approx,
    layers: LayerRule = "wires",
    reduce: Reduce = None,
    weights: Mapping[str, Any] | None = None,
) -> Real:
    """Return the metric over the flattened weights of a QuantumLayer or TorchLayer.

    Args:
        layer: The layer.
        inputs: (features,) or (..., features); leading dimensions are one batch, as in the layer's forward.
        approx: Which part of the metric over angles to take.
        layers: Which gates form a block.
        reduce: ``"mean"`` averages over the inputs.
        weights: By name, instead of the layer's own.

    Returns:
        (batch, P, P), or (P, P) for the mean and for a single input.
    """
    pullback = compiled_pullback(layer, inputs) if weights is None else None
    point = at_inputs(layer, inputs, weights=weights) if pullback is None else pullback
    return point.metric(approx, layers, reduce)


def single_inputs_metric(
    layer: Any,
    inputs: torch.Tensor,
    approx: Approx,
    layers: LayerRule = "wires",
    weights: Mapping[str, Any] | None = None,
) -> Real:
    """Return the mean metric over inputs that the quantum function gets one by one, see ``layer_metric``.

    Args:
        layer: The layer.
        inputs: (batch, features).
        approx: Which part of the metric over angles to take.
        layers: Which gates form a block.
        weights: By name, instead of the layer's own.

    Returns:
        (P, P).
    """
    compiling = quantum_layer(layer) or layer
    if getattr(compiling, "engine", "device") != "device":
        form = compiling.compiled(inputs[0])
        if form is not None:
            own = layer.qnode_weights if weights is None else weights
            pullback = form.pullback([to_numpy(w) for w in own.values()], to_numpy(inputs))
            return pullback.metric(approx, layers, "mean")
    rows = [at_inputs(layer, row, weights=weights) for row in inputs]
    return np.mean([point.metric(approx, layers, "mean") for point in rows], axis=0)  # type: ignore[no-any-return]


def _check_layer(layer: Any) -> None:
    if not (hasattr(layer, "qnode") and hasattr(layer, "qnode_weights")):
        raise TypeError(
            _EXPECTED + f"{type(layer).__name__}; for a model, pass one of its quantum layers"
        )
