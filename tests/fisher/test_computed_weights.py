"""The Fisher metric of weights that are computed, and of quantum layers with a forward of their own."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.testing import assert_close

import fubini
from fisher_cases import double_precision
from models import entangler
from pass_cases import EXACT, LR, Tensor, check_step, circuit, flat, jacobian

_double = double_precision


# -- weights that are computed --------------------------------------------------------------------------------------
class Scale(nn.Module):
    def forward(self, v: Tensor) -> Tensor:
        return 2.0 * v + v**3


class LowRank(nn.Module):
    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(rows, 1)), nn.Parameter(torch.randn(1, columns))

    def forward(self, w: Tensor) -> Tensor:
        return w + self.a @ self.b


class Hyper(nn.Module):
    """A network that makes the weights of another layer."""

    def __init__(self, main: nn.Module, name: str, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.main, self.name, self.shape = main, name, shape
        self.make = nn.Linear(2, int(np.prod(shape)))
        self.last = nn.Linear(width, 2)
        self.register_buffer("code", torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make(self.code).reshape(self.shape)
        h = torch.func.functional_call(self.main, {self.name: weight}, (x,))
        return self.last(torch.tanh(h))


def parametrized(layer: nn.Module, name: str, change: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, name, change)
    return layer


def pruned(layer: nn.Module) -> nn.Module:
    prune.random_unstructured(layer, "weight", 0.4)
    return layer


def between(layer: nn.Module, inputs: int = 3, outputs: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, inputs), nn.Tanh(), layer, nn.Tanh(), nn.Linear(outputs, 2))


COMPUTED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: between(parametrizations.weight_norm(nn.Linear(3, 4))),
    "weight_norm, by a hook": lambda: between(torch.nn.utils.weight_norm(nn.Linear(3, 4))),
    "spectral_norm": lambda: between(parametrizations.spectral_norm(nn.Linear(3, 4))),
    "spectral_norm, by a hook": lambda: between(torch.nn.utils.spectral_norm(nn.Linear(3, 4))),
    "orthogonal": lambda: between(parametrizations.orthogonal(nn.Linear(3, 4))),
    "pruned": lambda: between(pruned(nn.Linear(3, 4))),
    "scaled weight": lambda: between(parametrized(nn.Linear(3, 4), "weight", Scale())),
    "scaled bias": lambda: between(parametrized(nn.Linear(3, 4), "bias", Scale())),
    "low rank": lambda: between(parametrized(nn.Linear(3, 4), "weight", LowRank(4, 3))),
    "layer norm": lambda: between(parametrized(nn.LayerNorm(3), "weight", Scale()), 3, 3),
    "batch norm": lambda: between(parametrized(nn.BatchNorm1d(3), "weight", Scale()), 3, 3),
    "quantum layer": lambda: between(parametrized(circuit(), "weights", Scale()), 2, 2),
    "hypernetwork": lambda: Hyper(nn.Linear(3, 4), "weight", (4, 3), 4),
    "hypernetwork of a circuit": lambda: nn.Sequential(
        nn.Linear(3, 2), Hyper(circuit(), "weights", (2, 2, 3), 2)
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


@pytest.mark.parametrize("name", COMPUTED)
def test_computed_weights(name: str) -> None:
    model = COMPUTED[name]()
    if isinstance(model, Hyper):
        model.main.requires_grad_(False)
    elif name == "hypernetwork of a circuit":
        model[1].main.requires_grad_(False)
    check_step(model, [torch.rand(5, 3)], lam=0.1)


@pytest.mark.parametrize("name", COMPUTED)
def test_the_remedies_for_computed_weights_work(name: str) -> None:
    model = COMPUTED[name]()
    frozen = [m for m in model.modules() if isinstance(m, Hyper)]
    for hyper in frozen:
        hyper.main.requires_grad_(False)
    options = {"metric": "fisher", "likelihood": "gaussian"}
    x = torch.rand(5, 3)
    opt = fubini.QNGOptimizer(model, **options)
    model(x).square().mean().backward()
    if not frozen:  # the hypernetwork itself is a layer with a rule
        with pytest.raises(TypeError, match=r"approx=None.*fallback='diagonal'"):
            opt.step()
    parameters = [p for p in model.parameters() if p.requires_grad]
    torch.manual_seed(1)
    state = {n: b.clone() for n, b in model.named_buffers()}
    diagonal = (2 / 10) * jacobian(model(x), parameters).square().sum(0)
    for n, b in model.named_buffers():
        b.copy_(state[n])
    found = fubini.fisher.blocks.fisher_blocks(
        model, (x,), {}, parameters=parameters, likelihood="gaussian", approx="diag",
        fallback="diagonal",
    )  # fmt: skip
    values = {id(p): None for p in parameters}
    for block in found:
        pieces = torch.split(block.diagonal(), [p.numel() for p in block.parameters])
        values.update(zip((id(p) for p in block.parameters), pieces, strict=True))
    if not any(isinstance(m, nn.BatchNorm1d) for m in model.modules()):
        assert_close(flat(values[id(p)] for p in parameters), diagonal, **EXACT)


class Overriding(fubini.QuantumLayer):
    def forward(self, inputs: Tensor) -> Tensor:
        return 2.0 * super().forward(torch.tanh(inputs))


def overriding() -> nn.Module:
    import pennylane as qml

    qnode = qml.QNode(entangler, qml.device("default.qubit", wires=2))
    return between(Overriding(qnode, {"weights": (2, 2, 3)}).double(), 2, 2)


def replaced_forward() -> nn.Module:
    model = between(circuit(), 2, 2)
    layer = model[2]
    layer.forward = lambda x: 3.0 * type(layer).forward(layer, torch.sin(x))
    return model


@pytest.mark.parametrize("make", [overriding, replaced_forward])
def test_quantum_layers_with_another_forward(make: Callable[[], nn.Module]) -> None:
    check_step(make(), [torch.rand(5, 3)])
    model, x = make(), torch.rand(5, 3)
    parameters = list(model.parameters())
    rows = jacobian(model(x), parameters)
    blocks = fubini.fisher.blocks.fisher_blocks(
        model, (x,), {}, parameters=parameters, likelihood="gaussian", approx="block-diag"
    )
    own = [b for b in blocks if b.parameters[0] is model[2].weights]
    expected = rows[:, 8:20].mT @ rows[:, 8:20] * (2 / 10)
    assert_close(own[0].dense(), expected, **EXACT)
    opt = fubini.QNGOptimizer(model, LR, metric="hybrid", likelihood="gaussian")
    model(x).square().mean().backward()
    opt.step()


def test_computed_weights_of_a_circuit_have_no_hybrid_metric() -> None:
    model = COMPUTED["hypernetwork of a circuit"]()
    model[1].main.requires_grad_(False)
    opt = fubini.QNGOptimizer(model, metric="hybrid", likelihood="gaussian", approx=None)
    model(torch.rand(5, 3)).square().mean().backward()
    with pytest.raises(TypeError, match=r"1.main: expected a quantum layer.*metric='fisher'"):
        opt.step()
