"""Remembers what a module saw in the forward passes whose gradients are waiting for a step."""

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fubini.torch.shot_noise import ShotNoise


@dataclass(eq=False)
class Pass:
    """One forward pass.

    Attributes:
        args: Positional arguments, tensors detached and copied.
        kwargs: Keyword arguments, likewise.
        weights: Identity and version of every parameter that required a gradient, to notice changes between passes.
        parameters: Those parameters.
        count: Number of inputs: the first dimension of the output, 1 for a scalar.
        gradient: Of what was differentiated, by the (first) output; None before the backward pass.
        noise: Of the gradients of a layer with shots, where the recorder keeps it.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: tuple[tuple[int, int], ...]
    parameters: list[torch.Tensor]
    count: int
    gradient: torch.Tensor | None = None
    noise: ShotNoise | None = None


class PassRecorder:
    """A forward hook that keeps the arguments of those forward passes that contributed to the weights' ``.grad``.

    Evaluation passes and ``torch.autograd.grad`` are therefore never counted, several forward and backward passes before
    one step (gradient accumulation) are counted together, and whether gradients are zeroed before or after the forward
    pass makes no difference: a backward pass into weights without a gradient starts a new record. A copy of the hook,
    as in a deep copy of the model, records nothing. There are no hooks on the weights: when a backward pass is over, it
    is seen whether a gradient is another one than before.

    Attributes:
        passes: The recorded passes, in the order of the backward passes.
        paused: Whether forward passes are ignored for now.
        keeps_noise: Whether the noise of gradients from shots is kept with the passes.
    """

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.paused = False
        self.keeps_noise = False
        self._active = True
        self._pending: list[Pass] = []
        self._backward = -1  # the backward pass that the pending passes belong to
        self._starts_anew = False

    def __call__(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Attach to the output of a forward pass; see ``register_forward_hook(with_kwargs=True)``."""
        if torch.compiler.is_compiling():
            self._attach_uncompiled(module, args, kwargs, output)
        elif self._active and not self.paused:
            self._attach(module, args, kwargs, output)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _attach_uncompiled(self, *seen: Any) -> None:
        if self._active and not self.paused:
            self._attach(*seen)

    def _attach(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if isinstance(output, torch.Tensor):
            outputs = [output] if output.requires_grad else []
        else:
            leaves = pytree.tree_leaves(output)
            outputs = [t for t in leaves if isinstance(t, torch.Tensor) and t.requires_grad]
        # Inside torch.func there is no .grad to wait for.
        wrapped = torch._C._functorch.is_functorch_wrapped_tensor
        if not outputs or any(wrapped(t) for t in outputs):
            return
        parameters = [p for p in parameters_of(module) if p.requires_grad]
        weights = tuple([(id(p), p._version) for p in parameters])
        count = outputs[0].shape[0] if outputs[0].ndim else 1
        seen = Pass(_copied(args), _copied(kwargs), weights, parameters, count)
        if self.keeps_noise:
            seen.noise = getattr(module, "shot_noise", None)
            if seen.noise is not None:
                seen.noise.wanted = True
        outputs[0].register_hook(lambda grad: self._passed(parameters, seen, grad))  # type: ignore[no-untyped-call]
        for other in outputs[1:]:
            other.register_hook(lambda _: self._passed(parameters, seen, None))  # type: ignore[no-untyped-call]

    def detach(self) -> None:
        """Record nothing any more."""
        self._active = False
        self.passes.clear()

    def _passed(
        self, parameters: Sequence[torch.Tensor], seen: Pass, gradient: torch.Tensor | None
    ) -> None:
        """A backward pass went through the module; whether it reaches ``.grad`` is not known yet."""
        if not self._active or self.paused:
            return
        # One number per backward pass, shared by repeated uses.
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._backward = backward
            self._pending = []
            before = [(p, g := p.grad, 0 if g is None else g._version) for p in parameters]
            self._starts_anew = not any(g is not None and bool(g.any()) for _, g, _ in before)
            # As torch's own data-parallel modules do: called when this backward pass is over.
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self._commit(before))
        known = any(seen is other for other in self.passes) and not self._starts_anew
        if gradient is not None:
            earlier = seen.gradient if known else None
            seen.gradient = gradient if earlier is None else earlier + gradient
        if known:
            return  # another output, or another backward pass, of the same forward pass
        if not any(seen is other for other in self._pending):
            self._pending.append(seen)
            if seen.noise is not None:
                seen.noise.contributions.clear()  # of a backward pass whose gradients are gone

    def _commit(self, before: Sequence[tuple[torch.Tensor, torch.Tensor | None, int]]) -> None:
        """The backward pass is over: the pending passes count if they contributed to a weight's ``.grad``."""
        pending, self._pending = self._pending, []
        if not self._active or not any(_has_changed(*one) for one in before):
            return
        if self._starts_anew:
            self.passes.clear()
            self._starts_anew = False
        self.passes += pending

    def __deepcopy__(self, memo: dict[int, Any]) -> "PassRecorder":
        return _inert()

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert, ()


def record(module: torch.nn.Module, owner: Any) -> PassRecorder:
    """Record a module's passes for as long as the owner lives.

    Args:
        module: The module.
        owner: The optimizer.

    Returns:
        The recorder.
    """
    recorder = PassRecorder()
    handle = module.register_forward_hook(recorder, with_kwargs=True)
    weakref.finalize(owner, handle.remove)
    weakref.finalize(owner, recorder.detach)
    return recorder


def parameters_of(module: torch.nn.Module) -> list[torch.Tensor]:
    """Return a module's parameters, each once; a third of the time of ``module.parameters()``.

    Args:
        module: The module.
    """
    found: dict[int, torch.Tensor] = {}
    seen = {id(module)}
    waiting = [module]
    while waiting:
        one = waiting.pop()
        for p in one._parameters.values():
            if p is not None:
                found[id(p)] = p
        for child in reversed(one._modules.values()):
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)
    return list(found.values())


def check_same_weights(name: str, passes: Sequence[Pass]) -> None:
    """Refuse passes that used different weights: there is no one point at which to take their metric.

    Args:
        name: The module's name.
        passes: Its recorded passes.

    Raises:
        RuntimeError: If the weights changed between them.
    """
    if any(one.weights != passes[0].weights for one in passes):
        raise RuntimeError(
            f"{name}: the passes whose gradients are to be applied used different weights, so their metric is that of no "
            "one point; call zero_grad() after every change of the weights"
        )


def joined(passes: Sequence[Pass]) -> tuple[tuple[Any, ...], dict[str, Any], int]:
    """Return arguments for one pass over the inputs of all: tensors with the passes' first dimension are joined along it.

    Args:
        passes: At least one.

    Returns:
        Positional arguments, keyword arguments, and the number of inputs.

    Raises:
        RuntimeError: If the arguments of the passes do not go together.
    """
    count = sum(p.count for p in passes)
    if len(passes) == 1:
        return passes[0].args, passes[0].kwargs, count
    flat = [pytree.tree_flatten((p.args, p.kwargs)) for p in passes]
    if any(spec != flat[0][1] for _, spec in flat):
        raise RuntimeError(
            "model: expected the passes between two steps to have the same arguments, got different numbers of them"
        )
    leaves = []
    for values in zip(*(leaves for leaves, _ in flat), strict=True):
        if all(
            isinstance(v, torch.Tensor) and v.ndim and v.shape[0] == p.count
            for v, p in zip(values, passes, strict=True)
        ):
            leaves.append(torch.cat(values))
        elif all(_equal(v, values[0]) for v in values):
            leaves.append(values[0])
        else:
            raise RuntimeError(
                "model: expected the arguments of all passes between two steps to be batches along their first dimension, "
                "or equal, so that one pass stands for all; got "
                f"{[tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in values]}"
            )
    args, kwargs = pytree.tree_unflatten(leaves, flat[0][1])
    return args, kwargs, count


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))
    return type(a) is type(b) and bool(a == b)


def _copied(values: Any) -> Any:
    """The same with detached copies of the tensors, because the caller may reuse the buffers before the step."""
    if not values:
        return values
    if type(values) is tuple and all(type(value) is torch.Tensor for value in values):
        return tuple(value.detach().clone() for value in values)  # the usual case, without a tree

    def copy(value: Any) -> Any:
        return value.detach().clone() if isinstance(value, torch.Tensor) else value

    return pytree.tree_map(copy, values)


def _inert() -> PassRecorder:
    recorder = PassRecorder()
    recorder._active = False
    return recorder


def _has_changed(parameter: torch.Tensor, gradient: torch.Tensor | None, version: int) -> bool:
    """Whether a parameter has another gradient, or more was added to the one it had."""
    now = parameter.grad
    return now is not gradient or (now is not None and now._version != version)
