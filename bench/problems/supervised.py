"""Supervised problems of ``bench/training.py``: data, hybrid model, loss, budget and target, all fixed before the runs.

The re-uploading circuit R(wires, layers, features, outputs): ``layers`` times [RY(inputs[i mod features]) on every wire i,
Rot on every wire, a ring of CNOTs], then Rot; <Z> on the first wires. Data are scikit-learn's own or made from fixed seeds;
the seed of a run draws weights and batches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pennylane as qml
import torch
from torch import Tensor, nn

import fubini
from fubini.demo import digits

Data = tuple[Tensor, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Problem:
    """A model to be trained.

    Attributes:
        name: Of the problem.
        data: Returns training inputs, training targets, held-out inputs, held-out targets.
        model: Returns a fresh model, with weights from torch's global generator.
        loss: The module that computes the loss.
        steps: Budget.
        target: Loss over all training data that counts as solved.
        batch: Inputs in a step; None: all of them in every step.
        every: The loss over all data is looked at after every so many steps.
    """

    name: str
    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    loss: nn.Module
    steps: int
    target: float
    batch: int | None = 32
    every: int = 5

    def fresh(self, seed: int) -> nn.Module:
        """Return the model of a run.

        Args:
            seed: Of the run.
        """
        torch.manual_seed(seed)
        return self.model()

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of a run, without end: random orders of the data, cut into whole batches.

        Args:
            seed: Of the run.
        """
        x, y, _, _ = self.data()
        if self.batch is None:
            while True:
                yield x, y
        random = torch.Generator().manual_seed(seed)
        while True:
            for chosen in torch.randperm(len(x), generator=random).split(self.batch):
                if len(chosen) == self.batch:
                    yield x[chosen], y[chosen]

    @torch.no_grad()
    def training_loss(self, model: nn.Module) -> float:
        """Return the loss over all training data.

        Args:
            model: The model.
        """
        x, y, _, _ = self.data()
        return float(self.loss(model(x), y))

    @torch.no_grad()
    def held_out(self, model: nn.Module) -> float:
        """Return the accuracy on held-out data, or the loss where there are no classes.

        Args:
            model: The model.
        """
        _, _, x, y = self.data()
        found = model(x)
        if isinstance(self.loss, nn.CrossEntropyLoss):
            return float((found.argmax(1) == y).double().mean())
        if isinstance(self.loss, nn.BCEWithLogitsLoss):
            return float(((found > 0) == (y > 0.5)).double().mean())
        return float(self.loss(found, y))


def reuploading(wires: int, layers: int, features: int, outputs: int) -> fubini.QuantumLayer:
    """Return the layer R(wires, layers, features, outputs), with uniform weights in [0, 2 pi).

    Args:
        wires: Of the circuit.
        layers: How often the inputs enter.
        features: Of an input.
        outputs: Expectation values.
    """

    @qml.qnode(qml.device("default.qubit", wires=wires))
    def circuit(inputs: Any, weights: Any) -> Any:
        for layer in range(layers + 1):
            if layer:
                for wire in range(wires):
                    qml.CNOT([wire, (wire + 1) % wires])
            for wire in range(wires):
                if layer < layers:
                    qml.RY(inputs[..., wire % features], wire)
                qml.Rot(*(weights[layer, wire, k] for k in range(3)), wire)
        return [qml.expval(qml.Z(wire)) for wire in range(outputs)]

    return fubini.QuantumLayer(circuit, {"weights": (layers + 1, wires, 3)})


def _sequence(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules).double()


def _split(x: Any, y: Any, count: int, seed: int, stratify: Any = None) -> Data:
    """Training and held-out part; inputs standardised by the training part."""
    from sklearn.model_selection import train_test_split

    parts = train_test_split(x, y, train_size=count, random_state=seed, stratify=stratify)
    mean, deviation = parts[0].mean(0), parts[0].std(0)
    deviation = np.where(deviation > 0, deviation, 1.0)  # features that are always zero
    first, second = ((part - mean) / deviation for part in parts[:2])
    a, b, c, d = (torch.as_tensor(np.asarray(part)) for part in (first, parts[2], second, parts[3]))
    return a.double(), b, c.double(), d


def _column(data: Data) -> Data:
    return data[0], data[1].double()[:, None], data[2], data[3].double()[:, None]


@functools.cache
def _moons() -> Data:
    from sklearn.datasets import make_moons

    return _column(_split(*make_moons(400, noise=0.2, random_state=5), 200, 5))


@functools.cache
def _wine() -> Data:
    from sklearn.datasets import load_wine
    from sklearn.decomposition import PCA

    found = load_wine()
    x, y, x_out, y_out = _split(found.data, found.target, 128, 3, found.target)
    axes = PCA(8).fit(x.numpy())
    squeezed = [
        math.pi / 2 * torch.tanh(torch.as_tensor(axes.transform(part.numpy())) / 2)
        for part in (x, x_out)
    ]
    return squeezed[0], y, squeezed[1], y_out


@functools.cache
def _diabetes() -> Data:
    from sklearn.datasets import load_diabetes

    found = load_diabetes()
    target = (found.target - found.target.mean()) / found.target.std()
    return _column(_split(found.data, target, 332, 3))


@functools.cache
def _cancer() -> Data:
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    return _column(_split(found.data, found.target, 400, 3, found.target))


@functools.cache
def _fourier() -> Data:
    """A random real Fourier series of degree 4, with values in [-1, 1]."""
    random = np.random.default_rng(11)
    cosines, sines = random.normal(size=(2, 4))
    x = torch.linspace(-math.pi, math.pi, 61, dtype=torch.float64)[:-1, None]
    k = torch.arange(1, 5)
    y = (k * x).cos() @ torch.as_tensor(cosines) + (k * x).sin() @ torch.as_tensor(sines)
    y = (y / y.abs().max())[:, None]
    return x, y, x, y


@functools.cache
def _dressed() -> Data:
    """The digits 5 to 9 as 32 features of a small convolutional network that was trained on 0 to 4 and is frozen."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.as_tensor(found.images).double()[:, None] / 16
    labels = torch.as_tensor(found.target)
    low, high = images[labels < 5], images[labels >= 5]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = _sequence(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(8, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, 32),
            nn.ReLU(),
        )
        head = nn.Linear(32, 5).double()
        adam = torch.optim.Adam([*features.parameters(), *head.parameters()], lr=0.01)
        for _ in range(40):
            adam.zero_grad()
            nn.functional.cross_entropy(head(features(low)), labels[labels < 5]).backward()
            adam.step()
    with torch.no_grad():
        x = features(high)
    target = labels[labels >= 5] - 5
    return _split(x.numpy(), target.numpy(), 600, 3, target.numpy())


def _dressed_model() -> nn.Module:
    """Transfer learning with a dressed circuit: Mari et al. 2020, arXiv:1912.08278."""

    @qml.qnode(qml.device("default.qubit", wires=4))
    def circuit(inputs: Any, weights: Any) -> Any:
        for wire in range(4):
            qml.Hadamard(wire)
            qml.RY(inputs[..., wire], wire)
        for layer in range(4):
            for pair in ([0, 1], [2, 3], [1, 2]):
                qml.CNOT(pair)
            for wire in range(4):
                qml.RY(weights[layer, wire], wire)
        return [qml.expval(qml.Z(wire)) for wire in range(4)]

    layer = fubini.QuantumLayer(circuit, {"weights": (4, 4)})
    return _sequence(nn.Linear(32, 4), _Angles(), layer, nn.Linear(4, 5))


class _Angles(nn.Module):
    """Features to angles in (-pi/2, pi/2)."""

    def forward(self, x: Tensor) -> Tensor:
        return math.pi / 2 * x.tanh()


@functools.cache
def _counts() -> Data:
    """Numbers of events whose rate depends smoothly on two variables."""
    random = np.random.default_rng(7)
    x = random.uniform(-math.pi, math.pi, size=(500, 2))
    rate = np.exp(1.0 + np.sin(x[:, 0]) + 0.7 * np.cos(x[:, 0] - 2 * x[:, 1]))
    x, y = torch.as_tensor(x), torch.as_tensor(random.poisson(rate)).double()[:, None]
    return x[:300], y[:300], x[300:], y[300:]


@functools.cache
def _friedman() -> Data:
    """Friedman's first regression problem, standardised."""
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(600, noise=0.5, random_state=3)
    return _column(_split(x, (y - y.mean()) / y.std(), 400, 3))


class _TwoCircuits(nn.Module):
    """Two quantum layers side by side, behind and before one classical layer each."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(10, 6)
        self.left = reuploading(3, 2, 3, 3)
        self.right = reuploading(3, 2, 3, 3)
        self.last = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        angles = self.first(x)
        both = torch.cat([self.left(angles[:, :3]), self.right(angles[:, 3:])], 1)
        return self.last(both)


@functools.cache
def _digits() -> Data:
    images, labels = digits.load()
    cut = digits.TRAINING
    return images[:cut], labels[:cut], images[cut:], labels[cut:]


PROBLEMS = (
    Problem(
        "moons",
        _moons,
        lambda: _sequence(reuploading(6, 3, 2, 1), nn.Linear(1, 1)),
        nn.BCEWithLogitsLoss(),
        200,
        0.16,
    ),
    Problem(
        "wine",
        _wine,
        lambda: _sequence(reuploading(8, 2, 8, 3), nn.Linear(3, 3)),
        nn.CrossEntropyLoss(),
        150,
        0.2,
    ),
    Problem(
        "diabetes",
        _diabetes,
        lambda: _sequence(nn.Linear(10, 6), nn.Tanh(), reuploading(6, 1, 6, 6), nn.Linear(6, 1)),
        nn.MSELoss(),
        200,
        0.38,
    ),
    Problem("dressed", _dressed, _dressed_model, nn.CrossEntropyLoss(), 200, 0.16),
    Problem(
        "fourier",
        _fourier,
        lambda: _sequence(reuploading(4, 2, 1, 1), nn.Linear(1, 1)),
        nn.MSELoss(),
        300,
        1e-3,
        batch=None,
        every=1,
    ),
    Problem(
        "cancer",
        _cancer,
        lambda: _sequence(nn.Linear(30, 4), nn.Tanh(), reuploading(4, 2, 4, 2), nn.Linear(2, 1)),
        nn.BCEWithLogitsLoss(),
        150,
        0.05,
    ),
    Problem(
        "counts",
        _counts,
        lambda: _sequence(reuploading(4, 3, 2, 4), nn.Linear(4, 1)),
        nn.PoissonNLLLoss(),
        200,
        -2.93,
    ),
    Problem("two circuits", _friedman, lambda: _TwoCircuits().double(), nn.MSELoss(), 200, 0.1),
    Problem(
        "digits",
        _digits,
        lambda: digits.make_model()[0],
        nn.CrossEntropyLoss(),
        220,
        0.5,
        batch=digits.BATCH,
    ),
)
