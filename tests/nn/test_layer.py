"""QuantumLayer beside TorchLayer, and its refusals."""

import copy
import itertools
import pickle
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini


def embed(inputs: Any, weights: Any, scale: Any = None) -> None:
    qml.AngleEmbedding(inputs, wires=range(3))
    qml.StronglyEntanglingLayers(weights, wires=range(3))
    if scale is not None:
        qml.RX(scale * inputs[..., 0], 0)


def one(inputs: Any, weights: Any) -> Any:
    embed(inputs, weights)
    return qml.expval(qml.Z(0))


def as_list(inputs: Any, weights: Any) -> Any:
    embed(inputs, weights)
    return [qml.expval(qml.Z(i)) for i in range(3)]


def as_tuple(inputs: Any, weights: Any) -> Any:
    embed(inputs, weights)
    return qml.expval(qml.Z(0)), qml.expval(qml.X(1))


def probabilities(inputs: Any, weights: Any) -> Any:
    embed(inputs, weights)
    return qml.probs(wires=[0, 1])


def scaled(inputs: Any, weights: Any, scale: Any) -> Any:
    embed(inputs, weights, scale)
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


def layers(
    function: Any, device: str = "default.qubit", engine: Any = "auto", **shapes: Any
) -> tuple[Any, Any]:
    shapes = shapes or {"weights": (2, 3, 3)}
    qnode = qml.QNode(function, qml.device(device, wires=3))
    mine = fubini.QuantumLayer(qnode, shapes, engine=engine)
    theirs = qml.qnn.TorchLayer(
        qnode, shapes, init_method={n: w.detach() for n, w in mine.qnode_weights.items()}
    )
    return mine, theirs


@pytest.mark.parametrize("engine", ["native", "device"])
@pytest.mark.parametrize(
    ("device", "function", "shape"),
    [
        *itertools.product(
            ["default.qubit"],
            [one, as_list, as_tuple, probabilities],
            [(3,), (1, 3), (4, 3), (2, 5, 3)],
        ),
        # PennyLane's adjoint method has no probabilities, and its parameter shift no batches.
        *itertools.product(["lightning.qubit"], [one, as_list, as_tuple], [(3,), (2, 2, 3)]),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_same_values_shapes_and_gradients_as_torch_layer(
    device: str, function: Any, shape: Any, dtype: Any, engine: Any
) -> None:
    mine, theirs = layers(function, device, engine)
    x = torch.rand(shape, dtype=dtype)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    of_mine, of_theirs = mine(a), theirs(b)
    torch.testing.assert_close(of_mine, of_theirs)
    assert of_mine.dtype == of_theirs.dtype
    of_mine.square().sum().backward()
    of_theirs.square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(mine.weights.grad, theirs.weights.grad)


def test_state_dict_goes_both_ways() -> None:
    mine, theirs = layers(scaled, weights=(2, 3, 3), scale=1)
    assert {n: v.shape for n, v in mine.state_dict().items()} == {
        n: v.shape for n, v in theirs.state_dict().items()
    }
    other, foreign = layers(scaled, weights=(2, 3, 3), scale=1)
    other.load_state_dict(theirs.state_dict())
    foreign.load_state_dict(mine.state_dict())
    x = torch.rand(4, 3)
    torch.testing.assert_close(other(x), foreign(x))


def test_from_torch_layer_shares_parameters() -> None:
    _, theirs = layers(as_list)
    mine = fubini.QuantumLayer.from_torch_layer(theirs)
    assert mine.weights is theirs.weights
    torch.testing.assert_close(mine(torch.ones(2, 3)), theirs(torch.ones(2, 3)))
    with pytest.raises(TypeError, match=r"layer: expected a qml\.qnn\.TorchLayer, got Linear"):
        fubini.QuantumLayer.from_torch_layer(torch.nn.Linear(1, 1))


def test_replace_torch_layers() -> None:
    _, theirs = layers(as_list)
    shared = torch.nn.Sequential(theirs, torch.nn.Sequential(torch.nn.Linear(3, 3), theirs))
    x = torch.rand(4, 3)
    expected = shared(x)
    parameters = list(shared.parameters())
    state = shared.state_dict()
    assert fubini.replace_torch_layers(shared) is shared
    assert isinstance(shared[0], fubini.QuantumLayer)
    assert shared[1][1] is shared[0]
    torch.testing.assert_close(shared(x), expected)
    assert {id(p) for p in shared.parameters()} == {id(p) for p in parameters}
    assert shared.state_dict().keys() == state.keys()
    alone = fubini.replace_torch_layers(layers(one)[1])
    assert isinstance(alone, fubini.QuantumLayer)
    with pytest.raises(TypeError, match=r"model: expected a torch\.nn\.Module, got list"):
        fubini.replace_torch_layers([])  # type: ignore[arg-type]


def test_torch_compile_is_not_broken() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), layers(as_list)[0])
    x = torch.rand(4, 2)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    compiled(x).sum().backward()
    assert model[0].weight.grad.abs().sum() > 0


def test_functional_call_and_deepcopy() -> None:
    mine, _ = layers(as_list)
    x = torch.rand(2, 3)
    zeros = {"weights": torch.zeros(2, 3, 3)}
    torch.testing.assert_close(torch.func.functional_call(mine, zeros, (x,)), mine_at(zeros, x))
    twin = copy.deepcopy(mine)
    assert twin.weights is not mine.weights
    torch.testing.assert_close(twin(x), mine(x))


def mine_at(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    layer, _ = layers(as_list)
    layer.load_state_dict(weights)
    return layer(x)


@pytest.mark.parametrize(
    ("method", "check"),
    [
        (None, lambda w: w.min() >= 0 and w.max() <= 6.3 and w.max() > 1),
        (torch.nn.init.zeros_, lambda w: not w.any()),
        ({"weights": torch.full((2, 3, 3), 0.5)}, lambda w: bool((w == 0.5).all())),
        ({"weights": torch.nn.init.ones_}, lambda w: bool((w == 1).all())),
    ],
)
def test_initialisation(method: Any, check: Any) -> None:
    layer = fubini.QuantumLayer(layers(one)[0].qnode, {"weights": (2, 3, 3)}, method)
    assert check(layer.weights.detach())


def test_scalar_and_integer_shapes_as_in_torch_layer() -> None:
    def function(inputs: Any, a: Any, b: Any) -> Any:
        qml.RX(inputs[..., 0] * a, 0)
        qml.RY(b[2], 0)
        return qml.expval(qml.Z(0))

    mine, theirs = layers(function, a=1, b=3)
    assert (mine.a.shape, mine.b.shape) == (theirs.a.shape, theirs.b.shape) == ((), (3,))
    torch.testing.assert_close(mine(torch.rand(4, 1)).shape, theirs(torch.rand(4, 1)).shape)


def test_repr_and_explain() -> None:
    layer = layers(as_list)[0]
    expected = "QuantumLayer(as_list, weights=[2, 3, 3], device='default.qubit', engine='{}')"
    assert repr(layer) == expected.format("native")
    assert layer.explain().startswith("The native engine compiles the circuit in the first call")
    layer(torch.ones(3))
    assert layer.explain().startswith("The native engine runs the compiled circuit")
    layer = layers(as_list, engine="device")[0]
    assert repr(layer) == expected.format("device")
    assert "PennyLane device 'default.qubit': the device engine was asked for" in layer.explain()


def first_sample(inputs: Any, weights: Any) -> Any:
    qml.RX(inputs[0], 0)
    qml.RY(weights[0], 0)
    return qml.expval(qml.Z(0))


def batch_sum(inputs: Any, weights: Any) -> Any:
    qml.RX(inputs.sum(), 0)
    qml.RY(weights[0], 0)
    return qml.expval(qml.Z(0))


def no_inputs(x: Any, weights: Any) -> Any:
    return one(x, weights)


def star(*inputs: Any, weights: Any) -> Any:
    return one(inputs[0], weights)


CONSTRUCTION: list[tuple[Any, dict[str, Any], Any, str]] = [
    (no_inputs, {"weights": (2, 3, 3)}, TypeError, "qnode: expected an argument named 'inputs'"),
    (star, {"weights": (2, 3, 3)}, TypeError, r"qnode: expected named arguments only"),
    (
        one,
        {},
        ValueError,
        r"weight_shapes: expected shapes for the QNode's arguments \['weights'\], got \[\]",
    ),
    (one, {"weights": (2, 3, 3), "bias": 2}, ValueError, "weight_shapes: expected shapes for"),
    (one, {"inputs": 3, "weights": (2, 3, 3)}, ValueError, "weight_shapes: 'inputs' is the data"),
    (
        one,
        {"weights": (2, -3)},
        ValueError,
        "weight_shapes: expected non-negative integers for 'weights'",
    ),
]


@pytest.mark.parametrize(("function", "shapes", "error", "message"), CONSTRUCTION)
def test_refused_construction(function: Any, shapes: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        fubini.QuantumLayer(qml.QNode(function, qml.device("default.qubit", wires=3)), shapes)


def test_refused_words_and_initial_values() -> None:
    qnode = layers(one)[0].qnode
    shapes = {"weights": (2, 3, 3)}
    with pytest.raises(
        ValueError, match="engine: expected 'auto', 'native' or 'device', got 'gpu'"
    ):
        fubini.QuantumLayer(qnode, shapes, engine="gpu")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"init_method: expected shape \(2, 3, 3\) for 'weights', got \(2,\)"
    ):
        fubini.QuantumLayer(qnode, shapes, {"weights": torch.zeros(2)})
    with pytest.raises(ValueError, match="init_method: expected an entry for 'weights'"):
        fubini.QuantumLayer(qnode, shapes, {})
    with pytest.raises(
        ValueError, match="qnode: expected the interface 'auto' or 'torch', got 'autograd'"
    ):
        fubini.QuantumLayer(qml.QNode(one, qnode.device, interface="autograd"), shapes)


def test_refused_inputs() -> None:
    layer = layers(one)[0]
    with pytest.raises(TypeError, match="inputs: expected a torch tensor, got list"):
        layer([0.1, 0.2, 0.3])
    for shape in ((), (0, 3), (4, 0)):
        with pytest.raises(ValueError, match=r"inputs: expected shape \(\.\.\., features\)"):
            layer(torch.zeros(shape))
    with pytest.raises(ValueError, match="inputs of 7 features do not fit the quantum function"):
        layer(torch.zeros(2, 7))
    layer(torch.zeros(2, 3))
    with pytest.raises(
        ValueError, match=r"inputs: expected 3 features as in the first call, got shape \(2, 2\)"
    ):
        layer(torch.zeros(2, 2))


def test_weight_shapes_that_do_not_fit() -> None:
    layer = fubini.QuantumLayer(
        qml.QNode(one, qml.device("default.qubit", wires=3)), {"weights": (2, 3, 2)}
    )
    with pytest.raises(
        ValueError, match=r"weight_shapes, inputs: weights \{'weights': \[2, 3, 2\]\}"
    ):
        layer(torch.zeros(3))


@pytest.mark.parametrize("function", [first_sample, batch_sum])
@pytest.mark.parametrize("batch", [2, 3])
def test_functions_that_mix_up_the_batch(function: Any, batch: int) -> None:
    layer = fubini.QuantumLayer(
        qml.QNode(function, qml.device("default.qubit", wires=1)), {"weights": 2}
    )
    with pytest.raises(ValueError, match=r"Index features from the end, inputs\[\.\.\., 0\]"):
        layer(torch.zeros(batch, 3))


def test_pickle_of_a_layer_whose_qnode_can_be_pickled() -> None:
    layer = layers(as_list)[0]
    try:
        text = pickle.dumps(layer)
    except (AttributeError, pickle.PicklingError, TypeError):
        pytest.skip("this PennyLane's QNodes cannot be pickled")
    torch.testing.assert_close(pickle.loads(text)(torch.ones(3)), layer(torch.ones(3)))


@pytest.mark.parametrize("rows", [1, 5])
def test_functions_that_check_their_inputs(rows: int) -> None:
    """AmplitudeEmbedding without normalize looks at the norm of its amplitudes."""

    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(inputs: Any, w: Any) -> Any:
        qml.AmplitudeEmbedding(inputs, wires=range(2))
        qml.RY(w[0], 0)
        qml.CNOT([0, 1])
        qml.RX(w[1], 1)
        return [qml.expval(qml.Z(k)) for k in range(2)]

    layer = fubini.QuantumLayer(circuit, {"w": 2})
    theirs = qml.qnn.TorchLayer(circuit, {"w": 2})
    with torch.no_grad():
        theirs.w.copy_(layer.w)
    x = torch.nn.functional.normalize(torch.rand(rows, 4, dtype=torch.float64), dim=1)
    torch.testing.assert_close(layer(x), theirs(x))
    assert "compiled" in layer.explain()
    layer(x).sum().backward()
    theirs(x).sum().backward()
    torch.testing.assert_close(layer.w.grad, theirs.w.grad, rtol=1e-6, atol=1e-7)
    opt = fubini.QNGOptimizer(layer, 0.1, lam=1e-3)
    layer(x).sum().backward()
    opt.step()
    with pytest.raises(ValueError, match="norm 1"):
        layer(2 * x)
