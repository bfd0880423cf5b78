"""What is in the memory of tensors: for every element of a storage, the scalar expression that was computed into it.

Views share memory, so every view, slice, transpose or expansion shows the right expressions without a rule of its own,
and a write in place changes all of them. An element is a code, (node of the graph) << 32 | (row + 1): the row of the batch
it belongs to, or no row for what all inputs share.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fubini.compile.graph import Graph

Codes = npt.NDArray[np.int64]

#: Why a function that adds inputs of a batch up is not understood.
MIXED = "it mixes the inputs of a batch"

_ROW = np.int64(0xFFFFFFFF)
#: The row of what is computed from several inputs.
MIXED_ROW = _ROW


class UnknownError(Exception):
    """Something that is not on the list of what is understood; the text says what, for ``explain()``."""


class Shadow:
    """Codes of the elements of all storages that depend on weights or inputs.

    Args:
        graph: Where the expressions are.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        # The storage is kept: another one at its address would be taken for it.
        self._codes: dict[int, tuple[Any, Codes, int]] = {}
        self._with_rows: set[int] = set()  # storages that may hold numbers of single inputs
        self._made: dict[int, Any] = {}
        self._constants: dict[float, int] = {}

    def tracks(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor's memory holds anything that depends on weights or inputs."""
        return _key(tensor) in self._codes

    def rows(self, tensor: torch.Tensor) -> Codes | None:
        """Return the rows plus one (0: no row) of what a tensor holds; None where its memory has none."""
        key = _key(tensor)
        if key not in self._with_rows:
            return None
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        rows: Codes = _view(self._codes[key][1], real) & _ROW
        return rows

    def has_rows(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor holds numbers of single inputs of a batch."""
        rows = self.rows(tensor)
        return rows is not None and bool(rows.any())

    def same_width(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor reads tracked memory in numbers of the size that was written."""
        width = tensor.element_size() // 2 if tensor.is_complex() else tensor.element_size()
        return self._codes[_key(tensor)][2] == width

    def made(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor's memory was made while recording."""
        return _key(tensor) in self._made

    def note_made(self, tensor: torch.Tensor) -> None:
        """Remember a tensor that was made while recording."""
        self._made.setdefault(_key(tensor), tensor.untyped_storage())

    def put(self, tensor: torch.Tensor, codes: Codes) -> None:
        """Say what a tensor holds.

        Args:
            tensor: Real or complex, floating; its memory is tracked from now on.
            codes: Of the tensor's shape, or broadcast to it; complex numbers have a last axis of two.
        """
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        key = _key(tensor)
        if key not in self._codes:
            storage = tensor.untyped_storage()
            whole = tensor.new_empty(0).set_(
                storage, 0, (storage.nbytes() // tensor.element_size(),), (1,)
            )
            known = whole.numel() == tensor.numel()
            held = np.zeros(len(whole), dtype=np.int64) if known else self._constant_codes(whole)
            self._codes[key] = storage, held, tensor.element_size()
        _view(self._codes[key][1], tensor)[...] = codes
        if (codes & _ROW).any():
            self._with_rows.add(key)

    def of(self, tensor: torch.Tensor) -> Codes:
        """Return what a tensor holds, in its shape; constants for memory that is not tracked.

        Raises:
            UnknownError: For complex numbers, which are understood as pairs of real ones only.
        """
        if tensor.is_complex():
            raise UnknownError("it computes with complex numbers")
        held = self._codes.get(_key(tensor))
        return self._constant_codes(tensor) if held is None else _view(held[1], tensor)

    def constant(self, value: float) -> int:
        """Return the code of a constant."""
        return self.graph.constant(value) << 32

    def _constant_codes(self, tensor: torch.Tensor) -> Codes:
        values = tensor.detach().to("cpu", torch.float64).numpy()
        distinct, inverse = np.unique(values.reshape(-1), return_inverse=True)
        codes = np.array([self.constant(v) for v in distinct.tolist()], dtype=np.int64)
        return codes[inverse].reshape(values.shape)


def _view(codes: Codes, tensor: torch.Tensor) -> Codes:
    """The codes of a storage as a tensor sees them."""
    strides = [8 * stride for stride in tensor.stride()]
    return np.ndarray(tensor.shape, np.int64, codes, 8 * tensor.storage_offset(), strides)


def split(codes: Codes) -> tuple[Codes, Codes]:
    """Return nodes, and rows plus one (0: no row)."""
    return codes >> 32, codes & _ROW


def joined_rows(rows: list[Codes]) -> Codes:
    """Return the row of what is computed from elements of these rows; ``MIXED_ROW`` where they are several.

    Args:
        rows: Rows plus one, broadcast against each other.
    """
    highest = rows[0]
    for other in rows[1:]:
        highest = np.maximum(highest, other)
    for row in rows:
        several = (row != 0) & (row != highest)
        if several.any():
            highest = np.where(several, MIXED_ROW, highest)
    return highest


def _key(tensor: torch.Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
