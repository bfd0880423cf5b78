"""Losses of PyTorch for likelihoods: the metric is the curvature of that very loss, with all of its options.

The reference is the generalised Gauss-Newton matrix by automatic differentiation: the Hessian of PyTorch's own loss by the
outputs, at the labels of the data, between explicit Jacobians.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import fubini
from fisher_cases import double_precision
from fubini.fisher.blocks import fisher_blocks
from fubini.fisher.losses import as_likelihood
from models import hybrid

Tensor = torch.Tensor
N, C = 7, 4
LR, LAM = 0.2, 1e-2

_double = double_precision

CLASS_WEIGHT = torch.tensor([0.2, 1.0, 3.0, 0.7], dtype=torch.float64)
ZERO_WEIGHT = torch.tensor([0.0, 1.0, 3.0, 0.7], dtype=torch.float64)
POS_WEIGHT = torch.tensor([0.3, 2.0, 1.0, 5.0], dtype=torch.float64)
ELEMENTS = torch.linspace(0.1, 2.0, N * C, dtype=torch.float64).reshape(N, C)

LABELS = torch.tensor([0, 1, 3, 2, 2, 0, 1])
IGNORING = torch.tensor([0, -100, 3, 2, -100, 0, 1])
EVENTS = torch.tensor([[1, 0, 0, 1]] * 4 + [[0, 1, 1, 0]] * 3).double()
SOFT = torch.softmax(torch.linspace(-2, 2, N * C, dtype=torch.float64).sin().reshape(N, C), -1)

CASES: dict[str, tuple[Callable[[str], nn.Module], Tensor]] = {
    "cross entropy": (lambda r: nn.CrossEntropyLoss(reduction=r), LABELS),
    "class weights": (lambda r: nn.CrossEntropyLoss(CLASS_WEIGHT, reduction=r), LABELS),
    "a class without weight": (lambda r: nn.CrossEntropyLoss(ZERO_WEIGHT, reduction=r), LABELS),
    "label smoothing": (lambda r: nn.CrossEntropyLoss(label_smoothing=0.3, reduction=r), LABELS),
    "both": (
        lambda r: nn.CrossEntropyLoss(CLASS_WEIGHT, label_smoothing=0.3, reduction=r),
        LABELS,
    ),
    "ignored labels": (lambda r: nn.CrossEntropyLoss(reduction=r), IGNORING),
    "another ignored label": (lambda r: nn.CrossEntropyLoss(ignore_index=2, reduction=r), LABELS),
    "all three": (
        lambda r: nn.CrossEntropyLoss(
            CLASS_WEIGHT, label_smoothing=0.1, ignore_index=2, reduction=r
        ),
        LABELS,
    ),
    "probabilities": (lambda r: nn.CrossEntropyLoss(reduction=r), SOFT),
    "nll": (lambda r: nn.NLLLoss(reduction=r), LABELS),
    "nll with weights": (lambda r: nn.NLLLoss(CLASS_WEIGHT, reduction=r), IGNORING),
    "events": (lambda r: nn.BCEWithLogitsLoss(reduction=r), EVENTS),
    "events with weights": (lambda r: nn.BCEWithLogitsLoss(ELEMENTS, reduction=r), EVENTS),
    "weights of events": (
        lambda r: nn.BCEWithLogitsLoss(pos_weight=POS_WEIGHT, reduction=r),
        EVENTS,
    ),
    "both weights, probabilities": (
        lambda r: nn.BCEWithLogitsLoss(ELEMENTS[:, :1], pos_weight=POS_WEIGHT, reduction=r),
        SOFT,
    ),
    "squares": (lambda r: nn.MSELoss(reduction=r), SOFT),
    "counts": (lambda r: nn.PoissonNLLLoss(reduction=r), EVENTS),
    "counts, all terms": (lambda r: nn.PoissonNLLLoss(full=True, reduction=r), 3 * EVENTS),
}
#: Whose labels no gradient tells.
NEEDS_TARGETS = {
    "probabilities and weights": (lambda r: nn.CrossEntropyLoss(CLASS_WEIGHT, reduction=r), SOFT)
}


def model_for(loss: nn.Module, chain: bool) -> nn.Module:
    torch.manual_seed(2)
    layers: list[nn.Module] = [nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, C)]
    if isinstance(loss, nn.NLLLoss):
        layers.append(nn.LogSoftmax(-1))
    elif not chain:
        layers.append(nn.Unflatten(1, (C,)))  # not known to chains
    return nn.Sequential(*layers)


def flat(values: Any) -> Tensor:
    return torch.cat([v.detach().reshape(-1) for v in values])


def gauss_newton(model: nn.Module, x: Tensor, loss: nn.Module, y: Tensor) -> Tensor:
    """J^T H J; of NLLLoss by the logits, of which log-probabilities are no linear function."""
    head: Callable[[Tensor], Tensor] = lambda f: f
    if isinstance(loss, nn.NLLLoss):
        model, head = model[:-1], model[-1]
    named = dict(model.named_parameters())

    def outputs(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(model, values, (x,))

    with sdpa_kernel(SDPBackend.MATH):
        j = torch.func.jacrev(outputs)({n: p.detach() for n, p in named.items()})
    f = outputs(named).detach()
    rows = torch.cat([part.reshape(f.numel(), -1) for part in j.values()], 1)
    hessian = torch.func.hessian(lambda v: loss(head(v.reshape(f.shape)), y))(f.reshape(-1))
    return rows.mT @ hessian @ rows


@pytest.mark.parametrize("chain", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", [*CASES, *NEEDS_TARGETS])
def test_the_metric_is_the_curvature_of_the_loss(name: str, reduction: str, chain: bool) -> None:
    make, y = {**CASES, **NEEDS_TARGETS}[name]
    loss = make(reduction)
    model, x = model_for(loss, chain), torch.randn(N, 3)
    parameters = list(model.parameters())
    expected = gauss_newton(model, x, loss, y)
    (joint,) = fisher_blocks(
        model, (x,), {}, parameters=parameters, likelihood=loss, approx=None, targets=y
    )
    assert_close(joint.dense(), expected, rtol=1e-10, atol=1e-12)
    v = torch.randn(len(expected))
    blocks = fisher_blocks(
        model, (x,), {}, parameters=parameters, likelihood=loss, approx="block-diag", targets=y
    )
    assert_close(blocks[0].dense(), expected[:20, :20], rtol=1e-10, atol=1e-12)
    assert_close(joint.product(v), expected @ v, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("approx", [None, "block-diag"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CASES)
def test_a_step_infers_the_labels(name: str, reduction: str, approx: Any) -> None:
    make, y = CASES[name]
    loss = make(reduction)
    model, x = model_for(loss, True), torch.randn(N, 3)
    opt = fubini.QNGOptimizer(
        model, lr=LR, lam=LAM, metric="fisher", likelihood=loss, approx=approx
    )
    matrix = gauss_newton(model, x, loss, y)
    if approx is not None:
        matrix = torch.block_diag(matrix[:20, :20], matrix[20:, 20:])
    loss(model(x), y).backward()
    start, gradient = flat(model.parameters()), flat(p.grad for p in model.parameters())
    opt.step()
    direction = torch.linalg.solve(matrix + LAM * torch.eye(len(start)), gradient)
    assert_close(start - flat(model.parameters()), LR * direction, rtol=1e-8, atol=1e-10)


def test_labels_that_cannot_be_inferred_are_asked_for() -> None:
    make, y = NEEDS_TARGETS["probabilities and weights"]
    loss = make("mean")
    for given in (None, y):
        model, x = model_for(loss, True), torch.randn(N, 3)
        opt = fubini.QNGOptimizer(
            model, lr=LR, lam=LAM, metric="fisher", likelihood=loss, approx=None
        )
        matrix = gauss_newton(model, x, loss, y)
        loss(model(x), y).backward()
        start, gradient = flat(model.parameters()), flat(p.grad for p in model.parameters())
        if given is None:
            with pytest.raises(ValueError, match=r"targets: .*infer the labels.*step\(targets"):
                opt.step()
            assert torch.equal(start, flat(model.parameters()))
            continue
        opt.step(targets=given)
        direction = torch.linalg.solve(matrix + LAM * torch.eye(len(start)), gradient)
        assert_close(start - flat(model.parameters()), LR * direction, rtol=1e-8, atol=1e-10)


# Weights of elements belong to one batch.
@pytest.mark.parametrize(
    "name", [n for n in CASES if n not in ("events with weights", "both weights, probabilities")]
)
def test_several_passes(name: str) -> None:
    """Two passes with the sum are one pass over all data."""
    make, y = CASES[name]
    loss, steps = make("sum"), []
    x = torch.randn(N, 3)
    for parts in ([slice(0, N)], [slice(0, 3), slice(3, N)]):
        model = model_for(loss, False)
        opt = fubini.QNGOptimizer(model, LR, metric="fisher", likelihood=loss, approx=None)
        for part in parts:
            loss(model(x[part]), y[part]).backward()
        opt.step()
        steps.append(flat(model.parameters()))
    assert_close(steps[0], steps[1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_the_empirical_fisher_has_the_gradients_of_the_terms(name: str) -> None:
    make, y = CASES[name]
    loss = make("sum")
    model, x = model_for(loss, False), torch.randn(N, 3)
    parameters = list(model.parameters())
    f = model(x)
    (g,) = torch.autograd.grad(loss(f, y), f, retain_graph=True)
    rows = []
    for n in range(N):  # the sum of a datum's terms
        found = torch.autograd.grad(f[n], parameters, g[n], retain_graph=True)
        rows.append(flat(found))
    expected = torch.stack(rows).mT @ torch.stack(rows)
    (found_block,) = fisher_blocks(
        model, (x,), {}, parameters=parameters, likelihood=loss, approx=None, targets=y,
        fisher="empirical",
    )  # fmt: skip
    assert_close(found_block.dense(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["class weights", "weights of events", "counts", "nll"])
def test_drawn_labels_have_the_same_expectation(name: str) -> None:
    make, y = CASES[name]
    loss = make("mean")
    model, x = model_for(loss, False), torch.randn(N, 3)
    options: dict[str, Any] = {
        "parameters": list(model.parameters()),
        "likelihood": loss,
        "approx": None,
        "targets": y,
    }
    (exact,) = fisher_blocks(model, (x,), {}, **options)
    (drawn,) = fisher_blocks(model, (x,), {}, samples=4000, **options)
    scale = exact.dense().abs().max()
    # 1 / sqrt(4000) is 0.016; five times that.
    assert float((drawn.dense() - exact.dense()).abs().max()) < 0.08 * float(scale)


def test_means_of_counts_that_are_outputs() -> None:
    """No canonical parameter: the Fisher matrix has the expectation over labels, 1 / f."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Softplus())
    x, parameters = torch.randn(N, 3), list(model.parameters())
    f = model(x)
    rows = torch.stack(
        [flat(torch.autograd.grad(v, parameters, retain_graph=True)) for v in f.reshape(-1)]
    )
    weights = 1.0 / (f.detach().reshape(-1) + 1e-8) / f.numel()
    (found,) = fisher_blocks(
        model, (x,), {}, parameters=parameters, approx=None,
        likelihood=nn.PoissonNLLLoss(log_input=False),
    )  # fmt: skip
    assert_close(found.dense(), rows.mT @ (weights[:, None] * rows), rtol=1e-10, atol=1e-12)
    with pytest.raises(ValueError, match=r"likelihood: expected outputs above 0.*Softplus"):
        fisher_blocks(
            model[:-1], (x,), {}, parameters=parameters, approx=None,
            likelihood=nn.PoissonNLLLoss(log_input=False),
        )  # fmt: skip


@pytest.mark.parametrize("shape", [(N, C, 3), (N, C, 2, 3)])
def test_terms_in_space(shape: tuple[int, ...]) -> None:
    """Segmentation: a label for every place, some ignored, with weights."""
    torch.manual_seed(0)
    inner = int(torch.Size(shape[1:]).numel())
    model = nn.Sequential(nn.Linear(3, inner), nn.Unflatten(1, shape[1:]))
    x, y = torch.randn(N, 3), torch.randint(C, (N, *shape[2:]))
    y.view(-1)[::4] = -100
    loss = nn.CrossEntropyLoss(CLASS_WEIGHT, label_smoothing=0.1)
    parameters = list(model.parameters())
    rows = torch.autograd.functional.jacobian(
        lambda w, b: (x @ w.T + b).reshape(-1), tuple(p.detach() for p in parameters)
    )
    j = torch.cat([r.reshape(N * inner, -1) for r in rows], 1)
    f = model(x).detach()
    hessian = torch.func.hessian(lambda v: loss(v.reshape(shape), y))(f.reshape(-1))
    opt = fubini.QNGOptimizer(model, LR, lam=LAM, metric="fisher", likelihood=loss, approx=None)
    loss(model(x), y).backward()
    start, gradient = flat(parameters), flat(p.grad for p in parameters)
    opt.step()
    matrix = j.mT @ hessian @ j + LAM * torch.eye(len(start))
    assert_close(start - flat(parameters), LR * torch.linalg.solve(matrix, gradient))


@pytest.mark.parametrize("metric", ["fisher", "hybrid"])
def test_sums_and_means_make_the_same_step_in_a_hybrid_model(metric: str) -> None:
    """The gradient and the metric of a sum are N times those of the mean."""
    x, y, steps = torch.rand(6, 3), torch.rand(6, 1), []
    for reduction in ("mean", "sum"):
        torch.manual_seed(4)
        model, loss = hybrid(), nn.MSELoss(reduction=reduction)
        lam = 1e-3 * (6 if reduction == "sum" else 1)
        opt = fubini.QNGOptimizer(model, LR, metric=metric, likelihood=loss, lam=lam)
        loss(model(x), y).backward()
        opt.step()
        steps.append(flat(model.parameters()))
    assert_close(steps[0], steps[1], rtol=1e-9, atol=1e-11)


class Focal(nn.CrossEntropyLoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) ** 2


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (nn.L1Loss(), TypeError, "got L1Loss; its curvature is zero"),
        (nn.HuberLoss(), TypeError, "got HuberLoss; likelihood='gaussian'"),
        (nn.SmoothL1Loss(), TypeError, "got SmoothL1Loss; likelihood='gaussian'"),
        (nn.BCELoss(), TypeError, "got BCELoss; leave out the model's last Sigmoid"),
        (nn.GaussianNLLLoss(), TypeError, "got GaussianNLLLoss; it does not say the variances"),
        (nn.KLDivLoss(), TypeError, "got KLDivLoss; use CrossEntropyLoss"),
        (nn.CTCLoss(), TypeError, "got CTCLoss; or an object"),
        (Focal(), TypeError, "got Focal"),
        (nn.MSELoss(reduction="none"), ValueError, "MSELoss with reduction='mean' or 'sum'"),
        (nn.CrossEntropyLoss, ValueError, "likelihood: expected 'categorical'"),
        (nn.functional.cross_entropy, ValueError, "the loss itself, such as"),
        ("mse", ValueError, "likelihood: expected 'categorical'"),
    ],
)
def test_losses_without_a_likelihood_are_refused(loss: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        as_likelihood(loss)
    with pytest.raises(error, match=message):
        fubini.QNGOptimizer(nn.Linear(2, 2), metric="fisher", likelihood=loss)


def test_outputs_that_do_not_fit_the_loss_are_refused() -> None:
    model, x = nn.Linear(3, C), torch.randn(N, 3)
    parameters = list(model.parameters())
    for loss, message in [
        (nn.NLLLoss(), "logarithms of probabilities"),
        (nn.CrossEntropyLoss(torch.ones(3)), "expected weights of the 4 classes.*got 3"),
        (nn.BCEWithLogitsLoss(pos_weight=torch.ones(3)), "a pos_weight that broadcasts"),
        (nn.CrossEntropyLoss(CLASS_WEIGHT), r"targets: expected the labels.*step\(targets"),
        (nn.BCEWithLogitsLoss(pos_weight=POS_WEIGHT), r"targets: expected the labels"),
    ]:
        with pytest.raises(ValueError, match=message):
            fisher_blocks(
                model, (x,), {}, parameters=parameters, likelihood=loss, approx="block-diag"
            )
