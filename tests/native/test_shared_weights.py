"""Weights that many gates share: one tangent for each weight gives what one for each gate gives."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from fubini import _core
from fubini.circuit.jacobian import Jacobian
from fubini.metric.points import at_inputs

GATES = (qml.RX, qml.RY, qml.RZ, qml.PhaseShift)
PAIRS = (qml.IsingXX, qml.IsingZZ, qml.IsingXY, qml.CRY)


def layer(seed: int, weights: int, *, prepared: bool = False) -> fubini.QuantumLayer:
    """Gates in any order, whose angles are a weight times a number, a sum of two weights, or an input."""
    rng = np.random.default_rng(seed)
    wires = int(rng.integers(1, 5))
    plan: list[tuple[Any, ...]] = []
    for _ in range(6 * weights):
        pair = wires > 1 and rng.uniform() < 0.4
        gate = (PAIRS if pair else GATES)[rng.integers(4)]
        on = rng.permutation(wires)[: 2 if pair else 1].tolist()
        terms = [(int(rng.integers(weights)), float(rng.choice([-1.0, 0.5, 2.0])))]
        if rng.uniform() < 0.15:
            terms.append((int(rng.integers(weights)), 0.7))
        plan.append((gate, on, terms, rng.uniform() < 0.1))

    @qml.qnode(qml.device("default.qubit", wires=wires))
    def circuit(inputs: Any, w: Any) -> Any:
        if prepared:
            qml.AmplitudeEmbedding(inputs, wires=range(wires), normalize=True, pad_with=0.0)
        for gate, on, terms, encodes in plan:
            gate(sum(c * w[k] for k, c in terms), wires=on)
            if encodes and not prepared:
                qml.RX(inputs[..., 0], wires=on[0])
        return qml.expval(qml.Z(0))

    torch.manual_seed(seed)
    return fubini.QuantumLayer(circuit, {"w": (weights,)}).double()


def both(monkeypatch: pytest.MonkeyPatch, compute: Any) -> tuple[Any, Any]:
    """With one tangent for each weight, which must be what is done, and with one for each angle."""
    calls: list[Any] = []
    inner = _core.metric, _core.metric_factor

    def watched(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(kwargs.get("directions", args[-1]))
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        patch.setattr(_core, "metric", watched(inner[0]))
        patch.setattr(_core, "metric_factor", watched(inner[1]))
        mine = compute()
        assert calls
        assert all(isinstance(call, tuple) for call in calls)
        for name in ("directions", "sparse"):
            patch.setattr(Jacobian, name, property(lambda _: None))
        calls.clear()
        theirs = compute()
        assert not any(isinstance(call, tuple) for call in calls)
    return mine, theirs


@pytest.mark.parametrize("seed", range(12))
def test_full_metrics(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    one = layer(seed, 1 + seed % 5)
    x = torch.linspace(-1, 2, 3, dtype=torch.float64)[:, None]
    for reduce in (None, "mean"):
        metric = fubini.metric_tensor(one, reduce=reduce)
        with torch.no_grad():
            mine, theirs = both(monkeypatch, lambda m=metric: m(x))
        torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    point = at_inputs(one, x).pullback
    assert point is not None
    factor, old = both(monkeypatch, point.factor)
    np.testing.assert_allclose(factor @ factor.T, old @ old.T, rtol=1e-12, atol=1e-12)
    weights = np.array([0.5, -1.0, 2.0])
    mine, theirs = both(monkeypatch, lambda: point.weighted_sum(weights))
    np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_many_prepared_states(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More inputs than amplitudes are compressed to a few weighted ones."""
    one = layer(seed, 3, prepared=True)
    x = torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    metric = fubini.metric_tensor(one, reduce="mean")
    with torch.no_grad():
        mine, theirs = both(monkeypatch, lambda: metric(x))
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)


def test_blocks_are_as_documented() -> None:
    """The approximation is made between angles: a shared weight keeps the sum of its angles' blocks."""
    one = layer(3, 3)
    x = torch.tensor([[0.3]], dtype=torch.float64)
    pullback = at_inputs(one, x).pullback
    assert pullback is not None
    jacobian = pullback.jacobian.values[0]
    everything = _core.metric(pullback.circuit.program, pullback.angles)[0]
    everything = everything[np.ix_(pullback.jacobian.rows, pullback.jacobian.rows)]
    with torch.no_grad():
        diagonal = fubini.metric_tensor(one, "diag")(x)[0].numpy()
        full = fubini.metric_tensor(one)(x)[0].numpy()
    expected = jacobian.T @ np.diag(np.diag(everything)) @ jacobian
    np.testing.assert_allclose(diagonal, expected, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(full, jacobian.T @ everything @ jacobian, rtol=1e-12, atol=1e-13)


def test_steps_with_shared_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> Any:
        one = layer(5, 3)
        opt = fubini.QNGOptimizer(one, lr=0.1, approx=None)
        for _ in range(4):
            opt.zero_grad()
            one(torch.tensor([[0.3], [0.8]], dtype=torch.float64)).square().sum().backward()
            opt.step()
        return one.w.detach().clone()

    mine, theirs = both(monkeypatch, trained)
    torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-10)


def test_directions_that_make_no_sense_are_refused() -> None:
    one = layer(0, 2)
    pullback = at_inputs(one, torch.zeros(1, 1, dtype=torch.float64)).pullback
    assert pullback is not None
    program, angles = pullback.circuit.program, pullback.angles

    def metric(starts: list[int], slots: list[int], coefficients: list[float]) -> Any:
        rows = np.array(starts), np.array(slots, dtype=np.int64), np.array(coefficients)
        return _core.metric(program, angles, directions=rows)

    assert metric([0, 2, 2], [0, 1], [1.0, 2.0]).shape == (1, 2, 2)
    for starts, slots, coefficients, message in (
        ([0, 1], [0, 1], [1.0, 1.0], "starts"),
        ([1, 2], [0, 1], [1.0, 1.0], "starts"),
        ([0, 2, 1, 2], [0, 1], [1.0, 1.0], "rising"),
        ([0, 2], [1, 1], [1.0, 1.0], "twice"),
        ([0, 1], [-1], [1.0], "out of range"),
        ([0, 1], [0], [], "coefficients"),
    ):
        with pytest.raises(ValueError, match=message):
            metric(starts, slots, coefficients)
    with pytest.raises(ValueError, match="besides columns"):
        _core.metric(
            program,
            angles,
            columns=[0],
            directions=(np.array([0]), np.zeros(0, np.int64), np.zeros(0)),
        )
