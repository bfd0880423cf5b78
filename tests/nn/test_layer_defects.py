"""Layers with weights of no entries, with a data argument of another name, and with ever new circuits."""

import copy
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from fubini.native.circuit import circuit_of

ENGINES = [
    ("default.qubit", "auto"),
    ("default.qubit", "device"),
    ("lightning.qubit", "device"),
    ("default.mixed", "auto"),
]

# -- a depth of 0, as in an ablation ------------------------------------------------------------------------------------


def ansatz(inputs: Any, depth: Any, rest: Any = None) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    for row in depth:
        qml.RY(row[0], 0)
        qml.RY(row[1], 1)
        qml.CNOT([0, 1])
    if rest is not None:
        qml.RX(rest[0], 0)
        qml.RY(rest[1], 1)
    return [qml.expval(qml.Z(k)) for k in range(2)]


def without_depth(inputs: Any, rest: Any) -> Any:
    return ansatz(inputs, (), rest)


def network(function: Any, device: str, engine: Any, **shapes: Any) -> Any:
    torch.manual_seed(1)
    qnode = qml.QNode(function, qml.device(device, wires=2))
    weights = {name: torch.linspace(0.3, 0.8, int(np.prod(shapes[name]))) for name in shapes}
    weights = {name: w.reshape(shapes[name]) for name, w in weights.items()}
    middle = fubini.QuantumLayer(qnode, shapes, weights, engine=engine)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), middle, torch.nn.Linear(2, 1)).double()


OPTIONS: list[dict[str, Any]] = [
    {},
    {"approx": None},
    {"approx": "diag"},
    {"approx": "auto"},
    {"momentum": 0.9, "averaging": 0.5, "weight_decay": 0.1},
    {"metric": "fisher", "likelihood": "gaussian"},
    {"metric": "fisher", "likelihood": "gaussian", "approx": None},
    {"metric": "fisher", "likelihood": "gaussian", "approx": "diag"},
]


@pytest.mark.parametrize(("device", "engine"), ENGINES)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("rest", [{}, {"rest": (2,)}])
def test_weight_without_entries_moves_nothing(
    rest: Any, options: Any, device: str, engine: str
) -> None:
    x = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(4, 3)

    def train(model: Any) -> torch.Tensor:
        optimizer = fubini.QNGOptimizer(model, lr=0.1, **{"metric": "quantum", **options})
        for _ in range(2):
            optimizer.zero_grad()
            (model(x) - 0.3).square().mean().backward()
            optimizer.step()
        return torch.nn.utils.parameters_to_vector(model.parameters())

    empty = network(ansatz, device, engine, depth=(0, 2), **rest)
    # The model without that weight; without any quantum weight, a layer whose weight is not trained.
    plain = network(without_depth, device, engine, rest=(2,))
    if not rest:
        with torch.no_grad():
            plain[1].rest.zero_()
        plain[1].rest.requires_grad_(False)
        want = train(plain)[[*range(8), *range(10, 13)]]
    else:
        want = train(plain)
    # The same operations but for those on empty tensors; gates with angle 0 round.
    torch.testing.assert_close(train(empty), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("device", "engine"), ENGINES)
@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
def test_metric_of_a_weight_without_entries(device: str, engine: str, approx: Any) -> None:
    one = network(ansatz, device, engine, depth=(0, 2))[1]
    metric = fubini.metric_tensor(one, approx=approx, reduce="mean")(
        torch.rand(3, 2, dtype=torch.float64)
    )
    assert metric.numel() == 0


# -- TorchLayer.set_input_argument --------------------------------------------------------------------------------------


def renamed(entradas: Any, pesos: Any) -> Any:
    qml.AngleEmbedding(entradas, wires=range(2))
    qml.StronglyEntanglingLayers(pesos, wires=range(2))
    return [qml.expval(qml.Z(i)) for i in range(2)]


def usual(inputs: Any, pesos: Any) -> Any:
    return renamed(inputs, pesos)


@pytest.fixture
def _restored_names() -> Any:
    yield
    qml.qnn.TorchLayer.set_input_argument("inputs")
    fubini.QuantumLayer.set_input_argument("inputs")


@pytest.mark.usefixtures("_restored_names")
@pytest.mark.parametrize("engine", ["native", "device"])
def test_torch_layer_with_a_renamed_data_argument_is_replaced(engine: Any) -> None:
    qml.qnn.TorchLayer.set_input_argument("entradas")
    qnode = qml.QNode(renamed, qml.device("default.qubit", wires=2))
    theirs = qml.qnn.TorchLayer(qnode, {"pesos": (2, 2, 3)})
    mine = fubini.QuantumLayer.from_torch_layer(theirs, engine=engine)
    model = fubini.replace_torch_layers(torch.nn.Sequential(theirs))
    x = torch.rand(4, 2)
    assert mine.input_arg == "entradas"
    assert fubini.QuantumLayer.input_arg == "inputs"
    torch.testing.assert_close(mine(x), theirs(x))
    torch.testing.assert_close(model(x), theirs(x))
    torch.testing.assert_close(copy.deepcopy(mine)(x), theirs(x))
    torch.testing.assert_close(fubini.metric_tensor(mine)(x), fubini.metric_tensor(theirs)(x))


@pytest.mark.usefixtures("_restored_names")
def test_quantum_layer_with_a_renamed_data_argument() -> None:
    device = qml.device("default.qubit", wires=2)
    early = fubini.QuantumLayer(qml.QNode(usual, device), {"pesos": (2, 2, 3)})
    with pytest.raises(TypeError, match=r"'inputs'.*set_input_argument"):
        fubini.QuantumLayer(qml.QNode(renamed, device), {"pesos": (2, 2, 3)})
    fubini.QuantumLayer.set_input_argument("entradas")
    late = fubini.QuantumLayer(
        qml.QNode(renamed, device), {"pesos": (2, 2, 3)}, {"pesos": early.pesos.detach()}
    )
    x = torch.rand(4, 2)
    torch.testing.assert_close(late(x), early(x))  # a layer keeps the name that it was made with
    fubini.QuantumLayer.set_input_argument()
    torch.testing.assert_close(late(x), early(x))
    with pytest.raises(TypeError, match="input_name: expected"):
        fubini.QuantumLayer.set_input_argument(3)  # type: ignore[arg-type]


# -- ever new circuits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["observable", "gate", "unitary"])
def test_circuits_of_an_annealed_function_are_not_kept_forever(kind: str) -> None:
    setting = [0.0]

    def function(inputs: Any, w: Any) -> Any:
        qml.RX(torch.erf(inputs[..., 0]), 0)
        qml.RY(w, 0)
        if kind == "gate":
            qml.IsingXX(setting[0], [0, 1])
        if kind == "unitary":
            qml.QubitUnitary(np.diag(np.exp(1j * setting[0] * np.arange(4))), [0, 1])
        scale = setting[0] if kind == "observable" else 1.0
        return qml.expval(scale * qml.Z(0) + qml.X(0))

    qnode = qml.QNode(function, qml.device("default.qubit", wires=2))
    layer = fubini.QuantumLayer(qnode, {"w": ()}).double()
    theirs = qml.qnn.TorchLayer(qnode, {"w": ()}, {"w": layer.w.detach()})
    x = torch.rand(2, 1, dtype=torch.float64)
    for step in range(60):
        setting[0] = 0.1 * (step % 40)
        torch.testing.assert_close(layer(x), theirs(x))
    assert circuit_of.cache_info().currsize <= 128
