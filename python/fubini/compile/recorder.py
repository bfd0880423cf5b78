"""Records what a function computes with tensors, on the numbers that it was called with.

Two layers of torch are listened to. Every ATen operation that runs is turned into scalar expressions by a rule
(:mod:`fubini.compile.rules`); every function of torch's interface that a tensor with such expressions goes into must be on
a list of those that compute nothing outside ATen. What is on neither list (a number that leaves the tensors, a cast to
integers, a gradient that is cut off) makes the recording fail with a reason: nothing is dangerous, only unknown.
"""

import contextlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fubini.circuit.unfold import words
from fubini.compile import activations, rearranged
from fubini.compile.graph import Graph, TooLargeError
from fubini.compile.hooks import running
from fubini.compile.replay import Replay
from fubini.compile.rules import RULES
from fubini.compile.shadow import Codes, Shadow, UnknownError

assert activations  # rules of their own
assert rearranged


# Functions of torch's interface, by name, whose work is ATen operations alone. Operators come without underscores:
# __mul__, mul and mul_ are the same word; so are torch.sin, Tensor.sin and torch.nn.functional's names.
_COMPUTED = frozenset(
    words(
        "add sub subtract rsub mul multiply div divide truediv true_divide neg negative pos positive pow abs absolute square "
        "radd rmul rtruediv rdiv rpow iadd isub imul itruediv idiv ipow reciprocal sqrt rsqrt exp exp2 expm1 log log1p log2 log10 "
        "sin cos tan asin acos atan arcsin arccos arctan atan2 arctan2 sinh cosh tanh asinh acosh atanh arcsinh arccosh arctanh "
        "sigmoid relu silu softmax leaky_relu elu selu gelu mish softsign tanhshrink clamp clamp_min clamp_max clip where masked_fill "
        "tril triu var std logsumexp log_softmax lerp special_expit hardtanh relu6 cumprod diff erf erfc maximum minimum deg2rad rad2deg addcmul sum mean prod cumsum norm linalg_norm "
        "linalg_vector_norm vector_norm normalize softplus hypot mm mv bmm dot vdot inner outer ger kron matmul rmatmul addmm addmv "
        "baddbmm chain_matmul linalg_multi_dot multi_dot einsum tensordot linear bilinear trace clone contiguous float double to "
        "type_as cpu cat concat concatenate stack hstack vstack dstack column_stack row_stack repeat repeat_interleave tile flip "
        "fliplr flipud roll rot90 index_select gather take_along_dim getitem setitem pad view view_as reshape reshape_as expand "
        "expand_as broadcast_to broadcast_tensors atleast_1d atleast_2d atleast_3d permute transpose swapaxes swapdims movedim "
        "moveaxis t squeeze unsqueeze flatten unflatten ravel select narrow split split_with_sizes tensor_split chunk unbind "
        "diagonal diag diag_embed unfold copy fill zeros_like ones_like empty_like full_like new_zeros new_ones new_empty new_full "
        "new_tensor T mT H mH as_tensor asarray meshgrid cartesian_prod block_diag iter real imag view_as_real"
    )
)
# What tells about a tensor and not about its numbers; the form that is compiled holds for tensors of the same kind only.
_ASKED = frozenset(
    words(
        "dim ndim ndimension dtype device layout is_cuda is_cpu is_sparse is_quantized is_complex is_floating_point is_nested "
        "is_meta is_mkldnn is_mps is_xla is_xpu element_size itemsize is_contiguous is_conj is_neg resolve_conj resolve_neg"
    )
)
# What tells the number of inputs, where a tensor holds a batch of them.
_SIZES = frozenset(words("shape size len numel nelement stride broadcast_shapes iter unbind"))
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
        modes: list[Any] = [_Functions(self), _Operations(self)]
        for mode in modes:
            self._modes.enter_context(mode)
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
                    recording.fail(_failure(error))
                    return func(*args, **kwargs)
                result = func(*args, **kwargs)
                try:
                    self._after(func, args, result, found, mutated)
                    if plan:
                        recording.replay.note(plan, result, bool(mutated))
                except Exception as error:  # noqa: BLE001
                    recording.fail(_failure(error))
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
        used = _tensors((*args, *kwargs.values()))
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
            if name == "copy_":
                return np.array(np.broadcast_to(shadow.of(args[1]), tuple(args[0].shape)))
            if name in ("fill_", "zero_"):
                value = args[1] if name == "fill_" else 0.0
                codes = (
                    shadow.of(value)
                    if isinstance(value, torch.Tensor)
                    else shadow.constant(float(value))
                )
                return np.array(np.broadcast_to(codes, tuple(args[0].shape)))
            name = name.removesuffix("_")
        rule = RULES.get(name)
        if rule is None:
            raise UnknownError(f"it uses {name}, which is not understood")
        options = {
            k: v
            for k, v in kwargs.items()
            if k not in ("memory_format", "layout", "pin_memory", "non_blocking")
        }
        if name in ("_to_copy", "clone", "zeros_like", "ones_like", "empty_like", "full_like"):
            options = {}
        elif options.pop("dtype", None) not in (None, torch.float64, torch.float32):
            raise UnknownError("it changes the type of numbers")
        code = getattr(rule, "__code__", None)
        if (
            code is not None
            and "name" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        ):
            options["name"] = name
        found = rule(shadow, *args, **options)
        return None if found is None else np.array(found)

    def _after(
        self,
        func: Any,
        args: Sequence[Any],
        result: Any,
        codes: Codes | None,
        mutated: list[Any],
    ) -> None:
        shadow = self._recording.shadow
        outputs = _tensors([result])
        if codes is None:
            reads = func.is_view and any(shadow.tracks(t) for t in _tensors(args))
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
        if codes.shape != (
            *tensor.shape,
            *[2] * tensor.is_complex(),
        ):  # pragma: no cover - a wrong rule must not pass
            raise UnknownError(f"it uses {func} in a way that is not understood")
        shadow.put(tensor, codes)
        shadow.note_made(tensor)


def _failure(error: Exception) -> str:
    """The reason for ``explain()``."""
    if isinstance(error, UnknownError):
        return str(error)
    if isinstance(error, TooLargeError):
        return "its expressions are too large"
    return f"what it computes could not be followed ({type(error).__name__}: {error})"


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
            found += _tensors([value])
    return found


def _tensors(values: Iterable[Any]) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    for value in values:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


class _Functions(TorchFunctionMode):
    """Every function of torch's interface: those that a tracked tensor goes into must be known."""

    def __init__(self, recording: Recording) -> None:
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
                    reason = _failure(error)
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
            for t in _tensors((*args, *kwargs.values()))
            if _has_memory(t) and recording.shadow.tracks(t)
        ]
        if not tracked:
            return None
        name = _name_of(function)
        if name in _SIZES and any(recording.shadow.has_rows(t) for t in tracked) and _by_user():
            recording.sized = True
        if name in _ASKED or name in _SIZES:
            return None
        if name in _COMPUTED:
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
            return f"an operation in it looks at the values of its parameters ({name})"
        return f"it asks a tensor for {name}, so the circuit may depend on values"

    def _norm_check(self, name: str, tracked: list[torch.Tensor]) -> Predicate | None:
        """PennyLane asks whether amplitudes are normalised: ``allclose(norm, 1)`` in StatePrep."""
        if name != "numpy" or len(tracked) != 1:
            return None
        frame: Any = sys._getframe(3)
        while frame is not None and frame.f_globals.get("__name__", "").startswith(
            ("torch", "fubini.compile", "autoray", "pennylane.math")
        ):
            frame = frame.f_back
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


def _has_memory(tensor: torch.Tensor) -> bool:
    return type(tensor) in _PLAIN_TENSORS


_CONVERSIONS = ("__float__", "__int__", "__bool__", "__complex__", "__index__")


def _name_of(function: Callable[..., Any]) -> str:
    name = getattr(function, "__name__", "")
    if name == "__get__":  # the getter of a property
        name = getattr(getattr(function, "__self__", None), "__name__", "")
    elif name == "__set__":
        return "set_" + str(getattr(getattr(function, "__self__", None), "__name__", ""))
    # float(tensor) is no cast of the tensor, as tensor.float() is.
    return str(name) if name in _CONVERSIONS else str(name).strip("_")


# Frames between user code and the tensor method: who calls through them is the one who asks.
_CARRIERS = ("torch", "fubini.compile", "autoray", "pennylane.math", "pennylane.numpy")


def _by_user() -> bool:
    """Whether a function of torch was called outside PennyLane, which asks for validation only."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_CARRIERS):
        frame = frame.f_back
    name = frame.f_globals.get("__name__", "") if frame is not None else ""
    return not name.startswith(("pennylane", "fubini"))
