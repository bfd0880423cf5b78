"""Chains of linear layers, elementwise functions and quantum layers: their own pass against the general one."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pennylane as qml
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import fubini
from fisher_cases import double_precision
from fubini.blocks import Block
from fubini.errors import NumericalError
from fubini.fisher import blocks as fisher_module
from fubini.fisher import kfac
from fubini.fisher.blocks import fisher_blocks
from fubini.fisher.chain import chain_blocks
from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from quantum_layers import (
    OUTPUTS,
    expvals,
    parts,
    probabilities,
    quantum,
    single,
    squared,
)

Tensor = torch.Tensor

_double = double_precision


def general_blocks(*args: Any, **options: Any) -> list[Block]:
    """What the general pass gives."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fisher_module, "chain_blocks", lambda *_: None)
        return fisher_blocks(*args, **options)


def compare(
    model: nn.Module,
    x: Tensor,
    likelihood: Any,
    *,
    chain: bool = True,
    parameters: Sequence[Tensor] | None = None,
    **options: Any,
) -> None:
    """Both passes give the same blocks; ``chain``: whether the first is not the general one as well."""
    taken: list[bool] = []

    def spy(*args: Any) -> Any:
        found = chain_blocks(*args)
        taken.append(found is not None)
        return found

    wanted = list(model.parameters()) if parameters is None else list(parameters)
    given_options = {"likelihood": likelihood, "approx": "block-diag", **options}
    torch.manual_seed(3)
    expected = general_blocks(model, (x,), {}, parameters=wanted, **given_options)
    torch.manual_seed(3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fisher_module, "chain_blocks", spy)
        found = fisher_blocks(model, (x,), {}, parameters=wanted, **given_options)
    assert taken == [chain]
    same_blocks(found, expected, chain)


def same_blocks(found: Sequence[Block], expected: Sequence[Block], chain: bool) -> None:
    assert len(found) == len(expected)
    for block, other in zip(found, expected, strict=True):
        assert type(block) is type(other)
        assert block.label == other.label
        assert all(p is q for p, q in zip(block.parameters, other.parameters, strict=True))
        mine, theirs = block.tensors(), other.tensors()
        assert mine.keys() == theirs.keys()
        for name, values in mine.items():
            # Sums of a few hundred products, in another order.
            scale = float(theirs[name].abs().max())
            torch.testing.assert_close(values, theirs[name], rtol=0, atol=1e-12 * scale + 1e-300)
            if chain and values.ndim > 1:
                assert torch.equal(values, values.mT)


# -- the same numbers -------------------------------------------------------------------------------------------------

FUNCTIONS: list[Callable[[], nn.Module]] = [
    nn.Tanh, nn.Sigmoid, nn.ReLU, lambda: nn.ReLU(inplace=True), nn.GELU, lambda: nn.GELU("tanh"), nn.SiLU, nn.Mish,
    nn.Softplus, lambda: nn.Softplus(3.0), lambda: nn.LeakyReLU(0.3), lambda: nn.ELU(0.7), nn.CELU, nn.SELU, nn.ReLU6,
    nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink, nn.Hardshrink, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish,
    nn.Identity, lambda: nn.Dropout(0.5).eval(), lambda: nn.AlphaDropout(0.5).eval(),
]  # fmt: skip
# After another function, one that works in place destroys what torch's own backward pass needs.
STACKED = [make for make in FUNCTIONS if not getattr(make(), "inplace", False)]
LIKELIHOODS = [Categorical, Bernoulli, Gaussian]


@st.composite
def stacks(draw: Any) -> tuple[nn.Sequential, int]:
    """A model, and the width of its inputs."""
    width = first = draw(st.integers(1, 4))
    layers: list[nn.Module] = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["linear", "function", "quantum", "nested"]))
        if kind == "quantum":
            function = draw(st.sampled_from([expvals, probabilities, squared]))
            if width != 2:
                layers.append(nn.Linear(width, 2))
            layers.append(quantum(function))
            width = OUTPUTS[function]
        elif kind == "function":
            layers.append(draw(st.sampled_from(STACKED))())
        elif kind == "nested":
            inside = [nn.Linear(width, 3), nn.Sequential(nn.Tanh()), nn.Sequential()]
            layers.append(nn.Sequential(*inside))
            width = 3
        else:
            after = draw(st.integers(1, 5))
            layers.append(nn.Linear(width, after, bias=draw(st.booleans())))
            width = after
    layers.append(nn.Linear(width, draw(st.integers(2, 4)), bias=draw(st.booleans())))
    return nn.Sequential(*layers), first


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stack=stacks(),
    data=st.integers(1, 5),
    kind=st.sampled_from(LIKELIHOODS),
    reduction=st.sampled_from(["mean", "sum"]),
    fisher=st.sampled_from(["true", "empirical", "sampled"]),
    metric=st.sampled_from(["gauss-newton", "fubini-study"]),
    approx=st.sampled_from(["block-diag", "diag"]),
    limit=st.sampled_from([0, 16, 128]),
    frozen=st.integers(0, 3),
    seed=st.integers(0, 99),
)
def test_chains_have_the_blocks_of_the_general_pass(
    stack: tuple[nn.Sequential, int],
    data: int,
    kind: Any,
    reduction: Any,
    fisher: str,
    metric: Any,
    approx: str,
    limit: int,
    frozen: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    model, width = stack
    x = torch.randn(data, width)
    f = model(x).detach()
    options: dict[str, Any] = {"quantum": metric, "approx": approx}
    if fisher == "empirical":
        targets = f.argmax(1) if kind is Categorical else (f > 0).double()
        options.update(fisher=fisher, targets=targets)
    elif fisher == "sampled":
        options["samples"] = 2
    layers = [m for m in model.modules() if list(m.parameters(recurse=False))]
    wanted = [p for m in layers[frozen % len(layers) :] for p in m.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kfac, "EXACT_LIMIT", limit)
        compare(model, x, kind(reduction, 0.7), parameters=wanted, **options)


@pytest.mark.parametrize("make", FUNCTIONS)
def test_every_function_and_its_slope(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), make(), nn.Linear(4, 2))
    compare(model, 2.0 * torch.randn(6, 3), Gaussian())
    # functions that come first or last have nothing before or after them
    compare(nn.Sequential(make(), nn.Linear(3, 2), make()), torch.randn(6, 3), Bernoulli())


@pytest.mark.parametrize("metric", ["gauss-newton", "fubini-study"])
@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian("sum")])
def test_a_quantum_layer_with_one_number_comes_last(likelihood: Likelihood, metric: Any) -> None:
    model = nn.Sequential(nn.Linear(3, 2), quantum(single))
    assert model(torch.randn(5, 3)).shape == (5,)
    compare(model, torch.randn(5, 3), likelihood, quantum=metric)
    targets = torch.ones(5)
    compare(model, torch.randn(5, 3), likelihood, fisher="empirical", targets=targets)


def test_foreign_layers_on_the_native_engine() -> None:
    layer = qml.qnn.TorchLayer(
        qml.QNode(expvals, qml.device("default.qubit", wires=2)), {"weights": (2, 2, 3)}
    ).double()
    model = nn.Sequential(nn.Linear(3, 2), layer, nn.Linear(3, 4))
    for metric in ("gauss-newton", "fubini-study"):
        compare(model, torch.randn(5, 3), Categorical(), quantum=metric)


def test_models_of_single_precision_have_blocks_of_double_precision() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), quantum(), nn.Linear(3, 3)).float()
    twin, x = copy.deepcopy(model).double(), torch.randn(5, 3, dtype=torch.float32)
    options = {"likelihood": "categorical", "approx": "block-diag"}
    found = fisher_blocks(model, (x,), {}, parameters=list(model.parameters()), **options)
    expected = general_blocks(
        twin, (x.double(),), {}, parameters=list(twin.parameters()), **options
    )
    for block, other in zip(found, expected, strict=True):
        assert block.parameters[0].dtype is torch.float32
        torch.testing.assert_close(block.dense(), other.dense(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("scale", [1e-3, 40.0, 800.0])
@pytest.mark.parametrize("kind", LIKELIHOODS)
def test_outputs_of_every_size(kind: Any, scale: float) -> None:
    model = nn.Sequential(nn.Linear(3, 4))
    with torch.no_grad():
        model[0].weight.mul_(scale)
    compare(model, torch.randn(5, 3), kind())


# -- what is no chain -------------------------------------------------------------------------------------------------


class Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


class Halved(nn.Tanh):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def _base() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 2), nn.Tanh(), quantum(), nn.Linear(3, 4))


def _with(change: Callable[[nn.Sequential], Any]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        model = _base()
        change(model)
        return model

    return make


def _own_forward(model: nn.Sequential) -> None:
    inner = model[1].forward
    model[1].forward = lambda x: 0.5 * inner(x)


def _shared(model: nn.Sequential) -> None:
    model.append(nn.Linear(4, 4))
    model.append(nn.Linear(4, 4))
    model[5].weight = model[4].weight


NO_CHAINS: dict[str, Callable[[], nn.Module]] = {
    "hook": _with(lambda m: m[1].register_forward_hook(lambda *a: 0.5 * a[2])),
    "hook on the model": _with(lambda m: m.register_forward_hook(lambda *a: 0.5 * a[2])),
    "pre-hook": _with(lambda m: m[3].register_forward_pre_hook(lambda _, args: (2 * args[0],))),
    "a forward of the module's own": _with(_own_forward),
    "batch norm": _with(lambda m: m.insert(1, nn.BatchNorm1d(2).eval())),
    "softmax": _with(lambda m: m.append(nn.LogSoftmax(1))),
    "parameters of a function": _with(lambda m: m.insert(1, nn.PReLU(2))),
    "shared parameters": _with(_shared),
    "a layer used twice": _with(lambda m: m.extend([same := nn.Linear(4, 4), same])),
    "weight norm": _with(lambda m: nn.utils.parametrizations.weight_norm(m[3])),
    "subclass of a container": lambda: Residual(nn.Linear(4, 4)),
    "subclass of a function": lambda: nn.Sequential(nn.Linear(4, 4), Halved()),
}


@pytest.mark.parametrize("name", NO_CHAINS)
def test_what_is_no_chain_takes_the_general_pass(name: str) -> None:
    model = NO_CHAINS[name]()
    wanted = [p for m in model.modules() if type(m) is nn.Linear for p in m.parameters()]
    wanted = list(dict.fromkeys(wanted))
    compare(model, torch.randn(5, 4), Gaussian(), chain=False, parameters=wanted)


def test_hooks_on_all_modules_take_the_general_pass() -> None:
    model = _base()
    hook = nn.modules.module.register_module_forward_hook(
        lambda module, _, output: 0.5 * output if type(module) is nn.Tanh else None
    )
    try:
        compare(model, torch.randn(5, 4), Gaussian(), chain=False)
    finally:
        hook.remove()
    compare(model, torch.randn(5, 4), Gaussian())


def test_dropout_in_training_takes_the_general_pass() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    compare(model, torch.randn(5, 4), Gaussian(), chain=False)
    compare(model.eval(), torch.randn(5, 4), Gaussian())


def test_other_requests_take_the_general_pass() -> None:
    model = _base()
    x = torch.randn(5, 4)
    compare(model, x, Gaussian(), chain=False, approx=None)
    part = [model[0].weight, model[3].bias]
    compare(model, x, Gaussian(), chain=False, parameters=part)
    linear = nn.Sequential(nn.Linear(4, 3))
    compare(linear, torch.randn(5, 2, 4), Gaussian(), chain=False)
    # one vector of outputs is one datum of several classes, or several data with one output each
    compare(nn.Sequential(quantum(single)), torch.randn(5, 2), Categorical(), chain=False)


def test_tensors_of_another_class_take_the_general_pass() -> None:
    class Named(Tensor):
        pass

    model = nn.Sequential(nn.Linear(4, 3))
    compare(model, torch.randn(5, 4).as_subclass(Named), Gaussian(), chain=False)


def test_large_layers_take_the_general_pass() -> None:
    model = nn.Sequential(nn.Linear(40, 300), nn.Tanh(), nn.Linear(300, 3))
    compare(model, torch.randn(40, 40), Categorical(), chain=False)
    compare(model, torch.randn(8, 40), Categorical())


def test_results_in_a_tuple_take_the_general_pass() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(0)

    model = nn.Sequential(nn.Linear(4, 2), quantum(parts), Sum())
    compare(model, torch.randn(5, 4), Gaussian(), chain=False)
    compare(nn.Sequential(quantum(parts)), torch.randn(2, 2), Gaussian(), chain=False)


def test_a_function_that_looks_at_the_precision_sees_that_of_the_model() -> None:
    def circuit(inputs: Tensor, weights: Tensor) -> Any:
        qml.RY(inputs[..., 0] * (1.0 if inputs.dtype is torch.float32 else 3.0), 0)
        qml.RX(weights, 0)
        return [qml.expval(qml.Z(0))]

    node = qml.QNode(circuit, qml.device("default.qubit", wires=1), interface="torch")
    model = nn.Sequential(fubini.QuantumLayer(node, {"weights": ()})).float()
    x = torch.randn(5, 1, dtype=torch.float32)
    options: Any = {"likelihood": Gaussian(), "approx": "block-diag"}
    wanted = list(model.parameters())
    (mine,) = fisher_blocks(model, (x,), {}, parameters=wanted, **options)
    (theirs,) = general_blocks(model, (x,), {}, parameters=wanted, **options)
    for name, values in mine.tensors().items():
        # The general pass rounds what lies between the layers to the model's precision.
        torch.testing.assert_close(values, theirs.tensors()[name], rtol=1e-6, atol=0)


# -- from step to step ------------------------------------------------------------------------------------------------


def _replace(model: nn.Sequential) -> None:
    model[1] = nn.Sigmoid()


def _remove_bias(model: nn.Sequential) -> None:
    model[3].bias = None


CHANGES: dict[str, Callable[[nn.Sequential], Any]] = {
    "another function": _replace,
    "an option": lambda m: setattr(m[4], "negative_slope", 0.5),
    "a hook": lambda m: m[1].register_forward_hook(lambda *a: 0.5 * a[2]),
    "another layer": lambda m: m.insert(2, nn.Softplus()),
    "one layer less": lambda m: m.pop(1),
    "no bias": _remove_bias,
    "other weights": lambda m: m[0].weight.data.mul_(2.0),
    "another weight": lambda m: setattr(m[0], "weight", nn.Parameter(torch.randn(2, 4))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_between_two_passes_is_seen(name: str) -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Tanh(), quantum(), nn.Linear(3, 4), nn.LeakyReLU(0.1))
    x = torch.randn(5, 4)
    compare(model, x, Gaussian())
    CHANGES[name](model)
    compare(model, x, Gaussian(), chain=name != "a hook")


def test_steps_of_the_optimizer_are_those_of_the_general_pass() -> None:
    def train(chain: bool) -> list[Tensor]:
        torch.manual_seed(1)
        model = _base()
        x, y = torch.randn(3, 6, 4), torch.arange(6) % 4
        opt = fubini.QNGOptimizer(model, 0.1, metric="fisher", likelihood="categorical")
        with pytest.MonkeyPatch.context() as patch:
            if not chain:
                patch.setattr(fisher_module, "chain_blocks", lambda *_: None)
            for k in range(6):
                opt.zero_grad()
                nn.functional.cross_entropy(model(x[k % 3]), y).backward()
                opt.step()
        return list(model.parameters())

    for p, q in zip(train(True), train(False), strict=True):
        # rounding, amplified by the inverse of a damping of 1e-3 in each of six steps
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10)


# -- errors -----------------------------------------------------------------------------------------------------------


def test_errors_are_those_of_the_general_pass() -> None:
    model, x = _base(), torch.randn(5, 4)

    def blocks(likelihood: Any, inputs: Tensor = x, **options: Any) -> Any:
        options = {"parameters": list(model.parameters()), "approx": "block-diag", **options}
        return fisher_blocks(model, (inputs,), {}, likelihood=likelihood, **options)

    with pytest.raises(NumericalError, match="model: expected finite outputs"):
        blocks("gaussian", x * float("nan"))
    with pytest.raises(ValueError, match="targets: expected the outputs' shape"):
        blocks("gaussian", fisher="empirical", targets=torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"every parameter once, got 0.weight twice"):
        blocks("gaussian", parameters=[model[0].weight, model[0].bias, model[0].weight])
    with pytest.raises(ValueError, match="parameters of the model"):
        blocks("gaussian", parameters=[torch.zeros(3, requires_grad=True)])
    with pytest.raises(ValueError, match="two classes or more"):
        fisher_blocks(
            one := nn.Sequential(nn.Linear(4, 1)),
            (x,),
            {},
            parameters=list(one.parameters()),
            likelihood="categorical",
            approx="block-diag",
        )
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        blocks("gaussian", torch.randn(5, 3))
