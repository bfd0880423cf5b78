"""What is recorded of a function of tensors is that function: values and gradients at other points, and the closed list."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fubini.compile.graph import expression
from fubini.compile.rules import RULES
from fubini.compile.shadow import MIXED_ROW, split
from recorded_functions import BATCH, FEATURES, RECORDED, WEIGHTS, Function, record

#: Functions that leave what is understood, and a word of the reason.
REFUSED: dict[str, tuple[Callable[[torch.Tensor, torch.Tensor], Any], str]] = {
    "comparison": (lambda x, w: (x[..., 0] > 0) * w[0], "gt"),
    "item": (lambda x, w: w[0].item() * x[..., 0], "item"),
    "float": (lambda x, w: float(x[0, 0]) * x[..., 0], "float"),
    "tolist": (lambda x, w: w.tolist()[0] * x[..., 0], "tolist"),
    "numpy": (lambda x, w: torch.as_tensor(x.detach().numpy())[..., 0] * w[0], "detach"),
    "asarray": (lambda x, w: torch.as_tensor(np.asarray(x))[..., 0] * w[0], "array"),
    "to integers": (lambda x, w: x[..., 0].to(torch.int64) * w[0], "int64"),
    "type": (lambda x, w: x[..., 0].type(torch.int64) * w[0], "type"),
    "to bool": (lambda x, w: x[..., 0].to(torch.bool) * w[0], "bool"),
    "half": (lambda x, w: x[..., 0].to(torch.float16) * w[0], "float16"),
    "detach": (lambda x, w: x[..., 0] * w[0].detach(), "detach"),
    "data": (lambda x, w: x[..., 0] * w.data[0], "data"),
    "floor": (lambda x, w: torch.floor(x[..., 0]) * w[0], "floor"),
    "where": (lambda x, w: torch.where(x[..., 0] > 0, w[0], w[1]), "gt"),
    "random": (lambda x, w: x[..., 0] * torch.rand(()), "random"),
    "in place on inputs": (lambda x, w: x.mul_(2.0)[..., 0], "in place"),
    "contains": (lambda x, w: x[..., 0] * (1.0 if 0.3 in w else 2.0), "contains"),
    "equal": (lambda x, w: x[..., 0] * torch.equal(w, w), "equal"),
    "requires_grad": (lambda x, w: x[..., 0] * (2.0 if w.requires_grad else 1.0), "requires_grad"),
    "sort": (lambda x, w: x.sort(-1).values[:, 0], "sort"),
    "argmax": (lambda x, w: w[x.argmax(-1)], "argmax"),
    "text": (lambda x, w: x[..., 0] * len(f"{w[0]}"), "format"),
    "view as integers": (lambda x, w: x.view(torch.int64)[..., 0] * w[0], "type"),
}  # fmt: skip


def _no_grad(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return x[..., 0] * w[0]


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return value * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return 3.0 * gradient


REFUSED["no_grad"] = (_no_grad, "switched off")
REFUSED["own autograd function"] = (lambda x, w: _Straight.apply(x)[..., 0], "switched off")


def numbers(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, FEATURES, generator=generator, dtype=torch.float64)
    w = torch.randn(WEIGHTS, generator=generator, dtype=torch.float64)
    return x, w.requires_grad_()


@pytest.mark.parametrize("function", RECORDED.values(), ids=RECORDED.keys())
def test_recorded_functions_at_other_points(function: Function) -> None:
    recording, result = record(function, *numbers(0))
    assert recording.problem is None
    nodes, rows = split(recording.shadow.of(result))
    assert (nodes == nodes[0]).all()
    assert not rows.any() or rows.tolist() == list(range(1, BATCH + 1))
    program = expression(recording.graph, [int(nodes[0])], 1, WEIGHTS, FEATURES)
    for seed in (0, 1, 2):
        x, w = numbers(seed)
        leaves = [w, x.clone().requires_grad_()]
        expected = function(x, w)
        value = program.evaluate(w.detach().numpy(), x.numpy())[:, 0]
        # The function's own rounding: sums in another order.
        np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-12, atol=1e-12)
        weights = torch.linspace(0.5, 1.5, BATCH, dtype=torch.float64)
        gradients = torch.autograd.grad(
            (function(leaves[1], w) * weights).sum(), leaves, allow_unused=True
        )
        found = program.vjp(w.detach().numpy(), x.numpy(), weights[:, None].numpy())
        for mine, theirs, leaf in zip(found, gradients, leaves, strict=True):
            theirs = torch.zeros_like(leaf) if theirs is None else theirs
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("function", "word"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_understood_fails_with_its_name(
    function: Callable[..., Any], word: str
) -> None:
    recording, _ = record(function, *numbers(0))
    assert word in (recording.problem or "")


def test_a_function_fails_in_the_recording_as_it_does_without() -> None:
    with pytest.raises(RuntimeError, match="equal size"):
        record(lambda x, w: torch.stack([x, w]), *numbers(0))


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: x.sum(0),
        lambda x, w: x - x.mean(0, keepdim=True),
        lambda x, w: x[1:, 0] * x[:-1, 0],
        lambda x, w: x @ x.T,
    ],
)
def test_inputs_of_a_batch_that_are_mixed_are_marked(function: Function) -> None:
    recording, result = record(function, *numbers(0))
    assert recording.problem is None
    assert (split(recording.shadow.of(result))[1] == MIXED_ROW).any()


def test_rows_tell_what_was_rearranged() -> None:
    recording, result = record(lambda x, w: x.flip(0)[:, 0], *numbers(0))
    assert split(recording.shadow.of(result))[1].tolist() == [3, 2, 1]


def test_captured_tensors_are_not_changed_unseen() -> None:
    kept = torch.zeros(2, dtype=torch.float64)
    recording, _ = record(lambda x, w: kept.add_(1.0), *numbers(0))
    assert "in place" in (recording.problem or "")


def test_every_rule_is_reached_by_a_recorded_function() -> None:
    """A rule without a test could be wrong."""
    reached: set[str] = set()

    class Spying(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            reached.add(name)
            return super().get(name, default)

    from fubini.compile import recorder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "RULES", Spying(RULES))
        for function in RECORDED.values():
            record(function, *numbers(0))
    # Names that torch replaces before they arrive, or that make constants only.
    replaced = {
        "vdot", "addmv", "baddbmm", "lift_fresh_copy", "alias_copy", "_reshape_copy", "_reshape_alias", "_to_copy",
        "zeros_like", "ones_like", "empty_like", "full_like", "new_zeros", "new_ones", "new_empty", "new_full",
        "_unsafe_view", "mv", "dot", "diag_embed", "deg2rad", "rad2deg", "exp2", "bmm", "special_expit", "rsub",
    }  # fmt: skip
    assert set(RULES) - reached <= replaced
