"""Large circuits under an averaged Fisher metric: one row with random signs for each datum, whose mean is exact."""

import itertools
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch
from torch import nn
from torch.testing import assert_close

import fubini
from fubini import _core
from fubini.fisher import chain
from fubini.optim.chain_step import ChainStep
from fubini.optim.metric_source import FisherSource
from models import hybrid

D = torch.float64


def test_signs_are_those_of_a_seed_and_their_mean_is_exact() -> None:
    rng = np.random.default_rng(0)
    factor = rng.normal(size=(5, 3, 4))
    every = [np.array(signs) @ factor for signs in itertools.product([-1.0, 1.0], repeat=3)]
    seen = set()
    for seed in range(200):
        rows = _core.combine_rows(factor, seed)
        assert np.array_equal(rows, _core.combine_rows(factor, seed))
        for n, row in enumerate(rows):
            distance = [np.abs(one[n] - row).max() for one in every]
            assert min(distance) < 1e-14
            seen.add((n, int(np.argmin(distance))))
    assert len(seen) == 5 * 8  # every datum has had every signs
    square = np.mean([one[:, :, None] * one[:, None] for one in every], axis=0)
    np.testing.assert_allclose(square, factor.transpose(0, 2, 1) @ factor, rtol=1e-12, atol=1e-13)
    assert _core.combine_rows(np.zeros((0, 3, 4)), 1).shape == (0, 4)


def large(monkeypatch: pytest.MonkeyPatch, limit: int = 0) -> None:
    monkeypatch.setattr(chain, "SWEEPS", limit)


def model_of(form: str) -> nn.Module:
    torch.manual_seed(1)

    @qml.qnode(qml.device("default.qubit", wires=3))
    def circuit(inputs: Any, weights: Any) -> Any:
        if form == "prepared":
            qml.AmplitudeEmbedding(inputs, wires=range(3), normalize=True, pad_with=0.0)
        else:
            qml.AngleEmbedding(inputs, wires=range(3))
        angles = weights * inputs[..., :1].tanh() if form == "products" else weights
        for k in range(6):
            qml.Rot(angles[..., k], 0.3, weights[k] ** 2, wires=k % 3)
            qml.CNOT([k % 3, (k + 1) % 3])
        return [qml.expval(qml.Z(k)) for k in range(3)]

    layer = fubini.QuantumLayer(circuit, {"weights": (6,)})
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), layer, nn.Linear(3, 4)).double()


X = torch.linspace(-1, 1, 20, dtype=D).reshape(5, 4).sin()
Y = torch.tensor([0, 1, 2, 3, 0])


def metric(model: nn.Module, seed: int | None, **options: Any) -> list[torch.Tensor]:
    """Blocks of one step, with signs of a seed or exact."""
    opt = fubini.QNGOptimizer(model, loss=nn.CrossEntropyLoss(), **options)
    source = opt._source
    assert isinstance(source, FisherSource)
    source.rough = seed is not None
    model.zero_grad()
    nn.functional.cross_entropy(model(X), Y).backward()
    found = source.blocks(list(model.parameters()), None, seed or 0)
    assert all(
        p is q
        for (b, _), m in zip(found, (0, 2, 3), strict=True)
        for p, q in zip(b.parameters, model[m].parameters(), strict=True)
    )
    return [block.dense() for block, _ in found]


def test_diagonals_are_those_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    large(monkeypatch)
    model = model_of("angles")
    wanted = [m.diagonal() for m in metric(model, 5)]
    found = [m.diagonal() for m in metric(model, 5, approx="diag")]
    for one, other in zip(found, wanted, strict=True):
        assert_close(one, other, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("form", ["angles", "prepared", "products"])
def test_the_mean_over_the_signs_is_the_exact_metric(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(form)
    large(monkeypatch)
    exact = metric(model, None)
    count = 400
    total = [torch.zeros_like(m) for m in exact]
    for seed in range(count):
        rows = metric(model, seed)
        assert int(torch.linalg.matrix_rank(rows[1])) <= len(X)
        for sum_, one in zip(total, rows, strict=True):
            sum_ += one / count
    assert_close(total[2], exact[2], rtol=1e-12, atol=1e-14)  # behind the circuit it is exact
    for mean, true in zip(total[:2], exact[:2], strict=True):
        # Of 5 data with 3 rows each: an error of about 1 / 20 of the largest entries, with six deviations' room.
        assert float((mean - true).abs().max()) < 0.3 * float(true.abs().max())
        assert float((mean - true).norm()) < 0.3 * float(true.norm())


def test_one_row_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one output in the end there is nothing to combine."""
    torch.manual_seed(0)
    model = nn.Sequential(*hybrid()[:2], nn.Linear(2, 1)).double()

    def trained() -> Any:
        torch.manual_seed(0)
        for p in model.parameters():
            p.data.normal_()
        opt = fubini.QNGOptimizer(model, loss=nn.MSELoss())
        for k in range(3):
            opt.zero_grad()
            (model(X[:, :3] + k) ** 2).mean().backward()
            opt.step()
        return [p.detach().clone() for p in model.parameters()]

    exact = trained()
    large(monkeypatch)
    for p, q in zip(trained(), exact, strict=True):
        assert_close(p, q, rtol=1e-10, atol=1e-12)


def test_small_circuits_and_short_averages_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Any] = []
    inner = _core.combine_rows
    monkeypatch.setattr(_core, "combine_rows", lambda *a: used.append(a) or inner(*a))
    monkeypatch.setattr(
        ChainStep, "step", lambda *_: None
    )  # block by block, where calls can be seen

    def step(**options: Any) -> int:
        model = model_of("angles")
        opt = fubini.QNGOptimizer(model, loss=nn.CrossEntropyLoss(), **options)
        nn.functional.cross_entropy(model(X), Y).backward()
        opt.step()
        return len(used)

    assert step() == 0  # small
    large(monkeypatch)
    assert step(averaging=0.0) == 0
    assert step(averaging=0.5) == 0
    assert step(metric="hybrid") == 0
    assert step(fisher="empirical") == 0  # it has one row
    assert step(samples=1) == 0
    assert step(step_rule=None) == 0
    assert step() == 1


def test_short_steps_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Near a minimum without noise, signs would be the only noise."""
    used: list[Any] = []
    inner = _core.combine_rows
    monkeypatch.setattr(_core, "combine_rows", lambda *a: used.append(a) or inner(*a))
    monkeypatch.setattr(
        ChainStep, "step", lambda *_: None
    )  # block by block, where calls can be seen
    large(monkeypatch)
    model = model_of("angles")
    opt = fubini.QNGOptimizer(model, loss=nn.CrossEntropyLoss())
    for expected, mean in ((1, None), (2, 10.0), (2, 0.1), (3, 10.0)):
        if mean is not None:
            opt.param_groups[0].update(length_mean=mean, length_weight=1.0)
        opt.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        opt.step()
        assert len(used) == expected
