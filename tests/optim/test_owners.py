"""Whose parameters an optimizer has, and what becomes of layers, copies and optimizers that die."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini
from models import entangler, hybrid

Tensor = torch.Tensor
X = torch.rand(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def loss(model: Any) -> Tensor:
    result: Tensor = (model(X) - 0.3).square().mean()
    return result


def after_step(make: Callable[[Any], Any], foreign: bool = False) -> Tensor:
    torch.manual_seed(1)
    model = hybrid(foreign=foreign)
    opt = make(model)
    loss(model).backward()
    opt.step()
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def grouped(model: Any) -> list[dict[str, Any]]:
    return [{"params": [p], "lr": 0.1} for p in model.parameters()]


def added(model: Any) -> Any:
    first, *rest = model.children()
    opt = fubini.QNGOptimizer(first.parameters(), lr=0.1)
    for child in rest:
        opt.add_param_group({"params": child.parameters()})
    return opt


WAYS: dict[str, Callable[[Any], Any]] = {
    "parameters": lambda m: fubini.QNGOptimizer(m.parameters(), lr=0.1),
    "list": lambda m: fubini.QNGOptimizer(list(m.parameters()), lr=0.1),
    "reversed": lambda m: fubini.QNGOptimizer(list(m.parameters())[::-1], lr=0.1),
    "filter": lambda m: fubini.QNGOptimizer(
        filter(lambda p: p.requires_grad, m.parameters()), lr=0.1
    ),
    "named": lambda m: fubini.QNGOptimizer(m.named_parameters(), lr=0.1),
    "groups": lambda m: fubini.QNGOptimizer(grouped(m), lr=0.5),
    "added groups": added,
}


@pytest.mark.parametrize("foreign", [False, True], ids=["QuantumLayer", "TorchLayer"])
@pytest.mark.parametrize("way", WAYS)
def test_layers_are_found_from_their_parameters(way: str, foreign: bool) -> None:
    """The step is that of the optimizer that was given the model."""
    expected = after_step(lambda m: fubini.QNGOptimizer(m, lr=0.1, metric="quantum"), foreign)
    torch.testing.assert_close(after_step(WAYS[way], foreign), expected, rtol=1e-12, atol=1e-12)


def copied(model: Any) -> Any:
    return copy.deepcopy(model)


def pickled(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


def plain_layer() -> Any:
    node = qml.QNode(entangler, qml.device("default.qubit", wires=2))
    return fubini.QuantumLayer(node, {"weights": (2, 2, 3)}).double()


@pytest.mark.parametrize("change", [copied, pickled])
def test_layers_of_copies_are_found(change: Any) -> None:
    original = torch.nn.Sequential(torch.nn.Linear(3, 2).double(), plain_layer())
    model = change(original)
    found = []
    for one in (original, model):
        opt = fubini.QNGOptimizer(one.parameters(), lr=0.1)
        loss(one).backward()
        opt.step()
        assert "12 x 12, cholesky" in opt.explain()
        found.append(torch.cat([p.detach().reshape(-1) for p in one.parameters()]))
    assert torch.equal(*found)


@qml.qnode(qml.device("default.qubit", wires=2))
def decorated(inputs: Tensor, weights: Tensor) -> Any:
    return entangler(inputs, weights)


def test_a_layer_of_a_decorated_function_is_pickled() -> None:
    """The module has the QNode under the function's name, and the function nowhere."""
    layer = fubini.QuantumLayer(decorated, {"weights": (2, 2, 3)}).double()
    model = torch.nn.Sequential(torch.nn.Linear(3, 2).double(), layer)
    twin = pickled(model)
    assert twin[1].qnode is decorated
    assert torch.equal(twin(X), model(X))
    assert copied(model)[1].qnode is not decorated


@pytest.mark.parametrize("engine", ["auto", "device"])
@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
def test_model_and_optimizer_are_copied_after_a_step(device: str, engine: Any) -> None:
    """Whatever the device has in its memory by then."""
    model = hybrid(device, engine=engine)
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
    loss(model).backward()
    opt.step()
    twin, other = copy.deepcopy((model, opt))
    for one, its in ((model, opt), (twin, other)):
        its.zero_grad()
        loss(one).backward()
        its.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p is not q
        torch.testing.assert_close(p, q)


def test_an_optimizer_copied_with_its_model_finds_its_layers() -> None:
    model = hybrid()
    opt = fubini.QNGOptimizer(model.parameters(), lr=0.1)
    twin, other = copy.deepcopy((model, opt))
    for one, its in ((model, opt), (twin, other)):
        loss(one).backward()
        its.step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_layer_that_shares_its_parameters_with_an_unused_one() -> None:
    """Of ``from_torch_layer``, where the first layer is still there."""
    node = qml.QNode(entangler, qml.device("default.qubit", wires=2))
    first = qml.qnn.TorchLayer(node, {"weights": (2, 2, 3)}).double()
    model = torch.nn.Sequential(fubini.QuantumLayer.from_torch_layer(first))
    opts = [fubini.QNGOptimizer(model, lr=0.1), fubini.QNGOptimizer(first.parameters(), lr=0.1)]
    model(X[:, :2]).square().mean().backward()
    before = first.weights.detach().clone()
    steps = []
    for opt in opts:
        opt.step()
        steps.append(first.weights.detach() - before)
        with torch.no_grad():
            first.weights.copy_(before)
    torch.testing.assert_close(*steps)


def test_parameters_of_no_quantum_layer_are_told() -> None:
    opt = fubini.QNGOptimizer(torch.nn.Linear(3, 1).double().parameters(), lr=0.1)
    for group in opt.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    with pytest.warns(UserWarning, match="no parameter belongs to a QuantumLayer"):
        opt.step()
    opt.step()  # once is enough


@pytest.mark.parametrize("make", [torch.nn.Parameter, lambda t: t.requires_grad_()])
def test_a_closure_with_a_metric_is_enough(make: Any) -> None:
    p = make(torch.ones(2, dtype=torch.float64))
    opt = fubini.QNGOptimizer([p], lr=0.1, lam=0.0)

    def closure() -> Any:
        p.grad = torch.ones_like(p)
        return torch.tensor(0.0), lambda _: 2.0 * torch.eye(2, dtype=torch.float64)

    opt.step(closure)
    torch.testing.assert_close(p.detach(), torch.full_like(p, 0.95))


# -- optimizers that die --------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "full": {"approx": None, "momentum": 0.9},
    "auto": {"approx": "auto"},
    "averages": {"averaging": 0.5, "update_every": 2},
    "fisher": {"metric": "fisher", "likelihood": "gaussian"},
    "joint": {"metric": "fisher", "likelihood": "gaussian", "approx": None},
    "hybrid": {"metric": "hybrid", "likelihood": "gaussian"},
}


@pytest.mark.parametrize("foreign", [False, True], ids=["QuantumLayer", "TorchLayer"])
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.usefixtures("no_collector")
def test_a_dropped_optimizer_is_freed_at_once(name: str, foreign: bool) -> None:
    """By reference count, as torch's own are, and with it all it knows of the model."""
    model = hybrid(foreign=foreign)
    opt = fubini.QNGOptimizer(model, lr=0.1, **{"metric": "quantum", **OPTIONS[name]})
    for _ in range(2):
        opt.zero_grad()
        loss(model).backward()
        opt.step()
    opt.load_state_dict(opt.state_dict())
    opt.diagnostics()
    dead = weakref.ref(opt)
    recorders = [weakref.ref(r) for r in opt._source.recorders]
    del opt
    assert dead() is None
    model.zero_grad()
    assert not any(r() is not None and r()._active for r in recorders)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    loss(model).backward()


@pytest.mark.usefixtures("no_collector")
def test_a_dropped_model_is_freed_with_its_optimizer() -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(3, 2).double(), plain_layer())
    opt = fubini.QNGOptimizer(model.parameters(), lr=0.1)
    loss(model).backward()
    opt.step()
    dead = [weakref.ref(p) for p in model.parameters()]
    del model, opt
    assert all(one() is None for one in dead)


@pytest.mark.parametrize("options", [{}, OPTIONS["fisher"]], ids=["quantum", "fisher"])
def test_an_optimizer_may_die_while_the_model_runs(options: dict[str, Any]) -> None:
    """Hooks of a dead optimizer are inert, whenever the collector finds it."""
    model: Any = hybrid(foreign=True)
    opts = [fubini.QNGOptimizer(model, lr=0.1, **{"metric": "quantum", **options})]
    for module in model.modules():
        module.register_forward_pre_hook(lambda *_: opts.clear(), prepend=True)
        module.register_forward_hook(lambda *_: opts.clear(), prepend=True)
    loss(model).backward()
    assert type(model[1].qnode) is qml.QNode
    opts.append(fubini.QNGOptimizer(model, lr=0.1, **{"metric": "quantum", **options}))
    handle = model[1].register_forward_hook(lambda *_: opts.clear(), prepend=True)
    loss(model).backward()
    handle.remove()
    assert type(model[1].qnode) is qml.QNode
