"""Layers where torch records or simulates operations: fake tensors, ``make_fx``, ``torch.export``."""

import io
import subprocess
import sys
from typing import Any

import pennylane as qml
import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import fubini
from fubini.nn.operation import _keys, as_operation

WIRES = 2


def body(inputs: Any, weights: Any) -> None:
    qml.AngleEmbedding(inputs, wires=range(WIRES))
    qml.StronglyEntanglingLayers(weights, wires=range(WIRES))


def as_list(inputs: Any, weights: Any) -> Any:
    body(inputs, weights)
    return [qml.expval(qml.Z(0)), qml.expval(qml.X(1)), qml.var(qml.Z(1))]


def single(inputs: Any, weights: Any) -> Any:
    body(inputs, weights)
    return qml.expval(qml.Z(0))


def as_tuple(inputs: Any, weights: Any) -> Any:
    body(inputs, weights)
    return qml.probs(wires=0), qml.probs(wires=1)


def computed(inputs: Any, weights: Any) -> Any:
    body(torch.erf(inputs), weights)
    return qml.probs(wires=[0, 1])


def amplitudes(inputs: Any, weights: Any) -> Any:
    """Refuses inputs whose norm is not 1."""
    qml.AmplitudeEmbedding(inputs, wires=[0])
    qml.StronglyEntanglingLayers(weights, wires=range(WIRES))
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


FUNCTIONS = [as_list, single, as_tuple, computed, amplitudes]
ENGINES = [
    ("default.qubit", "auto", {}),
    ("default.qubit", "device", {}),
    ("default.qubit", "device", {"diff_method": "parameter-shift"}),
    ("lightning.qubit", "device", {}),
]


def layer(function: Any, device: str = "default.qubit", engine: Any = "auto", **how: Any) -> Any:
    qnode = qml.QNode(function, qml.device(device, wires=WIRES), **how)
    start = {"weights": torch.linspace(0.2, 2.0, 12).reshape(2, WIRES, 3)}
    return fubini.QuantumLayer(qnode, {"weights": (2, WIRES, 3)}, start, engine=engine)


def hybrid(function: Any = as_list) -> torch.nn.Sequential:
    torch.manual_seed(3)
    width = 3 if function is as_list else 4
    return torch.nn.Sequential(
        torch.nn.Linear(3, WIRES), layer(function), torch.nn.Linear(width, 1)
    )


def data(*shape: int) -> torch.Tensor:
    x = torch.rand(*shape)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


@pytest.mark.parametrize(("device", "engine", "how"), ENGINES)
@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("lead", [(), (4,), (2, 3)])
@pytest.mark.parametrize("called", [False, True])
def test_fake_tensors_give_the_shape_and_leave_nothing_behind(
    called: bool, lead: Any, function: Any, device: str, engine: str, how: Any
) -> None:
    if function is amplitudes and not lead and engine == "device":
        pytest.skip("PennyLane's own embedding")
    mine = layer(function, device, engine, **how)
    x = data(*lead, WIRES)
    if called:
        mine(x)
    before = mine.explain()
    usage = mine.usage
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = mine(mode.from_tensor(x))
    assert mine.explain() == before
    if how:
        assert mine.usage == usage  # nothing was executed
    real = mine(x)
    assert fake.shape == real.shape
    assert fake.dtype == real.dtype
    torch.testing.assert_close(real, layer(function, device, engine, **how)(x))
    assert mine.explain() == layer_explained(function, x, device, engine, how)


def layer_explained(function: Any, x: Any, device: str, engine: str, how: Any) -> str:
    fresh = layer(function, device, engine, **how)
    fresh(x)
    text: str = fresh.explain()
    return text


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("function", [as_list, computed])
def test_graph_of_make_fx_depends_on_inputs_and_weights(function: Any, tracing: str) -> None:
    model = hybrid(function)
    names = [name for name, _ in model.named_parameters()]

    def gradients(x: torch.Tensor, *values: torch.Tensor) -> Any:
        weights = dict(zip(names, values, strict=True))
        loss = torch.func.functional_call(model, weights, (x,)).square().mean()
        return loss, *torch.autograd.grad(loss, values)

    values = [p.detach().clone().requires_grad_() for p in model.parameters()]
    graph = make_fx(gradients, tracing_mode=tracing)(torch.rand(4, 3), *values)
    others = [(v.detach() + 0.4).requires_grad_() for v in values]
    x = torch.rand(4, 3)
    torch.testing.assert_close(graph(x, *others), gradients(x, *others))
    targets = [str(node.target) for node in graph.graph.nodes]
    assert "fubini.circuit.default" in targets
    assert "fubini.circuit_backward.default" in targets


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("function", [as_list, computed])
def test_exported_program_is_the_model(function: Any, called: bool) -> None:
    model = hybrid(function)
    if called:
        model(torch.rand(2, 3))
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model, (torch.rand(4, 3),), dynamic_shapes=({0: batch},), strict=False
    )
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    for one in (program.module(), torch.export.load(stored).module()):
        x = torch.rand(7, 3)
        torch.testing.assert_close(one(x), model(x))
        model.zero_grad()
        model(x).square().sum().backward()
        one(x).square().sum().backward()
        for name, p in one.named_parameters():
            torch.testing.assert_close(p.grad, model.get_parameter(name).grad)


def test_exported_program_outlives_its_model_but_not_its_process(tmp_path: Any) -> None:
    program = torch.export.export(hybrid(), (torch.rand(4, 3),), strict=False)
    x = torch.rand(4, 3)
    torch.testing.assert_close(program.module()(x), hybrid()(x))
    torch.export.save(program, tmp_path / "program.pt2")
    code = f"""
import torch, fubini
program = torch.export.load({str(tmp_path / "program.pt2")!r})
try:
    program.module()(torch.rand(4, 3))
except RuntimeError as error:
    print(error)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    assert "made in another process" in run.stdout


@pytest.mark.parametrize("function", FUNCTIONS)
def test_operation_obeys_the_rules_of_torch(function: Any) -> None:
    mine = layer(function)
    x = data(4, WIRES)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        mine(mode.from_tensor(x))
    as_operation(mine, x, [mine.weights])
    assert mine.explain() == layer_explained(function, x, "default.qubit", "auto", {})
    weights, key = [mine.weights], _keys[mine]
    operations = torch.ops.fubini
    x.requires_grad_()
    torch.library.opcheck(operations.circuit.default, (x, weights, key))
    gradient = torch.rand(mine(x).shape)
    plain = [w.detach() for w in weights]
    torch.library.opcheck(operations.circuit_backward.default, (gradient, x.detach(), plain, key))
    found = torch.autograd.grad(as_operation(mine, x, weights), [x, *weights], gradient)
    want = torch.autograd.grad(mine(x), [x, *weights], gradient)
    torch.testing.assert_close(found, want)


def test_second_derivatives_and_transforms_of_what_is_traced_are_refused() -> None:
    mine = layer(as_list)
    x = data(4, WIRES).requires_grad_()
    (first,) = torch.autograd.grad(
        as_operation(mine, x, [mine.weights]).sum(), x, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="second derivatives of a traced layer"):
        first.sum().backward()
    with pytest.raises(NotImplementedError, match=r"torch\.func .* cannot be traced"):
        make_fx(torch.func.grad(lambda x: mine(x).sum()))(x)
