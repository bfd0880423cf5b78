"""What a layer's quantum function returns, and whether its circuit can be compiled for inputs of one shape."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pennylane as qml
import torch

from fubini.compiled import Affine, Traced, outside_transforms
from fubini.torch.layouts import tuples_are_stacked
from fubini.torch_private import is_wrapped


@dataclass(frozen=True)
class Form:
    """How one kind of input is evaluated: compiled, traced, or on the device for a reason.

    Attributes:
        how: The compiled circuit, the recipe for tracing it in every call, or why it runs on the device.
        kind: What the quantum function returns: ``"single"``, ``"list"`` or ``"tuple"`` of real measurements;
            ``"other"``: something else, or what PennyLane evaluates and differentiates.
        qnode: For which this holds.
        device: Likewise.
        function: Likewise.
    """

    how: Affine | Traced | str
    kind: str
    qnode: Any
    device: Any
    function: Any

    def holds(self, qnode: Any, x: torch.Tensor) -> bool:
        """Return whether it serves these inputs, shape (features,) or (batch, features), now."""
        if (
            qnode is not self.qnode
            or qnode.device is not self.device
            or qnode.func is not self.function
        ):
            return False
        if not isinstance(self.how, Affine):
            return True
        return self.how.batch in (None, x.shape[0]) and self.how.guard.holds()


def check_function(
    qnode: Any, input_arg: str, weights: Mapping[str, torch.Tensor], x: torch.Tensor
) -> str | None:
    """Run the quantum function once; in a batch, see that every angle belongs to one input.

    It runs on the numbers that it was called with, repeated as often as the check needs: functions that look at their
    arguments (is this vector normalised?) refuse made-up ones.

    Args:
        qnode: The QNode.
        input_arg: Name of the argument for the data.
        weights: The other arguments.
        x: (features,) or (batch, features).

    Returns:
        Why it cannot be compiled, if it cannot.

    Raises:
        ValueError: If weights and inputs do not fit the function, or it mixes up the inputs of a batch.
    """
    width = x.shape[-1]
    count = 3 if width != 3 else 5  # distinct from the width, so that a mixed-up axis shows
    with outside_transforms():
        arguments = _arguments(input_arg, weights, x)
        probe = arguments[input_arg]
        if probe.ndim > 1:
            probe = probe[torch.arange(count) % len(probe)]
        arguments[input_arg] = probe = probe.requires_grad_()
        try:
            tape = qml.workflow.construct_tape(qnode, level="user")(**arguments)
            batch = tape.batch_size
        except (ValueError, IndexError, RuntimeError) as error:
            if "more than one tape" in str(error):
                return "the QNode's transforms make several circuits of it"
            shapes = {name: list(weight.shape) for name, weight in weights.items()}
            raise ValueError(
                f"weight_shapes, inputs: weights {shapes} and inputs of {width} features do not fit the quantum "
                f"function: {error}"
            ) from error
        if probe.ndim == 1:
            return (
                None
                if batch is None
                else "the quantum function broadcasts over the features of one input"
            )
        mixed = [
            op.name
            for op in tape.operations
            for p in op.data
            if _depends(p, probe) and (p.ndim == 0 or len(p) != count)
        ]
    if mixed or batch not in (None, count):
        raise ValueError(
            f"inputs: for inputs of shape {tuple(probe.shape)} the quantum function makes {mixed or 'operations'} "
            "whose parameters do not have one value per input. Index features from the end, inputs[..., 0] "
            "instead of inputs[0], and do not sum over the batch."
        )
    return None


def returned_kind(
    qnode: Any, input_arg: str, weights: Mapping[str, torch.Tensor], x: torch.Tensor
) -> str:
    """Return what the quantum function returns, see ``Form``: a list and a tuple are arranged differently.

    Args:
        qnode: The QNode.
        input_arg: Name of the argument for the data.
        weights: The other arguments.
        x: (features,) or (batch, features).
    """
    with outside_transforms(), qml.queuing.AnnotatedQueue():
        result = qnode.func(**_arguments(input_arg, weights, x))
    parts = result if isinstance(result, tuple | list) else [result]
    real = (
        qml.measurements.ExpectationMP,
        qml.measurements.VarianceMP,
        qml.measurements.ProbabilityMP,
    )
    if not all(isinstance(part, real) for part in parts):
        return "other"
    if isinstance(result, tuple) and len(result) > 1 and tuples_are_stacked():
        return "tuple"
    return "list" if isinstance(result, tuple | list) else "single"


def arranged(values: torch.Tensor, shapes: Sequence[tuple[int, ...]], kind: str) -> Any:
    """Return results that lie side by side as the quantum function returns its measurements.

    Args:
        values: (..., m).
        shapes: Of the measurements.
        kind: See ``Form``.
    """
    if kind == "single":
        return values if shapes[0] else values[..., 0]
    if kind == "tuple":
        return torch.split(values, [math.prod(shape) for shape in shapes], dim=-1)
    return values


def check_results(results: Any) -> None:
    """Raise an error unless a QNode returned measurements that can be put side by side.

    Args:
        results: What it returned, no tensor.

    Raises:
        TypeError: Says what was returned.
    """

    def fits(value: Any, depth: int = 0) -> bool:
        if isinstance(value, torch.Tensor):
            return True
        return (
            depth < 2 and isinstance(value, list | tuple) and all(fits(v, depth + 1) for v in value)
        )

    if not fits(results):
        got = type(results).__name__
        if isinstance(results, list | tuple):
            got += f" with {', '.join(type(r).__name__ for r in results)}"
        raise TypeError(
            f"qnode: expected it to return one measurement or a list of them, got a {got}; return a list of measurements"
        )


def check_stack(results: Sequence[torch.Tensor]) -> None:
    """Raise an error unless the results of a tuple of measurements can be stacked.

    Args:
        results: One tensor for each measurement.

    Raises:
        ValueError: Names the shapes.
    """
    shapes = [tuple(r.shape) for r in results]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError(
            f"qnode: expected measurements of one shape in a tuple, which are stacked, got {shapes}; return a list of them, "
            "whose results are put side by side"
        )


def with_leading(result: torch.Tensor, leading: torch.Size) -> torch.Tensor:
    """Return a result with the batch dimensions of the inputs restored.

    Args:
        result: (batch, ...).
        leading: Shape of the inputs without their last dimension.
    """
    return result if len(leading) < 2 else result.reshape(*leading, *result.shape[1:])


def _arguments(
    input_arg: str, weights: Mapping[str, torch.Tensor], x: torch.Tensor
) -> dict[str, torch.Tensor]:
    return {name: _numbers(t) for name, t in {input_arg: x, **weights}.items()}


def _numbers(t: torch.Tensor) -> torch.Tensor:
    """A copy in float64, without a graph; made-up numbers where a transform of torch.func hides the real ones."""
    if is_wrapped(t):
        return torch.linspace(0.1, 0.9, t.numel(), dtype=torch.float64).reshape(t.shape)
    return t.detach().to("cpu", torch.float64, copy=True)


def _depends(value: Any, leaf: torch.Tensor) -> bool:
    if not isinstance(value, torch.Tensor) or not value.requires_grad:
        return False
    total = value.real.sum() if value.is_complex() else value.sum()
    return torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)[0] is not None
