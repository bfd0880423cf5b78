"""Functions of torch's interface: those that a tensor with recorded expressions goes into must be known.

What is on no list (a number that leaves the tensors, a cast to integers, a gradient that is cut off) makes the recording
fail with a reason.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from fubini.circuit.torch_names import ASKED, COMPUTED, SIZES, name_of, words
from fubini.compile.graph import TooLargeError
from fubini.compile.hooks import running
from fubini.compile.shadow import Codes, UnknownError

# What the libraries ask for validation and for bookkeeping, and what does not reach the numbers there.
_LIBRARY = frozenset(words("requires_grad is_leaf"))


@dataclass(frozen=True)
class Predicate:
    """A decision of PennyLane that the recording depends on: whether these numbers are all 1, within a tolerance.

    Attributes:
        codes: The numbers.
        tolerance: Absolute tolerance of ``allclose``, besides its relative one.
        holds: What was found.
        tensor: What holds the numbers.
    """

    codes: Codes
    tolerance: float
    holds: bool
    tensor: torch.Tensor


def failure(error: Exception) -> str:
    """Return the reason for ``explain()``."""
    if isinstance(error, UnknownError):
        return str(error)
    if isinstance(error, TooLargeError):
        return "its expressions are too large"
    return f"what it computes could not be followed ({type(error).__name__}: {error})"


def tensors_in(values: Iterable[Any]) -> list[torch.Tensor]:
    """Return the tensors among values, and in lists and tuples of them."""
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += tensors_in(value)
    return found


class Functions(TorchFunctionMode):
    """Every function of torch's interface: those that a tracked tensor goes into must be known."""

    def __init__(self, recording: Any) -> None:
        super().__init__()
        self._recording = recording

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        told = running.told
        if told is not None:  # the watch need not be told of what is done here
            sys.setprofile(None)
        kwargs = kwargs or {}
        recording = self._recording
        try:
            if recording.problem is None:
                if function is _GETITEM and self._is_part(*args):
                    # A view of memory whose codes are known: no operation to be understood.
                    with torch._C._DisableTorchDispatch():
                        return function(*args)
                if function == _REQUIRES_GRAD and not _by_user():
                    return function(*args)
                try:
                    reason = self._problem(function, args, kwargs)
                except Exception as error:  # noqa: BLE001 - whatever cannot be looked at is not understood
                    reason = failure(error)
                if reason is not None:
                    recording.fail(reason)
        finally:
            if told is not None:
                sys.setprofile(told)
        return function(*args, **kwargs)

    def _is_part(self, tensor: Any, index: Any) -> bool:
        """Whether an index with constants takes a part of a tensor that is tracked, and nobody else is told of it."""
        return (
            type(tensor) in _PLAIN_TENSORS
            and (all(map(_is_constant, index)) if type(index) is tuple else _is_constant(index))
            and torch.is_grad_enabled()
            and torch._C._len_torch_function_stack() == 0
            and torch._C._len_torch_dispatch_stack() == 1
            and self._recording.shadow.tracks(tensor)
        )

    def _problem(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        recording = self._recording
        tracked = [
            t
            for t in tensors_in((*args, *kwargs.values()))
            if type(t) in _PLAIN_TENSORS and recording.shadow.tracks(t)
        ]
        if not tracked:
            return None
        name = name_of(function)
        if name in SIZES and any(recording.shadow.has_rows(t) for t in tracked) and _by_user():
            recording.sized = True
        if name in ASKED or name in SIZES:
            return None
        if name in COMPUTED:
            if not torch.is_grad_enabled() and _by_user():
                return "it computes where gradients are switched off"
            return None
        if not _by_user():
            if name in _LIBRARY or (name == "detach" and _on_the_way_to_numpy()):
                return None
            predicate = self._norm_check(name, tracked)
            if predicate is not None:
                recording.predicates.append(predicate)
                return None
            if _for_an_observable():
                return (
                    f"its observable looks at the values of its coefficients ({name}), which are no numbers but tensors (pass "
                    "those that are constant as numbers, such as h.item())"
                )
            return f"an operation in it looks at the values of its parameters ({name})"
        return f"it asks a tensor for {name}, so the circuit may depend on values"

    def _norm_check(self, name: str, tracked: list[torch.Tensor]) -> Predicate | None:
        """PennyLane asks whether amplitudes are normalised: ``allclose(norm, 1)`` in StatePrep."""
        if name != "numpy" or len(tracked) != 1:
            return None
        frame = _asker()
        if frame is None or frame.f_code.co_name != "_preprocess":
            return None
        home = frame.f_globals
        if home.get("__name__") != "pennylane.ops.qubit.state_preparation":
            return None
        tolerance = float(home.get("TOLERANCE", 0.0))
        (norm,) = tracked
        values = norm.detach().double()
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            holds = bool(torch.allclose(values, torch.ones_like(values), atol=tolerance))
        codes = np.array(self._recording.shadow.of(norm))
        return Predicate(codes, tolerance, holds, norm)


def _on_the_way_to_numpy() -> bool:
    """Whether PennyLane detaches a tensor to make an array of it; what asks for the array is looked at then."""
    frame = sys._getframe(3)
    home = frame.f_globals.get("__name__")
    return home == "pennylane.math.single_dispatch" and frame.f_code.co_name == "_to_numpy_torch"


_OBSERVABLES = (
    "fubini.native.measurements",
    "pennylane.pauli",
    "pennylane.ops.functions.dot",
    "pennylane.ops.op_math.sprod",
    "pennylane.ops.op_math.linear_combination",
)


def _for_an_observable() -> bool:
    """Whether operators are summed with coefficients, or what is measured is read."""
    frame: Any = sys._getframe(3)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(
        (*_CARRIERS, "pennylane", "fubini.circuit", "fubini.native")
    ):
        if frame.f_globals["__name__"].startswith(_OBSERVABLES):
            return True
        frame = frame.f_back
    return False


_PLAIN_TENSORS = (torch.Tensor, torch.nn.Parameter)
_GETITEM = torch.Tensor.__getitem__
_REQUIRES_GRAD = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]


def _is_constant(index: Any) -> bool:
    """Whether an index is a constant, and what it takes of a tensor a view."""
    kind = type(index)
    if kind is slice:
        return {type(index.start), type(index.stop), type(index.step)} <= _ENDS
    return kind is int or index is Ellipsis or index is None


_ENDS = {int, type(None)}


# Frames between user code and the tensor method: who calls through them is the one who asks.
_CARRIERS = ("torch", "fubini.compile", "autoray", "pennylane.math", "pennylane.numpy")


def _asker() -> Any:
    """The frame of who asks, behind those that carry a call to torch."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_CARRIERS):
        frame = frame.f_back
    return frame


def _by_user() -> bool:
    """Whether a function of torch was called outside PennyLane, which asks for validation only."""
    frame = _asker()
    name = frame.f_globals.get("__name__", "") if frame is not None else ""
    return not name.startswith(("pennylane", "fubini"))
