"""Handwritten digits: the demo's hybrid classifier, mini-batches of 64, cross-entropy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import fubini
from fubini.demo.digits import BATCH, TRAINING, accuracy, load, make_model
from problems.race import Contender, Settings, levenberg_marquardt, lrs


class Digits:
    """One classifier and its batches.

    Args:
        seed: Of weights and batches.
    """

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.images, self.digits = load()
        self.model, self.layer = make_model()
        self.parameters = list(self.model.parameters())
        self._random = torch.Generator().manual_seed(seed)
        self._batches: list[torch.Tensor] = []
        self._criterion = torch.nn.CrossEntropyLoss()

    def next_batch(self) -> None:
        """Take the next 64 images of a random order."""
        if not self._batches:
            order = torch.randperm(TRAINING, generator=self._random)
            self._batches = list(order.split(BATCH))
        self._chosen = self._batches.pop()

    def loss_and_gradient(self) -> torch.Tensor:
        """Return the loss of the batch after writing the gradients."""
        self.model.zero_grad()
        loss = self._criterion(self.model(self.images[self._chosen]), self.digits[self._chosen])
        loss.backward()
        return loss

    def qng(self, settings: Settings) -> tuple[Any, Callable[[], Any]]:
        """Return our optimizer; for ``metric="quantum"``, ``classical`` is the lr of Adam for the other layers."""
        options = levenberg_marquardt(settings)
        if options.get("metric") != "quantum":
            options.setdefault("loss" if "metric" not in options else "likelihood", "categorical")
            opt: Any = fubini.QNGOptimizer(self.model, **options)
            return opt, self.loss_and_gradient
        rest = [p for p in self.parameters if p is not self.layer.weights]
        adam = torch.optim.Adam(rest, lr=options.pop("classical"))
        qng = fubini.QNGOptimizer([self.layer.weights], model=self.model, **options)
        return _Both(qng, adam), self.loss_and_gradient

    def accuracy(self) -> float:
        """Share of the held-out images that are recognised."""
        return accuracy(self.model, self.images[TRAINING:], self.digits[TRAINING:])


class _Both:
    """Two optimizers that share one evaluation of the closure."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self._optimizers = optimizers

    def step(self, closure: Callable[[], Any]) -> Any:
        loss = closure()
        for opt in self._optimizers:
            opt.step()
        return loss


CONTENDERS = (
    Contender("SGD", "sgd", lrs(0.1, 0.3, 1.0, 3.0)),
    Contender("Adam", "adam", lrs(0.01, 0.03, 0.1, 0.3)),
    Contender("L-BFGS (torch)", "lbfgs", lrs(0.1, 0.3, 1.0, max_iter=4)),
    Contender("QNG, loss=", "qng", ({},)),
    Contender(
        "QNG quantum + Adam",
        "qng",
        lrs(0.03, 0.1, 0.3, metric="quantum", approx=None, lam=1e-2, classical=0.03),
    ),
    Contender(
        "Fisher block-diag", "qng", lrs(0.03, 0.1, 0.3, metric="fisher", lam=1e-2, averaging=0.9)
    ),
    Contender(
        "hybrid block-diag", "qng", lrs(0.03, 0.1, 0.3, metric="hybrid", lam=1e-2, averaging=0.9)
    ),
)
