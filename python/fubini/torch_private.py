"""Names that torch has and does not document, all in one place, each with the reason why no public one will do.

What older versions of torch lack is looked up with a substitute, so that importing fails for none of them.
"""

import concurrent.futures
import contextlib
import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.autograd import forward_ad
from torch.nn.modules import module as nn_module
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["pytree"]  # for arguments of any structure; the public module came with torch 2.9

Tensor = torch.Tensor
P = ParamSpec("P")
R = TypeVar("R")

# -- torch.func: its transforms wrap tensors, and only torch's own operations can look into them. -----------------------

#: Whether a tensor is wrapped by a transform.
is_wrapped: Callable[[Tensor], bool] = torch._C._functorch.is_functorch_wrapped_tensor
#: Whether vmap wraps a tensor.
is_mapped: Callable[[Tensor], bool] = torch._C._functorch.is_batchedtensor
#: Whether ``is_grads_batched=True`` made a tensor, whose vmap is another one than torch.func's.
is_legacy_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor
#: Whether any transform is at work.
transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
#: Context in which no transform is at work: compilation makes and differentiates tensors of its own.
without_transforms: Callable[[], contextlib.AbstractContextManager[Any]] = (
    temporarily_clear_interpreter_stack
)


def unwrapped(value: Tensor) -> tuple[Tensor, int]:
    """Return what a wrapped tensor holds, and which dimension of it ``vmap`` maps, -1 for none."""
    dim: int = torch._C._functorch.maybe_get_bdim(value)
    return torch._C._functorch.get_unwrapped(value), dim


def is_forward_mode() -> bool:
    """Return whether forward-mode differentiation is at work; asking every tensor for its tangent takes longer."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def is_plain() -> bool:
    """Return whether neither torch.func nor forward-mode AD is at work, so that tensors are just tensors."""
    return not transforms_active() and getattr(forward_ad, "_current_level", 0) < 0


def legacy_vmap_level() -> int:
    """Return the innermost level of the vmap of ``is_grads_batched``; there is no other way to know it."""
    level: int = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    return level


def unbatched(value: Tensor, level: int) -> Tensor:
    """Return what such a tensor holds, the mapped dimension first."""
    return torch._remove_batch_dim(value, level, 0, 0)


def batched(value: Tensor, level: int) -> Tensor:
    """Return such a tensor from what it holds, the mapped dimension first."""
    return torch._add_batch_dim(value, 0, level)


# -- Dispatch modes: fake tensors, tracing into graphs, functionalisation. ----------------------------------------------

_Key = torch._C._TorchDispatchModeKey
_TRACING = (_Key.FAKE, _Key.PROXY, _Key.FUNCTIONAL)
_modes = torch._C._len_torch_dispatch_stack
_PLAIN = (torch.Tensor, torch.nn.Parameter)
#: Context in which no dispatch mode is at work: what a fake implementation computes is real.
without_modes: Callable[[], contextlib.AbstractContextManager[Any]] = _disable_current_modes


def is_traced(inputs: Tensor, weights: Sequence[Tensor]) -> bool:
    """Return whether operations on tensors are recorded or simulated instead of done: data must not be looked at.

    Args:
        inputs: Any tensor.
        weights: Further ones.
    """
    if _modes() and any(torch._C._get_dispatch_mode(key) is not None for key in _TRACING):
        return True
    for value in (inputs, *weights):  # a generator takes longer
        kind = type(value)
        if kind not in _PLAIN and kind.__module__.startswith("torch._subclasses"):
            return True
    return False


@functools.cache
def _usual_keys() -> tuple[Any, Any]:
    """What a new thread dispatches to."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(
            lambda: (
                torch._C._dispatch_tls_local_include_set(),
                torch._C._dispatch_tls_local_exclude_set(),
            )
        ).result()


def as_outside() -> contextlib.AbstractContextManager[Any]:
    """Return a context that computes inside of an operation as outside of it."""
    # Inside, torch leaves out what records graphs, and while it traces also what resolves lazy conjugation and negation.
    included, excluded = _usual_keys()
    guard: contextlib.AbstractContextManager[Any] = torch._C._ForceDispatchKeyGuard(
        included, excluded
    )
    return guard


# -- torch.compile ------------------------------------------------------------------------------------------------------

_disable = getattr(torch, "_disable_dynamo", torch.compiler.disable)
#: What looks at every function that is called; None where the compiler is not at work. ``is_compiling`` tells something
#: else: whether a function is being traced. Older versions do not tell: then it may always be at work.
_callback: Callable[[], Any] = getattr(
    torch._C._dynamo.eval_frame, "get_eval_frame_callback", lambda: sys.modules.get("torch._dynamo")
)


def load_compiler() -> None:
    """Import the compiler, as every optimizer of torch does when it is made.

    Not in this thread: errors that are caught on the way keep the frames of all callers, and so the parameters, alive.
    """
    if "torch._dynamo" not in sys.modules:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            pool.submit(importlib.import_module, "torch._dynamo").result()


def uncompiled(function: Callable[P, R]) -> Callable[P, R]:
    """Keep a function out of ``torch.compile``, as ``torch.compiler.disable`` does, which imports the compiler: a second.

    Args:
        function: The function.

    Returns:
        The function for callers.
    """
    disabled = _disable(function)

    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        if _callback() is None:  # there is nothing to keep out
            return function(*args, **kwargs)
        result: R = disabled(*args, **kwargs)
        return result

    # The compiler passes over the files of torch, but would compile this function itself, with guards on its arguments.
    inner.__code__ = inner.__code__.replace(co_filename=_disable.__code__.co_filename)
    return functools.update_wrapper(inner, function)


# -- Graphs. What nodes save (``_saved_self``) and their ``next_functions`` are documented. ------------------------------


def node_number(node: Any) -> int:
    """Return a number that is larger than those of all nodes that a node's operation depends on, with few exceptions."""
    number: int = node._sequence_nr()
    return number


def node_shapes(node: Any) -> list[tuple[int, ...]]:
    """Return the shapes of the results of a node's operation."""
    return [tuple(result.shape) for result in node._input_metadata]


def is_node_of(node: Any, function: Any) -> bool:
    """Return whether a node is that of an autograd function."""
    return type(node) is function._backward_cls


# -- Backward passes ----------------------------------------------------------------------------------------------------


def current_backward() -> int:
    """Return a number for the backward pass that is at work, -1 for none: hooks are not told."""
    return torch._C._current_graph_task_id()


def after_backward(callback: Callable[[], None]) -> None:
    """Call back when the backward pass that is at work is over, as torch's own data-parallel modules do."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)


_saved_hooks: Callable[..., Any] = getattr(
    torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None
)


def packs_saved_tensors() -> bool:
    """Return whether what operations save goes through hooks, as in checkpoints, where looking at it computes it anew."""
    return _saved_hooks(True) is not None


# -- Modules and lists of tensors ---------------------------------------------------------------------------------------

_GLOBAL_HOOKS = [
    value
    for name, value in vars(nn_module).items()
    if name.startswith(("_global_forward", "_global_backward")) and isinstance(value, dict)
]


def has_global_hook() -> bool:
    """Return whether hooks were registered for all modules, which are then not to be passed over."""
    return any(_GLOBAL_HOOKS)


def flattened(tensors: Sequence[Tensor]) -> Tensor:
    """Return all numbers side by side: a third of the time of ``torch.cat`` of reshaped tensors."""
    result: Tensor = _flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    return result


def unflattened(vector: Tensor, like: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return pieces of a vector with the shapes of some tensors."""
    result: Sequence[Tensor] = _unflatten_dense_tensors(vector, like)  # type: ignore[no-untyped-call]
    return result


#: Whether torch's optimizers take parameters with their names, as those of torch 2.6 do first.
TAKES_NAMES = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 6)

#: One operation on many tensors; documented for torch's optimizers, but only by their arguments.
foreach_mul: Callable[..., Any] = torch._foreach_mul
foreach_lerp: Callable[..., Any] = torch._foreach_lerp
foreach_add_: Callable[..., Any] = torch._foreach_add_


# -- Checkpoints: what a model computes twice to save memory. There is no way to turn that off from outside. -------------


def checkpoint_switches() -> list[tuple[Any, str]]:
    """Return what ``torch.utils.checkpoint`` calls for a checkpoint, as owner and name, as far as it is there.

    ``_checkpoint_without_reentrant_generator`` is a generator that runs up to its ``yield`` before the function, and on after
    it; ``CheckpointFunction.apply`` takes the function, a flag and the arguments.
    """
    import torch.utils.checkpoint as module  # not needed to import fubini

    found: list[tuple[Any, str]] = []
    if hasattr(module, "_checkpoint_without_reentrant_generator"):
        found.append((module, "_checkpoint_without_reentrant_generator"))
    if hasattr(module, "CheckpointFunction"):
        found.append((module.CheckpointFunction, "apply"))
    return found
