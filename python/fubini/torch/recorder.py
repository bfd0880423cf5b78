"""Remembers the inputs that a layer saw in the forward passes whose gradients are waiting for a step."""

from typing import Any

import torch


class InputRecorder:
    """A forward hook that keeps the inputs of those forward passes through which a backward pass went.

    Evaluation passes are therefore never counted, several forward and backward passes before one step (gradient
    accumulation) are counted together, and whether gradients are zeroed before or after the forward pass makes no
    difference: a backward pass into weights without a gradient starts a new record. A copy of the hook, as in a deep
    copy of the model, records nothing.

    Args:
        input_arg: Name of the layer's argument, for calls by keyword.
    """

    def __init__(self, input_arg: str) -> None:
        self.input_arg = input_arg
        self.batches: list[torch.Tensor] = []
        self._active = True
        self._last_backward = -1

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
        # A copy, because the caller may reuse the buffer before the step.
        inputs = (args[0] if args else kwargs[self.input_arg]).detach().clone()
        output.register_hook(lambda _: self._commit(module, inputs))  # type: ignore[no-untyped-call]

    def _commit(self, module: torch.nn.Module, inputs: torch.Tensor) -> None:
        backward = (
            torch._C._current_graph_task_id()
        )  # one number per backward pass, shared by repeated uses
        if backward != self._last_backward and not any(
            _has_gradient(p) for p in module.parameters()
        ):
            self.batches.clear()
        self._last_backward = backward
        self.batches.append(inputs)

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
