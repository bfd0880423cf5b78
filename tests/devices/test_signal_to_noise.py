"""QNGOptimizer on layers with shots: the noise of gradient and metric, and steps that weigh it."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from devices_common import Serial
from fubini import QNGOptimizer, QuantumLayer, SignalToNoise, UnsupportedCircuitError
from fubini.blocks import NoisyBlock
from fubini.devices.executor import DeviceExecutionError, Executor
from fubini.devices.signal_to_noise import snr_direction
from fubini.nn.layer_weights import layer_tape
from fubini.nn.shot_noise import ShotNoise, estimated_metric, gradient_covariance

SHAPES = {"w": (3,), "v": ()}


def gates(inputs: Any, w: Any, v: Any) -> None:
    qml.RY(inputs[..., 0], 0)
    qml.RX(w[0], 0)
    qml.RY(w[1] * inputs[..., 1] + w[0], 1)
    qml.CNOT([0, 1])
    qml.CRY(v, [0, 1])
    qml.RX(w[2], 1)


def function(inputs: Any, w: Any, v: Any) -> Any:
    gates(inputs, w, v)
    return [qml.expval(qml.Z(0)), qml.expval(qml.X(1) @ qml.Z(0)), qml.var(qml.Y(1))]


def layer_on(device: Any, shots: int | None, **options: Any) -> QuantumLayer:
    torch.manual_seed(2)
    qnode = qml.QNode(options.pop("function", function), device, shots=shots, **options)
    return QuantumLayer(qnode, SHAPES, engine="device").double()


def backward(layer: QuantumLayer, inputs: Any, cotangents: Any) -> tuple[Any, ShotNoise]:
    """The gradient over all weights, and what was recorded of its noise."""
    layer.zero_grad()
    output = layer(inputs)
    noise = layer.shot_noise
    assert noise is not None
    noise.wanted = True
    output.backward(cotangents)
    return np.concatenate([p.grad.reshape(-1).numpy().copy() for p in layer.parameters()]), noise


INPUTS = torch.tensor([[0.4, 1.1], [0.9, -0.6], [1.7, 0.3]], dtype=torch.float64)
COTANGENTS = torch.tensor(
    [[0.7, -0.2, 0.4], [0.1, 0.9, -0.3], [-0.5, 0.3, 0.2]], dtype=torch.float64
)


def test_covariance_of_a_layers_gradient_over_300_passes() -> None:
    layer = layer_on(qml.device("default.qubit", wires=2, seed=3), 100)
    exact = layer_on(qml.device("default.qubit", wires=2), None, diff_method="parameter-shift")
    exact.load_state_dict(layer.state_dict())
    expected, _ = backward(exact, INPUTS, COTANGENTS)
    tape = layer_tape(layer, INPUTS)
    found, covariances = [], []
    for _ in range(300):
        gradient, noise = backward(layer, INPUTS, COTANGENTS)
        found.append(gradient)
        covariances.append(gradient_covariance(tape, [noise], [3]))
    values, reported = np.array(found), np.mean(covariances, axis=0)
    observed = np.cov(values.T)
    spread = np.sqrt(np.diagonal(observed))
    # The mean of 300 lies within four of its standard errors, the standard error within 20 %.
    assert (np.abs(values.mean(axis=0) - expected) <= 4 * spread / np.sqrt(300)).all()
    assert (np.abs(np.sqrt(np.diagonal(reported)) / spread - 1.0) <= 0.2).all()
    # Four standard errors of a correlation of 300 samples; the first two weights share an angle.
    scale = np.outer(spread, spread)
    assert (np.abs(reported - observed) / scale <= 0.24)[~np.eye(4, dtype=bool)].all()
    assert abs(observed[0, 1] / scale[0, 1]) > 0.1


def test_passes_add_up() -> None:
    layer = layer_on(qml.device("default.qubit", wires=2, seed=3), 100)
    more = torch.tensor([0.1, 0.2], dtype=torch.float64)  # one input without a batch
    _, first = backward(layer, INPUTS, COTANGENTS)
    _, second = backward(layer, more, COTANGENTS[0])
    both = gradient_covariance(
        layer_tape(layer, torch.cat([INPUTS, more[None]])), [first, second], [3, 1]
    )
    alone = [
        gradient_covariance(layer_tape(layer, x), [noise], [len(x)])
        for x, noise in ((INPUTS, first), (more[None], second))
    ]
    np.testing.assert_allclose(both, alone[0] + alone[1], atol=1e-15)
    assert (np.diagonal(both) > 0).all()


def trained(model: Any, optimizer: Any, inputs: Any, targets: Any, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(inputs).squeeze(-1) - targets).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_step_is_the_weighed_direction() -> None:
    """Against the estimates of an identical device that is asked in the same order."""
    steps = []
    for run in ("optimizer", "by hand"):
        layer = layer_on(qml.device("default.qubit", wires=2, seed=8), 200)
        before = torch.nn.utils.parameters_to_vector(layer.parameters()).detach().clone()
        if run == "optimizer":
            optimizer = QNGOptimizer(layer, lr=0.3, lam=SignalToNoise(1.5), approx="diag")
            assert "SignalToNoise(tolerance=1.5)" in repr(optimizer)
            (layer(INPUTS) * COTANGENTS).sum().backward()
            optimizer.step()
            assert "4 x 4, signal-to-noise" in optimizer.explain()
            assert optimizer.diagnostics()["damping"] == 0.0
            after = torch.nn.utils.parameters_to_vector(layer.parameters()).detach()
            steps.append(((before - after) / 0.3).numpy())
        else:
            gradient, noise = backward(layer, INPUTS, COTANGENTS)
            tape = layer_tape(layer, INPUTS)
            metric, errors = estimated_metric(layer, tape, "diag", "wires")
            covariance = gradient_covariance(tape, [noise], [3])
            steps.append(snr_direction(gradient, covariance, metric, errors, tolerance=1.5).values)
    np.testing.assert_allclose(steps[0], steps[1], rtol=0, atol=1e-13)


def test_without_shots_it_is_the_pseudo_inverse() -> None:
    """In front of the native engine too, on both sides of a classical layer that takes the plain gradient."""
    native = QuantumLayer(qml.QNode(function, qml.device("default.qubit", wires=2)), SHAPES)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), native, torch.nn.Linear(3, 1)).double()
    optimizer = QNGOptimizer(model, lr=0.1, lam=SignalToNoise(), approx=None)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(INPUTS).square().sum().backward()
    seen = model[0](INPUTS).detach()
    metric = fubini.metric_tensor(native, joint=True, reduce="mean")(seen).detach().numpy()
    gradient = torch.cat([p.grad.reshape(-1) for p in native.parameters()]).numpy()
    expected = np.linalg.pinv(metric, rcond=1e-10) @ gradient
    optimizer.step()
    moved = {n: ((before[n] - p.detach()) / 0.1).reshape(-1) for n, p in model.named_parameters()}
    np.testing.assert_allclose(torch.cat([moved["1.w"], moved["1.v"]]), expected, atol=1e-8)
    for name in ("0.weight", "2.bias"):
        parameter = dict(model.named_parameters())[name]
        torch.testing.assert_close(moved[name], parameter.grad.reshape(-1))


def test_a_hybrid_model_on_shots_does_as_well_as_exactly() -> None:
    inputs = torch.rand(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.sin(3 * inputs.sum(1))

    def reached(seed: int | None) -> float:
        dev = qml.device("default.qubit", wires=2, seed=seed)
        layer = layer_on(dev, None if seed is None else 1000)
        torch.manual_seed(4)
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), layer, torch.nn.Linear(3, 1)).double()
        optimizer = QNGOptimizer(
            model, lr=0.1, lam=1e-3 if seed is None else SignalToNoise(), metric="quantum"
        )
        trained(model, optimizer, inputs, targets, 20)
        exact = layer_on(qml.device("default.qubit", wires=2), None)
        exact.load_state_dict(layer.state_dict())
        model[1] = exact
        return float((model(inputs).squeeze(-1) - targets).square().mean().detach())

    start = float(targets.var())
    assert np.median([reached(seed) for seed in range(3)]) <= reached(None) + 0.05 * start


def test_gradients_in_several_passes_and_stale_ones() -> None:
    layer = layer_on(qml.device("default.qubit", wires=2, seed=5), 100)
    optimizer = QNGOptimizer(layer, lr=0.1, lam=SignalToNoise())
    recorder = optimizer._source.recorders[0]
    output = layer(INPUTS)
    output.backward(COTANGENTS, retain_graph=True)
    layer(INPUTS[:2]).backward(COTANGENTS[:2])
    assert [len(p.noise.contributions) for p in recorder.passes] == [1, 1]
    optimizer.zero_grad()
    output.backward(COTANGENTS, retain_graph=True)  # the earlier contribution is gone
    output.backward(COTANGENTS)
    assert [len(p.noise.contributions) for p in recorder.passes] == [2]


def test_a_failing_metric_leaves_the_weights() -> None:
    dev = Serial(wires=2, faults={3: "raise"}, seed=1)
    layer = layer_on(dev, 50)
    layer.executor = Executor(dev, retries=0, tapes_per_call=1000)
    optimizer = QNGOptimizer(layer, lr=0.1, lam=SignalToNoise())
    (layer(INPUTS) * COTANGENTS).sum().backward()  # two calls: forward and backward
    before = [p.detach().clone() for p in layer.parameters()]
    with pytest.raises(DeviceExecutionError):
        optimizer.step()
    for p, old in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p.detach(), old)
    optimizer.step()
    assert any(
        not torch.equal(p.detach(), old) for p, old in zip(layer.parameters(), before, strict=True)
    )
    assert layer.usage.calls == 4


def test_shared_weights_and_frozen_ones() -> None:
    device = qml.device("default.qubit", wires=2, seed=5)
    first, second = layer_on(device, 100), layer_on(device, 100)
    second.w = first.w
    second.v.requires_grad_(False)

    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = first, second

        def forward(self, x: Any) -> Any:
            return self.first(x) + self.second(x)

    model = Both()
    optimizer = QNGOptimizer(model, lr=0.1, lam=SignalToNoise(), approx=None)
    before = [p.detach().clone() for p in model.parameters()]
    (model(INPUTS) * COTANGENTS).sum().backward()
    optimizer.step()
    (part,) = optimizer._last.proposal.parts
    assert isinstance(part.block, NoisyBlock)
    assert part.block.size == 4
    covariance = part.block.tensors()["covariance"]
    assert bool((covariance.diagonal() > 0).all())
    assert torch.equal(second.v.detach(), before[-1])
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_refusals() -> None:
    device = qml.device("default.qubit", wires=2, seed=5)
    layer = layer_on(device, 100)
    for options, name in [
        ({"metric": "hybrid", "likelihood": "gaussian"}, "metric"),
        ({"approx": "auto"}, "approx"),
        ({"averaging": 0.5}, "averaging"),
        ({"update_every": 2}, "update_every"),
        ({"momentum": fubini.Spring()}, "momentum"),
    ]:
        with pytest.raises(ValueError, match=f"{name}: expected .* with lam=SignalToNoise"):
            QNGOptimizer(layer, lam=SignalToNoise(), **options)
    with pytest.raises(ValueError, match="model: expected a module for lam=SignalToNoise"):
        QNGOptimizer(list(layer.parameters()), lam=SignalToNoise())
    with pytest.raises(ValueError, match="tolerance: expected a finite number > 0"):
        SignalToNoise(0.0)
    with pytest.raises(ValueError, match="lam: expected"):
        QNGOptimizer(
            [{"params": list(layer.parameters()), "lam": 0.1}], model=layer, lam=SignalToNoise()
        )
    optimizer = QNGOptimizer(layer, lam=SignalToNoise())

    def closure() -> Any:
        loss = layer(INPUTS).sum()
        loss.backward()
        return loss, lambda w: torch.eye(3)

    with pytest.raises(ValueError, match="closure: expected the loss alone"):
        optimizer.step(closure)
    optimizer.grad_scale = torch.tensor(2.0)
    with pytest.raises(ValueError, match="GradScaler"):
        optimizer.step()
    qnode = qml.QNode(function, device, shots=100, diff_method="parameter-shift")
    theirs = qml.qnn.TorchLayer(qnode, {"w": 3, "v": 1}).double()
    optimizer = QNGOptimizer(theirs, lam=SignalToNoise())
    theirs(INPUTS[0]).sum().backward()
    with pytest.raises(UnsupportedCircuitError, match="PennyLane differentiates this layer"):
        optimizer.step()


def test_copies_and_saved_states() -> None:
    import copy
    import pickle

    layer = layer_on(qml.device("default.qubit", wires=2, seed=5), 100)
    optimizer = QNGOptimizer(layer, lr=0.1, lam=SignalToNoise(), momentum=0.5)
    (layer(INPUTS) * COTANGENTS).sum().backward()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    other = QNGOptimizer(layer, lr=0.1, lam=SignalToNoise(), momentum=0.5)
    other.load_state_dict(saved)
    pair = copy.deepcopy({"layer": layer, "optimizer": optimizer})
    assert pair["layer"].shot_noise is None
    pair["optimizer"].zero_grad()
    (pair["layer"](INPUTS) * COTANGENTS).sum().backward()
    pair["optimizer"].step()
    assert "signal-to-noise" in pair["optimizer"].explain()
    assert pickle.loads(pickle.dumps(SignalToNoise(3.0))) == SignalToNoise(3.0)


def test_gains_are_the_derivative_of_the_direction() -> None:
    """Against differences of order 2: an error of about step^2 times the filter's third derivative."""
    rng = np.random.default_rng(1)
    root = rng.normal(size=(4, 4))
    metric, errors = root @ root.T, 0.1 * np.ones((4, 4))
    covariance = 0.04 * np.eye(4)
    gradient = 0.5 * rng.normal(size=4)
    found = snr_direction(gradient, covariance, metric, errors)
    assert found.weights.min() < 0.9
    for k, gain in enumerate(found.gains):
        step = 1e-4 * found.vectors[:, k]
        ends = [
            snr_direction(gradient + s * step, covariance, metric, errors).values for s in (1, -1)
        ]
        slope = (ends[0] - ends[1]) / 2e-4
        np.testing.assert_allclose(slope, gain * found.vectors[:, k], rtol=0, atol=1e-4)
