"""Evaluating a closure: first for the gradient, and again to judge a step, without leaving a trace."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from fubini.blocks import distributed
from fubini.errors import NumericalError
from fubini.nn.random_state import RandomState
from fubini.nn.recorder import PassRecorder, paused
from fubini.optim.proposal import Proposal

Tensor = torch.Tensor
Closure = Callable[[], Any]


def evaluated(closure: Closure) -> tuple[Any, Callable[..., Any] | None]:
    """Return the loss and the metric function that a closure gives, each None where there is none.

    Args:
        closure: Returns the loss, or ``(loss, metric_tensor_fn)``.

    Raises:
        TypeError: If it returns something else.
    """
    if not callable(closure):
        raise TypeError(
            f"closure: expected a function that returns the loss, or None, got {type(closure).__name__}; without a closure, "
            "call loss.backward() and then step()"
        )
    with torch.enable_grad():
        result = closure()
    if not isinstance(result, tuple | list):
        return result, None
    if len(result) != 2 or not callable(result[1]):
        raise TypeError(
            "closure: expected it to return the loss or (loss, metric_tensor_fn), got "
            f"({', '.join(type(r).__name__ for r in result)})"
        )
    return result[0], result[1]


def number(loss: Any) -> float:
    """Return a loss as a number.

    Args:
        loss: A number, or a tensor of one.

    Raises:
        TypeError: If it is something else.
    """
    try:
        return float(loss.detach() if isinstance(loss, Tensor) else loss)
    except (TypeError, ValueError, RuntimeError):
        got = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise TypeError(f"closure: expected it to return the loss, one number, got {got}") from None


@contextlib.contextmanager
def undisturbed(model: torch.nn.Module | None, seed: int | None = None) -> Iterator[None]:
    """Leave torch's random numbers and the model's buffers (batch-norm statistics) as they were.

    Args:
        model: The model, if any.
        seed: Seed of the random numbers inside; None goes on from where they are.
    """
    buffers = [] if model is None else [(b, b.detach().clone()) for b in model.buffers()]
    random = RandomState.now()
    if seed is not None:
        torch.default_generator.manual_seed(seed)
        if random.cuda:
            torch.cuda.manual_seed_all(seed)
    try:
        yield
    finally:
        random.restore()
        for buffer, value in buffers:
            if not torch.equal(buffer, value):
                buffer.data.copy_(value)


class _WithoutBackward(TorchFunctionMode):
    """Leaves out what ``loss.backward()`` would do, and keeps the losses."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.backward:
            self.losses.append(args[0])
            return None
        return func(*args, **(kwargs or {}))


class Judge:
    """Evaluates the closure at changed parameters on the same data and random numbers.

    A forward pass is all that this takes: ``backward`` does nothing meanwhile, and torch builds no graph. Closures for which
    that will not do, because they need gradients for the loss or call ``backward`` on something else than what they return,
    are evaluated again as they are.

    Gradients, random numbers, batch-norm statistics and recorded passes are afterwards as they were.

    Args:
        closure: As for ``evaluated``.
        random: The random numbers that the first evaluation began with.
        model: The model, if any.
        parameters: All whose gradients the closure may change.
        recorders: To be paused.
        weight: Of this process among all, for the mean of the loss.
        maximize: Whether the loss is to grow.
        forward_only: Whether to try it by a forward pass.

    Attributes:
        forward_only: Whether a forward pass did, so far.
    """

    def __init__(
        self,
        closure: Closure,
        random: RandomState,
        model: torch.nn.Module | None,
        parameters: Sequence[Tensor],
        recorders: Sequence[PassRecorder],
        *,
        weight: float,
        maximize: bool,
        forward_only: bool = True,
    ) -> None:
        self.forward_only = forward_only
        self._closure, self._random, self._model = closure, random, model
        self._parameters, self._recorders = parameters, recorders
        self._weight, self._sign = weight, -1.0 if maximize else 1.0

    def objective(self, loss: float) -> float:
        """Return what is to fall: the loss, averaged over the processes, negative where it is to grow.

        Args:
            loss: Of this process, before the step.

        Raises:
            NumericalError: If it is not finite.
        """
        value = self._mean(loss)
        if not math.isfinite(value):
            raise NumericalError(f"closure: expected a finite loss, got {value}")
        return value

    def at(self, proposal: Proposal, factor: float) -> float:
        """Return the objective after a multiple of a change; the parameters stay there.

        Args:
            proposal: Whose parameters are saved.
            factor: Multiplies its change.
        """
        proposal.apply(factor)
        gradients = [p.grad for p in self._parameters]
        try:
            with undisturbed(self._model), paused(self._recorders):
                loss = self._by_forward_pass() if self.forward_only else None
                if loss is None:
                    self.forward_only = False
                    self._begin()
                    loss, _ = evaluated(self._closure)
        except BaseException:
            proposal.restore()
            raise
        finally:
            for p, gradient in zip(self._parameters, gradients, strict=True):
                p.grad = gradient
        return self._mean(number(loss))

    def _begin(self) -> None:
        self._random.restore()
        for p in self._parameters:
            p.grad = None

    def _by_forward_pass(self) -> Any:
        """The loss without a backward pass; None where that is not known to be the same."""
        self._begin()
        with _WithoutBackward() as left_out, torch.no_grad():
            try:
                result = self._closure()
            except Exception:  # noqa: BLE001 - it is called again as it is, and then its errors are the caller's
                return None
        loss = result[0] if isinstance(result, tuple | list) and result else result
        try:
            value = number(loss)
            # What is no number refuses the step in any case.
            same = not math.isfinite(value) or all(
                one is loss or number(one) == value for one in left_out.losses
            )
        except TypeError:
            return None
        return loss if same else None

    def _mean(self, loss: float) -> float:
        return self._sign * distributed.number_mean(loss, self._weight, self._parameters[0].device)
