"""Conversion between what callers pass (NumPy arrays, torch tensors, lists) and what the kernel takes."""

from __future__ import annotations

from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any] | torch.Tensor
RealArray: TypeAlias = NDArray[np.float64]

#: How far a matrix of this dtype may be from symmetric, relative to its largest entry: rounding of the
#: dtype times what a sum of a few hundred terms loses.
_SYMMETRY_TOLERANCE = {2: 2e-2, 4: 1e-4, 8: 1e-9}


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Return whether the value is a torch tensor."""
    return isinstance(value, torch.Tensor)


def tensor_to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """Return the tensor as a contiguous float64 array on the host; shares memory where it can."""
    plain = tensor.detach().to("cpu", torch.float64).contiguous().resolve_conj().resolve_neg()
    array: NDArray[Any] = plain.numpy()
    return array


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
            raise TypeError(f"{name}: expected dense real numbers, got {_describe(value)}")
        return tensor_to_numpy(value)
    array = np.asarray(value)
    if array.dtype.kind not in "fiub" or (array.dtype.kind == "f" and array.dtype.itemsize > 8):
        raise TypeError(
            f"{name}: expected real numbers of at most 64 bits, got dtype {array.dtype}; "
            "a complex Hermitian system is a real one of twice the size, [[Re, -Im], [Im, Re]]"
            if array.dtype.kind == "c"
            else f"{name}: expected real numbers of at most 64 bits, got dtype {array.dtype}"
        )
    return np.ascontiguousarray(array, dtype=np.float64).reshape(array.shape)


def _describe(tensor: torch.Tensor) -> str:
    return f"dtype {tensor.dtype}, layout {tensor.layout}"


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


def like(values: NDArray[Any], template: object, dtype: Any) -> Any:
    """Return the values as the template's kind: a tensor on its device, or an array, of the dtype."""
    if is_tensor(template):
        return torch.from_numpy(values).to(template.device, dtype)
    return values.astype(dtype, copy=False)
