"""The three functions of the metric on the native engine: against explicit derivative states, PennyLane, the device."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch
from pennylane import numpy as pnp

import fubini
import reference
from angle_circuits import ansatz, random_tape
from circuits import metric_by_autodiff, random_circuit
from fubini import _core
from fubini.circuit.angles import gate_tape
from fubini.metric import circuits
from fubini.native.taped import of_tape

TOLERANCE = 1e-11  # double precision over tens of gates
QUICK = 40
FUNCTIONS = [fubini.metric_tensor, fubini.geometric_tensor, fubini.quantum_fisher]


def weighted(tape: Any) -> tuple[Any, torch.Tensor]:
    """A QNode with one weight for every parameter of a tape, and the parameters."""
    values = [p for op in tape.operations if not isinstance(op, qml.StatePrep) for p in op.data]
    weights = torch.tensor([float(v) for v in values], dtype=torch.float64, requires_grad=True)

    def function(w: Any) -> Any:
        slot = 0
        for op in tape.operations:
            count = 0 if isinstance(op, qml.StatePrep) else len(op.data)
            new = [w[slot + i] for i in range(count)]
            qml.apply(qml.ops.functions.bind_new_parameters(op, new) if count else op)
            slot += count
        return qml.state()

    device = qml.device("default.qubit", wires=len(tape.wires))
    return qml.QNode(function, device), weights


def seeds() -> list[Any]:
    slow = [pytest.param(s, marks=pytest.mark.slow) for s in range(QUICK, 1000)]
    return [*range(QUICK), *slow]


@pytest.mark.parametrize("seed", seeds())
def test_random_circuits_over_the_gate_table(seed: int) -> None:
    """= explicit derivative states to 1e-11; these = qml.adjoint_metric_tensor of the decomposed circuit to 1e-9."""
    qnode, weights = weighted(random_tape(seed, gates=10, prepared=seed % 5 == 0))
    tape = gate_tape(qnode, (weights,), {}, [0])
    j = tape.jacobian[0]
    of_angles = reference.geometric_tensor(tape)
    expected = j.T @ of_angles @ j
    with torch.no_grad():
        metric = fubini.metric_tensor(qnode, engine="native")(weights).numpy()
        tensor = fubini.geometric_tensor(qnode, engine="native")(weights).numpy()
    np.testing.assert_allclose(metric, expected.real, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(tensor, expected, rtol=0, atol=TOLERANCE)
    assert (metric == metric.T).all()
    assert (tensor == tensor.conj().T).all()
    assert np.linalg.eigvalsh(metric).min() > -1e-13 * len(metric) * max(1.0, np.abs(metric).max())

    pullback = of_tape(tape)
    mine = circuits.metric(pullback.circuit, pullback.angles, state=pullback.states)[0]
    rows = pullback.jacobian.rows
    np.testing.assert_allclose(mine[np.ix_(rows, rows)], of_angles.real, rtol=0, atol=TOLERANCE)
    if seed % 4 == 0:  # it takes four times as long as all the rest
        operations = [gate.operation for gate in tape.gates]
        numbers = tape.parameter_numbers
        script = qml.tape.QuantumScript(operations, [qml.state()], trainable_params=numbers)
        theirs = qml.adjoint_metric_tensor(script)
        np.testing.assert_allclose(of_angles.real, np.asarray(theirs), rtol=0, atol=1e-9)


@pytest.mark.parametrize("rule", ["wires", "maximal", "queue"])
@pytest.mark.parametrize("seed", range(4))
def test_engines_agree_in_every_approximation(seed: int, rule: Any) -> None:
    circuit = random_circuit(900 + seed, shared=seed % 2 == 1, gates=8)
    inputs, weights = circuit.draw(seed, [None, 1, 3, 4][seed])
    for approx in (None, "block-diag", "diag"):
        for reduce in (None, "mean") if approx == "block-diag" else (None,):
            options: Any = {"layers": rule, "reduce": reduce}
            native, device = (
                fubini.metric_tensor(circuit.qnode(), approx, engine=engine, **options)(
                    inputs, weights
                ).detach()
                for engine in ("native", "device")
            )
            torch.testing.assert_close(native, device, rtol=0, atol=TOLERANCE)
            assert torch.equal(native, native.mT)


def test_blocks_and_diagonal_are_sub_matrices_where_weights_are_not_shared() -> None:
    def function(w: Any, x: Any) -> Any:
        qml.AngleEmbedding(x, wires=range(4))
        qml.StronglyEntanglingLayers(w, wires=range(4))
        return qml.probs()

    qnode = qml.QNode(function, qml.device("default.qubit", wires=4))
    w = torch.rand(2, 4, 3, dtype=torch.float64, requires_grad=True)
    x = torch.rand(5, 4, dtype=torch.float64)
    with torch.no_grad():
        full, block, diag = (
            fubini.metric_tensor(qnode, approx, joint=True)(w, x=x)
            for approx in (None, "block-diag", "diag")
        )
    inside = block != 0
    assert 24 < inside[0].sum() < 24**2 // 2
    torch.testing.assert_close(block[inside], full[inside], rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        diag, torch.diag_embed(full.diagonal(dim1=1, dim2=2)), rtol=0, atol=TOLERANCE
    )


# -- batches --------------------------------------------------------------------------------------------------------


def before(x: Any, w: Any) -> None:
    qml.AngleEmbedding(x, wires=range(2))
    qml.StronglyEntanglingLayers(w, wires=range(2))


def between(x: Any, w: Any) -> None:
    qml.StronglyEntanglingLayers(w[:1], wires=range(2))
    qml.IsingXX(x[..., 0] * x[..., 1], wires=range(2))
    qml.StronglyEntanglingLayers(w[1:], wires=range(2))


def inside(x: Any, w: Any) -> None:
    qml.RY(w[0, 0, 0] * x[..., 0], 0)
    qml.CRX(torch.sin(w[0, 1, 0] + x[..., 1]), [0, 1])
    qml.RZ(w[1, 0, 0] * w[0, 0, 0] * x[..., 1], 0)
    qml.RX(w[1, 1, 2], 1)


def prepared(x: Any, w: Any) -> None:
    qml.AmplitudeEmbedding(x, wires=range(2), pad_with=0.3, normalize=True)
    qml.StronglyEntanglingLayers(w, wires=range(2))


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
@pytest.mark.parametrize("function", [before, between, inside, prepared])
def test_batch_mean_is_the_mean_of_single_inputs(function: Any, approx: Any) -> None:
    def circuit(x: Any, w: Any) -> Any:
        function(x, w)
        return qml.state()

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=2))
    x = torch.rand(7, 2, dtype=torch.float64)
    w = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    fn = fubini.metric_tensor(qnode, approx, joint=True)
    mean = fubini.metric_tensor(qnode, approx, joint=True, reduce="mean")
    with torch.no_grad():
        singles = torch.stack([fn(one, w) for one in x])
        torch.testing.assert_close(fn(x, w), singles, rtol=0, atol=1e-12)
        torch.testing.assert_close(mean(x, w), singles.mean(0), rtol=0, atol=1e-12)
    if approx is None:
        true = metric_by_autodiff(qnode, x, w)
        torch.testing.assert_close(singles, true, rtol=0, atol=TOLERANCE)
        tensors = fubini.geometric_tensor(qnode, joint=True)(x, w)
        torch.testing.assert_close(
            fubini.geometric_tensor(qnode, joint=True, reduce="mean")(x, w),
            tensors.mean(0),
            rtol=0,
            atol=1e-12,
        )


def test_batches_larger_than_the_temporaries_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Per-input Jacobians are contracted some inputs at a time."""

    def circuit(x: Any, w: Any) -> Any:
        inside(x, w)
        return qml.state()

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=2))
    x = torch.rand(7, 2, dtype=torch.float64)
    w = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    results = []
    for size in (1 << 26, 1000):
        monkeypatch.setattr("fubini.native.pullback._CHUNK_BYTES", size)
        operator = fubini.metric_operator(qnode, "matrix-free")(x, w)
        results.append(
            [
                *(fubini.metric_tensor(qnode, reduce=r)(x, w) for r in (None, "mean")),
                operator @ w.detach().reshape(-1),
                operator.diagonal(),
            ]
        )
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, rtol=0, atol=1e-14)


# -- calling convention ---------------------------------------------------------------------------------------------


def two_arguments(a: Any, b: Any) -> Any:
    qml.RX(a[0], 0)
    qml.RY(b[0, 0] * a[1], 0)
    qml.CNOT([0, 1])
    qml.RZ(b[0, 1], 1)
    qml.RX(0.4, 1)
    return qml.expval(qml.Z(0))


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("diff_method", ["best", "adjoint", "parameter-shift", None])
@pytest.mark.parametrize("name", ["default.qubit", "lightning.qubit"])
def test_every_diff_method_and_interface(function: Any, diff_method: Any, name: str) -> None:
    qnode = qml.QNode(two_arguments, qml.device(name, wires=2), diff_method=diff_method)
    a = torch.rand(2, dtype=torch.float64, requires_grad=True)
    b = torch.rand(1, 2, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        of_a, of_b = function(qnode)(a, b)
        joint = function(qnode, joint=True)(a, b)
        named = function(qnode, joint=True)(b=b, a=a)
    assert (of_a.shape, of_b.shape, joint.shape) == ((2, 2), (1, 2, 1, 2), (4, 4))
    assert joint.is_complex() == (function is fubini.geometric_tensor)
    torch.testing.assert_close(joint[:2, :2], of_a)
    torch.testing.assert_close(joint[2:, 2:], of_b.reshape(2, 2))
    assert joint[:2, 2:].abs().max() > 1e-3
    torch.testing.assert_close(named, joint)
    x, y = (pnp.array(t.detach().numpy(), requires_grad=True) for t in (a, b))
    for got, expected in zip(function(qnode)(x, y), (of_a, of_b), strict=True):
        assert type(got) is np.ndarray
        np.testing.assert_allclose(got, expected.numpy(), rtol=0, atol=1e-12)
    # PennyLane's rule: plain arrays are data. Positions name weights whatever they are.
    alone = function(qnode)(np.asarray(x), y)
    np.testing.assert_allclose(alone, of_b.numpy(), rtol=0, atol=1e-12)
    plain = function(qnode, argnums=(0, 1), joint=True)(np.asarray(x), np.asarray(y))
    np.testing.assert_allclose(plain, joint.numpy(), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"arguments: expected at least one that requires grad"):
        function(qnode)(np.asarray(x), np.asarray(y))


def test_argnums_out_of_range() -> None:
    qnode = qml.QNode(two_arguments, qml.device("default.qubit", wires=2))
    with pytest.raises(ValueError, match=r"argnums: expected different positions below 2.*got 2"):
        fubini.metric_tensor(qnode, argnums=2)(np.zeros(2), np.zeros((1, 2)))
    with pytest.raises(TypeError, match="argnums: expected an integer"):
        fubini.metric_tensor(qnode, argnums=["a"])(np.zeros(2), np.zeros((1, 2)))


@pytest.mark.parametrize("engine", ["native", "device"])
@pytest.mark.parametrize("argnum", [0, [0, 2], [2, 3]])
def test_argnum_keeps_gate_parameters(engine: Any, argnum: Any) -> None:
    qnode = qml.QNode(two_arguments, qml.device("default.qubit", wires=2))
    a = torch.rand(2, dtype=torch.float64, requires_grad=True)
    b = torch.rand(1, 2, dtype=torch.float64, requires_grad=True)
    options: Any = {"argnum": argnum, "joint": True, "engine": engine}
    if argnum == [2, 3]:  # the constant RX
        with pytest.raises(
            ValueError, match=r"argnum: expected numbers.*\[0, 1, 2\], got \[2, 3\]"
        ):
            fubini.metric_tensor(qnode, **options)(a, b)
        return
    tape = gate_tape(qnode, (a, b), {}, [0, 1])
    j = tape.jacobian[0].copy()
    j[[k for k in range(3) if k not in np.atleast_1d(argnum)]] = 0.0
    expected = j.T @ reference.geometric_tensor(tape) @ j
    metric = fubini.metric_tensor(qnode, **options)(a, b).detach()
    np.testing.assert_allclose(metric, expected.real, rtol=0, atol=TOLERANCE)
    tensor = fubini.geometric_tensor(qnode, **options)(a, b).detach()
    np.testing.assert_allclose(tensor, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_quantum_layers_and_torch_layers(function: Any) -> None:
    def circuit(inputs: Any, a: Any, b: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.BasicEntanglerLayers(a, wires=range(2), rotation=qml.RY)
        qml.RX(b * inputs[..., 0], 1)
        return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=2))
    layer = fubini.QuantumLayer(qnode, {"a": (3, 2), "b": 1})
    values = {name: w.detach() for name, w in layer.qnode_weights.items()}
    foreign = qml.qnn.TorchLayer(qnode, {"a": (3, 2), "b": 1}, init_method=values)
    x = torch.rand(5, 2, 2)
    of_a, of_b = function(layer)(x)
    assert (of_a.shape, of_b.shape) == ((10, 3, 2, 3, 2), (10,))
    with torch.no_grad():
        for other in (foreign, fubini.QuantumLayer.from_torch_layer(foreign, engine="device")):
            for mine, theirs in zip((of_a, of_b), function(other)(inputs=x), strict=True):
                torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)
        joint = function(foreign, reduce="mean", joint=True)(x.double())
        again = function(foreign, reduce="mean", joint=True)(x.double())
    assert joint.shape == (7, 7)
    assert torch.equal(joint, again)
    with torch.no_grad():
        foreign.qnode_weights["a"].add_(0.1)
        assert not torch.allclose(function(foreign, reduce="mean", joint=True)(x.double()), joint)


def test_berry_curvature_of_a_spin() -> None:
    """|psi> = RZ(phi) RY(theta) |0>: F = -2 Im Q is -sin(theta)/2, half the area element of the sphere."""

    @qml.qnode(qml.device("default.qubit", wires=1))
    def spin(w: Any) -> Any:
        qml.RY(w[0], 0)
        qml.RZ(w[1], 0)
        return qml.state()

    theta = 0.8
    w = torch.tensor([theta, 0.3], dtype=torch.float64, requires_grad=True)
    tensor = fubini.geometric_tensor(spin)(w).detach()
    curvature = -2 * tensor.imag

    def connection(i: int, at: torch.Tensor) -> float:  # A_i = i <psi|d_i psi>
        step = torch.zeros(2, dtype=torch.float64)
        step[i] = 1e-5
        change = (spin(at + step) - spin(at - step)) / 2e-5
        return float((1j * torch.vdot(spin(at), change)).real)

    step = 1e-4 * torch.eye(2, dtype=torch.float64)
    at = w.detach()
    expected = (connection(1, at + step[0]) - connection(1, at - step[0])) / 2e-4
    expected -= (connection(0, at + step[1]) - connection(0, at - step[1])) / 2e-4
    assert abs(abs(curvature[0, 1].item()) - np.sin(theta) / 2) < 1e-12
    assert curvature[0, 1].item() == pytest.approx(expected, abs=1e-6)


# -- errors ---------------------------------------------------------------------------------------------------------


def test_unsupported_operations_are_named() -> None:
    @qml.qnode(qml.device("default.mixed", wires=1))
    def noisy(w: Any) -> Any:
        qml.RX(w, 0)
        qml.DepolarizingChannel(0.1, 0)
        return qml.expval(qml.Z(0))

    w = torch.tensor(0.3, requires_grad=True)
    for function in FUNCTIONS:
        if (
            function is fubini.quantum_fisher
        ):  # of the mixed state: the Bloch vector's length squared
            assert float(function(noisy)(w)) == pytest.approx((1 - 0.4 / 3) ** 2, abs=1e-6)
        else:
            with pytest.raises(
                fubini.UnsupportedCircuitError, match="DepolarizingChannel is a channel"
            ):
                function(noisy)(w)
        with pytest.raises(ValueError, match="engine: expected 'auto', 'native' or 'device'"):
            function(noisy, engine="gpu")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_numbers_that_are_not_finite_are_named_with_their_place(function: Any) -> None:
    qnode = qml.QNode(two_arguments, qml.device("default.qubit", wires=2))
    a = torch.tensor([0.1, 0.2], requires_grad=True)
    b = torch.tensor([[0.1, float("nan")]], requires_grad=True)
    with pytest.raises(ValueError, match=r"b: expected finite numbers, got nan at b\[0, 1\]"):
        function(qnode)(a, b)

    def circuit(inputs: Any, w: Any) -> Any:
        qml.RX(inputs[..., 0] * 1e10, 0)
        qml.RY(w, 0)
        return qml.expval(qml.Z(0))

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=1))
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    x = torch.tensor([[1.0], [1e300]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"RX on wires \[0\] is NaN or infinite.*input 1"):
        function(qnode)(w=w, inputs=x)
    layer = fubini.QuantumLayer(qnode, {"w": 1}).double()
    with pytest.raises(
        ValueError, match=r"angles: expected finite numbers, got inf at angles\[1, 0\]"
    ):
        function(layer)(x)
    x[0, 0] = float("nan")
    with pytest.raises(
        ValueError, match=r"inputs: expected finite numbers, got nan at inputs\[0, 0\]"
    ):
        function(layer)(x)


def test_requests_beyond_the_memory_bound() -> None:
    def circuit(inputs: Any, w: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(4))
        qml.StronglyEntanglingLayers(w, wires=range(4))
        return qml.expval(qml.Z(0))

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=4))
    layer = fubini.QuantumLayer(qnode, {"w": (10, 4, 3)})
    x = torch.rand(50, 4)
    layer(x)  # compiled: what that takes has a bound of its own
    message = r"\((50, )?120, 120\): the metric would take .* GB of memory, and may take 1e-05 GB .*metric_operator"
    try:
        fubini.set_memory_limit(1e4)
        assert fubini.get_memory_limit() == 1e4
        for reduce in (None, "mean"):
            for approx in (None, "block-diag"):
                with pytest.raises(MemoryError, match=message):
                    fubini.metric_tensor(layer, approx, reduce=reduce)(x)
        with pytest.raises(MemoryError, match="the geometric tensor would take"):
            fubini.geometric_tensor(layer)(x)
        with pytest.raises(
            MemoryError, match=r"\(1, 60, 60\): the metric would take .* 'matrix-free'"
        ):
            circuits.metric(ansatz(6, 5), np.zeros(60))
        operator = fubini.metric_operator(layer)(x)
        assert operator.form == "matrix-free"
        assert "no other form fits into the bound" in operator.explain()
    finally:
        fubini.set_memory_limit(0)
    assert _core.memory_limit() > 1e8
    with pytest.raises(ValueError, match="limit: expected a finite number of bytes"):
        fubini.set_memory_limit(-1)
