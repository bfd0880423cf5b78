"""Remembers the inputs that a layer saw in the forward passes whose gradients are waiting for a step."""

import weakref
from typing import Any

import torch


class InputRecorder:
    """A forward hook that keeps the inputs of those forward passes that contributed to the weights' ``.grad``.

    Evaluation passes and ``torch.autograd.grad`` are therefore never counted, several forward and backward passes before
    one step (gradient accumulation) are counted together, and whether gradients are zeroed before or after the forward
    pass makes no difference: a backward pass into weights without a gradient starts a new record. A copy of the hook,
    as in a deep copy of the model, records nothing.

    Args:
        input_arg: Name of the layer's argument, for calls by keyword.

    Attributes:
        batches: Inputs of the recorded passes, in the order of the backward passes.
    """

    def __init__(self, input_arg: str) -> None:
        self.input_arg = input_arg
        self.batches: list[torch.Tensor] = []
        self._active = True
        self._pending: list[torch.Tensor] = []
        self._backward = -1  # the backward pass that the pending inputs belong to
        self._starts_anew = False
        self._watched: dict[
            int, weakref.ref[torch.Tensor]
        ] = {}  # by identity: tensors compare elementwise

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def __call__(
        self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        """Attach to the output of a forward pass; see ``register_forward_hook(with_kwargs=True)``."""
        if not (self._active and isinstance(output, torch.Tensor) and output.requires_grad):
            return
        if torch._C._functorch.is_functorch_wrapped_tensor(
            output
        ):  # inside torch.func there is no .grad to wait for
            return
        self._watch(module)
        # A copy, because the caller may reuse the buffer before the step.
        inputs = (args[0] if args else kwargs[self.input_arg]).detach().clone()
        output.register_hook(lambda _: self._passed(module, inputs))  # type: ignore[no-untyped-call]

    def detach(self) -> None:
        """Record nothing any more."""
        self._active = False
        self.batches.clear()

    def _watch(self, module: torch.nn.Module) -> None:
        """Weights may be frozen, thawed or replaced at any time, so this looks at them in every pass."""
        this = weakref.ref(self)

        def accumulated(_: torch.Tensor) -> None:
            recorder = this()
            if recorder is not None:
                recorder._commit()

        for p in module.parameters():
            known = self._watched.get(id(p))
            if p.requires_grad and p.is_leaf and (known is None or known() is not p):
                p.register_post_accumulate_grad_hook(accumulated)  # type: ignore[no-untyped-call]
                self._watched[id(p)] = weakref.ref(p)

    def _passed(self, module: torch.nn.Module, inputs: torch.Tensor) -> None:
        """A backward pass went through the layer; whether it reaches ``.grad`` is not known yet."""
        backward = (
            torch._C._current_graph_task_id()
        )  # one number per backward pass, shared by repeated uses
        if backward != self._backward:
            self._backward = backward
            self._pending = []
            self._starts_anew = not any(_has_gradient(p) for p in module.parameters())
        self._pending.append(inputs)

    def _commit(self) -> None:
        """A weight's ``.grad`` has received what the pending passes contributed."""
        if not self._active or torch._C._current_graph_task_id() != self._backward:
            return
        if self._starts_anew:
            self.batches.clear()
            self._starts_anew = False
        self.batches += self._pending
        self._pending = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "InputRecorder":
        return _inert(self.input_arg)

    def __reduce__(self) -> tuple[Any, ...]:
        return _inert, (self.input_arg,)


def _inert(input_arg: str) -> InputRecorder:
    recorder = InputRecorder(input_arg)
    recorder._active = False
    return recorder


def _has_gradient(parameter: torch.nn.Parameter) -> bool:
    return parameter.grad is not None and bool(parameter.grad.any())
