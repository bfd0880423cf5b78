"""Defects in counting the passes whose gradients are waiting for a step, each once silently wrong."""

from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini
from models import entangler, hybrid

Tensor = torch.Tensor
FIRST, SECOND = torch.rand(2, 4, 3, dtype=torch.float64, generator=torch.manual_seed(0))
OPTIONS: dict[str, dict[str, Any]] = {
    "quantum": {},
    "fisher": {"metric": "fisher", "likelihood": "gaussian"},
    "joint": {"metric": "fisher", "likelihood": "gaussian", "approx": None},
}
EACH_METRIC = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def after_step(backward: Callable[[Any], None], options: dict[str, Any]) -> Tensor:
    """The weights after a step, from the same start."""
    torch.manual_seed(1)
    model = hybrid()
    opt = fubini.QNGOptimizer(model, lr=0.5, **{"metric": "quantum", **options})
    backward(model)
    opt.step()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def both(model: Any, factor: float = 1.0) -> None:
    """The plain way, which other tests compare with dense references."""
    loss(model, FIRST).backward()
    (factor * loss(model, SECOND)).backward()


def loss(model: Any, x: Tensor) -> Tensor:
    return (model(x) - 0.3).square().mean()


@EACH_METRIC
@pytest.mark.parametrize("where", [0, -1], ids=["behind the model", "inside of it"])
def test_a_backward_pass_inside_of_another_counts(options: dict[str, Any], where: int) -> None:
    def nested(model: Any) -> None:
        def again(_: Tensor) -> None:
            with torch.enable_grad():
                loss(model, SECOND).backward()

        def mark(_: Any, __: Any, output: Tensor) -> None:
            handle.remove()
            output.register_hook(again)

        place = model if where == 0 else model[0]
        handle = place.register_forward_hook(mark)
        loss(model, FIRST).backward()

    torch.testing.assert_close(after_step(nested, options), after_step(both, options))


@EACH_METRIC
def test_autograd_grad_inside_of_a_backward_pass_does_not_count(options: dict[str, Any]) -> None:
    def nested(model: Any) -> None:
        def look(_: Tensor) -> None:
            with torch.enable_grad():
                torch.autograd.grad(loss(model, SECOND), list(model.parameters()))

        output = model(FIRST)
        output.register_hook(look)
        (output - 0.3).square().mean().backward()

    expected = after_step(lambda model: loss(model, FIRST).backward(), options)
    torch.testing.assert_close(after_step(nested, options), expected)


@EACH_METRIC
def test_a_first_part_of_the_batch_without_gradient_counts(options: dict[str, Any]) -> None:
    def zero_first(model: Any) -> None:
        (0.0 * loss(model, SECOND)).backward()
        loss(model, FIRST).backward()

    expected = after_step(lambda model: both(model, 0.0), options)
    torch.testing.assert_close(after_step(zero_first, options), expected)


@pytest.mark.parametrize("by_data", [False, True], ids=["zero_grad", "data.zero_"])
@EACH_METRIC
def test_zeroed_gradients_start_a_new_record(options: dict[str, Any], by_data: bool) -> None:
    def zeroed(model: Any) -> None:
        loss(model, SECOND).backward()
        if by_data:
            for p in model.parameters():
                p.grad.data.zero_()
        else:
            model.zero_grad(set_to_none=False)
        loss(model, FIRST).backward()

    expected = after_step(lambda model: loss(model, FIRST).backward(), options)
    torch.testing.assert_close(after_step(zeroed, options), expected)


def test_autograd_grad_leaves_the_labels_of_the_empirical_fisher() -> None:
    """They are inferred from the gradient by the outputs, which was counted twice."""
    options = {"metric": "fisher", "likelihood": "gaussian", "fisher": "empirical"}

    def looked_at(model: Any) -> None:
        value = loss(model, FIRST)
        value.backward(retain_graph=True)
        torch.autograd.grad(value, list(model.parameters()))

    expected = after_step(lambda model: loss(model, FIRST).backward(), options)
    assert torch.equal(after_step(looked_at, options), expected)


def test_autograd_grad_leaves_the_noise_of_gradients_from_shots() -> None:
    qnode = qml.QNode(entangler, qml.device("default.qubit", wires=2, seed=1), shots=50)
    layer = fubini.QuantumLayer(qnode, {"weights": (1, 2, 3)}).double()
    opt = fubini.QNGOptimizer(layer, lr=0.1, lam=fubini.SignalToNoise())
    value = layer(FIRST[:, :2]).square().mean()
    value.backward(retain_graph=True)
    torch.autograd.grad(value, [layer.weights])
    (recorded,) = opt._source.recorders[0].passes  # type: ignore[union-attr]
    assert recorded.noise is not None
    assert len(recorded.noise.contributions) == 1


def test_frozen_weights_that_change_between_passes_are_refused() -> None:
    model = hybrid()
    model[0].requires_grad_(False)
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="fisher", likelihood="gaussian")
    loss(model, FIRST).backward()
    with torch.no_grad():
        model[0].weight.mul_(2.0)
    loss(model, SECOND).backward()
    with pytest.raises(RuntimeError, match="different weights"):
        opt.step()


def test_a_backward_pass_that_fails_leaves_nothing_behind() -> None:
    torch.manual_seed(1)
    model = hybrid()
    opt = fubini.QNGOptimizer(model, metric="quantum")

    def fail(_: Tensor) -> None:
        raise ArithmeticError

    handle = model[0].weight.register_hook(fail)
    with pytest.raises(ArithmeticError):
        loss(model, SECOND).backward()
    handle.remove()
    recorder = opt._source.recorders[0]  # type: ignore[union-attr]
    assert not recorder._open
    assert not recorder.passes
