"""The one place where tensors of any framework become NumPy arrays, and results become tensors again."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml
import torch


def is_torch(value: Any) -> bool:
    """Say whether value is a torch tensor."""
    return isinstance(value, torch.Tensor)


def to_numpy(value: Any, dtype: Any = np.float64) -> npt.NDArray[Any]:
    """Return value as a C-contiguous NumPy array; shares memory where dtype and layout already fit.

    Args:
        value: Torch tensor (any device, strides, conjugate or negative bit), PennyLane or NumPy array, or number.
        dtype: NumPy dtype of the result; None keeps the value's own.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().resolve_conj().resolve_neg().cpu().numpy()
    else:
        value = qml.math.toarray(qml.math.unwrap([value])[0])
    return np.asarray(value, dtype=dtype, order="C")  # ascontiguousarray would turn () into (1,)


def like(result: npt.NDArray[Any], template: Any) -> Any:
    """Return a result in the framework of template: for a torch tensor in its dtype and on its device.

    Args:
        result: float64 or complex128 array.
        template: What the user passed in.
    """
    if not isinstance(template, torch.Tensor):
        return result
    tensor = torch.from_numpy(np.array(result))
    dtype = template.dtype
    if tensor.is_complex() and not dtype.is_complex:
        dtype = torch.complex64 if dtype == torch.float32 else torch.complex128
    return tensor.to(device=template.device, dtype=dtype)
