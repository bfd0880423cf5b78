"""Which arguments of a call are weights, and results in the kind of array that came in."""

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fubini.arrays import is_jax, is_tensor, like, to_numpy
from fubini.errors import NoTrainableParametersError

Argnums = int | Sequence[int] | None


def weights_of(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], argnums: Argnums
) -> list[int | str]:
    """Return which arguments are weights, by PennyLane's rules for each framework.

    Args:
        function: The quantum function.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        argnums: Positions of the weights, if the caller names them.

    Returns:
        Indices into args, or names in kwargs. By default the positional arguments that require grad (torch,
        ``pennylane.numpy``); if there are none, the keyword arguments that do; for JAX the first argument.

    Raises:
        NoTrainableParametersError: If there are no weights; a ValueError.
        ValueError: If argnums names no argument.
        TypeError: If argnums is neither an integer nor a sequence of integers, or arguments are traced by JAX.
    """
    for value in (*args, *kwargs.values()):
        if is_jax(value) and isinstance(value, sys.modules["jax"].core.Tracer):
            raise TypeError(
                "arguments: expected JAX arrays with values, got tracers; call the metric outside jax.jit, jax.grad "
                "and jax.vmap"
            )
    if argnums is not None:
        chosen = [argnums] if isinstance(argnums, int) else list(argnums)
        if not all(isinstance(n, int | np.integer) for n in chosen):
            raise TypeError(f"argnums: expected an integer or several, got {argnums!r}")
        if (
            not chosen
            or not all(0 <= n < len(args) for n in chosen)
            or len(set(chosen)) < len(chosen)
        ):
            raise ValueError(
                f"argnums: expected different positions below {len(args)}, the number of positional arguments, "
                f"got {argnums!r}"
            )
        return [int(n) for n in chosen]
    positional: list[int | str] = [i for i, value in enumerate(args) if _requires_grad(value)]
    if positional:
        return positional
    order = list(inspect.signature(function).parameters)
    names = [n for n, value in kwargs.items() if _requires_grad(value)]
    names.sort(key=lambda n: order.index(n) if n in order else len(order))
    if names:
        return list(names)
    if args and any(is_jax(value) for value in args):
        return [0]
    raise NoTrainableParametersError(
        "arguments: expected at least one that requires grad, got none. Use tensor.requires_grad_() for torch, "
        "pennylane.numpy.array(..., requires_grad=True) for autograd, or argnums=0 for any kind of array."
    )


def place(args: list[Any], kwargs: dict[str, Any], slot: int | str, value: Any) -> None:
    """Put a value in the place of an argument, its position or its name."""
    if isinstance(slot, int):
        args[slot] = value
    else:
        kwargs[slot] = value


def _requires_grad(value: Any) -> bool:
    return bool(getattr(value, "requires_grad", False))


def check_finite_weights(
    function: Callable[..., Any], weights: Sequence[int | str], values: Sequence[Any]
) -> None:
    """Raise an error that names the first weight that is complex, NaN or infinite.

    Args:
        function: The quantum function, for the arguments' names.
        weights: As from :func:`weights_of`.
        values: The weights.

    Raises:
        TypeError: If there is a complex weight.
        ValueError: If there is one that is not finite.
    """
    for weight, value in zip(weights, values, strict=True):
        if "complex" in str(getattr(value, "dtype", "")):
            raise TypeError(
                f"{argument_name(function, weight)}: expected real weights, got {value.dtype}; use their real and imaginary "
                "parts as weights"
            )
        try:
            check_finite_array("", value)
        except ValueError:  # only then the name is worth the time that a signature takes
            check_finite_array(argument_name(function, weight), value)


def argument_name(function: Callable[..., Any], argument: int | str) -> str:
    """Return the name of an argument of a quantum function."""
    if isinstance(argument, str):
        return argument
    names = list(inspect.signature(function).parameters)
    return names[min(argument, len(names) - 1)]


def argument_names(function: Callable[..., Any], positional: int) -> dict[int | str, str]:
    """Return the names of a function's arguments by their slots: positions, and the names themselves.

    Args:
        function: The function.
        positional: Number of arguments that are passed by position.
    """
    names: dict[int | str, str] = {}
    position = 0
    for name, parameter in inspect.signature(function).parameters.items():
        names[name] = name
        if parameter.kind is parameter.VAR_POSITIONAL:
            first, position = position, max(position, positional)
            names.update({i: f"{name}[{i - first}]" for i in range(first, position)})
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            names[position] = name
            position += 1
    return names


def real_numbers(name: str, value: Any) -> npt.NDArray[np.float64]:
    """Return an argument as an array of float64.

    Args:
        name: The argument's name.
        value: An array, tensor, number or nested list of real numbers.

    Raises:
        TypeError: If it is anything else: of complex numbers the imaginary parts would be lost.
    """
    try:
        array = to_numpy(value, None)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"{name}: expected real numbers, got {type(value).__name__}: {error}"
        ) from error
    if array.dtype.kind == "c":
        raise TypeError(f"{name}: expected real numbers, got complex ones; take their real part")
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got {type(value).__name__}")
    return to_numpy(value)


def matrix_argument(
    name: str, value: Any, symbols: str, shape: tuple[int, int], single: bool
) -> npt.NDArray[np.float64]:
    """Returns a real matrix argument as the kernel takes it.

    Args:
        name: The argument's name.
        value: What was passed.
        symbols: The shape in words.
        shape: The shape expected.
        single: Whether the batch dimension may be left out.

    Returns:
        C-contiguous float64, of the shape expected.

    Raises:
        ValueError: For another shape.
    """
    array = np.ascontiguousarray(value, dtype=np.float64)
    if array.shape == shape or (single and array.shape == shape[1:]):
        return array.reshape(shape)
    raise ValueError(f"{name}: expected shape {symbols} = {shape}, got {np.shape(value)}")


def check_finite_array(name: str, value: Any) -> None:
    """Raise a ValueError that names the first entry of an array that is NaN or infinite.

    Args:
        name: The array's name.
        value: The array.

    Raises:
        ValueError: If there is such an entry.
    """
    array = to_numpy(value, None)
    finite = np.isfinite(array) if array.dtype.kind in "fc" else np.ones((), bool)
    if not finite.all():
        bad = np.argwhere(~finite)
        place = f"[{', '.join(str(int(i)) for i in bad[0])}]" if array.ndim else ""
        more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
        raise ValueError(
            f"{name}: expected finite numbers, got {array[tuple(bad[0])]} at {name}{place}{more}"
        )


def returned(matrix: npt.NDArray[Any], templates: Sequence[Any], joint: bool) -> Any:
    """Return a metric over all weights in the shapes and the kind of the weights.

    Args:
        matrix: (..., P, P) over the flattened weights in order.
        templates: The weights.
        joint: Whether the matrix is wanted as a whole.

    Returns:
        The matrix, or for each weight w an array of shape (..., *w.shape, *w.shape), without a tuple for one weight.
    """
    if joint:
        return in_kind(matrix, templates[0])
    results = [
        in_kind(part, w) for part, w in zip(_parts(matrix, templates), templates, strict=True)
    ]
    return results[0] if len(results) == 1 else tuple(results)


def returned_tensors(
    matrix: torch.Tensor, templates: Sequence[Any], joint: bool
) -> tuple[torch.Tensor, ...]:
    """Return the same of a tensor, with its graph.

    Args:
        matrix: (..., P, P) over the flattened weights in order.
        templates: The weights.
        joint: Whether the matrix is wanted as a whole.

    Returns:
        One tensor, or one for each weight.
    """
    parts = [matrix] if joint else _parts(matrix, templates)
    results = []
    for part, template in zip(parts, templates, strict=False):
        dtype = torch.complex64 if template.dtype == torch.float32 else torch.complex128
        results.append(part.to(template.device, dtype if part.is_complex() else template.dtype))
    return tuple(results)


def _parts(matrix: Any, templates: Sequence[Any]) -> list[Any]:
    """The diagonal blocks of (..., P, P) that belong to the weights, (..., *w.shape, *w.shape)."""
    parts, start = [], 0
    for template in templates:
        shape = tuple(np.shape(template))
        size = int(np.prod(shape, dtype=int))
        part = matrix[..., start : start + size, start : start + size]
        parts.append(part.reshape((*matrix.shape[:-2], *shape, *shape)))
        start += size
    return parts


def in_kind(values: npt.NDArray[Any], template: Any) -> Any:
    """Return values as a torch tensor, JAX array or NumPy array, as the template is one.

    Args:
        values: float64 or complex128 array.
        template: What the caller passed.
    """
    if is_tensor(template) or not is_jax(template):
        return like(values, template)
    import jax.numpy

    dtype: Any = template.dtype
    if values.dtype.kind == "c":
        dtype = np.complex64 if template.dtype == np.float32 else np.complex128
    return jax.numpy.asarray(values.astype(dtype))
