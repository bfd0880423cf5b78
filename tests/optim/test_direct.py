"""Steps in one call of the kernel: its factors against dense systems, and such steps against those of the general way."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fubini
from fubini import _core
from fubini.blocks import DenseBlock, DiagonalBlock, KroneckerBlock
from fubini.optim.chain_step import ChainStep
from fubini.optim.direct import Direct
from models import hybrid

D = torch.float64
Rng = np.random.Generator


def positive(rng: Rng, n: int, rank: int | None = None) -> Any:
    root = rng.normal(size=(n, n if rank is None else rank))
    return root @ root.T


def with_parts(rng: Rng, sizes: list[int]) -> Any:
    """A matrix with independent parts in any order, some of whose unknowns move nothing."""
    n = sum(sizes)
    matrix = np.zeros((n, n))
    order, start = rng.permutation(n), 0
    for size in sizes:
        index = order[start : start + size]
        matrix[np.ix_(index, index)] = positive(rng, size)
        start += size
    still = order[: len(order) // 7]
    matrix[still] = 0.0
    matrix[:, still] = 0.0
    return matrix


@pytest.mark.parametrize("seed", range(8))
def test_the_kernels_factors_solve_every_block(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lam = float(rng.uniform(0.01, 1.0))
    factors = _core.Preconditioner()
    blocks: list[Any] = []
    for n in rng.integers(1, 80, size=3):
        blocks.append(positive(rng, n, rank=max(1, n // 2)))
        assert factors.add_dense(blocks[-1], lam)
    blocks.append(with_parts(rng, [1, 5, 3, 20, 1, 2]))
    assert factors.add_dense(blocks[-1], lam)
    blocks.append(np.zeros((1, 1)))
    assert factors.add_dense(blocks[-1], lam)
    blocks.append(np.diag(rng.uniform(size=6) * (rng.uniform(size=6) > 0.3)))
    assert factors.add_diagonal(blocks[-1].diagonal().copy(), lam)
    groups, rows, widths = 2, int(rng.integers(1, 6)), [int(rng.integers(1, 70)), 1]
    left = np.stack([positive(rng, rows, 2) for _ in range(groups)])
    right = np.stack([positive(rng, sum(widths), 5) for _ in range(groups)])
    right[:, 0] = right[:, :, 0] = 0.0  # an input that is always zero
    assert factors.add_kronecker(left, right, widths, lam)
    sizes = [groups * rows * w for w in widths]
    parameters = [torch.zeros(size, dtype=D) for size in sizes]
    product = KroneckerBlock(parameters, torch.from_numpy(left), torch.from_numpy(right), widths)
    blocks.append(product.dense().numpy())
    factors.add_identity(4)
    size = sum(map(len, blocks)) + 4
    assert factors.size == size
    g = rng.normal(size=size)
    x, square = factors.apply(g)
    start = 0
    for block in blocks:
        n = len(block)
        mine = g[start : start + n]
        moving = block.diagonal() > 0.0
        expected = mine.copy()
        damped = block[np.ix_(moving, moving)] + lam * np.eye(moving.sum())
        expected[moving] = np.linalg.solve(damped, mine[moving])
        # Condition numbers reach 1e4.
        np.testing.assert_allclose(x[start : start + n], expected, rtol=1e-9, atol=1e-9)
        start += n
    np.testing.assert_array_equal(x[start:], g[start:])
    assert square == pytest.approx(float(g @ x), rel=1e-12)
    assert np.isnan(factors.apply(np.full(size, np.inf))[1])


def test_what_is_not_positive_definite_is_refused() -> None:
    factors = _core.Preconditioner()
    assert not factors.add_dense(-np.eye(3), 0.5)
    assert not factors.add_dense(np.full((2, 2), np.nan), 0.5)
    assert not factors.add_diagonal(np.array([1.0, -2.0]), 0.5)
    assert not factors.add_kronecker(np.full((1, 2, 2), np.nan), np.eye(3)[None], [3], 0.5)
    assert factors.size == 0
    with pytest.raises(ValueError, match="matrix: expected shape"):
        factors.add_dense(np.ones((2, 3)), 0.5)
    with pytest.raises(ValueError, match="widths: expected the columns"):
        factors.add_kronecker(np.eye(2)[None], np.eye(3)[None], [2, 2], 0.5)
    with pytest.raises(ValueError, match=r"gradient: expected shape \(0,\)"):
        factors.apply(np.ones(2))


def test_forms_that_the_kernel_takes() -> None:
    p = [torch.zeros(4, dtype=D)]
    matrix = torch.eye(4, dtype=D)
    assert DenseBlock(p, matrix).factorise(_core.Preconditioner(), 0.1)
    assert DiagonalBlock(p, matrix[0]).factorise(_core.Preconditioner(), 0.1)
    wide = KroneckerBlock(
        [torch.zeros(2, 3, dtype=D)], torch.eye(2, dtype=D)[None], torch.eye(3, dtype=D)[None], [3]
    )
    assert wide.factorise(_core.Preconditioner(), 0.1)
    high = KroneckerBlock(
        [torch.zeros(3, 2, dtype=D)], torch.eye(3, dtype=D)[None], torch.eye(2, dtype=D)[None], [2]
    )
    assert not high.factorise(_core.Preconditioner(), 0.1)


# -- steps ------------------------------------------------------------------------------------------------------------

OPTIONS: dict[str, dict[str, Any]] = {
    "quantum": {"metric": "quantum"},
    "quantum, diagonal": {"metric": "quantum", "approx": "diag"},
    "quantum, full": {"metric": "quantum", "approx": None},
    "averaged": {"metric": "quantum", "averaging": 0.7, "update_every": 3},
    "fisher": {"metric": "fisher", "likelihood": "gaussian"},
    "hybrid": {"metric": "hybrid", "likelihood": "gaussian"},
    "loss": {"loss": nn.MSELoss()},
    "loss, sum": {"loss": nn.MSELoss(reduction="sum")},
    "ascent": {"metric": "quantum", "maximize": True},
}


def trained(
    options: dict[str, Any], dtype: torch.dtype, between: Callable[[Any], None] | None = None
) -> tuple[list[torch.Tensor], Any]:
    torch.manual_seed(3)
    model = hybrid().to(dtype)
    opt = fubini.QNGOptimizer(model, **options)
    loss = options.get("loss", nn.MSELoss())
    for step in range(6):
        x = torch.linspace(-1, 1, 12, dtype=dtype).reshape(4, 3).sin() * (1 + step)
        opt.zero_grad()
        out = model(x)
        loss(out, torch.ones_like(out)).backward()
        opt.step()
        if between is not None:
            between(opt)
    return [p.detach() for p in model.parameters()], opt


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OPTIONS)
def test_steps_are_those_of_the_general_way(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, opt = trained(OPTIONS[name], dtype)
    assert "proposal" not in vars(opt._last)  # nobody asked
    numbers, words = opt.diagnostics(), opt.explain()
    monkeypatch.setattr(fubini.QNGOptimizer, "_directly", lambda *_: None)
    monkeypatch.setattr(ChainStep, "step", lambda *_: None)
    theirs, general = trained(OPTIONS[name], dtype)
    # Rounding of the parameters, of which the next metric is made.
    rtol = 1e-9 if dtype is torch.float64 else 1e-4
    for p, q in zip(mine, theirs, strict=True):
        assert_close(p, q, rtol=rtol, atol=rtol)
    expected = general.diagnostics()
    assert words == general.explain()
    for key in numbers.keys() - {"metric_seconds", "solve_seconds", "update_seconds"}:
        assert numbers[key] == pytest.approx(expected[key], rel=1e-3, nan_ok=True)


def test_diagnostics_are_of_the_step_and_not_of_later_settings() -> None:
    found: list[dict[str, float]] = []

    def between(opt: Any) -> None:
        before = opt._last
        opt.param_groups[0]["lr"] = 0.5 if len(found) % 2 else 0.01
        found.append(opt.diagnostics())
        assert opt._last is before

    trained({"metric": "quantum", "lr": 0.01}, D, between)
    # Of 0.01 and 0.5 in turn, and each step about as steep as the last.
    lengths = [f["step_length"] for f in found]
    assert lengths[2] > 5 * lengths[1]
    assert lengths[3] < lengths[2] / 5


def test_changed_numbers_are_seen() -> None:
    """Factors are kept as long as metric and damping are the same, and no longer."""

    def between(opt: Any) -> None:
        opt.param_groups[0]["lam"] *= 2.0

    kept, opt = trained({"metric": "quantum", "update_every": 10}, D)
    assert opt._direct._factors is not None
    changed, _ = trained({"metric": "quantum", "update_every": 10}, D, between)
    assert not torch.equal(kept[2], changed[2])


def test_a_step_that_overflows_is_not_taken() -> None:
    p = nn.Parameter(torch.ones(1, dtype=D))
    p.grad = torch.full((1,), 1e10, dtype=D)
    block = DiagonalBlock([p], torch.full((1,), 1e-140, dtype=D), "block")
    group = {"params": [p], "lr": 1e200, "maximize": False}
    with torch.no_grad():
        assert Direct().step([(block, True)], [group], 1e-141, None, 1.0) is None
    assert p.item() == 1.0


def test_other_ways_are_not_taken_directly() -> None:
    for options in (
        {"momentum": 0.5},
        {"weight_decay": 0.1},
        {"lam": fubini.Relative(0.1)},
        {"lam": fubini.Schedule(lambda step: 0.1)},
        {"step_rule": fubini.TrustRegion(0.1)},
        {"lam": 0.0},
    ):
        _, opt = trained({"metric": "quantum", **options}, D)
        assert opt._direct._factors is None
