"""Records what a function computes with tensors, on the numbers that it was called with.

Two layers of torch are listened to. Every ATen operation that runs is turned into scalar expressions by a rule
(:mod:`fubini.compile.rules`); every function of torch's interface that a tensor with such expressions goes into must be on
a list of those that compute nothing outside ATen (:mod:`fubini.compile.interface`). What is on neither list makes the
recording fail with a reason: nothing is dangerous, only unknown.
"""

import contextlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fubini.compile import activations, rearranged
from fubini.compile.graph import Graph
from fubini.compile.hooks import running
from fubini.compile.interface import Functions, Predicate, failure, tensors_in
from fubini.compile.replay import Replay
from fubini.compile.rules import RULES, codes_of
from fubini.compile.shadow import Codes, Shadow, UnknownError

assert activations  # rules of their own
assert rearranged


class Recording:
    """The expressions of a run.

    Args:
        graph: Where they are.

    Attributes:
        graph: As above.
        shadow: What is in the memory of tensors.
        replay: The operations that the expressions were made of.
        problem: Why the run cannot be compiled; None so far.
        sized: Whether the function asked for the number of inputs.
        predicates: Decisions that were taken by value.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.shadow = Shadow(graph)
        self.replay = Replay(self.shadow)
        self.problem: str | None = None
        self.sized = False
        self.predicates: list[Predicate] = []
        self._leaves: set[int] = set()

    def fail(self, reason: str) -> None:
        """Note why the run cannot be compiled; the first reason counts."""
        self.problem = self.problem or reason
        self.replay.clear()

    def leaves(self, kind: str, tensor: torch.Tensor, first: int, batch: bool = False) -> None:
        """Say that a tensor is a weight or the inputs.

        Args:
            kind: ``"weight"`` or ``"input"``.
            tensor: The tensor.
            first: Number of its first element among all leaves of the kind.
            batch: Whether its first axis is the batch.
        """
        count = tensor[0].numel() if batch else tensor.numel()
        nodes = np.array([self.graph.leaf(kind, first + k) for k in range(count)], dtype=np.int64)
        codes = (nodes << 32).reshape(tensor.shape[1:] if batch else tensor.shape)
        if batch:
            rows = np.arange(1, len(tensor) + 1).reshape(-1, *[1] * (tensor.ndim - 1))
            codes = codes[None] | rows
        if tensor.numel():
            self.shadow.put(tensor, codes)
            self.replay.leaf(kind, tensor, first)
        self._leaves.add(tensor.untyped_storage()._cdata)

    def is_leaf(self, tensor: torch.Tensor) -> bool:
        """Return whether a tensor is in the memory of a weight or of the inputs."""
        return tensor.untyped_storage()._cdata in self._leaves

    def __enter__(self) -> Self:
        self._modes = contextlib.ExitStack()
        self._modes.enter_context(Functions(self))
        self._modes.enter_context(_Operations(self))
        return self

    def __exit__(self, *error: object) -> None:
        self._modes.close()


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Every ATen operation: does it, and notes what it means."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Torch would import its compiler, for a second, to switch it off here; layers are excluded from it anyway."""
        return False

    def __init__(self, recording: Recording) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recording = recording

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        recording = self._recording
        if recording.problem is not None:
            return func(*args, **kwargs)
        told = running.told
        if told is not None:
            sys.setprofile(None)
        try:
            with torch._C.DisableTorchFunction():
                try:
                    mutated = _mutated(func, args, kwargs)
                    found = self._before(func, args, kwargs, mutated)
                    plan = found is not None and recording.replay.planned(
                        func, args, kwargs, mutated
                    )
                except Exception as error:  # noqa: BLE001 - whatever cannot be followed is not understood
                    recording.fail(failure(error))
                    return func(*args, **kwargs)
                result = func(*args, **kwargs)
                try:
                    self._after(func, args, result, found, mutated)
                    if plan:
                        recording.replay.note(plan, result, bool(mutated))
                except Exception as error:  # noqa: BLE001
                    recording.fail(failure(error))
        finally:
            if told is not None:
                sys.setprofile(told)
        return result

    def _before(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], mutated: list[Any]
    ) -> Codes | None:
        """The codes of the result, before numbers in place are lost; None where nothing of the leaves is in it."""
        recording, shadow = self._recording, self._recording.shadow
        name = func._schema.name.split("::")[1]
        if torch.Tag.nondeterministic_seeded in func.tags:
            raise UnknownError(f"it draws random numbers ({name})")
        used = tensors_in((*args, *kwargs.values()))
        tracked = any(shadow.tracks(t) for t in used)
        if any(t.requires_grad and not (shadow.tracks(t) or shadow.made(t)) for t in used):
            raise UnknownError("it uses a tensor that requires grad but is no argument")
        for tensor in mutated:
            if shadow.tracks(tensor):
                if recording.is_leaf(tensor):
                    raise UnknownError("it changes a weight or the inputs in place")
            elif not shadow.made(tensor):
                raise UnknownError("it changes a tensor in place that was there before")
        if not tracked or (func.is_view and not mutated):
            return None
        if func.namespace != "aten":
            raise UnknownError(f"it uses {func.namespace}::{name}, which is not understood")
        if mutated:
            if kwargs.get("out") is not None or len(mutated) != 1 or mutated[0] is not args[0]:
                raise UnknownError(f"it uses {name}, which is not understood")
            if name in ("copy_", "fill_", "zero_"):
                value = 0.0 if name == "zero_" else args[1]
                return np.array(np.broadcast_to(codes_of(shadow, value), tuple(args[0].shape)))
            name = name.removesuffix("_")
        rule = RULES.get(name)
        if rule is None:
            raise UnknownError(f"it uses {name}, which is not understood")
        options = {k: v for k, v in kwargs.items() if k not in _OF_MEMORY}
        if name in ("_to_copy", "clone", "zeros_like", "ones_like", "empty_like", "full_like"):
            options = {}
        elif options.pop("dtype", None) not in (None, torch.float64, torch.float32):
            raise UnknownError("it changes the type of numbers")
        found = rule(shadow, *args, **options)
        return None if found is None else np.array(found)

    def _after(
        self, func: Any, args: Sequence[Any], result: Any, codes: Codes | None, mutated: list[Any]
    ) -> None:
        shadow = self._recording.shadow
        outputs = tensors_in([result])
        if codes is None:
            reads = func.is_view and any(shadow.tracks(t) for t in tensors_in(args))
            for tensor in outputs:
                if not shadow.tracks(tensor):
                    if reads:
                        raise UnknownError(f"it uses {func}, which is not understood")
                    if not mutated and not func.is_view:
                        shadow.note_made(tensor)
                    continue
                _check_kind(tensor)
                if not shadow.same_width(tensor):
                    raise UnknownError("it reads numbers as another type")
            return
        if len(outputs) != 1:  # pragma: no cover - rules make one tensor
            raise UnknownError(f"it uses {func}, which is not understood")
        (tensor,) = outputs
        _check_kind(tensor)
        shape = (*tensor.shape, 2) if tensor.is_complex() else tensor.shape
        if codes.shape != shape:  # pragma: no cover - a wrong rule must not pass
            raise UnknownError(f"it uses {func} in a way that is not understood")
        shadow.put(tensor, codes)
        shadow.note_made(tensor)


_OF_MEMORY = frozenset({"memory_format", "layout", "pin_memory", "non_blocking"})
_KINDS = (torch.float64, torch.float32, torch.complex128, torch.complex64)


def _check_kind(tensor: torch.Tensor) -> None:
    if tensor.dtype not in _KINDS:
        raise UnknownError(
            f"it computes with numbers of type {str(tensor.dtype).removeprefix('torch.')}"
        )
    if tensor.is_conj() or tensor.is_neg() or tensor.layout != torch.strided:
        raise UnknownError("it uses tensors of another layout")


def _mutated(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """Tensors that an operation writes to."""
    if not func._schema.is_mutable:
        return []
    found: list[Any] = []
    for k, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[k] if k < len(args) else kwargs.get(argument.name)
            found += tensors_in([value])
    return found
