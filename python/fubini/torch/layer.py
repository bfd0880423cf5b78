"""A quantum circuit as a torch module, interchangeable with ``qml.qnn.TorchLayer``."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import pennylane as qml
import torch

from fubini.tape import user_tape

Engine = Literal["auto", "device"]
WeightShapes = Mapping[str, int | Sequence[int]]
InitMethod = Callable[[torch.Tensor], torch.Tensor] | Mapping[str, Any] | None


class QuantumLayer(torch.nn.Module):
    """A QNode as a torch module with trainable weights; a drop-in for ``qml.qnn.TorchLayer``.

    The quantum function takes the data as its argument ``inputs`` and every weight as an argument of its own. Inputs
    of shape (features,) give one result; leading dimensions are batches, run by parameter broadcasting, so the
    function must index features from the end: ``inputs[..., 0]``.

    Args:
        qnode: The QNode, interface ``"auto"`` or ``"torch"``.
        weight_shapes: Shape of every weight by name; an int n stands for (n,), 1 for (), as in TorchLayer.
        init_method: Initialises a weight in place, e.g. ``torch.nn.init.normal_``; or a dictionary with such a
            function or a tensor per weight. Default: uniform in [0, 2 pi).
        engine: ``"device"`` runs the QNode on its PennyLane device; ``"auto"`` chooses.

    Attributes:
        qnode: The QNode.
        weight_shapes: Shape of every weight.
        input_arg: Name of the data argument.

    Raises:
        TypeError: If the QNode has no argument ``inputs``, or takes ``*args``.
        ValueError: If names or shapes of the weights do not fit the QNode, or its interface is not torch.
    """

    input_arg = "inputs"

    def __init__(
        self,
        qnode: Any,
        weight_shapes: WeightShapes,
        init_method: InitMethod = None,
        *,
        engine: Engine = "auto",
    ) -> None:
        super().__init__()
        if engine not in ("auto", "device"):
            raise ValueError(f"engine: expected 'auto' or 'device', got {engine!r}")
        if qnode.interface not in ("auto", "torch"):
            raise ValueError(
                f"qnode: expected the interface 'auto' or 'torch', got {qnode.interface!r}; "
                "pass interface='torch' to qml.qnode"
            )
        self.qnode = qnode
        self.weight_shapes = {name: _shape(name, size) for name, size in weight_shapes.items()}
        self._check_signature()
        for name, shape in self.weight_shapes.items():
            self.register_parameter(name, torch.nn.Parameter(_initial(name, shape, init_method)))
        self._requested_engine: Engine = engine
        self._width: int | None = None

    @classmethod
    def from_torch_layer(cls, layer: Any, *, engine: Engine = "auto") -> "QuantumLayer":
        """Return a QuantumLayer that shares the QNode and the Parameters of a TorchLayer.

        Args:
            layer: A ``qml.qnn.TorchLayer``.
            engine: As in the constructor.

        Returns:
            The layer.

        Raises:
            TypeError: If layer is no TorchLayer.
        """
        if not isinstance(layer, qml.qnn.TorchLayer):
            raise TypeError(f"layer: expected a qml.qnn.TorchLayer, got {type(layer).__name__}")
        weights = dict(layer.qnode_weights)
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        result = cls(
            layer.qnode, shapes, {n: w.detach() for n, w in weights.items()}, engine=engine
        )
        result.input_arg = layer.input_arg
        for name, weight in weights.items():
            result.register_parameter(name, weight)
        return result.train(layer.training)

    @property
    def qnode_weights(self) -> dict[str, torch.nn.Parameter]:
        """The weights by name, in the order of ``weight_shapes``."""
        return {name: getattr(self, name) for name in self.weight_shapes}

    @property
    def engine(self) -> str:
        """The engine that evaluates the circuit: ``"device"``."""
        return "device"

    def explain(self) -> str:
        """Say in one sentence which engine evaluates the circuit and why."""
        reason = (
            "was asked for"
            if self._requested_engine == "device"
            else "is the only engine of this version"
        )
        return f"The circuit runs on its PennyLane device {self.qnode.device.name!r}: the device engine {reason}."

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Evaluate the circuit.

        Args:
            inputs: (features,) or (..., features); integers and any floating dtype.

        Returns:
            The QNode's result in the dtype of inputs. One measurement: (...,) plus its own shape; a list of m
            measurements: (..., m) side by side; a tuple: stacked along a new first axis, as in TorchLayer.

        Raises:
            TypeError: If inputs is no tensor.
            ValueError: If inputs are empty, of another width than in the first call, or mixed up with the batch by
                the quantum function; or if weights or inputs do not fit it.
        """
        self._check_inputs(inputs)
        leading = inputs.shape[:-1]
        flat = inputs.reshape(-1, inputs.shape[-1]) if leading else inputs
        results: Any = self._evaluate(flat)
        if isinstance(results, tuple):
            return torch.stack(
                [r.reshape(*leading, *r.shape[1:]) if leading else r for r in results]
            )
        result: torch.Tensor = results.reshape(*leading, *results.shape[1:]) if leading else results
        return result

    def extra_repr(self) -> str:
        """Return the part of ``repr`` between the parentheses."""
        shapes = ", ".join(f"{name}={list(shape)}" for name, shape in self.weight_shapes.items())
        return f"{self.qnode.func.__name__}, {shapes}, device={self.qnode.device.name!r}, engine={self.engine!r}"

    def _evaluate(self, x: torch.Tensor) -> Any:
        results = self.qnode(
            **{self.input_arg: x},
            **{name: weight.to(x) for name, weight in self.qnode_weights.items()},
        )
        if isinstance(results, torch.Tensor):
            return results.to(x.dtype)

        def side_by_side(parts: Sequence[torch.Tensor]) -> torch.Tensor:
            columns = [part.reshape(x.shape[0], -1) for part in parts] if x.ndim > 1 else parts
            return torch.hstack(list(columns)).to(x.dtype)

        if isinstance(results, tuple) and len(results) > 1:
            return tuple(side_by_side([r] if isinstance(r, torch.Tensor) else r) for r in results)
        return side_by_side(results)

    def _check_signature(self) -> None:
        parameters = inspect.signature(self.qnode.func).parameters
        kinds = [p.kind for p in parameters.values()]
        if self.input_arg not in parameters:
            raise TypeError(
                f"qnode: expected an argument named {self.input_arg!r} for the data, got {list(parameters)}"
            )
        if inspect.Parameter.VAR_POSITIONAL in kinds:
            raise TypeError("qnode: expected named arguments only, got *args")
        if self.input_arg in self.weight_shapes:
            raise ValueError(
                f"weight_shapes: {self.input_arg!r} is the data and has no weight shape; remove it"
            )
        wanted = [
            name
            for name, p in parameters.items()
            if name != self.input_arg and p.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        missing = [
            n
            for n in wanted
            if n not in self.weight_shapes and parameters[n].default is inspect.Parameter.empty
        ]
        unknown = [n for n in self.weight_shapes if n not in wanted]
        if missing or (unknown and inspect.Parameter.VAR_KEYWORD not in kinds):
            raise ValueError(
                f"weight_shapes: expected shapes for the QNode's arguments {wanted}, got {list(self.weight_shapes)}"
            )

    def _check_inputs(self, inputs: torch.Tensor) -> None:
        if not isinstance(inputs, torch.Tensor):
            raise TypeError(
                f"inputs: expected a torch tensor, got {type(inputs).__name__}; use torch.as_tensor"
            )
        if inputs.ndim == 0 or inputs.numel() == 0:
            raise ValueError(
                f"inputs: expected shape (..., features) with at least one input, got {tuple(inputs.shape)}"
            )
        for name, shape in self.weight_shapes.items():
            if tuple(getattr(self, name).shape) != shape:
                raise ValueError(
                    f"{name}: expected the shape {shape} of weight_shapes, got {tuple(getattr(self, name).shape)}"
                )
        width = inputs.shape[-1]
        if width == self._width:
            return
        if self._width is not None:
            raise ValueError(
                f"inputs: expected {self._width} features as in the first call, got shape {tuple(inputs.shape)}"
            )
        self._check_batching(width)
        self._width = width

    def _check_batching(self, width: int) -> None:
        """Run the quantum function on made-up inputs and see that every angle belongs to one input of the batch."""
        count = 3 if width != 3 else 5  # distinct from the width, so that a mixed-up axis shows
        probe = (
            torch.linspace(0.1, 0.9, count * width, dtype=torch.float64)
            .reshape(count, width)
            .requires_grad_()
        )
        weights = {name: w.detach().to(torch.float64) for name, w in self.qnode_weights.items()}
        try:
            with torch.enable_grad():
                tape = user_tape(self.qnode, (), {self.input_arg: probe, **weights})
                batch = tape.batch_size
        except (ValueError, IndexError, RuntimeError) as error:
            shapes = {name: list(shape) for name, shape in self.weight_shapes.items()}
            raise ValueError(
                f"weight_shapes, inputs: weights {shapes} and inputs of {width} features do not fit the quantum "
                f"function: {error}"
            ) from error
        mixed = [
            op.name
            for op in tape.operations
            if any(qml.math.requires_grad(p) for p in op.data) and op.batch_size != count
        ]
        if mixed or batch not in (None, count):
            raise ValueError(
                f"inputs: for a batch of shape ({count}, {width}) the quantum function makes {mixed or 'operations'} "
                "whose parameters do not have one value per input. Index features from the end, inputs[..., 0] "
                "instead of inputs[0], and do not sum over the batch."
            )


def _shape(name: str, size: int | Sequence[int]) -> tuple[int, ...]:
    shape = (() if size == 1 else (size,)) if isinstance(size, int) else tuple(size)
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(
            f"weight_shapes: expected non-negative integers for {name!r}, got {size!r}"
        )
    return shape


def _initial(name: str, shape: tuple[int, ...], init_method: InitMethod) -> torch.Tensor:
    method: Any = init_method
    if isinstance(init_method, Mapping):
        if name not in init_method:
            raise ValueError(
                f"init_method: expected an entry for {name!r}, got {list(init_method)}"
            )
        method = init_method[name]
    if isinstance(method, torch.Tensor):
        if tuple(method.shape) != shape:
            raise ValueError(
                f"init_method: expected shape {shape} for {name!r}, got {tuple(method.shape)}"
            )
        return method.detach().clone()
    if method is None:
        return torch.empty(shape).uniform_(0, 2 * math.pi)
    value: torch.Tensor = method(torch.empty(shape or (1,)))
    return value.reshape(shape)
