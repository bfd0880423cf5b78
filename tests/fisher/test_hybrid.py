"""The Fisher information of hybrid models against dense automatic differentiation through PennyLane's own layers."""

from collections.abc import Callable, Sequence
from typing import Any

import pennylane as qml
import pytest
import torch
from torch import nn

import fubini
from fisher_cases import double_precision
from fubini.blocks import Block, DenseBlock, KroneckerBlock, OperatorBlock
from fubini.fisher import accumulators as fisher_units
from fubini.fisher import blocks as fisher_module
from fubini.fisher import passes as fisher_pass
from fubini.fisher import quantum as fisher_quantum
from fubini.fisher.blocks import fisher_blocks
from fubini.fisher.likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from fubini.metric.points import layer_metric

Tensor = torch.Tensor
N = 4


_double = double_precision


# -- circuits ---------------------------------------------------------------------------------------------------------


def expvals(inputs: Tensor, weights: Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(3))
    qml.StronglyEntanglingLayers(weights, wires=range(3))
    return [
        qml.expval(qml.Z(0)),
        qml.expval(qml.X(1) @ qml.Y(2)),
        qml.expval(qml.Z(1) + 0.5 * qml.Y(0)),
    ]


def probabilities(inputs: Tensor, weights: Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(3))
    qml.StronglyEntanglingLayers(weights, wires=range(3))
    return qml.probs(wires=[2, 0])


def single(inputs: Tensor, weights: Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(3))
    qml.StronglyEntanglingLayers(weights, wires=range(3))
    return qml.expval(qml.Z(0))


def parts(inputs: Tensor, weights: Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(3))
    qml.StronglyEntanglingLayers(weights, wires=range(3))
    return qml.probs(wires=0), qml.probs(wires=2)


def products(inputs: Tensor, weights: Tensor) -> Any:
    """Angles are not affine: the quantum function runs in every call."""
    for wire in range(3):
        qml.RY(torch.sin(inputs[..., wire]) * weights[0, wire, 0], wires=wire)
    qml.StronglyEntanglingLayers(weights, wires=range(3))
    return [qml.expval(qml.Z(0)), qml.expval(qml.X(1))]


def amplitudes(inputs: Tensor, weights: Tensor) -> Any:
    qml.AmplitudeEmbedding(inputs, wires=range(2), normalize=True, pad_with=0.3)
    qml.StronglyEntanglingLayers(weights, wires=range(3))
    return [qml.expval(qml.Z(0)), qml.expval(qml.X(1))]


def variances(inputs: Tensor, weights: Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(3))
    qml.StronglyEntanglingLayers(weights, wires=range(3))
    return [qml.var(qml.Z(0)), qml.expval(qml.X(1))]


SHAPES = {"weights": (2, 3, 3)}
CIRCUITS = {
    f.__name__: f for f in (expvals, probabilities, single, parts, products, amplitudes, variances)
}


def node(function: Any, device: str = "default.qubit") -> Any:
    return qml.QNode(function, qml.device(device, wires=3), interface="torch")


class After(nn.Module):
    """Brings every arrangement of a quantum layer's results to (N, features)."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        result = self.layer(x)
        if result.ndim == 1:
            return result[:, None]
        return result.movedim(0, 1).flatten(1) if result.shape[0] == 2 != len(x) else result


def hybrid(function: Any, kind: str = "native", width: int = 3) -> nn.Module:
    layer: nn.Module
    if kind == "torch-layer":
        layer = qml.qnn.TorchLayer(node(function), SHAPES)
    elif kind == "torch-layer-on-mixed":
        layer = qml.qnn.TorchLayer(node(function, "default.mixed"), SHAPES)
    else:
        engine = "device" if kind == "device" else "auto"
        layer = fubini.QuantumLayer(node(function), SHAPES, engine=engine)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), After(layer), nn.LazyLinear(3)).double()


def with_torch_layers(model: nn.Module) -> nn.Module:
    """The same model on PennyLane's simulator, with the same parameters: what references differentiate."""
    for module in list(model.modules()):
        for name, child in module._modules.items():
            if isinstance(child, fubini.QuantumLayer):
                layer = qml.qnn.TorchLayer(node(child.qnode.func), SHAPES)
                for weight, value in child.qnode_weights.items():
                    layer.qnode_weights[weight] = value
                    layer.register_parameter(weight, value)
                module._modules[name] = layer
    return model


def rows_of(model: nn.Module, x: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Outputs (flat), and their Jacobian by a loop over them."""
    f = model(x)
    rows = []
    for entry in f.reshape(-1):
        found = torch.autograd.grad(entry, parameters, retain_graph=True, allow_unused=True)
        rows.append(
            torch.cat(
                [
                    torch.zeros(p.numel()) if g is None else g.reshape(-1)
                    for p, g in zip(parameters, found, strict=True)
                ]
            )
        )
    return f.detach(), torch.stack(rows)


def reference(model: nn.Module, x: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    model = with_torch_layers(model)
    f, rows = rows_of(model, x, list(model.parameters()))
    hessian = torch.func.hessian(lambda v: loss(v.reshape(f.shape)))(f.reshape(-1))
    return rows.mT @ hessian @ rows


LOSSES: dict[str, tuple[Likelihood, Callable[[Tensor], Tensor]]] = {
    "ce": (Categorical(), lambda f: nn.functional.cross_entropy(f, torch.zeros(len(f)).long())),
    "bce-sum": (
        Bernoulli("sum"),
        lambda f: nn.functional.binary_cross_entropy_with_logits(
            f, torch.zeros_like(f), reduction="sum"
        ),
    ),
    "mse": (Gaussian(), lambda f: nn.functional.mse_loss(f, torch.zeros_like(f))),
}


def blocks_of(
    model: nn.Module, x: Any, likelihood: Any = "categorical", **options: Any
) -> list[Block]:
    options = {"approx": "block-diag", "parameters": list(model.parameters()), **options}
    return fisher_blocks(model, (x,), {}, likelihood=likelihood, **options)


def check(model: nn.Module, x: Tensor, loss: str = "ce", rtol: float = 1e-9) -> None:
    """Joint matrix, blocks and diagonal against the reference."""
    likelihood, function = LOSSES[loss]
    parameters = list(model.parameters())
    [joint] = blocks_of(model, x, likelihood, approx=None)
    blocks = blocks_of(model, x, likelihood)
    diagonal = blocks_of(model, x, likelihood, approx="diag")
    dense = reference(model, x, function)
    torch.testing.assert_close(joint.dense(), dense, rtol=rtol, atol=1e-11)
    starts = {}
    at = 0
    for p in parameters:
        starts[id(p)] = torch.arange(at, at + p.numel())
        at += p.numel()
    for block in blocks:
        index = torch.cat([starts[id(p)] for p in block.parameters])
        torch.testing.assert_close(
            block.dense(), dense[index[:, None], index], rtol=rtol, atol=1e-11
        )
    assert sum(len(b.parameters) for b in blocks) == len(parameters)
    for block in diagonal:
        index = torch.cat([starts[id(p)] for p in block.parameters])
        torch.testing.assert_close(block.diagonal(), dense.diagonal()[index], rtol=rtol, atol=1e-11)


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_every_circuit(circuit: str) -> None:
    model, x = hybrid(CIRCUITS[circuit]), torch.randn(N, 4)
    model(x)
    assert model[2].layer.engine == "native"
    check(model, x)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss(loss: str) -> None:
    model, x = hybrid(expvals), torch.randn(N, 4)
    model(x)
    check(model, x, loss)


@pytest.mark.parametrize("kind", ["torch-layer", "device"])
@pytest.mark.parametrize("circuit", [expvals, parts, products])
def test_every_kind_of_layer(kind: str, circuit: Any) -> None:
    model, x = hybrid(circuit, kind), torch.randn(N, 4)
    model(x)
    check(model, x)


def test_shift_rules_on_a_device() -> None:
    def circuit(inputs: Tensor, weights: Tensor) -> Any:
        qml.RY(inputs[..., 0], wires=0)
        qml.RX(weights[0], wires=0)
        qml.RY(weights[1], wires=0)
        return [qml.expval(qml.Z(0)), qml.expval(qml.X(0))]

    shift = qml.QNode(circuit, qml.device("default.qubit", wires=1), diff_method="parameter-shift")
    layer = fubini.QuantumLayer(shift, {"weights": (2,)}, engine="device").double()
    native = fubini.QuantumLayer(shift, {"weights": (2,)}, {"weights": layer.weights.detach()})
    x = torch.randn(2, 2)
    first, last = nn.Linear(2, 1), nn.Linear(2, 3)
    blocks = blocks_of(nn.Sequential(first, layer, last), x)
    for block, other in zip(blocks, blocks_of(nn.Sequential(first, native, last), x), strict=True):
        torch.testing.assert_close(block.dense(), other.dense(), rtol=1e-9, atol=1e-12)


def test_float32_and_unbatched_and_sequences() -> None:
    model = hybrid(expvals)
    x = torch.randn(4)
    model(torch.randn(N, 4))
    unbatched = nn.Sequential(*model[:2], model[2].layer, model[3])
    check(unbatched, x, "mse")
    sequence = nn.Sequential(
        nn.Linear(4, 3), fubini.QuantumLayer(node(expvals), SHAPES), nn.Flatten(), nn.Linear(6, 3)
    ).double()
    check(sequence, torch.randn(N, 2, 4))
    single_precision, x = hybrid(expvals).float(), torch.randn(N, 4)
    single_precision(x.float())
    blocks = blocks_of(single_precision, x.float())
    exact = blocks_of(single_precision.double(), x)
    for block, other in zip(blocks, exact, strict=True):
        assert block.dense().dtype == torch.float64
        torch.testing.assert_close(block.dense(), other.dense(), rtol=1e-3, atol=1e-6)


class Twice(nn.Module):
    """One quantum layer in two places, another one that shares its weights, and an input that skips them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.layer = fubini.QuantumLayer(node(expvals), SHAPES)
        self.other = fubini.QuantumLayer(node(probabilities), SHAPES)
        self.other.weights = self.layer.weights
        self.last = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        h = h + self.layer(h)
        return self.last(torch.cat([self.layer(h), self.other(h)], dim=1))


def test_layers_used_twice_and_shared_weights() -> None:
    model = Twice().double()
    check(model, torch.randn(N, 4))


def test_frozen_parameters() -> None:
    model, x = hybrid(expvals), torch.randn(N, 4)
    model(x)
    whole = blocks_of(model, x)
    quantum = model[2].layer.weights
    [block] = blocks_of(model, x, parameters=[quantum])
    torch.testing.assert_close(block.dense(), whole[1].dense())
    others = blocks_of(model, x, parameters=[p for p in model.parameters() if p is not quantum])
    for block, other in zip(others, [whole[0], whole[2]], strict=True):
        torch.testing.assert_close(block.dense(), other.dense())


def test_kl_divergence_of_a_small_step() -> None:
    """The definition of the Fisher information, without any of its formulas."""
    model, x = hybrid(expvals), torch.randn(N, 4)
    model(x)
    parameters = list(model.parameters())
    [block] = blocks_of(model, x, approx=None)
    before = model(x).detach().log_softmax(1)
    for _ in range(3):
        d = torch.randn(block.size)
        d *= 1e-4 / d.norm()
        with torch.no_grad():
            for p, part in zip(parameters, d.split([p.numel() for p in parameters]), strict=True):
                p += part.reshape(p.shape)
            after = model(x).log_softmax(1)
            for p, part in zip(parameters, d.split([p.numel() for p in parameters]), strict=True):
                p -= part.reshape(p.shape)
        divergence = (before.exp() * (before - after)).sum(1).mean()
        predicted = 0.5 * d @ block.product(d)
        assert abs(divergence / predicted - 1.0) < 1e-3


def test_the_undamped_step_does_not_depend_on_the_coordinates_of_the_weights() -> None:
    matrix, shift = torch.randn(6, 6) + 3 * torch.eye(6), torch.randn(6)
    targets, x = torch.randn(20, 3), torch.randn(20, 2)

    def circuit(inputs: Tensor, weights: Tensor) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        for wire in range(2):
            qml.RY(weights[wire], wires=wire)
            qml.RX(weights[2 + wire], wires=wire)
        qml.CNOT(wires=[0, 1])
        for wire in range(2):
            qml.RY(weights[4 + wire], wires=wire)
        return [qml.expval(qml.Z(0)), qml.expval(qml.X(1)), qml.expval(qml.Y(0) @ qml.Z(1))]

    def transformed(inputs: Tensor, weights: Tensor) -> Any:
        return circuit(inputs, matrix.to(weights) @ weights + shift.to(weights))

    def outputs_after_step(function: Any, start: Tensor) -> Tensor:
        qnode = qml.QNode(function, qml.device("default.qubit", wires=2))
        layer = fubini.QuantumLayer(qnode, {"weights": (6,)}, {"weights": start}).double()
        nn.functional.mse_loss(layer(x), targets).backward()
        assert layer.engine == "native"
        [block] = blocks_of(layer, x, "gaussian")
        assert layer.weights.grad is not None
        direction, info = block.solve(layer.weights.grad, torch.zeros(6))
        assert info.condition < 1e8
        with torch.no_grad():
            layer.weights -= direction
        return layer(x).detach()

    start = torch.randn(6)
    plain = outputs_after_step(circuit, start)
    other = outputs_after_step(transformed, torch.linalg.solve(matrix, start - shift))
    torch.testing.assert_close(plain, other, rtol=1e-6, atol=1e-7)  # conditions below 1e8


# -- the joint matrix without forming it ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["native", "torch-layer", "device"])
@pytest.mark.parametrize("circuit", [expvals, products])
def test_products_through_the_circuit(
    kind: str, circuit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = hybrid(circuit, kind), torch.randn(N, 4)
    model(x)
    [dense] = blocks_of(model, x, approx=None)
    monkeypatch.setattr(fisher_module, "DENSE_LIMIT", 0)
    [block] = blocks_of(model, x, approx=None)
    assert isinstance(block, OperatorBlock)
    v = torch.randn(block.size, 4)
    torch.testing.assert_close(block.product(v), dense.product(v), rtol=1e-9, atol=1e-11)
    if kind == "device":  # PennyLane's own second derivatives are slow
        return
    rhs, damping = torch.randn(block.size), torch.full((block.size,), 1e-2)
    solution, info = block.solve(rhs, damping)
    torch.testing.assert_close(solution, dense.solve(rhs, damping)[0], rtol=1e-6, atol=1e-7)
    assert info.iterations > 0


def test_a_torch_layer_on_a_noisy_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has blocks through the device's own derivatives, and no products."""
    model, x = hybrid(single, "torch-layer-on-mixed"), torch.randn(2, 4)
    model(x)
    blocks = blocks_of(model, x)
    f, rows = rows_of(model, x, [model[2].layer.weights])
    hessian = torch.func.hessian(lambda v: LOSSES["ce"][1](v.reshape(f.shape)))(f.reshape(-1))
    torch.testing.assert_close(blocks[1].dense(), rows.mT @ hessian @ rows, rtol=1e-9, atol=1e-12)
    monkeypatch.setattr(fisher_module, "DENSE_LIMIT", 0)
    with pytest.raises(
        TypeError, match=r"2.layer: expected a fubini.QuantumLayer, got a TorchLayer"
    ):
        blocks_of(model, x, approx=None)


# -- the scaled Fubini-Study metric -------------------------------------------------------------------------------------


@pytest.mark.parametrize("circuit", [expvals, probabilities, single, parts, products, amplitudes])
@pytest.mark.parametrize("loss", LOSSES)
def test_the_scaled_fubini_study_metric_bounds_the_fisher_information(
    circuit: Any, loss: str
) -> None:
    model, x = hybrid(circuit), torch.randn(N, 4)
    model(x)
    likelihood, _ = LOSSES[loss]
    options = {"approx": None, "parameters": [model[2].layer.weights]}
    [fisher] = blocks_of(model, x, likelihood, **options)
    [scaled] = blocks_of(model, x, likelihood, quantum="fubini-study", **options)
    lowest = torch.linalg.eigvalsh(scaled.dense() - fisher.dense())[0]
    assert lowest > -1e-12
    assert scaled.dense().trace() < 1e3 * fisher.dense().trace()  # and is no wild guess


def test_the_bound_is_tight_where_one_number_is_measured() -> None:
    # one qubit and one gate: the Gauss-Newton matrix is B (dO/dw)^2 with dO/dw = -sin w, and 4 g Var(O) = sin^2 w
    def circuit(inputs: Tensor, weights: Tensor) -> Any:
        qml.RY(weights[0], wires=0)
        qml.RZ(inputs[..., 0], wires=0)
        return qml.expval(qml.Z(0))

    layer = fubini.QuantumLayer(
        qml.QNode(circuit, qml.device("default.qubit", wires=1)), {"weights": (1,)}
    ).double()
    x = torch.randn(N, 1)
    [fisher] = blocks_of(layer, x, "gaussian")
    [scaled] = blocks_of(layer, x, "gaussian", quantum="fubini-study")
    expected = 2.0 * layer.weights.detach().sin().square()
    torch.testing.assert_close(fisher.dense()[0], expected)
    torch.testing.assert_close(scaled.dense()[0], expected)


def test_one_input_gives_a_multiple_of_the_fubini_study_metric() -> None:
    model, x = hybrid(expvals), torch.randn(1, 4)
    model(x)
    layer = model[2].layer
    for approx in (None, "block-diag", "diag"):
        blocks = blocks_of(model, x, approx=approx, quantum="fubini-study")
        block = next(b for b in blocks if b.parameters[0] is layer.weights)
        metric = torch.from_numpy(layer_metric(layer, model[:2](x), approx, "wires", "mean"))
        scale = block.dense().trace() / metric.trace()
        torch.testing.assert_close(block.dense(), scale * metric, rtol=1e-10, atol=1e-13)
    assert isinstance(block, DenseBlock)
    classical = [b for b in blocks if b is not block]
    expected = [
        b for b in blocks_of(model, x, approx="diag") if b.parameters[0] is not layer.weights
    ]
    for one, other in zip(classical, expected, strict=True):
        assert torch.equal(one.dense(), other.dense())


def test_the_scale_is_that_of_the_notes() -> None:
    """s = lmax(B^1/2 C B^1/2) with dense observables."""
    model, x = hybrid(expvals), torch.randn(1, 4)
    model(x)
    layer, h = model[2].layer, model[:2](x).detach()

    def final(inputs: Tensor, weights: Tensor) -> Any:
        qml.AngleEmbedding(inputs, wires=range(3))
        qml.StronglyEntanglingLayers(weights, wires=range(3))
        return qml.state()

    state = node(final)(h[0], layer.weights.detach())
    observables = [
        qml.matrix(o, wire_order=range(3))
        for o in (qml.Z(0), qml.X(1) @ qml.Y(2), qml.Z(1) + 0.5 * qml.Y(0))
    ]
    applied = torch.stack([torch.as_tensor(o, dtype=torch.complex128) @ state for o in observables])
    means = (applied @ state.conj()).real
    covariance = (applied.conj() @ applied.mT).real - means[:, None] * means
    o = model[2](h).detach().requires_grad_()
    p = model[3](o)[0].softmax(0).detach()
    weight = model[3].weight.detach()
    curvature = weight.mT @ (torch.diag(p) - p[:, None] * p) @ weight
    values, vectors = torch.linalg.eigh(curvature)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.mT
    scale = torch.linalg.eigvalsh(root @ covariance @ root)[-1]
    metric = torch.from_numpy(layer_metric(layer, h, None, "wires", "mean"))
    [block] = blocks_of(model, x, approx=None, quantum="fubini-study", parameters=[layer.weights])
    torch.testing.assert_close(block.dense(), 4.0 * scale * metric, rtol=1e-9, atol=1e-12)


def test_a_layer_used_several_times_is_still_bounded() -> None:
    model, x = Twice().double(), torch.randn(N, 4)
    options = {"approx": None, "parameters": [model.layer.weights]}
    [fisher] = blocks_of(model, x, **options)
    [scaled] = blocks_of(model, x, quantum="fubini-study", **options)
    assert torch.linalg.eigvalsh(scaled.dense() - fisher.dense())[0] > -1e-12


@pytest.mark.parametrize("options", [{"samples": 3}, {"fisher": "empirical"}])
def test_sampled_and_empirical_fisher_information_are_bounded_too(options: Any) -> None:
    model, x = hybrid(expvals), torch.randn(N, 4)
    model(x)
    options = {"approx": None, "parameters": [model[2].layer.weights], **options}
    if "fisher" in options:
        options["targets"] = torch.arange(N) % 3
    torch.manual_seed(1)
    [fisher] = blocks_of(model, x, **options)
    torch.manual_seed(1)
    [scaled] = blocks_of(model, x, quantum="fubini-study", **options)
    assert torch.linalg.eigvalsh(scaled.dense() - fisher.dense())[0] > -1e-12


def test_large_batches_are_bounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = hybrid(probabilities), torch.randn(N, 4)
    model(x)
    options = {"approx": "block-diag", "quantum": "fubini-study"}
    expected = blocks_of(model, x, **options)
    for module in (fisher_pass, fisher_quantum, fisher_units):
        monkeypatch.setattr(module, "_CHUNK", 1)
    for block, other in zip(blocks_of(model, x, **options), expected, strict=True):
        torch.testing.assert_close(block.dense(), other.dense(), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("function", [expvals, probabilities])
def test_observables_of_too_many_words_are_applied_to_states(
    function: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = hybrid(function), torch.randn(N, 4)
    model(x)
    expected = blocks_of(model, x, quantum="fubini-study")
    monkeypatch.setattr(fisher_quantum, "observable_covariances", lambda *_: None)
    for block, other in zip(blocks_of(model, x, quantum="fubini-study"), expected, strict=True):
        # the largest eigenvalue of the same matrix, by other sums
        torch.testing.assert_close(block.dense(), other.dense(), rtol=1e-9, atol=1e-13)


def test_what_has_no_scale_is_refused() -> None:
    for function, kind, message in [
        (variances, "native", "measures variances"),
        (expvals, "device", "runs on its device"),
    ]:
        model, x = hybrid(function, kind), torch.randn(N, 4)
        model(x)
        with pytest.raises(fubini.UnsupportedCircuitError, match=f"quantum: .*{message}"):
            blocks_of(model, x, quantum="fubini-study")


# -- the usual model ----------------------------------------------------------------------------------------------------


def test_the_digits_classifier() -> None:
    from fubini.demo import digits

    model, layer = digits.make_model()
    images, _ = digits.load()
    blocks = blocks_of(model, images[:32])
    assert [type(b) for b in blocks] == [KroneckerBlock, DenseBlock, DenseBlock]
    assert [b.label for b in blocks] == ["0", "1", "2"]
    assert blocks[1].parameters == (layer.weights,)
    scaled = blocks_of(model, images[:32], quantum="fubini-study")
    assert scaled[1].dense().trace() > blocks[1].dense().trace()
