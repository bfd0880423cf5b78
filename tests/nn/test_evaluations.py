"""What the metric of a step is taken from: what the QNode really saw, in the passes that the graph of the loss used.

References are explicit derivative states by torch's Jacobian of PennyLane's state.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch
from torch.nn.utils import parametrizations, parametrize, prune

import fubini

Tensor = torch.Tensor
LR, LAM = 0.1, 1e-2
X = torch.rand(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.rand(2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def body(inputs: Tensor, weights: Tensor) -> None:
    for k in range(2):
        qml.RY(inputs[..., k], k)
    qml.StronglyEntanglingLayers(weights, wires=range(2))


def circuit(inputs: Tensor, weights: Tensor) -> Any:
    body(inputs, weights)
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


@qml.qnode(qml.device("default.qubit", wires=2), interface="torch", diff_method="backprop")
def state(inputs: Tensor, weights: Tensor) -> Any:
    body(inputs, weights)
    return qml.state()


def metric(weights: Tensor, rows: Tensor) -> Tensor:
    """The mean metric over inputs, from derivative states."""
    found = []
    for row in rows:

        def parts(w: Tensor, row: Tensor = row) -> Tensor:
            return torch.view_as_real(state(row, w))

        jacobian = torch.autograd.functional.jacobian(parts, weights.detach())
        d = torch.view_as_complex(jacobian.movedim(1, -1).contiguous()).reshape(4, -1)
        along = d.mH @ state(row, weights.detach())
        found.append((d.mH @ d - torch.outer(along, along.conj())).real)
    return torch.stack(found).mean(0)


def layer(kind: Any = fubini.QuantumLayer, function: Any = circuit) -> Any:
    torch.manual_seed(0)
    node = qml.QNode(function, qml.device("default.qubit", wires=2))
    return kind(node, {"weights": (1, 2, 3)}).double()


def natural(weights: Tensor, gradient: Tensor, g: Tensor) -> Tensor:
    eye = torch.eye(len(g), dtype=torch.float64)
    d = torch.linalg.solve(g + LAM * eye, gradient.reshape(-1))
    return weights.detach() - LR * d.reshape(weights.shape)


def optimizer(module: Any, **options: Any) -> Any:
    return fubini.QNGOptimizer(
        module, lr=LR, lam=LAM, approx=None, **{"metric": "quantum", **options}
    )


def assert_step(module: Any, weights: Tensor, loss: Callable[[], Tensor], rows: Tensor) -> None:
    """A step of the weights with the metric at these inputs."""
    opt = optimizer(module)
    loss().backward()
    assert weights.grad is not None
    expected = natural(weights, weights.grad, metric(weights, rows))
    opt.step()
    # Two ways to compute the same derivatives in float64, through a solve of condition < 1e3.
    torch.testing.assert_close(weights.detach(), expected, rtol=1e-9, atol=1e-9)


# -- subclasses with a forward of their own -------------------------------------------------------------------------


def scaled_inputs(base: Any) -> Any:
    class Scaled(base):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            return super().forward(np.pi * torch.tanh(x))

    return Scaled


def scaled_outputs(base: Any) -> Any:
    class Scaled(base):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            return 3.0 * super().forward(x)

    return Scaled


def called_twice(base: Any) -> Any:
    class Twice(base):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            return super().forward(x) * super().forward(-2.0 * x)

    return Twice


def one_call_unused(base: Any) -> Any:
    class Unused(base):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            super().forward(5.0 * x)
            return super().forward(x)

    return Unused


def calls_the_qnode(base: Any) -> Any:
    class Direct(base):  # type: ignore[misc]
        def forward(self, x: Tensor) -> Any:
            weights = {name: weight.to(x) for name, weight in self.qnode_weights.items()}
            return torch.stack(self.qnode(inputs=x + 1.0, **weights), dim=-1)

    return Direct


FORWARDS: dict[str, tuple[Any, Callable[[Tensor], Tensor]]] = {
    "inputs": (scaled_inputs, lambda x: np.pi * torch.tanh(x)),
    "outputs": (scaled_outputs, lambda x: x),
    "twice": (called_twice, lambda x: torch.cat([x, -2.0 * x])),
    "unused": (one_call_unused, lambda x: x),
}


@pytest.mark.parametrize("base", [fubini.QuantumLayer, qml.qnn.TorchLayer])
@pytest.mark.parametrize("name", FORWARDS)
def test_the_metric_is_taken_at_what_the_circuit_saw(name: str, base: Any) -> None:
    kind, seen = FORWARDS[name]
    module = layer(kind(base))
    assert_step(module, module.weights, lambda: module(X).square().mean(), seen(X))


def test_a_forward_that_calls_the_qnode_itself() -> None:
    module = layer(calls_the_qnode(qml.qnn.TorchLayer))
    assert_step(module, module.weights, lambda: module(X).square().mean(), X + 1.0)
    assert type(module.qnode) is qml.QNode


# -- losses made of derivatives, operations in place ---------------------------------------------------------------


def by_inputs(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    u = module(x)
    return u, torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def by_torch_func(module: Any, x: Tensor) -> Tensor:
    return torch.vmap(torch.func.grad(lambda row: module(row).sum()))(x)


def doubled_part(y: Tensor) -> Tensor:
    y[:, 0].mul_(2.0)
    return y


LOSSES: dict[str, tuple[Callable[[Any], Tensor], Tensor]] = {
    "derivative alone": (lambda m: by_inputs(m, X)[1].square().mean(), X),
    "with the function": (lambda m: (by_inputs(m, X)[1] - by_inputs(m, X)[0]).square().mean(), X),
    "with a boundary": (
        lambda m: by_inputs(m, X)[1].square().mean() + m(Y).square().mean(),
        torch.cat([X, Y]),
    ),
    "torch.func": (lambda m: by_torch_func(m, X).square().mean(), X),
    "vmap": (lambda m: torch.vmap(m)(X).square().mean(), X),
    "derivative unused": (lambda m: (by_inputs(m, Y), m(X).square().mean())[1], X),
    "added in place": (lambda m: m(X).add_(0.5).square().mean(), X),
    "multiplied in place": (lambda m: m(X).mul_(2.0).square().mean(), X),
    "relu in place": (lambda m: torch.relu_(m(X)).sum(), X),
    "a part in place": (lambda m: doubled_part(m(X)).square().mean(), X),
}


@pytest.mark.parametrize("name", LOSSES)
def test_passes_count_by_what_the_loss_took_from_them(name: str) -> None:
    loss, rows = LOSSES[name]
    module = layer()
    assert_step(module, module.weights, lambda: loss(module), rows)


@pytest.mark.parametrize("name", ["added in place", "relu in place"])
def test_operations_in_place_behind_a_torch_layer(name: str) -> None:
    loss, rows = LOSSES[name]
    module = layer(qml.qnn.TorchLayer)
    assert_step(module, module.weights, lambda: loss(module), rows)


@pytest.mark.parametrize("approx", [None, "block-diag"])
@pytest.mark.parametrize("name", ["derivative alone", "with a boundary", "added in place"])
def test_the_fisher_metric_of_such_losses_is_that_of_their_passes(name: str, approx: Any) -> None:
    """It depends on the inputs alone: a plain loss over the same inputs has the same metric."""
    loss, rows = LOSSES[name]
    options = {"metric": "fisher", "likelihood": "gaussian", "approx": approx}
    one, two = (torch.nn.Sequential(layer(), torch.nn.Linear(2, 2).double()) for _ in range(2))
    two.load_state_dict(one.state_dict())
    opts = [fubini.QNGOptimizer(m, lr=LR, lam=LAM, **options) for m in (one, two)]
    loss(one).backward()
    two(rows).square().mean().backward()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        q.grad = p.grad
    for opt in opts:
        opt.step()
    for p, q in zip(one.parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(p, q)


# -- weights that are computed --------------------------------------------------------------------------------------


class Twofold(torch.nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return 2.0 * w


def with_scale(module: Any) -> list[Tensor]:
    parametrize.register_parametrization(module, "weights", Twofold())
    return [module.parametrizations.weights.original]


def with_weight_norm(module: Any) -> list[Tensor]:
    parametrizations.weight_norm(module, "weights")
    known = module.parametrizations.weights
    return [known.original0, known.original1]


def with_pruning(module: Any) -> list[Tensor]:
    prune.l1_unstructured(module, "weights", amount=2)
    return [module.weights_orig]


def assert_pulled_back(module: Any, leaves: Sequence[Tensor], weights_of: Any) -> None:
    """A step with J^T g J, where J are the derivatives of the weights by what they are computed from."""
    opt = optimizer(module)
    module(X).square().mean().backward()
    weights = weights_of(*leaves)
    jacobians = torch.autograd.functional.jacobian(weights_of, tuple(p.detach() for p in leaves))
    jacobian = torch.cat([j.reshape(weights.numel(), -1) for j in jacobians], dim=1)
    g = jacobian.mT @ metric(weights, X) @ jacobian
    gradient = torch.cat([p.grad.reshape(-1) for p in leaves])  # type: ignore[union-attr]
    flat = torch.cat([p.detach().reshape(-1) for p in leaves])
    still = g.diagonal() == 0  # pruned weights take the plain step
    expected = natural(flat, gradient, g)
    expected = torch.where(still, flat - LR * gradient, expected)
    opt.step()
    after = torch.cat([p.detach().reshape(-1) for p in leaves])
    torch.testing.assert_close(after, expected, rtol=1e-9, atol=1e-9)


def test_parametrised_weights() -> None:
    module = layer()
    assert_pulled_back(module, with_scale(module), lambda w: 2.0 * w)


def test_weight_normed_weights() -> None:
    module = layer()
    leaves = with_weight_norm(module)
    # torch's own norm over all but the first dimension.
    assert_pulled_back(module, leaves, lambda g, v: torch._weight_norm(v, g, 0))


def test_pruned_weights() -> None:
    module = layer()
    leaves = with_pruning(module)
    assert_pulled_back(module, leaves, lambda w: w * module.weights_mask)


def test_fast_weights_that_are_computed_from_the_layers_own() -> None:
    """One inner step by hand, as in meta-learning; the metric is pulled back through it."""
    module = layer()
    opt = optimizer(module)
    fast = module.weights.sin()
    loss = torch.func.functional_call(module, {"weights": fast}, (X,)).square().mean()
    loss.backward()
    jacobian = module.weights.detach().cos().reshape(-1).diag()
    g = jacobian @ metric(fast, X) @ jacobian
    expected = natural(module.weights, module.weights.grad, g)
    opt.step()
    torch.testing.assert_close(module.weights.detach(), expected, rtol=1e-9, atol=1e-9)


class Tied(torch.nn.Module):
    """A hypernetwork: a Linear makes the weights of a quantum layer."""

    def __init__(self) -> None:
        super().__init__()
        self.make = torch.nn.Linear(1, 6).double()
        self.layer = layer()

    def forward(self, x: Tensor) -> Any:
        made = self.make(torch.ones(1, dtype=torch.float64)).reshape(1, 2, 3)
        return torch.func.functional_call(self.layer, {"weights": made}, (x,))


def test_parameters_of_a_hypernetwork_take_the_plain_step() -> None:
    model = Tied()
    opt = optimizer(model)
    before = model.make.weight.detach().clone()
    model(X).square().mean().backward()
    opt.step()
    assert model.make.weight.grad is not None
    torch.testing.assert_close(model.make.weight.detach(), before - LR * model.make.weight.grad)


# -- what cannot be told is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"metric": "fisher", "likelihood": "gaussian"}], ids=["quantum", "fisher"]
)
def test_gradients_set_by_hand_are_refused(options: dict[str, Any]) -> None:
    module = layer()
    opt = fubini.QNGOptimizer(module, lr=LR, **options)
    before = module.weights.detach().clone()
    [module.weights.grad] = torch.autograd.grad(module(X).square().mean(), [module.weights])
    with pytest.raises(
        RuntimeError, match=r"left \.grad of the weights .* torch\.autograd\.grad does"
    ):
        opt.step()
    assert torch.equal(module.weights.detach(), before)


def test_weights_that_the_caller_computes_are_refused_and_parametrised_ones_are_not() -> None:
    model = torch.nn.Sequential(layer())
    opt = fubini.QNGOptimizer(model, lr=LR, metric="fisher", likelihood="gaussian", approx=None)
    doubled = {n: 2 * p for n, p in model.named_parameters()}
    torch.func.functional_call(model, doubled, (X,)).square().mean().backward()
    with pytest.raises(RuntimeError, match=r"functional_call.*torch\.nn\.utils\.parametrize"):
        opt.step()

    class Doubled(torch.nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return 2 * w

    torch.nn.utils.parametrize.register_parametrization(model[0], "weights", Doubled())
    opt = fubini.QNGOptimizer(model, lr=LR, metric="fisher", likelihood="gaussian", approx=None)
    [weights] = model.parameters()
    before = weights.detach().clone()
    model(X).square().mean().backward()
    opt.step()
    assert not torch.equal(weights.detach(), before)


def test_gradients_that_were_changed_after_a_backward_pass_count() -> None:
    module = layer()
    opt = optimizer(module)
    module(X).square().mean().backward()
    module.weights.grad = 0.5 * module.weights.grad
    expected = natural(module.weights, module.weights.grad, metric(module.weights, X))
    opt.step()
    torch.testing.assert_close(module.weights.detach(), expected, rtol=1e-9, atol=1e-9)


def test_gradients_of_detached_fast_weights_are_refused() -> None:
    module = layer()
    opt = fubini.QNGOptimizer(module, lr=LR)
    fast = module.weights.detach().clone().requires_grad_()
    torch.func.functional_call(module, {"weights": fast}, (X,)).square().mean().backward()
    module.weights.grad = fast.grad
    with pytest.raises(RuntimeError, match="functional_call"):
        opt.step()


def test_gradients_of_zero_without_a_pass_do_nothing() -> None:
    """As ``torch.distributed.checkpoint.state_dict`` takes them, to have a state to save or load into."""
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_optimizer_state_dict

    model = torch.nn.Sequential(torch.nn.Linear(2, 2).double(), layer())
    opt = fubini.QNGOptimizer(model, lr=LR, momentum=0.5, metric="quantum")
    before = [p.detach().clone() for p in model.parameters()]
    _, saved = get_state_dict(model, opt)
    other = fubini.QNGOptimizer(model, lr=0.7, momentum=0.5, metric="quantum")
    set_optimizer_state_dict(model, other, saved)
    assert other.param_groups[0]["lr"] == LR
    for p, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.detach(), old)
    model(X).square().mean().backward()
    other.step()


# -- functions of one sample ----------------------------------------------------------------------------------------


def one_sample(inputs: Tensor, weights: Tensor) -> Any:
    for k in range(2):
        qml.RY(inputs[k], k)
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


def one_sample_with_a_branch(inputs: Tensor, weights: Tensor) -> Any:
    for k in range(2):
        qml.RY(inputs[k] if float(inputs[k].detach()) >= 0 else 0.0 * inputs[k], k)
    qml.StronglyEntanglingLayers(weights, wires=range(2))
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


@pytest.mark.parametrize("function", [one_sample, one_sample_with_a_branch])
@pytest.mark.parametrize("kind", [fubini.QuantumLayer, qml.qnn.TorchLayer])
@pytest.mark.parametrize("rows", [1, 2, 4], ids=["one", "as many as features", "several"])
def test_a_function_of_one_sample_called_row_by_row(rows: int, kind: Any, function: Any) -> None:
    module = layer(kind, function)
    x = X[:rows]
    assert_step(
        module, module.weights, lambda: torch.stack([module(row) for row in x]).square().mean(), x
    )


def test_single_inputs_and_batches_together() -> None:
    module = layer()
    assert_step(
        module,
        module.weights,
        lambda: module(X[0]).square().sum() + module(Y).square().mean(),
        torch.cat([X[:1], Y]),
    )


# -- other parameters in the model ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"metric": "fisher", "likelihood": "bernoulli"},
        {"metric": "hybrid", "likelihood": "bernoulli"},
    ],
    ids=["quantum", "fisher", "hybrid"],
)
def test_gradients_of_parameters_that_others_move_are_not_the_optimizers(options: Any) -> None:
    """A generator with its critic behind it: the critic's gradients stay, and its weights change in between."""
    generator, critic = layer(), torch.nn.Linear(2, 1).double()
    model = torch.nn.Sequential(generator, critic)
    opt = fubini.QNGOptimizer(generator.parameters(), LR, model=model, **options)
    for _ in range(2):
        opt.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(
            model(X), torch.ones(4, 1, dtype=torch.float64)
        ).backward()
        with torch.no_grad():
            before = generator.weights.clone()
        opt.step()
        assert not torch.equal(before, generator.weights)
        with torch.no_grad():
            critic.weight.mul_(1.1)
