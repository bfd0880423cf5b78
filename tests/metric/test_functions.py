"""fubini.metric_tensor against explicit derivative states and against torch's Jacobian of PennyLane's state."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
import reference
from circuits import DEVICES, metric_by_autodiff, random_circuit
from devices_common import metric_blocks
from fubini.circuit.angles import gate_tape
from fubini.circuit.gate_layers import find_layers

# Sums of some hundred products of order one in float64.
TOLERANCE = 1e-11
BATCHES = [None, 1, 3, 4, 8, 32]


def call(circuit: Any, seed: int, batch: int | None, device: str = "default.qubit") -> Any:
    inputs, weights = circuit.draw(seed, batch)
    qnode = circuit.qnode(device)
    return qnode, inputs, weights, gate_tape(qnode, (inputs, weights), {}, [1])


@pytest.mark.parametrize("seed", range(210))
def test_blocks_equal_explicit_derivative_states(seed: int) -> None:
    batch = BATCHES[seed % len(BATCHES)]
    circuit = random_circuit(seed, shared=seed % 2 == 1)
    qnode, _, _, tape = call(circuit, seed, batch)
    rule = ("wires", "maximal", "queue")[seed % 3]
    blocks = metric_blocks(tape, qnode.device, diagonal=False, layers=rule)
    assert sorted(i for block in blocks for i in block.angles) == list(range(len(tape.trainable)))
    for b in range(batch or 1) if batch != 32 else (0, 17, 31):
        full = reference.geometric_tensor(tape, b).real
        for block in blocks:
            values = block.values[b if len(block.values) > 1 else 0]
            expected = full[np.ix_(block.angles, block.angles)]
            np.testing.assert_allclose(values, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(300, 324))
def test_full_metric_equals_autodiff_of_the_state(seed: int, device: str) -> None:
    batch = BATCHES[seed % 4]
    circuit = random_circuit(seed, shared=True)
    inputs, weights = circuit.draw(seed, batch)
    metric = fubini.metric_tensor(circuit.qnode(device))(inputs, weights)
    expected = metric_by_autodiff(circuit.qnode(), inputs, weights)
    torch.testing.assert_close(metric, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(400, 412))
def test_blocks_on_both_devices_and_diagonal_of_blocks(seed: int, device: str) -> None:
    circuit = random_circuit(seed)
    qnode, inputs, weights, tape = call(circuit, seed, 3, device)
    full = fubini.metric_tensor(circuit.qnode())(inputs, weights)
    block = fubini.metric_tensor(qnode, "block-diag")(inputs, weights)
    diag = fubini.metric_tensor(qnode, "diag")(inputs, weights)
    # Weights are not shared: what is not zero in the block-diagonal metric stands in the full one.
    mask = torch.zeros(full.shape[-2:], dtype=torch.bool)
    dependence = torch.from_numpy(np.abs(tape.jacobian).max(axis=0) > 0)  # (angles, weights)
    order = {gate: k for k, gate in enumerate(tape.trainable)}
    for layer in find_layers(tuple(g.shape for g in tape.gates)):
        touched = dependence[[order[i] for i in layer.gates]].any(0)
        mask |= touched[:, None] & touched[None, :]
    torch.testing.assert_close(block, torch.where(mask, full, 0.0), rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(
        torch.diagonal(diag, dim1=-2, dim2=-1),
        torch.diagonal(full, dim1=-2, dim2=-1),
        rtol=0,
        atol=TOLERANCE,
    )
    assert torch.equal(block, block.mT)


def test_batch_mean_is_the_mean_of_single_inputs() -> None:
    circuit = random_circuit(7)
    inputs, weights = circuit.draw(7, 6)
    for approx in (None, "block-diag", "diag"):
        fn = fubini.metric_tensor(circuit.qnode(), approx)
        mean = fubini.metric_tensor(circuit.qnode(), approx, reduce="mean")(inputs, weights)
        single = torch.stack([fn(x, weights) for x in inputs])
        torch.testing.assert_close(fn(inputs, weights), single, rtol=0, atol=1e-12)
        torch.testing.assert_close(mean, single.mean(0), rtol=0, atol=1e-12)


def test_published_values() -> None:
    """Values as printed in the Stokes circuit tutorial's metric and in quantum-methods literature, 4 digits."""

    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(p: Any) -> Any:
        qml.RX(p[0], 0)
        qml.RY(p[1], 0)
        qml.CNOT([0, 1])
        qml.RZ(p[2], 1)
        qml.RZ(p[3], 0)
        return qml.expval(qml.Z(0))

    p = torch.tensor([0.1, 0.2, 0.4, 0.5], dtype=torch.float64, requires_grad=True)
    expected = torch.tensor(
        [
            [0.25, 0, -0.0497, -0.0497],
            [0, 0.2475, 0.0243, 0.0243],
            [-0.0497, 0.0243, 0.0123, 0.0123],
            [-0.0497, 0.0243, 0.0123, 0.0123],
        ],
        dtype=torch.float64,
    )
    torch.testing.assert_close(fubini.metric_tensor(circuit)(p), expected, rtol=0, atol=6e-5)
    blocks = torch.block_diag(expected[:1, :1], expected[1:2, 1:2], expected[2:, 2:])
    torch.testing.assert_close(
        fubini.metric_tensor(circuit, "block-diag")(p), blocks, rtol=0, atol=6e-5
    )


# -- calling convention ------------------------------------------------------------------------------------------


def three_ways(device: str) -> Any:
    @qml.qnode(qml.device(device, wires=2))
    def circuit(x: Any, w: Any, v: Any = 0.3) -> Any:
        qml.RX(x[..., 0], 0)
        qml.RY(2 * w[0, 0], 0)
        qml.RZ(w[0, 1] + x[..., 1], 1)
        qml.CNOT([0, 1])
        qml.RX(w[1, 0] * x[..., 0], 1)
        qml.RY(w[0, 0] * v, 0)
        return qml.expval(qml.Z(0))

    return circuit


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("trainable_input", [False, True])
def test_inputs_by_position_or_keyword(device: str, trainable_input: bool) -> None:
    circuit = three_ways(device)
    x = torch.rand(4, 2, dtype=torch.float64)
    w = torch.rand(2, 2, dtype=torch.float64, requires_grad=True)
    metric = fubini.metric_tensor(circuit, "block-diag")
    by_position = metric(x, w)
    assert by_position.shape == (4, 2, 2, 2, 2)
    with torch.no_grad():
        torch.testing.assert_close(metric(w=w, x=x), by_position)
    x.requires_grad_(trainable_input)
    if trainable_input:
        of_x, of_w = metric(x, w)
        assert of_x.shape == (4, 4, 2, 4, 2)
        torch.testing.assert_close(of_w, by_position)
        single = metric(x[0].detach().requires_grad_(), w)[0]
        torch.testing.assert_close(of_x[0, 0, :, 0, :], single)
        # An input that is a keyword stays data, whatever it requires.
        torch.testing.assert_close(
            fubini.metric_tensor(swapped(circuit), "block-diag")(w, x=x), by_position
        )


def swapped(circuit: Any) -> Any:
    return qml.QNode(lambda w, x: circuit.func(x, w), circuit.device)


def test_several_arguments_and_joint() -> None:
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(a: Any, b: Any) -> Any:
        qml.RX(a[0], 0)
        qml.RY(b[0, 0] * a[1], 0)
        qml.CNOT([0, 1])
        qml.RZ(b[0, 1], 1)
        return qml.probs(wires=0)

    a = torch.rand(2, dtype=torch.float64, requires_grad=True)
    b = torch.rand(1, 2, dtype=torch.float64, requires_grad=True)
    of_a, of_b = fubini.metric_tensor(circuit)(a, b)
    joint = fubini.metric_tensor(circuit, joint=True)(a, b)
    assert (of_a.shape, of_b.shape, joint.shape) == ((2, 2), (1, 2, 1, 2), (4, 4))
    torch.testing.assert_close(joint[:2, :2], of_a)
    torch.testing.assert_close(joint[2:, 2:], of_b.reshape(2, 2))
    assert joint[:2, 2:].abs().max() > 1e-3
    expected = qml.metric_tensor(circuit, approx="block-diag")(a, b)
    for mine, theirs in zip(
        fubini.metric_tensor(circuit, "block-diag")(a, b), expected, strict=True
    ):
        torch.testing.assert_close(mine, theirs.detach())


@pytest.mark.parametrize("approx", ["block-diag", "diag"])
def test_autograd_interface_and_argnum_as_in_pennylane(approx: Any) -> None:
    from pennylane import numpy as pnp

    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(w: Any) -> Any:
        qml.RX(w[0], 0)
        qml.RY(w[1], 1)
        qml.CNOT([0, 1])
        qml.RZ(w[2], 0)
        qml.RX(pnp.sin(w[3]), 1)
        return qml.expval(qml.Z(0))

    w = pnp.array([0.1, 0.7, -0.4, 1.1], requires_grad=True)
    for argnum in (None, [0, 3], 1):
        expected = qml.metric_tensor(circuit, approx=approx, argnum=argnum)(w)
        np.testing.assert_allclose(
            fubini.metric_tensor(circuit, approx, argnum=argnum)(w), expected, rtol=0, atol=1e-12
        )


def test_dtype_and_layers_of_models() -> None:
    def function(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.BasicEntanglerLayers(weights, wires=range(2))
        return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]

    qnode = qml.QNode(function, qml.device("default.qubit", wires=2))
    layer = fubini.QuantumLayer(qnode, {"weights": (3, 2)})
    foreign = qml.qnn.TorchLayer(
        qnode, {"weights": (3, 2)}, init_method={"weights": layer.weights.detach()}
    )
    x = torch.rand(5, 2, 2)
    metric = fubini.metric_tensor(layer, "block-diag")(x)
    assert metric.shape == (10, 3, 2, 3, 2)
    assert metric.dtype == torch.float32
    assert metric.requires_grad
    with torch.no_grad():
        assert not fubini.metric_tensor(layer, "block-diag")(x).requires_grad
    torch.testing.assert_close(fubini.metric_tensor(foreign, "block-diag")(x), metric)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"approx": "blocks"}, "approx: expected None"),
        ({"layers": "all"}, "layers: expected 'wires'"),
        ({"reduce": "sum"}, "reduce: expected None or 'mean'"),
    ],
)
def test_unknown_words(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fubini.metric_tensor(three_ways("default.qubit"), **options)


def test_a_model_is_no_layer() -> None:
    with pytest.raises(
        TypeError, match="expected a QNode, a QuantumLayer or a TorchLayer, got Linear"
    ):
        fubini.metric_tensor(torch.nn.Linear(2, 2))
