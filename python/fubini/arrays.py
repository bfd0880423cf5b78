"""The one place where what callers pass becomes what the kernel takes, and results become what callers passed."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import pennylane as qml
import torch
from numpy.typing import NDArray

from fubini import _core

Array: TypeAlias = NDArray[Any] | torch.Tensor
RealArray: TypeAlias = NDArray[np.float64]

#: How far a matrix of this dtype may be from symmetric, relative to its largest entry: rounding of the
#: dtype times what a sum of a few hundred terms loses.
_SYMMETRY_TOLERANCE = {2: 2e-2, 4: 1e-4, 8: 1e-9}

#: As NumPy's array interface names the dtypes.
_FORMATS = {
    torch.float64: np.dtype(np.float64).str,
    torch.float32: np.dtype(np.float32).str,
}


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Return whether the value is a torch tensor."""
    return isinstance(value, torch.Tensor)


def is_jax(value: Any) -> bool:
    """Return whether the value is a JAX array; imports nothing."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.Array)


def to_numpy(value: Any, dtype: Any = np.float64) -> NDArray[Any]:
    """Return a value as a C-contiguous NumPy array on the host; shares memory where dtype and layout already fit.

    Args:
        value: Torch tensor (any device, strides, conjugate or negative bit), PennyLane or NumPy array, or number.
        dtype: NumPy dtype of the result; None keeps the value's own.
    """
    if is_tensor(value):
        array: Any = _of_parameter(value) if type(value) is torch.nn.Parameter else None
        if array is None:
            value = value.detach()
            ready = value.dtype is torch.float64 and value.is_cpu and value.is_contiguous()
            if ready and dtype is np.float64 and not value.is_neg():  # what a training step passes
                plain: NDArray[np.float64] = value.numpy()
                return plain
            if value.dtype is torch.bfloat16:  # which NumPy does not have
                value = value.to(torch.float32)
            array = value.resolve_conj().resolve_neg().cpu().numpy()
    elif is_jax(value):
        array = value
    else:
        array = qml.math.toarray(qml.math.unwrap([value])[0])
    return np.asarray(array, dtype=dtype, order="C")  # ascontiguousarray would turn () into (1,)


class _Memory:
    """What NumPy asks for a tensor's memory; keeps the tensor alive."""

    __slots__ = ("__array_interface__", "tensor")

    def __init__(self, tensor: torch.Tensor, format: str) -> None:
        self.tensor = tensor
        self.__array_interface__ = {
            "data": (tensor.data_ptr(), False),
            "shape": tensor.shape,
            "typestr": format,
            "version": 3,
        }


def _of_parameter(value: torch.nn.Parameter) -> NDArray[Any] | None:
    """A parameter's own memory as a C-contiguous array; None where it has none like that."""
    # Tensor.numpy marks a storage as one that cannot be resized any more, which those of sharded parameters are before
    # and after every pass.
    format = _FORMATS.get(value.dtype)
    if format is None or not (value.is_cpu and value.is_contiguous() and value.numel()):
        return None
    return None if value.is_neg() else np.asarray(_Memory(value, format))


def shared_array(tensor: torch.Tensor) -> NDArray[Any] | None:
    """Return a tensor's own memory as a C-contiguous array of float64 or float32; None where it has none like that.

    Args:
        tensor: Of any kind; its graph, if it has one, is left behind.
    """
    if type(tensor) is torch.nn.Parameter:
        return _of_parameter(tensor)
    dtype = tensor.dtype
    if (
        (dtype is torch.float64 or dtype is torch.float32)
        and tensor.is_cpu
        and tensor.layout is torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    ):
        return (tensor.detach() if tensor.requires_grad else tensor).numpy()
    return None


def real_array(name: str, value: object) -> RealArray:
    """The value as a contiguous float64 array.

    Args:
        name: The argument's name, for error messages.
        value: A NumPy array, torch tensor, number or nested list.

    Returns:
        A C-contiguous float64 array; the caller's memory where that already is one.

    Raises:
        TypeError: If the value is not made of real numbers of at most 64 bits.
    """
    if is_tensor(value):
        if value.is_complex() or value.is_sparse or value.is_quantized:
            raise TypeError(
                f"{name}: expected dense real numbers, got dtype {value.dtype}, layout {value.layout}"
            )
        return to_numpy(value.to(torch.float64))
    if np.ma.isMaskedArray(value) and np.ma.is_masked(value):
        raise TypeError(f"{name}: expected an array without masked entries; fill them first")
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        remedy = (
            "; a complex Hermitian system is a real one of twice the size, [[Re, -Im], [Im, Re]]"
        )
        raise TypeError(
            f"{name}: expected real numbers of at most 64 bits, got dtype {array.dtype}"
            f"{remedy if array.dtype.kind == 'c' else ''}"
        )
    return np.ascontiguousarray(array, dtype=np.float64).reshape(array.shape)


def result_dtype(first: object, second: object) -> Any:
    """Return the floating-point dtype of a result of two arguments; integers count as float64."""
    if is_tensor(first) and is_tensor(second):
        promoted = torch.promote_types(first.dtype, second.dtype)
        return promoted if promoted.is_floating_point else torch.float64
    dtype = np.result_type(np.asarray(first).dtype, np.asarray(second).dtype)
    return dtype if dtype.kind == "f" else np.dtype(np.float64)


def symmetry_tolerance(matrix: object) -> float:
    """Return how far a matrix of this dtype may be from symmetric, relative to its largest entry."""
    if is_tensor(matrix):
        size = matrix.dtype.itemsize if matrix.is_floating_point() else 8
    else:
        dtype = np.asarray(matrix).dtype
        size = dtype.itemsize if dtype.kind == "f" else 8
    return _SYMMETRY_TOLERANCE.get(size, 1e-9)


def like(values: NDArray[Any], template: object, dtype: Any = None) -> Any:
    """Return values as the template's kind.

    Args:
        values: float64 or complex128 array.
        template: What the caller passed: a tensor gives a tensor on its device.
        dtype: Of the result. None: a tensor's own (its complex counterpart for complex values); float64 for arrays.
    """
    if not is_tensor(template):
        return values if dtype is None else values.astype(dtype, copy=False)
    if dtype is None:
        dtype = template.dtype
        if values.dtype.kind == "c" and not dtype.is_complex:
            dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    if not values.flags.writeable or any(stride < 0 for stride in values.strides):
        values = values.copy()  # torch cannot share such memory
    return torch.from_numpy(values).to(template.device, dtype)


def hermitian(matrices: NDArray[Any]) -> NDArray[Any]:
    """Return the lower triangle and its mirror image, because products need not be symmetric to the last bit.

    Args:
        matrices: (..., n, n), symmetric or Hermitian to rounding.
    """
    upper = np.swapaxes(np.tril(matrices, -1), -1, -2)
    lower = np.tril(matrices)
    if np.iscomplexobj(matrices):
        every = np.arange(matrices.shape[-1])
        lower[..., every, every] = lower[..., every, every].real
        upper = upper.conj()
    result: NDArray[Any] = lower + upper
    return result


def all_finite(values: torch.Tensor) -> bool:
    """Return whether there is neither NaN nor infinity.

    Args:
        values: Of any shape.
    """
    return first_not_finite([values]) is None


def first_not_finite(tensors: Sequence[torch.Tensor]) -> int | None:
    """Return the number of the first tensor with NaN or infinity; None if there is none.

    Args:
        tensors: Of any shapes.
    """
    try:
        number = _core.first_not_finite([values.numpy() for values in tensors])
    except (TypeError, RuntimeError):
        # One has no such array: another device or dtype, a graph, gaps between entries.
        return _first_slowly(tensors)
    return None if number < 0 else number


def _first_slowly(tensors: Sequence[torch.Tensor]) -> int | None:
    for number, values in enumerate(tensors):
        # Nothing finite sums to NaN, and a sum that overflows is looked at again: one pass in the usual case.
        sums = math.isfinite(float(values.detach().sum()))
        if not sums and not bool(torch.isfinite(values).all()):
            return number
    return None
