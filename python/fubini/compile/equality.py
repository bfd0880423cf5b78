"""When two values are the same, and what they hold."""

import collections
import ctypes
import datetime
import decimal
import dis
import fractions
import functools
import itertools
import operator
import pathlib
import re
import types
import uuid
from typing import Any

import numpy as np
import pennylane as qml
import torch

_TUPLE_GETTER: Any = type(vars(dis.Positions)["lineno"])  # reads an item of a named tuple
# Objects that nothing can change.
ATOMS = frozenset(
    {int, float, complex, bool, str, bytes, type(None), range, slice, type(...), type(NotImplemented), torch.dtype, torch.device, torch.layout, torch.memory_format, type(np.dtype), property, re.Pattern,
     datetime.date, datetime.datetime, datetime.timedelta, decimal.Decimal, fractions.Fraction, uuid.UUID,
     pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath, operator.itemgetter, object,
     types.MemberDescriptorType, types.GetSetDescriptorType, qml.wires.Wires,
     functools.cached_property, _TUPLE_GETTER}
)  # fmt: skip


def items_of(value: Any) -> Any:
    """The items of a container, without the methods of a user's subclass."""
    kinds: tuple[Any, ...] = (list, tuple, set, frozenset, collections.deque)
    for kind in kinds:
        if isinstance(value, kind):
            return kind.__iter__(value)
    return iter(value)


def mapping_of(value: Any) -> Any:
    """The class whose methods give the content of a dictionary in order, without those of a user's subclass."""
    return collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict


def flat(value: Any) -> Any:
    """The values in nested dictionaries, lists and tuples."""
    if isinstance(value, dict):
        return itertools.chain.from_iterable(map(flat, value.values()))
    if type(value) in {list, tuple}:
        return itertools.chain.from_iterable(map(flat, value))
    return (value,)


#: What a partial, and a sparse matrix, is made of.
parts_of_partial: Any = operator.attrgetter("func", "args", "keywords")
parts_of_sparse: Any = operator.attrgetter("data", "indices", "indptr")


def same(now: Any, then: Any) -> bool:
    """Identical, or plain and equal: NaN to itself, 0.0 not to -0.0, 1 not to True."""
    if now is then:
        return True
    kind = type(now)
    if kind is not type(then):
        return False
    if kind is float or kind is complex:
        return repr(now) == repr(then)
    if kind is tuple or kind is torch.Size:
        return len(now) == len(then) and all(map(same, now, then))
    if kind is types.MethodType:
        return now.__self__ is then.__self__ and now.__func__ is then.__func__
    if issubclass(kind, np.generic):
        return bool(now.dtype == then.dtype and now.tobytes() == then.tobytes())
    if kind is slice:
        return same((now.start, now.stop, now.step), (then.start, then.stop, then.step))
    if kind is qml.wires.Wires:
        return same(now.labels, then.labels)
    if kind in {property, object, operator.itemgetter}:
        return False
    return kind in ATOMS and bool(now == then)


def metadata(value: torch.Tensor) -> tuple[Any, ...]:
    """What a tensor is besides its elements."""
    return value.data_ptr(), value.shape, value.dtype, value.requires_grad, value.stride()


def bytes_of(value: torch.Tensor) -> Any:
    """The bytes of a tensor: neither ``.data`` nor arrays that share its memory raise its version."""
    if value.device.type == "cpu" and value.is_contiguous():
        return ctypes.string_at(value.data_ptr(), value.nbytes)
    return _bits(value)


def _bits(value: torch.Tensor) -> torch.Tensor:
    return value.detach().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def same_content(value: torch.Tensor, content: Any) -> bool:
    """Say whether a tensor has these bytes."""
    if isinstance(content, bytes):
        return ctypes.string_at(value.data_ptr(), len(content)) == content
    return torch.equal(_bits(value), content)
