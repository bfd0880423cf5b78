"""QuantumLayer on devices: values and gradients by shifts, accounts, failures that leave the parameters alone."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from devices_common import Faulty, Serial
from fubini import QuantumLayer, UnsupportedCircuitError
from fubini.devices.executor import DeviceExecutionError, Executor
from fubini.devices.usage import Usage

SHAPES = {"w": (2, 2), "v": ()}


def single(inputs: Any, w: Any, v: Any) -> Any:
    gates(inputs, w, v)
    return qml.expval(qml.Z(0) @ qml.X(1))


def several(inputs: Any, w: Any, v: Any) -> Any:
    gates(inputs, w, v)
    return [qml.expval(qml.Z(0)), qml.expval(qml.Y(1)), qml.var(qml.X(0))]


def pair(inputs: Any, w: Any, v: Any) -> Any:
    gates(inputs, w, v)
    return qml.expval(qml.Z(0)), qml.expval(qml.Z(1))


def probabilities(inputs: Any, w: Any, v: Any) -> Any:
    gates(inputs, w, v)
    return qml.probs(wires=[1, 0])


def gates(inputs: Any, w: Any, v: Any) -> None:
    for k in range(2):
        qml.RY(inputs[..., k], k)
        qml.RX(w[0, k], k)
    qml.CRY(v, [0, 1])
    qml.RZ(w[1, 0] * inputs[..., 0], 0)
    qml.SingleExcitation(w[1, 1], [0, 1])


def pair_of_layers(function: Any, device: Any, **kwargs: Any) -> tuple[QuantumLayer, QuantumLayer]:
    """The same on the native engine and on a device."""
    torch.manual_seed(1)
    native = QuantumLayer(qml.QNode(function, qml.device("default.qubit", wires=2)), SHAPES)
    qnode = qml.QNode(function, device, **kwargs)
    other = QuantumLayer(qnode, SHAPES, dict(native.qnode_weights), engine="device")
    return native.double(), other.double()


@pytest.mark.parametrize("function", [single, several, pair, probabilities])
@pytest.mark.parametrize(
    ("device", "method"),
    [
        ("default.qubit", "parameter-shift"),
        ("lightning.qubit", "parameter-shift"),
        ("lightning.qubit", "best"),
        ("lightning.qubit", "adjoint"),
        ("default.mixed", "parameter-shift"),
        ("reference.qubit", "best"),
        ("plugin", "best"),
    ],
)
@pytest.mark.parametrize("shape", [(2,), (3, 2), (2, 2, 2)])
def test_values_and_gradients_are_native(
    function: Any, device: str, method: str, shape: Any
) -> None:
    dev = Serial(wires=2) if device == "plugin" else qml.device(device, wires=2)
    native, layer = pair_of_layers(function, dev, diff_method=method)
    inputs = torch.rand(shape, dtype=torch.float64)
    found = []
    for module in (native, layer):
        x = inputs.clone().requires_grad_()
        y = module(x)
        (y * torch.linspace(0.5, 2.0, y.numel()).reshape(y.shape)).sum().backward()
        found.append([y.detach(), x.grad, *(p.grad for p in module.parameters())])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-9)
    assert layer.engine == "device"
    # One forward and one backward; the plugin gets 64 circuits at a time.
    rows = len(inputs.reshape(-1, 2))
    shifted = (14 + 2 * 2) * rows  # weights, and two RY of inputs
    own = device == "lightning.qubit" and method != "parameter-shift" and function != probabilities
    # A device's own derivatives come with the results.
    assert layer.device_calls == (
        1 if own else 1 + (-(-shifted // 64) if device == "plugin" else 1)
    )
    assert native.device_calls == 0
    if method == "parameter-shift":
        assert layer.explain().endswith("Its derivatives come from shifted circuits.")
    else:
        assert "Its derivatives are the device's own, or" in layer.explain()
    assert layer.usage.circuits == rows + (0 if own else shifted)


def test_circuits_that_depend_on_no_weight_that_requires_grad() -> None:
    native, layer = pair_of_layers(
        single, qml.device("default.qubit", wires=2), diff_method="parameter-shift"
    )
    x = torch.rand(3, 2, dtype=torch.float64)
    layer.requires_grad_(False)
    torch.testing.assert_close(layer(x), native(x).detach(), rtol=0, atol=1e-12)
    assert not layer(x).requires_grad
    x.requires_grad_()
    layer(x).sum().backward()
    before = layer.usage
    # Three shifts of angles that depend on inputs: two RY and the RZ, two circuits each, for three inputs.
    assert (before.calls, before.circuits) == (4, 3 * 3 + 3 * 6)


def test_shots_are_counted_and_differ_from_call_to_call() -> None:
    dev = qml.device("default.qubit", wires=2, seed=3)
    _, layer = pair_of_layers(single, dev, shots=50)
    x = torch.rand(4, 2, dtype=torch.float64)
    y = layer(x)
    assert layer.usage == Usage(1, 1, 4, 200)
    y.sum().backward()
    # RX RX RZ: two; CRY: four; SingleExcitation: four.
    assert layer.usage == Usage(2, 2, 4 + 4 * 14, 50 * (4 + 4 * 14))
    assert not torch.equal(layer(x), y)


def test_pennylane_differentiates_where_it_is_better() -> None:
    _, layer = pair_of_layers(single, qml.device("default.mixed", wires=2))
    layer(torch.rand(3, 2, dtype=torch.float64)).sum().backward()
    assert "shifted" not in layer.explain()
    assert layer.device_calls == 1


def test_second_derivatives_are_refused() -> None:
    dev = qml.device("default.qubit", wires=2)
    _, layer = pair_of_layers(single, dev, diff_method="parameter-shift")
    x = torch.rand(2, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match="second derivatives of a layer"):
        torch.autograd.grad(layer(x), layer.w, create_graph=True)


@pytest.mark.parametrize("fault", ["raise", "nan"])
def test_a_failing_backward_pass_changes_nothing_and_is_resumed(fault: str) -> None:
    dev = Serial(wires=2, faults={3: fault})
    native, layer = pair_of_layers(single, dev, diff_method="parameter-shift")
    layer.executor = Executor(dev, retries=0, tapes_per_call=5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    before = [p.detach().clone() for p in layer.parameters()]
    x = torch.rand(2, dtype=torch.float64)
    with pytest.raises((DeviceExecutionError, fubini.NumericalError), match="results are kept"):
        layer(x).backward()
    assert all(p.grad is None for p in layer.parameters())
    optimizer.step()
    for p, old in zip(layer.parameters(), before, strict=True):
        assert torch.equal(p, old)
    dev.executed.clear()
    layer(x).backward()
    assert len(dev.executed) == 1 + 14 - 5  # five shifted circuits had been paid for
    native(x).backward()
    for p, q in zip(layer.parameters(), native.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=0, atol=1e-9)


def test_executors_and_devices_that_do_not_fit() -> None:
    dev = Faulty(wires=2)
    _, layer = pair_of_layers(single, dev)
    with pytest.raises(ValueError, match="executor: expected one of the layer's device"):
        layer.executor = Executor(qml.device("lightning.qubit", wires=2))

    class Clifford(Faulty):
        @property
        def name(self) -> str:
            return "default.clifford"

    with pytest.raises(UnsupportedCircuitError, match=r"default\.clifford"):
        QuantumLayer(qml.QNode(single, Clifford(wires=2)), SHAPES)


def test_the_metric_of_a_layer_is_counted() -> None:
    dev = qml.device("default.qubit", wires=2)
    native, layer = pair_of_layers(single, dev)
    x = torch.rand(3, 2, dtype=torch.float64)
    found = fubini.metric_tensor(layer, approx="block-diag", joint=True, reduce="mean")(x)
    expected = fubini.metric_tensor(native, approx="block-diag", joint=True, reduce="mean")(x)
    np.testing.assert_allclose(
        found.detach().numpy(), expected.detach().numpy(), rtol=0, atol=1e-12
    )
    assert layer.device_calls == 1


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
@pytest.mark.parametrize("shots", [None, 100])
def test_the_metric_runs_on_the_layers_own_executor(approx: Any, shots: int | None) -> None:
    dev = Faulty(wires=2, faults={1: "raise"}, seed=2)
    _, layer = pair_of_layers(single, dev, shots=shots)
    layer.executor = Executor(dev, retries=0)
    x = torch.rand(3, 2, dtype=torch.float64)
    with pytest.raises(DeviceExecutionError, match="after 1 attempt"):
        fubini.metric_tensor(layer, approx=approx)(x)
    fubini.metric_tensor(layer, approx=approx)(x)
    assert layer.device_calls == 2
    if shots is None and approx is None:
        fubini.geometric_tensor(layer)(x)
        assert layer.device_calls == 3


@pytest.mark.parametrize("kind", ["shots", "plugin", "mixed"])
@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
def test_the_metric_on_devices_without_states(kind: str, approx: Any) -> None:
    shots = 20_000 if kind == "shots" else None
    dev: Any = {
        "shots": lambda: qml.device("default.qubit", wires=2, seed=6),
        "plugin": lambda: Serial(wires=2),
        "mixed": lambda: qml.device("default.mixed", wires=2),
    }[kind]()
    native, layer = pair_of_layers(single, dev, shots=shots)
    x = torch.rand(3, 2, dtype=torch.float64)
    options: Any = {"approx": approx, "joint": True, "reduce": "mean"}
    found = fubini.metric_tensor(layer, **options)(x)
    expected = fubini.metric_tensor(native, **options)(x)
    # With shots, second differences of fidelities in the full metric: some standard errors.
    tolerance = 1e-9 if shots is None else 0.03
    np.testing.assert_allclose(
        found.detach().numpy(), expected.detach().numpy(), rtol=0, atol=tolerance
    )
    assert layer.usage.shots == layer.usage.circuits * (shots or 0)


def test_a_hybrid_model_trains_on_shots() -> None:
    dev = qml.device("default.qubit", wires=2, seed=7)
    _, layer = pair_of_layers(several, dev, shots=500)
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), layer, torch.nn.Linear(3, 1)).double()
    optimizer = fubini.QNGOptimizer(model, lr=0.1, lam=0.05, metric="quantum")
    x = torch.rand(4, 2, dtype=torch.float64)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = (model(x).squeeze(-1) - torch.sin(x.sum(1))).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-3:]) < 0.3 * losses[0]
    # Forward, backward and metric: one call each.
    assert layer.device_calls == 3 * 15


def test_channels_have_no_fubini_study_metric() -> None:
    def noisy(inputs: Any, w: Any, v: Any) -> Any:
        gates(inputs, w, v)
        qml.PhaseFlip(0.1, 0)
        return qml.expval(qml.X(0))

    layer = QuantumLayer(qml.QNode(noisy, qml.device("default.mixed", wires=2)), SHAPES)
    x = torch.rand(3, 2)
    layer(x).sum().backward()
    for approx in (None, "diag"):
        with pytest.raises(UnsupportedCircuitError, match="PhaseFlip is a channel"):
            fubini.metric_tensor(layer, approx=approx)(x)


def test_what_pennylane_evaluates_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities of an operator's eigenvalues have no readout from shots."""

    def operator(inputs: Any, w: Any, v: Any) -> Any:
        gates(inputs, w, v)
        return qml.probs(op=qml.X(0))

    _, layer = pair_of_layers(single, qml.device("default.qubit", wires=2, seed=1), shots=50)
    assert layer.explain().endswith("Its derivatives come from shifted circuits.")
    qnode = qml.QNode(operator, qml.device("default.qubit", wires=2, seed=1), shots=50)
    layer = QuantumLayer(qnode, SHAPES)
    tried = []
    real = fubini.nn.on_device.shifted_circuit
    monkeypatch.setattr(
        fubini.nn.on_device, "shifted_circuit", lambda *a: (tried.append(1), real(*a))[1]
    )
    for _ in range(3):
        assert layer(torch.rand(3, 2)).shape == (3, 2)
    assert len(tried) == 1
    assert layer.explain().endswith("PennyLane differentiates it.")
    assert layer.usage == Usage(3, 3, 9, 450)


def test_results_on_lightning_are_not_rounded_to_the_default_dtype() -> None:
    """PennyLane's are, because the device returns Python's floats."""
    native, layer = pair_of_layers(several, qml.device("lightning.qubit", wires=2))
    x = torch.rand(2, dtype=torch.float64)
    torch.testing.assert_close(layer(x), native(x), rtol=0, atol=1e-13)
    named = {name: w.detach() for name, w in layer.qnode_weights.items()}
    theirs = torch.stack(layer.qnode(inputs=x, **named))
    assert theirs.dtype == torch.float32


@pytest.mark.parametrize("kind", ["shots", "plugin", "mixed", "default.qubit", "lightning.qubit"])
@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
def test_a_dry_run_says_what_a_step_takes(kind: str, approx: Any) -> None:
    shots = 20 if kind == "shots" else None
    dev: Any = {
        "shots": lambda: qml.device("default.qubit", wires=2, seed=6),
        "plugin": lambda: Serial(wires=2),
        "mixed": lambda: qml.device("default.mixed", wires=2),
    }.get(kind, lambda: qml.device(kind, wires=3))()
    method = "best" if kind in ("plugin", "lightning.qubit", "shots") else "parameter-shift"
    native, layer = pair_of_layers(several, dev, shots=shots, diff_method=method)
    layer.executor = Executor(dev, tapes_per_call=50)
    optimizer = fubini.QNGOptimizer(layer, lr=0.1, approx=approx, lam=0.1)
    x = torch.rand(3, 2, dtype=torch.float64)
    planned = layer.cost(x, approx)
    assert layer.usage == Usage()
    y = layer(x)
    assert layer.usage == planned.forward
    y.sum().backward()
    assert layer.usage == planned.forward + planned.backward
    optimizer.step()
    assert layer.usage == planned.total
    assert planned.metric.calls > 0
    assert str(planned).startswith("forward: 1 device calls")
    assert native.cost(x).total == Usage()
    layer.requires_grad_(False)
    assert layer.cost(x).backward == Usage()


def test_what_pennylane_executes_is_not_known_beforehand() -> None:
    _, layer = pair_of_layers(single, qml.device("default.qubit", wires=2))
    with pytest.raises(UnsupportedCircuitError, match="cost: PennyLane differentiates this layer"):
        layer.cost(torch.rand(2))


def test_a_dry_run_with_noise_has_no_metric() -> None:
    def noisy(inputs: Any, w: Any, v: Any) -> Any:
        gates(inputs, w, v)
        qml.PhaseFlip(0.1, 0)
        return qml.expval(qml.X(0))

    dev = qml.device("default.mixed", wires=2)
    layer = QuantumLayer(qml.QNode(noisy, dev, diff_method="parameter-shift"), SHAPES)
    planned = layer.cost(torch.rand(3, 2))
    assert planned.metric == Usage()
    assert planned.backward.circuits == 3 * 14
