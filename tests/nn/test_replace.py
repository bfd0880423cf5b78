"""``replace_torch_layers`` keeps what a model computes, and everything that was attached to its layers."""

import collections
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch
from torch.nn.utils import parametrizations, parametrize

import fubini
from models import entangler

Tensor = torch.Tensor
X = torch.rand(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
NODE = qml.QNode(entangler, qml.device("default.qubit", wires=2))
SHAPES = {"weights": (1, 2, 3)}


class Scaled(qml.qnn.TorchLayer):  # type: ignore[misc]
    """With a parameter and a submodule of its own."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.factor = torch.nn.Parameter(torch.tensor(0.7))
        self.norm = torch.nn.LayerNorm(2)

    def forward(self, inputs: Tensor) -> Any:
        return self.factor * super().forward(self.norm(inputs))


class Evaluating(qml.qnn.TorchLayer):  # type: ignore[misc]
    def _evaluate_qnode(self, x: Tensor) -> Any:
        return 2.0 * super()._evaluate_qnode(x)


class Direct(qml.qnn.TorchLayer):  # type: ignore[misc]
    def forward(self, inputs: Tensor) -> Any:
        weights = {n: w.to(inputs) for n, w in self.qnode_weights.items()}
        return torch.stack(self.qnode(inputs=inputs, **weights), dim=-1).to(inputs)


class Twofold(torch.nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2.0 * w


def torch_layer(kind: Any = qml.qnn.TorchLayer) -> Any:
    return kind(NODE, SHAPES).double()


def with_hook(layer: Any) -> None:
    layer.register_forward_hook(lambda module, args, output: 3.0 * output)


def with_pre_hook(layer: Any) -> None:
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1.0,))


def with_keyword_hook(layer: Any) -> None:
    layer.register_forward_hook(lambda m, args, kwargs, output: 2.0 * output, with_kwargs=True)


def with_backward_hook(layer: Any) -> None:
    layer.register_full_backward_hook(lambda module, by_inputs, by_outputs: (2.0 * by_inputs[0],))


def with_parametrization(layer: Any) -> None:
    parametrize.register_parametrization(layer, "weights", Twofold())


def with_weight_norm(layer: Any) -> None:
    parametrizations.weight_norm(layer, "weights")


def with_own_function(layer: Any) -> None:
    original = layer.forward
    layer.forward = lambda x: 0.5 * original(x)


def evaluating(layer: Any) -> None:
    layer.eval()


CHANGES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "plain": (qml.qnn.TorchLayer, lambda layer: None),
    "forward hook": (qml.qnn.TorchLayer, with_hook),
    "forward pre-hook": (qml.qnn.TorchLayer, with_pre_hook),
    "hook with keywords": (qml.qnn.TorchLayer, with_keyword_hook),
    "backward hook": (qml.qnn.TorchLayer, with_backward_hook),
    "parametrization": (qml.qnn.TorchLayer, with_parametrization),
    "weight norm": (qml.qnn.TorchLayer, with_weight_norm),
    "function of its own": (qml.qnn.TorchLayer, with_own_function),
    "evaluation mode": (qml.qnn.TorchLayer, evaluating),
    "subclass": (Scaled, lambda layer: None),
    "subclass with a hook": (Scaled, with_hook),
    "subclass of the evaluation": (Evaluating, lambda layer: None),
    "subclass that calls the QNode": (Direct, lambda layer: None),
}


def results(model: Any) -> list[Tensor]:
    """The output, and its gradients by inputs and parameters."""
    x = X.clone().requires_grad_()
    output = model(x)
    leaves = [x, *model.parameters()]
    found = torch.autograd.grad(output.square().sum(), leaves, allow_unused=True)
    return [output.detach(), *(torch.zeros(()) if g is None else g for g in found)]


@pytest.mark.parametrize("name", CHANGES)
def test_a_replaced_layer_computes_the_same(name: str) -> None:
    kind, change = CHANGES[name]
    layer = torch_layer(kind)
    change(layer)
    model = torch.nn.Sequential(layer)
    before, keys, mode = results(model), list(model.state_dict()), layer.training
    parameters = list(model.parameters())
    assert fubini.replace_torch_layers(model) is model
    for ours, theirs in zip(results(model), before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    assert list(model.state_dict()) == keys
    assert model[0].training is mode
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    fubini.replace_torch_layers(model)
    torch.testing.assert_close(results(model)[0], before[0])


def test_a_subclass_runs_natively() -> None:
    layer = torch_layer(Scaled)
    fubini.replace_torch_layers(layer)
    assert isinstance(layer, Scaled)
    with qml.Tracker(NODE.device) as tracker:
        layer(X).sum().backward()
    assert not tracker.totals


@pytest.mark.parametrize("change", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_replaced_subclass_is_copied_and_pickled(change: Any) -> None:
    node = qml.QNode(entangler, qml.device("default.qubit", wires=2))
    model = fubini.replace_torch_layers(torch.nn.Sequential(Scaled(node, SHAPES).double()))
    twin = change(model)
    torch.testing.assert_close(twin(X), model(X))
    with torch.no_grad():
        twin[0].weights.add_(0.1)
    assert not torch.allclose(twin(X), model(X))
    assert twin[0].qnode_weights["weights"] is twin[0].weights
    twin(X).sum().backward()
    assert twin[0].weights.grad is not None


@pytest.mark.parametrize("by_parameters", [False, True])
def test_the_optimizer_sees_what_a_replaced_subclass_evaluates(by_parameters: bool) -> None:
    """The same step as with the layer that was not replaced."""
    models = [torch.nn.Sequential(torch_layer(Scaled)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    fubini.replace_torch_layers(models[1])
    for model in models:
        opt = fubini.QNGOptimizer(model.parameters() if by_parameters else model, lr=0.1)
        model(X).square().mean().backward()
        opt.step()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q)


def test_attributes_and_handles_go_with_the_layer() -> None:
    layer = torch_layer()
    layer.note = "mine"
    layer.register_buffer("mask", torch.ones(2))
    layer.extra = torch.nn.Linear(1, 1)
    handle = layer.register_forward_hook(lambda module, args, output: 3.0 * output)
    model = torch.nn.Sequential(layer)
    expected = model(X) / 3.0
    keys = list(model.state_dict())
    fubini.replace_torch_layers(model)
    assert type(model[0]) is fubini.QuantumLayer
    assert model[0].note == "mine"
    assert list(model.state_dict()) == keys
    handle.remove()
    torch.testing.assert_close(model(X), expected)


Pair = collections.namedtuple("Pair", "first second")  # noqa: PYI024 - any will do


@pytest.mark.parametrize(
    "container",
    [
        lambda a, b: {"a": a, "b": b},
        lambda a, b: [a, b],
        lambda a, b: (a, b),
        lambda a, b: {a, b},
        lambda a, b: {"inner": [a, (b,)]},
        Pair,
    ],
    ids=["dict", "list", "tuple", "set", "nested", "named tuple"],
)
def test_layers_in_plain_containers_are_replaced(container: Any) -> None:
    def leaves(value: Any) -> list[Any]:
        if isinstance(value, torch.nn.Module):
            return [value]
        items = value.values() if isinstance(value, dict) else value
        return [leaf for one in items for leaf in leaves(one)]

    model = torch.nn.Module()
    first, second = torch_layer(), torch_layer(Scaled)
    weights = [first.weights, second.weights]
    model.held = container(first, second)
    kind = type(model.held)
    fubini.replace_torch_layers(model)
    assert type(model.held) is kind
    found = {type(leaf) is fubini.QuantumLayer: leaf for leaf in leaves(model.held)}
    assert found[True].weights is weights[0]
    assert found[False] is second
    with qml.Tracker(NODE.device) as tracker:
        for leaf in found.values():
            leaf(X)
    assert not tracker.totals


def test_a_layer_that_cannot_be_replaced_leaves_the_model_as_it_was() -> None:
    def keyed(inputs: Tensor, weights: Tensor) -> Any:
        return entangler(inputs, weights)

    bad = torch_layer()
    bad.qnode = qml.QNode(keyed, qml.device("default.clifford", wires=2))
    good = torch_layer()
    model = torch.nn.Sequential(good, bad)
    with pytest.raises(ValueError, match=r"^1: "):
        fubini.replace_torch_layers(model)
    assert model[0] is good


def test_an_unknown_engine_is_refused_without_layers() -> None:
    with pytest.raises(ValueError, match="engine: expected 'auto'"):
        fubini.replace_torch_layers(torch.nn.Linear(1, 1), engine="fast")  # type: ignore[arg-type]
