"""The arguments of a layer's QNode: which one is the data, shapes and first values of the weights, and gates at them."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeGuard

import torch

from fubini.circuit.angles import gate_tape
from fubini.circuit.tape import GateTape, user_tape
from fubini.compile.function import Run, outside_transforms
from fubini.errors import UnsupportedCircuitError
from fubini.torch_private import is_wrapped

Tensor = torch.Tensor

WeightShapes = Mapping[str, int | Sequence[int]]
InitMethod = Callable[[Tensor], Tensor] | Mapping[str, Any] | None


def weight_shape(name: str, size: int | Sequence[int]) -> tuple[int, ...]:
    """Return the shape of a weight: an int n stands for (n,), 1 for (), as in TorchLayer.

    Raises:
        TypeError: For something else than integers.
        ValueError: For negative ones.
    """
    if not isinstance(size, int | Sequence):
        raise TypeError(
            f"weight_shapes: expected an integer or a sequence of them for {name!r}, got {size!r}"
        )
    shape = (() if size == 1 else (size,)) if isinstance(size, int) else tuple(size)
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(
            f"weight_shapes: expected non-negative integers for {name!r}, got {size!r}"
        )
    return shape


def initial_weight(name: str, shape: tuple[int, ...], init_method: InitMethod) -> Tensor:
    """Return the initial value of a weight.

    Args:
        name: Of the weight.
        shape: Of the weight.
        init_method: As for ``QuantumLayer``.

    Raises:
        TypeError: If it is none.
        ValueError: If it does not fit.
    """
    method: Any = init_method
    if isinstance(init_method, Mapping):
        if name not in init_method:
            raise ValueError(
                f"init_method: expected an entry for {name!r}, got {list(init_method)}"
            )
        method = init_method[name]
    if isinstance(method, Tensor):
        if tuple(method.shape) != shape:
            raise ValueError(
                f"init_method: expected shape {shape} for {name!r}, got {tuple(method.shape)}"
            )
        return method.detach().clone()
    if method is None:
        return torch.empty(shape).uniform_(0, 2 * math.pi)
    if not callable(method):
        raise TypeError(
            "init_method: expected a function such as torch.nn.init.normal_, a tensor or a dictionary of these, got "
            f"{type(method).__name__} for {name!r}"
        )
    value: Tensor = method(torch.empty(shape or (1,)))
    return value.reshape(shape)


def data_argument(
    qnode: Any, weight_shapes: Mapping[str, tuple[int, ...]], input_arg: str | None, layer: str
) -> str | None:
    """Return the name of a QNode's data argument, after checks of its signature.

    Args:
        qnode: The QNode.
        weight_shapes: Shape of every weight.
        input_arg: The name that a data argument has.
        layer: Name of the layer's class, for messages.

    Returns:
        The name; None where every argument is a weight.

    Raises:
        TypeError: If the QNode has other arguments without a shape, or takes ``*args``.
        ValueError: If names of the weights do not fit the QNode.
    """
    parameters = inspect.signature(qnode.func).parameters
    starred = [n for n, p in parameters.items() if p.kind is p.VAR_POSITIONAL]
    keywords = [n for n, p in parameters.items() if p.kind is p.VAR_KEYWORD]
    wanted = [n for n in parameters if n not in (input_arg, *starred, *keywords)]
    required = [n for n in wanted if parameters[n].default is inspect.Parameter.empty]
    missing = [n for n in required if n not in weight_shapes]
    if input_arg not in parameters:
        if missing or keywords:
            raise TypeError(
                f"qnode: expected an argument named {input_arg!r} for the data, got {list(parameters)}; rename it, or "
                f"call {layer}.set_input_argument(name) first. For a layer without data give every argument "
                f"a shape in weight_shapes; {missing + keywords} have none"
            )
        input_arg = None
    if starred:
        raise TypeError("qnode: expected named arguments only, got *args")
    if input_arg in weight_shapes:
        raise ValueError(
            f"weight_shapes: {input_arg!r} is the data and has no weight shape; remove it"
        )
    if missing or not (keywords or set(weight_shapes) <= set(wanted)):
        raise ValueError(
            f"weight_shapes: expected shapes for the QNode's arguments {wanted}, got {list(weight_shapes)}"
        )
    return input_arg


def check_unbatched(qnode: Any, run: Run, weights: Mapping[str, Tensor]) -> None:
    """See that a circuit without data has one result: nothing says which weights another axis would belong to.

    Raises:
        ValueError: If it is a batch.
    """
    if run.reading is not None:
        batch = run.reading.batch
    else:
        try:
            with outside_transforms():
                arguments = {
                    n: torch.zeros_like(w) if is_wrapped(w) else w for n, w in weights.items()
                }
                batch = user_tape(qnode, (), arguments, pure=False).batch_size
        except UnsupportedCircuitError:  # which PennyLane may know how to run
            return
    if batch is not None:
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        raise ValueError(
            f"weight_shapes: expected weights of one circuit, got shapes {shapes} that make the quantum "
            f"function a batch of {batch}; call fubini.compiled(qnode) for batches of weights"
        )


def has_inputs(inputs: Any, input_arg: str | None) -> TypeGuard[Tensor]:
    """Return whether a layer is called with data, which must be as its quantum function takes them.

    Args:
        inputs: What it is called with.
        input_arg: Name of the data argument; None for a layer without data.

    Raises:
        TypeError: If they are missing, too many, no tensor, or complex.
        ValueError: If they are empty.
    """
    if input_arg is None:
        if inputs is not None:
            raise TypeError(
                f"inputs: expected none, because the quantum function has no argument for data, got "
                f"{type(inputs).__name__}; call layer()"
            )
        return False
    if inputs is None:
        raise TypeError(
            f"inputs: expected a torch tensor for the quantum function's argument {input_arg!r}, got none; "
            "call layer(inputs)"
        )
    if not isinstance(inputs, Tensor):
        raise TypeError(
            f"inputs: expected a torch tensor, got {type(inputs).__name__}; use torch.as_tensor"
        )
    if inputs.is_complex():
        raise TypeError(
            f"inputs: expected real numbers, got {inputs.dtype}; pass real and imaginary parts as features and "
            "join them in the quantum function by torch.complex"
        )
    if inputs.ndim == 0 or inputs.numel() == 0:
        raise ValueError(
            f"inputs: expected shape (..., features) with at least one input, got {tuple(inputs.shape)}"
        )
    return True


def layer_arguments(layer: Any, inputs: Tensor, weights: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a layer's QNode by name; ``inputs``: left out for a layer without data."""
    data = {} if layer.input_arg is None else {layer.input_arg: inputs}
    return {**data, **weights}


def layer_tape(
    layer: Any,
    inputs: Tensor,
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
