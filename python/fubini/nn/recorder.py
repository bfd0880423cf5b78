"""Remembers what a module saw in the forward passes whose gradients are waiting for a step."""

import contextlib
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from fubini.blocks import distributed
from fubini.nn.gradients import weight_jacobian
from fubini.nn.shot_noise import ShotNoise
from fubini.nn.surroundings import Surroundings, copied, parameters_of, versions_of
from fubini.torch_private import (
    after_backward,
    current_backward,
    is_wrapped,
    pytree,
    uncompiled,
    without_transforms,
)

Tensor = torch.Tensor
_Gradients = list[tuple[Tensor, Tensor | None, int]]


@dataclass(eq=False)
class Pass:
    """One forward pass.

    Attributes:
        args: Positional arguments, tensors detached and copied.
        kwargs: Keyword arguments, likewise.
        weights: Identity and version of every parameter, and whether it required a gradient, to notice changes between
            passes.
        parameters: Those of the optimizer's that required a gradient.
        count: Number of inputs: the first dimension of the output, 1 for a scalar.
        gradient: Of what was differentiated, by the (first) output; None before the backward pass.
        noise: Of the gradients of a layer with shots, where the recorder keeps it.
        backwards: Numbers of the backward passes that count.
        surroundings: Of the pass when it began, where the recorder keeps it; arguments are then as they were then.
        output: The (first) output, likewise.
        graph: What ``ModelRecorder.reader`` made of the output.
        number: Of the forward pass, in their order.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: tuple[tuple[int, int, bool], ...]
    parameters: list[Tensor]
    count: int
    gradient: Tensor | None = None
    noise: ShotNoise | None = None
    backwards: set[int] = field(default_factory=set)
    surroundings: Surroundings | None = None
    output: Tensor | None = None
    graph: Any = None
    number: int = field(default_factory=itertools.count().__next__)


@dataclass(eq=False)
class _Backward:
    """A backward pass that is not over.

    Attributes:
        number: Torch's.
        before: Parameters with their gradients and these gradients' versions when it reached the module.
        pending: The forward passes that it went through, each with the gradient of its (first) output.
    """

    number: int
    before: _Gradients
    pending: dict[Pass, Tensor | None] = field(default_factory=dict)


class PassRecorder:
    """Keeps those forward passes that contributed to the weights' ``.grad``.

    Evaluation passes and ``torch.autograd.grad`` are therefore never counted, several forward and backward passes before
    one step (gradient accumulation) are counted together, and whether gradients are zeroed before or after the forward
    pass makes no difference: a backward pass into weights without a gradient starts a new record. There are no hooks on
    the weights: when a backward pass is over, it is seen whether a gradient is another one than before. Backward passes
    may run inside of others, as in hooks and checkpoints. How a backward pass is noticed is for the classes that derive
    from this one, which call ``_passed``. A copy, as in a deep copy of the model, records nothing.

    Attributes:
        passes: The recorded passes, in the order of the backward passes.
        looked: Whether a backward pass was seen that left the weights' ``.grad`` alone (``torch.autograd.grad``).
        paused: Whether forward passes are ignored for now.
    """

    def __init__(self) -> None:
        self.passes: list[Pass] = []
        self.looked = False
        self.paused = False
        self._watched: dict[int, Tensor] = {}
        self._active = True
        # Arguments and surroundings of the pass that is on its way.
        self._begun: tuple[Any, Any, Surroundings] | None = None
        self._last: Surroundings | None = None
        # By number. Torch keeps one alive until it is over, also where an error ends it.
        self._open: weakref.WeakValueDictionary[int, _Backward] = weakref.WeakValueDictionary()
        self._stale: list[Pass] = []  # recorded ones whose gradients are gone
        self._zeros: list[tuple[Any, int]] = []  # gradients that backward passes left at zero

    def watch(self, parameters: Iterable[Tensor]) -> None:
        """Say whose gradients count: others are not the optimizer's, which does not clear them.

        Args:
            parameters: Parameters of the optimizer.
        """
        self._watched = {id(p): p for p in parameters}

    def detach(self) -> None:
        """Record nothing any more."""
        self._active = False
        self.passes.clear()
        self._stale, self._zeros, self._watched = [], [], {}
        self._begun = self._last = None

    def _passed(self, seen: Pass, gradient: Tensor | None = None) -> None:
        """A backward pass went through the module; whether it reaches ``.grad`` is not known yet."""
        if not self._active or self.paused:
            return
        # One number per backward pass, shared by repeated uses.
        number = current_backward()
        backward = self._open.get(number)
        if backward is None:
            backward = self._begin(number, seen.parameters)
        if gradient is not None or seen not in backward.pending:
            backward.pending[seen] = gradient

    def mark(
        self,
        weight: Tensor,
        seen: Pass,
        leaves: Sequence[Tensor] = (),
        jacobians: dict[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Return a view of a weight, by which a backward pass through what uses it is noticed.

        Args:
            weight: The weight.
            seen: The pass that uses it.
            leaves: The parameters that it is computed from.
            jacobians: Receives its derivatives by these, before torch frees what they take; None: they are not wanted.
        """
        # Marks are for what torch keeps of a backward pass, whatever transforms of torch.func are around.
        with without_transforms(), torch.enable_grad():
            mark = weight.view_as(weight)

            def passed(_: Tensor) -> None:
                # Behind the mark nothing has been freed yet.
                if jacobians is not None and not jacobians and self._active:
                    jacobians.update(weight_jacobian(weight, leaves))
                self._passed(seen)

            mark.register_hook(passed)  # type: ignore[no-untyped-call]
        return mark

    def _begin(self, number: int, parameters: Sequence[Tensor]) -> _Backward:
        before = [(p, g := p.grad, 0 if g is None else g._version) for p in parameters]
        if self._is_without_gradient(before):
            self._stale = list(self.passes)
        elif not self._open:
            self._stale = []
        backward = self._open[number] = _Backward(number, before)
        after_backward(lambda: self._commit(backward))
        return backward

    def _is_without_gradient(self, before: _Gradients) -> bool:
        """Whether no gradient is waiting for a step. Zeros are gradients where they are what backward passes left."""
        gradients = [g for _, g, _ in before if g is not None]
        if any(bool(g.any()) for g in gradients):
            return False
        return not gradients or not all(
            any(g is left() and g._version == version for left, version in self._zeros)
            for g in gradients
        )

    def _commit(self, backward: _Backward) -> None:
        """The backward pass is over: the pending passes count if they contributed to a weight's ``.grad``."""
        if not self._active:
            return
        # Another gradient, or one to which more was added.
        if all(p.grad is g and (g is None or g._version == v) for p, g, v in backward.before):
            self.looked = True
            for seen in backward.pending:
                _forget(seen.noise, lambda number: number == backward.number)
            return
        if self._stale:
            self.passes[:] = [seen for seen in self.passes if seen not in self._stale]
            self._stale = []
        for seen, gradient in backward.pending.items():
            if seen not in self.passes:
                self.passes.append(seen)
                seen.gradient, seen.backwards = gradient, set()
            elif gradient is not None:  # another backward pass of the same forward pass
                seen.gradient = gradient if seen.gradient is None else seen.gradient + gradient
            seen.backwards.add(backward.number)
            _forget(seen.noise, lambda number, seen=seen: number not in seen.backwards)  # type: ignore[misc]
        gradients = [g for p, _, _ in backward.before if (g := p.grad) is not None]
        zero = not any(bool(g.any()) for g in gradients)
        self._zeros = [(weakref.ref(g), g._version) for g in gradients] if zero else []

    def __deepcopy__(self, memo: dict[int, Any]) -> "PassRecorder":
        return inert(type(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return inert, (type(self),)


class ModelRecorder(PassRecorder):
    """A forward hook on a model.

    A backward pass is noticed by what reaches the model's outputs. Where it was asked for a graph of its own
    (``create_graph=True``, for losses made of derivatives), all that it computes is linear in what reached the outputs:
    a mark on that notices the backward pass of the loss.

    Attributes:
        reader: Takes the (first) output of a pass to what is to be kept of its graph, where surroundings are kept.
    """

    reader: Callable[[Tensor], Any] | None = None

    @uncompiled
    def begin(self, module: torch.nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        """Note what surrounds a pass; see ``register_forward_pre_hook(with_kwargs=True)``."""
        if len(rest) == 1 and self._active and not self.paused and torch.is_grad_enabled():
            self._last = Surroundings.now(module, self._last)
            self._begun = copied(args), copied(rest[0]), self._last

    @uncompiled
    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], *rest: Any) -> None:
        """Attach to the output of a forward pass; see ``register_forward_hook(with_kwargs=True)``."""
        # The hook of an optimizer that dies while the model runs is called once more, without the keyword arguments.
        if len(rest) != 2 or not self._active or self.paused:
            return
        kwargs, output = rest
        begun, self._begun = self._begun, None
        leaves = pytree.tree_leaves(output)
        outputs = [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]
        # Inside torch.func there is no .grad to wait for.
        if not outputs or any(is_wrapped(t) for t in outputs):
            return
        args, kwargs, around = begun or (copied(args), copied(kwargs), None)
        known = parameters_of(module)
        weights = versions_of(known)
        parameters = [p for p in known if p.requires_grad and id(p) in self._watched]
        count = outputs[0].shape[0] if outputs[0].ndim else 1
        seen = Pass(args, kwargs, weights, parameters, count, surroundings=around)
        if around is not None:
            seen.output = outputs[0].detach().clone()
            if self.reader is not None:
                seen.graph = self.reader(outputs[0])
        for k, one in enumerate(outputs):
            self._hook(one, seen, whole=k == 0)
            base = one._base
            # An operation in place on a view takes the view, with its hooks, out of the graph.
            if base is not None and base.grad_fn is not None:
                self._hook(base, seen, whole=False)

    def _hook(self, output: Tensor, seen: Pass, whole: bool) -> None:
        def passed(grad: Tensor) -> Tensor | None:
            self._passed(seen, grad if whole else None)
            if not torch.is_grad_enabled():
                return None
            marked = grad + torch.zeros((), requires_grad=True)  # which makes it require a gradient
            marked.register_hook(lambda _: self._passed(seen))  # type: ignore[no-untyped-call]
            return marked

        output.register_hook(passed)  # type: ignore[no-untyped-call]


def record(module: torch.nn.Module, owner: Any) -> ModelRecorder:
    """Record a model's passes for as long as the owner lives.

    Args:
        module: The model.
        owner: The optimizer.

    Returns:
        The recorder.
    """
    recorder = ModelRecorder()
    handles = (
        module.register_forward_hook(recorder, with_kwargs=True),
        # Before other hooks, which may change arguments or draw random numbers.
        module.register_forward_pre_hook(recorder.begin, prepend=True, with_kwargs=True),
    )
    for handle in handles:
        weakref.finalize(owner, handle.remove)
    weakref.finalize(owner, recorder.detach)
    return recorder


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


def missing(recorder: PassRecorder, moving: Iterable[Tensor], name: str = "model") -> bool:
    """Return whether there is no pass to take a metric from, and none is needed: all gradients are zero.

    Args:
        recorder: Of the module.
        moving: The parameters that have gradients.
        name: The module's name.

    Raises:
        RuntimeError: If there are gradients from elsewhere.
    """
    if recorder.passes:
        return False
    # Tools that want an optimizer's state to be there take a step with gradients of zero.
    gradients = [p.grad for p in moving if p.grad is not None]
    if gradients and not distributed.active() and not any(bool(g.any()) for g in gradients):
        return True
    if recorder.looked:
        raise RuntimeError(
            f"{name}: the passes whose gradients are in .grad are not known, because a backward pass through the module left "
            ".grad of the weights that it used alone: torch.autograd.grad does, and so do weights that the caller computes and "
            "passes to the module (torch.func.functional_call); call the module with weights of its own (computed ones by "
            "torch.nn.utils.parametrize, Fisher metrics of which take approx=None) and loss.backward() before step(), which may "
            "be followed by changes of .grad"
        )
    raise RuntimeError(
        f"{name}: the parameters have gradients, but no backward pass went through the module's forward into their .grad "
        "since the optimizer was made; make the optimizer first (again after replacing layers), then call model(inputs) and "
        "loss.backward() before step(). Gradients by weights that the caller computes and passes to the module "
        "(torch.func.functional_call) are not the parameters' own"
    )


@contextlib.contextmanager
def paused(recorders: Iterable[PassRecorder]) -> Iterator[None]:
    """Record no passes.

    Args:
        recorders: Those to pause.
    """
    some = list(recorders)
    for recorder in some:
        recorder.paused = True
    try:
        yield
    finally:
        for recorder in some:
            recorder.paused = False


def inert(kind: type[PassRecorder]) -> PassRecorder:
    """Return a recorder that records nothing, which copies of one become.

    Args:
        kind: Its class.
    """
    recorder = kind.__new__(kind)
    PassRecorder.__init__(recorder)
    recorder.detach()
    return recorder


def _forget(noise: ShotNoise | None, gone: Callable[[int], bool]) -> None:
    """Drop the contributions of backward passes by their number."""
    if noise is not None:
        noise.contributions[:] = [c for c in noise.contributions if not gone(c.backward)]
