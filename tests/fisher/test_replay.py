"""The Fisher metric belongs to the pass whose gradient is applied: its masks, noise, statistics, weights and precision.

The reference is made from the graph of the very pass that the loss was computed from: the Jacobian row by row.
"""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.testing import assert_close

import fubini
from fisher_cases import double_precision
from models import hybrid
from pass_cases import EXACT, LAM, LR, Tensor, check_step, circuit, flat, jacobian

_double = double_precision


class Between(nn.Module):
    """Something between two linear layers."""

    def __init__(self, middle: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.middle = nn.Linear(3, 6), nn.Linear(6, 2), middle

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.middle(torch.tanh(self.first(x))))


def depth(h: Tensor) -> Tensor:
    return h + torch.sin(h) if torch.rand(()) < 0.5 else h


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.3, batch_first=True)
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x).mean(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.last = nn.GRU(3, 3, 2, dropout=0.4, batch_first=True), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(x)[0][:, -1])


NOISY: dict[str, Callable[[], nn.Module]] = {
    "nn.Dropout": lambda: Between(nn.Dropout(0.4)),
    "in a chain": lambda: nn.Sequential(
        nn.Linear(3, 6), nn.Dropout(0.4), nn.ReLU(), nn.Linear(6, 2), nn.Dropout(0.2)
    ),
    "nn.AlphaDropout": lambda: Between(nn.AlphaDropout(0.4)),
    "F.dropout": lambda: Between(lambda h: functional.dropout(h, 0.4)),
    "F.feature_alpha_dropout": lambda: Between(
        lambda h: functional.feature_alpha_dropout(h, 0.4, training=True)
    ),
    "nn.RReLU": lambda: Between(nn.RReLU()),
    "torch.rand": lambda: Between(lambda h: h * torch.rand(6)),
    "torch.randn_like": lambda: Between(lambda h: h + 0.3 * torch.randn_like(h)),
    "torch.bernoulli": lambda: Between(lambda h: h * torch.bernoulli(torch.full_like(h, 0.7))),
    "torch.randperm": lambda: Between(lambda h: h[:, torch.randperm(6)]),
    "gumbel_softmax": lambda: Between(functional.gumbel_softmax),
    "stochastic depth": lambda: Between(depth),
    "numpy": lambda: Between(lambda h: h * float(np.random.uniform())),  # noqa: NPY002
    "python": lambda: Between(lambda h: h * random.random()),
    "batch norm": lambda: Between(nn.BatchNorm1d(6)),
    "batch norm, functional": lambda: Between(
        lambda h: functional.batch_norm(h, None, None, training=True)
    ),
    "spectral norm": lambda: nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(3, 6)), nn.Tanh(), nn.Linear(6, 2)
    ),
}
INPUT = {"attention": (Attending, (4, 3, 4)), "recurrent": (Recurrent, (4, 3, 3))}


@pytest.mark.parametrize("passes", [1, 3])
@pytest.mark.parametrize("name", NOISY)
def test_the_noise_is_that_of_the_pass(name: str, passes: int) -> None:
    check_step(NOISY[name](), list(torch.randn(passes, 5, 3)))


@pytest.mark.parametrize("name", INPUT)
def test_the_noise_is_that_of_the_pass_in_torchs_own_modules(name: str) -> None:
    make, shape = INPUT[name]
    check_step(make(), list(torch.randn(2, *shape)), lam=0.1)


@pytest.mark.parametrize("name", ["nn.Dropout", "in a chain", "batch norm", "spectral norm"])
def test_what_happens_before_the_step_does_not_matter(name: str) -> None:
    model = NOISY[name]()

    def validation() -> None:
        torch.rand(7)
        model.eval()
        with torch.no_grad():
            model(torch.randn(4, 3))

    check_step(model, [torch.randn(5, 3)], before_step=validation)
    model = NOISY[name]()

    def another_batch() -> None:
        model(torch.randn(4, 3))

    check_step(model, [torch.randn(5, 3)], before_step=another_batch)


@pytest.mark.parametrize("metric", ["fisher", "hybrid"])
def test_dropout_in_front_of_a_circuit(metric: str) -> None:
    layers = list(hybrid())
    model = nn.Sequential(layers[0], nn.Dropout(0.5), *layers[1:])
    if metric == "fisher":
        check_step(model, [torch.rand(6, 3)])
        return
    opt = fubini.QNGOptimizer(model, metric=metric, likelihood="gaussian", approx=None, lam=LAM)
    x = torch.rand(6, 3)
    first = flat(model.parameters())
    steps = []
    for other in (False, True):  # the same pass, and other random numbers before the step
        torch.nn.utils.vector_to_parameters(first.clone(), model.parameters())
        opt.zero_grad()
        torch.manual_seed(2)
        model(x).square().mean().backward()
        if other:
            torch.rand(100)
        opt.step()
        steps.append(flat(model.parameters()))
    assert_close(steps[0], steps[1], rtol=0, atol=0)


@pytest.mark.parametrize("source", ["generator", "counter"])
def test_what_cannot_be_repeated_is_refused(source: str) -> None:
    generator = torch.Generator().manual_seed(1)
    count = [0.0]

    def noise(h: Tensor) -> Tensor:
        count[0] += 1.0
        extra = torch.rand(6, generator=generator) if source == "generator" else count[0]
        return h * extra

    model = Between(noise)
    opt = fubini.QNGOptimizer(model, metric="fisher", likelihood="gaussian")
    model(torch.randn(5, 3)).square().mean().backward()
    before = flat(model.parameters())
    with pytest.raises(RuntimeError, match=r"a forward pass that can be repeated.*global"):
        opt.step()
    assert torch.equal(flat(model.parameters()), before)


pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.drop, self.reentrant = nn.Dropout(0.3), reentrant

    def part(self, h: Tensor) -> Tensor:
        return torch.tanh(self.drop(self.inner(h)))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.utils.checkpoint.checkpoint(
            self.part, self.first(x), use_reentrant=self.reentrant
        )
        return self.last(h)


@pytest.mark.parametrize("approx", [None, "block-diag"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(reentrant: bool, approx: Any) -> None:
    steps, x = [], torch.randn(5, 3)
    for checkpointed in (True, False):
        torch.manual_seed(6)
        model = Checkpointed(reentrant)
        if not checkpointed:
            model.forward = lambda x, m=model: m.last(m.part(m.first(x)))  # type: ignore[method-assign]
        opt = fubini.QNGOptimizer(
            model, LR, metric="fisher", likelihood="gaussian", approx=approx, lam=LAM
        )
        for _ in range(2):
            opt.zero_grad()
            model(x).square().mean().backward()
            opt.step()
        steps.append(flat(model.parameters()))
    assert_close(steps[0], steps[1], **EXACT)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.*is deprecated:DeprecationWarning")
def test_traced_modules() -> None:
    inner = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    check_step(torch.jit.trace(inner, torch.randn(2, 3)), [torch.randn(5, 3)])


def test_a_model_that_differentiates_itself() -> None:
    class Force(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1))

        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            energy = self.net(x).sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0]

    check_step(Force(), [torch.randn(4, 3)])


class Mixing(nn.Module):
    """Mixes data in some passes only, all of the same shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.mixes = nn.Linear(3, 4), nn.Linear(4, 2), False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if self.mixes or (self.training and bool((x[:, 0] > 0).all())):
            h = h + 0.5 * h.roll(len(h) // 2, 0)
        return self.last(h)


@pytest.mark.parametrize("why", ["attribute", "training", "values"])
def test_data_that_are_mixed_in_some_passes_only(why: str) -> None:
    model, x = Mixing(), torch.rand(6, 3) + 0.1
    plain = -x if why == "values" else x
    model.train(why == "values")
    check_step(model, [plain])
    if why == "attribute":
        model.mixes = True
    elif why == "training":
        model.train()
    check_step(model, [x])
    blocks = fubini.fisher.blocks.fisher_blocks(
        model, (x,), {}, parameters=list(model.parameters()), likelihood="gaussian",
        approx="block-diag",
    )  # fmt: skip
    rows = jacobian(model(x), list(model.parameters()))[:, :16]
    assert_close(blocks[0].dense(), rows.mT @ rows * (2 / 12), **EXACT)


# -- several passes, precision, vmap --------------------------------------------------------------------------------
def test_passes_with_other_arguments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2)

        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return self.linear(x) * scale

    check_step(Scaled(), [torch.randn(4, 3), (torch.randn(3, 3), 2.0)])


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("approx", [None, "block-diag"])
def test_targets_belong_to_the_passes_in_their_order(approx: Any, given: bool) -> None:
    """The backward pass goes through the passes the other way round."""
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2), nn.Dropout(0.3))
    model.train(approx is None)  # blocks: a chain
    parameters = list(model.parameters())
    opt = fubini.QNGOptimizer(
        model,
        LR,
        lam=LAM,
        metric="fisher",
        likelihood="gaussian",
        approx=approx,
        fisher="empirical",
    )
    x, y = torch.randn(9, 3), torch.randn(9, 2)
    out = torch.cat([model(x[:4]), model(x[4:])])
    rows = jacobian(out, parameters).reshape(9, 2, -1)
    rows = torch.einsum("nck,nc->nk", rows, 2.0 * (out.detach() - y))
    matrix = rows.mT @ rows / 18
    if approx is not None:
        matrix = torch.block_diag(matrix[:24, :24], matrix[24:, 24:])
    functional.mse_loss(out, y).backward()
    start, gradient = flat(parameters), flat(p.grad for p in parameters)
    opt.step(**({"targets": y} if given else {}))
    direction = torch.linalg.solve(matrix + LAM * torch.eye(len(start)), gradient)
    assert_close(start - flat(parameters), LR * direction, **EXACT)


@pytest.mark.parametrize("approx", [None, "block-diag"])
@pytest.mark.parametrize("in_a_chain", [False, True])
@pytest.mark.parametrize("likelihood", ["gaussian", "categorical", "bernoulli"])
def test_inputs_without_a_batch_dimension(likelihood: str, approx: Any, in_a_chain: bool) -> None:
    def make() -> Any:
        torch.manual_seed(3)
        layers = [nn.Linear(3, 2), *list(hybrid())[1:2], nn.Linear(2, 3)]
        return (
            nn.Sequential(*layers) if in_a_chain else nn.Sequential(nn.Sequential(*layers), Plus())
        )

    x, steps = torch.rand(5, 3), []
    for alone in (True, False):
        model = make()
        opt = fubini.QNGOptimizer(
            model, lr=LR, lam=LAM, metric="fisher", likelihood=likelihood, approx=approx
        )
        out = torch.stack([model(one) for one in x]) if alone else model(x)
        out.sin().mean().backward()
        opt.step()
        steps.append(flat(model.parameters()))
    assert_close(steps[0], steps[1], rtol=1e-9, atol=1e-11)


class Plus(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.0


def test_arguments_that_a_hook_of_the_users_changes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model.register_forward_pre_hook(lambda module, args: (2.0 * args[0] + torch.rand(3),))
    check_step(model, [torch.randn(4, 3)])


class HalfInside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


@pytest.mark.parametrize("approx", [None, "block-diag"])
def test_autocast_inside_of_the_model(approx: Any) -> None:
    torch.set_default_dtype(torch.float32)
    model, x = HalfInside(), torch.randn(6, 3)
    found = fubini.fisher.blocks.fisher_blocks(
        model, (x,), {}, parameters=list(model.parameters()), likelihood="gaussian", approx=approx
    )
    plain = fubini.fisher.blocks.fisher_blocks(
        model.net, (x,), {}, parameters=list(model.parameters()), likelihood="gaussian",
        approx=approx,
    )  # fmt: skip
    for one, other in zip(found, plain, strict=True):  # float32
        assert_close(one.dense(), other.dense(), rtol=1e-4, atol=1e-5)
    opt = fubini.QNGOptimizer(model, metric="fisher", likelihood="gaussian", approx=approx)
    model(x).square().mean().backward()
    opt.step()
    with torch.autocast("cpu", dtype=torch.bfloat16):  # it works as before
        assert model.net(x).dtype is torch.bfloat16


@pytest.mark.parametrize("depth", [1, 2])
def test_layers_inside_of_vmap(depth: int) -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.inner, self.last = (
                nn.Linear(3, 2), nn.LayerNorm(2), circuit(), nn.Linear(2, 2),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            def alone(row: Tensor) -> Tensor:
                return self.last(self.inner(torch.sigmoid(self.norm(self.first(row)))))

            for _ in range(depth):
                alone = torch.vmap(alone, in_dims=-2, out_dims=-1 if depth == 1 else 0)
            found = alone(x)
            return found.mT if depth == 1 else found.mean(1)

    x = torch.rand(5, 3) if depth == 1 else torch.rand(5, 4, 3)
    check_step(Mapped(), [x])
    model = Mapped()
    fubini.fisher.blocks.fisher_blocks(  # the layers have their rules
        model, (x,), {}, parameters=list(model.parameters()), likelihood="gaussian",
        approx="block-diag",
    )  # fmt: skip


def one_sample(inputs: Any, weights: Any, clamp: bool) -> Any:
    import pennylane as qml

    for i in range(2):
        angle = inputs[i].clamp(0.1, 0.8) if clamp else inputs[i]
        qml.RY(angle * weights[0, i], wires=i)
    qml.StronglyEntanglingLayers(weights[:, :, None] * torch.ones(3), wires=range(2))
    return [qml.expval(qml.Z(i)) for i in range(2)]


class RowByRow(nn.Module):
    """A quantum function written for one sample, or for any number of them."""

    def __init__(self, clamp: bool, foreign: bool, batched: bool, how: str) -> None:
        super().__init__()
        import pennylane as qml

        def function(inputs: Any, weights: Any) -> Any:
            if batched:
                inputs = inputs.movedim(-1, 0)
            return one_sample(inputs, weights, clamp)

        qnode = qml.QNode(function, qml.device("default.qubit", wires=2))
        layer = qml.qnn.TorchLayer if foreign else fubini.QuantumLayer
        torch.manual_seed(8)
        self.first, self.last, self.how = nn.Linear(3, 2), nn.Linear(2, 2), how
        self.inner = layer(qnode, {"weights": (2, 2)}).double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        if self.how == "batch":
            return self.last(self.inner(h))
        if self.how == "vmap":
            return self.last(torch.vmap(self.inner)(h))
        return self.last(torch.stack([self.inner(row) for row in h]))


@pytest.mark.parametrize("metric", ["fisher", "hybrid"])
@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize(("how", "foreign"), [("rows", False), ("rows", True), ("vmap", False)])
def test_quantum_functions_written_for_one_sample(
    how: str, foreign: bool, clamp: bool, metric: str
) -> None:
    x, steps = torch.rand(4, 3), []
    if metric == "fisher":
        check_step(RowByRow(clamp, foreign, False, how), [x])
    for batched in (False, True):
        model = RowByRow(clamp, foreign, batched, "batch" if batched else how)
        opt = fubini.QNGOptimizer(model, LR, metric=metric, likelihood="gaussian", lam=LAM)
        model(x).square().mean().backward()
        opt.step()
        steps.append(flat(model.parameters()))
    assert_close(steps[0], steps[1], rtol=1e-9, atol=1e-11)


def test_passes_of_one_sample_through_a_chain() -> None:
    x, steps = torch.rand(4, 3), []
    for batched in (False, True):
        inner = RowByRow(False, False, batched, "")
        model = nn.Sequential(inner.first, inner.inner, inner.last)
        opt = fubini.QNGOptimizer(model, LR, metric="fisher", likelihood="gaussian", lam=LAM)
        out = model(x) if batched else torch.stack([model(row) for row in x])
        out.square().mean().backward()
        opt.step()
        steps.append(flat(model.parameters()))
    assert_close(steps[0], steps[1], rtol=1e-9, atol=1e-11)


def test_parameters_of_two_dtypes() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2).float()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.tanh(self.first(x)).float()).double()

    for approx in (None, "block-diag"):
        model = Mixed()
        opt = fubini.QNGOptimizer(
            model, lr=LR, lam=LAM, metric="fisher", likelihood="gaussian", approx=approx,
            momentum=0.5, weight_decay=0.1,
        )  # fmt: skip
        opt.add_param_group({"params": [("more", nn.Parameter(torch.ones(2).float()))]})
        parameters = list(model.parameters())
        out = model(torch.randn(6, 3))
        j = jacobian(out, parameters)
        (out - 1).square().mean().backward()
        matrix = j.mT @ j * (2 / out.numel())
        if approx is not None:
            matrix = torch.block_diag(matrix[:16, :16], matrix[16:, 16:])
        start, gradient = flat(parameters), flat(p.grad for p in parameters)
        opt.step()
        change = torch.linalg.solve(matrix + LAM * torch.eye(len(start)), gradient)
        expected = start - LR * change - LR * 0.1 * start
        assert_close(flat(parameters), expected, rtol=1e-5, atol=1e-6)  # float32
        assert [p.dtype for p in parameters] == [torch.float64] * 2 + [torch.float32] * 2
        opt.step()
