"""Layers and optimizers under what torch brings along: its compiler, inference mode, sharded parameters."""

import copy
import subprocess
import sys
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini

WIRES = 2


def affine(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(WIRES))
    qml.StronglyEntanglingLayers(weights, wires=range(WIRES))
    return [qml.expval(qml.Z(0)), qml.expval(qml.X(1))]


def computed(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(torch.erf(inputs) * 2, wires=range(WIRES))
    qml.StronglyEntanglingLayers(weights, wires=range(WIRES))
    return [qml.expval(qml.Z(0)), qml.expval(qml.X(1))]


def as_tuple(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(WIRES))
    qml.StronglyEntanglingLayers(weights, wires=range(WIRES))
    return qml.probs(wires=0), qml.probs(wires=1)


DEVICES = [
    ("default.qubit", "auto", {}),
    ("default.qubit", "device", {}),
    ("default.qubit", "device", {"diff_method": "parameter-shift"}),
    ("lightning.qubit", "auto", {}),
    ("lightning.qubit", "device", {}),
    ("default.mixed", "auto", {}),
]


def layer(function: Any, device: str = "default.qubit", engine: Any = "auto", **how: Any) -> Any:
    qnode = qml.QNode(function, qml.device(device, wires=WIRES), **how)
    return fubini.QuantumLayer(qnode, {"weights": (2, WIRES, 3)}, engine=engine)


def hybrid(function: Any = affine) -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(
        torch.nn.Linear(3, WIRES), layer(function), torch.nn.Linear(WIRES, 1)
    )


def loss_of(model: Any) -> torch.Tensor:
    x = torch.linspace(-1.0, 1.0, 15).reshape(5, 3)
    return (model(x) - 0.3).square().mean()


# -- importing ----------------------------------------------------------------------------------------------------------


def test_importing_and_evaluating_does_not_import_the_compiler() -> None:
    code = """
import sys, torch, pennylane as qml
before = set(sys.modules)
import fubini
print(sorted(name for name in set(sys.modules) - before if not name.startswith(("fubini", "pennylane.qnn"))))
f = lambda inputs, w: (qml.RX(inputs[..., 0], 0), qml.RY(w, 0), qml.expval(qml.Z(0)))[-1]
layer = fubini.QuantumLayer(qml.QNode(f, qml.device("default.qubit", wires=1)), {"w": ()})
layer(torch.rand(3, 1)).sum().backward()
print("torch._dynamo" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout.split() == ["[]", "False"]


def test_first_optimizer_of_a_process_leaves_no_cycle() -> None:
    code = """
import gc, weakref, torch, fubini
gc.collect()
gc.disable()
model = torch.nn.Linear(2, 2)
optimizer = fubini.QNGOptimizer(model.parameters(), lr=0.1)
seen = weakref.ref(model.weight)
del model, optimizer
print(seen())
"""
    run = subprocess.run(
        [sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout.split() == ["None"]


# -- torch.compile ------------------------------------------------------------------------------------------------------


# Torch hides these two where warnings are not errors.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.filterwarnings("ignore:Profiler record function")
@pytest.mark.parametrize("metric", ["quantum", "fisher"])
def test_compiled_training_step_takes_the_step_of_the_plain_one(metric: str) -> None:
    likelihood = "gaussian" if metric == "fisher" else None

    def train(compiled: bool) -> torch.Tensor:
        torch._dynamo.reset()
        model = hybrid()
        optimizer = fubini.QNGOptimizer(model, lr=0.1, metric=metric, likelihood=likelihood)

        def step() -> torch.Tensor:
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            return loss

        run = torch.compile(step, backend="eager") if compiled else step
        for _ in range(3):
            run()
        return torch.nn.utils.parameters_to_vector(model.parameters())

    # The same operations in the same order.
    torch.testing.assert_close(train(True), train(False), rtol=0, atol=0)


def test_compiler_never_looks_into_a_step() -> None:
    torch._dynamo.reset()
    model = hybrid()
    optimizer = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
    loss_of(model).backward()
    seen: list[str] = []

    def backend(graph: Any, _: Any) -> Any:
        seen.append(graph.print_readable(print_output=False))
        return graph.forward

    torch.compile(optimizer.step, backend=backend)()
    assert not seen


# -- inference mode -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "engine", "how"), DEVICES)
@pytest.mark.parametrize("function", [affine, computed, as_tuple])
@pytest.mark.parametrize("shape", [(WIRES,), (4, WIRES), (2, 3, WIRES)])
def test_first_call_in_inference_mode(
    function: Any, shape: Any, device: str, engine: str, how: Any
) -> None:
    mine = layer(function, device, engine, **how).double()
    twin = copy.deepcopy(mine)
    with torch.inference_mode():
        x = torch.rand(shape, dtype=torch.float64)
        first, second = mine(x), mine(x)
    want = twin(x.clone())
    torch.testing.assert_close(first, want)
    torch.testing.assert_close(second, want)
    # What was compiled there serves training as well.
    gradient, wanted = (
        torch.autograd.grad(one(x.clone()).square().sum(), one.weights)[0] for one in (mine, twin)
    )
    torch.testing.assert_close(gradient, wanted)


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
@pytest.mark.parametrize("function", [affine, computed])
def test_metric_of_a_layer_in_inference_mode(function: Any, approx: Any) -> None:
    mine = layer(function).double()
    x = torch.rand(4, WIRES, dtype=torch.float64)
    want = fubini.metric_tensor(copy.deepcopy(mine), approx=approx)(x)
    with torch.inference_mode():
        for _ in range(2):
            torch.testing.assert_close(fubini.metric_tensor(mine, approx=approx)(x), want)


def test_validation_between_training_steps() -> None:
    def train(validate: bool) -> torch.Tensor:
        model = hybrid()
        optimizer = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
        for _ in range(3):
            if validate:
                with torch.inference_mode():
                    loss_of(model.eval())
                model.train()
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        return torch.nn.utils.parameters_to_vector(model.parameters())

    torch.testing.assert_close(train(True), train(False), rtol=0, atol=0)


# -- sharded parameters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("device", "engine", "how"), DEVICES)
@pytest.mark.parametrize("function", [affine, computed])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_storage_of_a_weight_can_be_resized_after_a_pass(
    function: Any, dtype: Any, device: str, engine: str, how: Any
) -> None:
    mine = layer(function, device, engine, **how).to(dtype)
    mine(torch.rand(3, WIRES, dtype=dtype)).sum().backward()
    storage = mine.weights.untyped_storage()
    size = storage.nbytes()
    storage.resize_(0)  # as sharded data parallelism does between two passes
    storage.resize_(size)


def test_fully_sharded_layer_trains_as_a_plain_one(tmp_path: Any) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard"):
        pytest.skip("this torch has no fully_shard")
    from torch.distributed.device_mesh import init_device_mesh

    def train(model: Any) -> list[torch.Tensor]:
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()
        return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]

    want = train(hybrid())
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = hybrid()
        fsdp.fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        torch.testing.assert_close(train(model), want)
    finally:
        torch.distributed.destroy_process_group()


# -- checkpoints --------------------------------------------------------------------------------------------------------


def test_distributed_checkpoint_of_a_fresh_optimizer() -> None:
    state_dict = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    model = hybrid()
    optimizer = fubini.QNGOptimizer(model, lr=0.1, momentum=0.9, metric="quantum")
    before = [p.detach().clone() for p in model.parameters()]
    # Makes zero gradients and takes a step, to have a state.
    saved = state_dict.get_optimizer_state_dict(model, optimizer)
    assert set(saved) == {"state", "param_groups"}
    torch.testing.assert_close([p.detach() for p in model.parameters()], before, rtol=0, atol=0)
