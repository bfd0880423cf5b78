"""What a quantum function gets and returns in the first call of a layer, and in those after it."""

import importlib
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini

CALLS = 3
Tensor = torch.Tensor


def z(wire: int) -> Any:
    return qml.expval(qml.Z(wire))


# -- one Parameter for two arguments ------------------------------------------------------------------------------------


def rotations(inputs: Any, a: Any, b: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.RY(a[0], 0)
    qml.CNOT([0, 1])
    qml.RX(b[1] * a[1], 1)
    qml.RY(b[0], 0)
    return [z(0), z(1)]


def deciding(inputs: Any, a: Any, b: Any) -> Any:
    if float(b[0].detach()) > 10:
        qml.X(0)
    return rotations(inputs, a, b)


def with_numpy(inputs: Any, a: Any, b: Any) -> Any:
    qml.RX(float(b.detach().numpy()[1]), 0)
    return rotations(inputs, a, b)


@pytest.mark.parametrize("function", [rotations, deciding, with_numpy])
@pytest.mark.parametrize("engine", ["auto", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_of_a_parameter_with_two_names_in_every_call(
    function: Any, engine: Any, dtype: torch.dtype
) -> None:
    qnode = qml.QNode(function, qml.device("default.qubit", wires=2))
    start = {"a": torch.tensor([0.4, 0.9]), "b": torch.tensor([0.4, 0.9])}
    layer = fubini.QuantumLayer(qnode, {"a": 2, "b": 2}, start, engine=engine).to(dtype)
    layer.b = layer.a
    x = torch.tensor([[0.3, 0.7], [0.2, 0.5]], dtype=dtype)
    w = start["a"].to(torch.float64).requires_grad_()
    want = torch.autograd.grad(torch.stack(qnode(x.double(), w, w)).sum(), w)[0]
    for _ in range(CALLS):
        layer.zero_grad()
        layer(x).sum().backward()
        # The layer's angles are rounded to its dtype.
        tolerance = 1e-6 if dtype is torch.float32 else 1e-12
        torch.testing.assert_close(layer.a.grad.double(), want, atol=tolerance, rtol=0)
    storage = layer.a.untyped_storage()
    assert storage.resizable()  # as sharded data parallelism needs it


# -- results that are no list of measurements ---------------------------------------------------------------------------

RETURNS = {
    "nested": lambda: [[z(0)], [z(1)]],
    "partly nested": lambda: [z(0), [z(1)]],
    "a list in a tuple": lambda: ([z(0)],),
    "dictionary": lambda: {"a": z(0)},
}
REFUSED_BY_PENNYLANE = {
    "empty": list,
    "nothing": lambda: None,
    "number": lambda: 1.0,
    "operators": lambda: [qml.Z(0)],
}


def returning(result: Any) -> Any:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.RX(inputs[..., 0], 0)
        qml.RY(weights[0], 1)
        return result()

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=2))
    return fubini.QuantumLayer(qnode, {"weights": (1,)})


@pytest.mark.parametrize("what", RETURNS)
@pytest.mark.parametrize("shape", [(1,), (3, 1)])
def test_results_that_cannot_be_put_side_by_side_are_refused(what: str, shape: Any) -> None:
    layer = returning(RETURNS[what])
    for _ in range(CALLS):
        with pytest.raises(TypeError, match="return a list of measurements"):
            layer(torch.rand(shape))


@pytest.mark.parametrize("what", REFUSED_BY_PENNYLANE)
@pytest.mark.parametrize("shape", [(1,), (3, 1)])
def test_results_without_measurements_are_refused_as_by_pennylane(what: str, shape: Any) -> None:
    layer = returning(REFUSED_BY_PENNYLANE[what])
    for _ in range(CALLS):
        with pytest.raises(
            qml.exceptions.QuantumFunctionError, match="nonempty sequence of measurements"
        ):
            layer(torch.rand(shape))


# -- integers and booleans as inputs ------------------------------------------------------------------------------------

TABLE = torch.tensor([0.1, 0.8, 1.5, 2.2])
WHOLE = torch.tensor([[0], [3], [2], [1]])
# As written for integers; as the refusal asks; the angle.
ENCODINGS: dict[str, Any] = {
    "table": (lambda x: TABLE[x], lambda x: TABLE[x.long()], lambda k: TABLE[k]),
    "bits": (
        lambda x: 0.7 * (x >> 1),
        lambda x: 0.7 * (x.long() >> 1),
        lambda k: torch.tensor(0.7 * (k // 2)),
    ),
    "choice": (
        lambda x: torch.where(x, 0.3, 0.9),
        lambda x: torch.where(x.bool(), 0.3, 0.9),
        lambda k: torch.tensor(0.3 if k else 0.9),
    ),
    "embedding": (
        lambda x: torch.nn.functional.embedding(x, TABLE[:, None])[..., 0],
        lambda x: torch.nn.functional.embedding(x.long(), TABLE[:, None])[..., 0],
        lambda k: TABLE[k],
    ),
}


def encoding(angle: Any) -> Any:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.RX(angle(inputs[..., 0]), 0)
        qml.RX(weights[0], 0)
        return z(0)

    start = {"weights": torch.tensor([0.4])}
    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=1))
    return fubini.QuantumLayer(qnode, {"weights": (1,)}, start)


@pytest.mark.parametrize("name", ENCODINGS)
def test_integers_are_floating_point_in_the_function_or_the_error_says_so(name: str) -> None:
    whole, converted, angle = ENCODINGS[name]
    inputs = WHOLE.bool() if name == "choice" else WHOLE
    with pytest.raises(ValueError, match=r"reach it as torch\.float32.*inputs\.long\(\)"):
        encoding(whole)(inputs)
    layer = encoding(converted)
    want = torch.stack([torch.cos(angle(int(k)) + 0.4) for k in inputs[:, 0]])
    for _ in range(CALLS):
        # Results have the dtype of the inputs in the function, float32.
        torch.testing.assert_close(layer(inputs), want, atol=1e-6, rtol=0)


# -- how often the function runs ----------------------------------------------------------------------------------------

# What is done with inputs (4, 3) and weights (3,).
ANGLES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "affine": lambda x, w: x[..., 0] + w[0],
    "product": lambda x, w: x[..., 0] * w[1],
    "not understood": lambda x, w: torch.floor(x[..., 0]) * w[0],
    "inputs mixed": lambda x, w: x[..., 0] - x[..., 0].mean() + w[0],
    "inputs mixed, not understood": lambda x, w: torch.floor(x[..., 0] - x.mean()) + w[0],
    "inputs rolled": lambda x, w: x.roll(1, 0)[..., 0] + w[0],
    "inputs added up in order": lambda x, w: x.cumsum(0)[..., 0] + w[0],
    "without inputs": lambda x, w: torch.sin(w[0]),
    "number": lambda x, w: float(w[0].detach()) + w[1],
}
WAYS: dict[str, Callable[[Any, Tensor, Tensor], Any]] = {
    "layer": lambda q, x, w: fubini.QuantumLayer(q, {"w": 3}, {"w": w.detach()}).double()(x),
    "compiled": lambda q, x, w: fubini.compiled(q, weights="w")(x, w),
    "metric": lambda q, x, w: fubini.metric_tensor(q, argnums=1)(x, w),
}


@pytest.mark.parametrize("shape", [(3,), (1, 3), (4, 3)])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ANGLES)
@pytest.mark.parametrize("engine", ["native", "device"])
def test_the_function_runs_at_most_twice_in_the_first_call(
    engine: str, name: str, way: str, shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def circuit(inputs: Any, w: Any) -> Any:
        qml.RX(inputs[..., 1], 0)
        qml.RY(ANGLES[name](inputs, w), 0)
        qml.RZ(w[2], 0)
        return z(0)

    def counted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            runs.append(1)
            return function(*args, **kwargs)

        return call

    # Counted where PennyLane calls it: a function that counts is one that changes what it captured.
    runs: list[int] = []
    batches = importlib.import_module("pennylane.workflow.construct_batch")
    monkeypatch.setattr(batches, "make_qscript", counted(batches.make_qscript))
    monkeypatch.setattr(qml.QNode, "construct", counted(qml.QNode.construct))
    noisy = engine == "device"
    qnode = qml.QNode(circuit, qml.device("default.mixed" if noisy else "default.qubit", wires=1))
    x = torch.rand(shape, dtype=torch.float64, generator=torch.manual_seed(0))
    WAYS[way](qnode, x, torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64, requires_grad=True))
    # Whether inputs that are mixed are still one each is found out by a second run; then the device asks for its own.
    mixed = (
        name in ("inputs mixed", "inputs added up in order") and len(shape) == 2 and shape[0] > 1
    )
    assert 1 <= len(runs) <= (3 if noisy and mixed and way == "layer" else 2)
