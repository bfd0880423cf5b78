"""Handwritten digits: Linear(64, 4) -> four-qubit circuit -> Linear(4, 10), mini-batches, held-out accuracy."""

import time
from statistics import fmean
from typing import Any

import pennylane as qml
import torch

import fubini
from fubini.demo.training import KINDS, Case, Rates, Run, Tick

QUBITS = 4
LAYERS = 3
BATCH = 64
TRAINING = 1408  # 22 batches; the other 389 images are held out
TARGET = 0.6  # of the mean loss over the last 22 batches
DEFAULT = "QNG, default call"
PENNYLANE = "Adam, TorchLayer"  # the same model as PennyLane runs it


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's 1797 images, (1797, 64), centred and scaled by the training images, and their digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.as_tensor(data.data, dtype=torch.float64)[order]
    training = images[:TRAINING]
    return (images - training.mean(0)) / training.std(), torch.as_tensor(data.target)[order]


def make_model(kind: Any = fubini.QuantumLayer) -> tuple[torch.nn.Sequential, torch.nn.Module]:
    """Return the classifier, with random weights from torch's global generator, and its quantum layer.

    Args:
        kind: :class:`fubini.QuantumLayer` or PennyLane's ``TorchLayer``.
    """

    def circuit(inputs: torch.Tensor, weights: torch.Tensor) -> Any:
        qml.AngleEmbedding(inputs, wires=range(QUBITS))
        qml.StronglyEntanglingLayers(weights, wires=range(QUBITS))
        return [qml.expval(qml.Z(wire)) for wire in range(QUBITS)]

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=QUBITS), interface="torch")
    layer = kind(qnode, {"weights": (LAYERS, QUBITS, 3)})
    model = torch.nn.Sequential(torch.nn.Linear(64, QUBITS), layer, torch.nn.Linear(QUBITS, 10))
    return model.double(), layer


def train(optimizer: str, rates: Rates, steps: int, seed: int, tick: Tick) -> Run:
    """Train the classifier.

    Args:
        optimizer: A name of the case's rates.
        rates: Learning rates of the classical layers and of the circuit; none for the natural gradient.
        steps: Number of steps.
        seed: Seed of weights and batches.
        tick: Called after every step.

    Returns:
        The run; its measure is the share of held-out images that are recognised, after every pass through the data.
    """
    images, digits = load()
    epoch = TRAINING // BATCH
    losses: list[float] = []
    measures: list[tuple[int, float]] = []
    reached: int | None = None
    moments: list[float] = []
    seconds = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        kind = qml.qnn.TorchLayer if optimizer == PENNYLANE else fubini.QuantumLayer
        model, layer = make_model(kind)
        model(images[:BATCH])  # compiles the circuit, which is no part of the training
        loss_fn = torch.nn.CrossEntropyLoss()
        opt: torch.optim.Optimizer
        if optimizer == DEFAULT:
            opt = fubini.QNGOptimizer(model, loss=loss_fn)
        else:
            groups = [{"params": model[::2].parameters(), "lr": rates[0]}]
            groups.append({"params": layer.parameters(), "lr": rates[1]})
            opt = KINDS[optimizer.partition(",")[0]](groups, lr=rates[0])
        batches: tuple[torch.Tensor, ...] = ()
        for step in range(steps):
            if step % epoch == 0:
                batches = torch.split(torch.randperm(TRAINING), BATCH)
            chosen = batches[step % epoch]
            begin = time.process_time()
            opt.zero_grad()
            loss = loss_fn(model(images[chosen]), digits[chosen])
            loss.backward()
            opt.step()
            seconds += time.process_time() - begin
            losses.append(loss.item())
            moments.append(seconds)
            if (step + 1) % epoch == 0 or step + 1 == steps:
                measures.append((step + 1, accuracy(model, images[TRAINING:], digits[TRAINING:])))
            if reached is None and step + 1 >= epoch and recent(losses) <= TARGET:
                reached = step + 1
            tick()
    return Run(optimizer, rates, losses, measures, reached, moments, seconds)


def recent(losses: list[float]) -> float:
    """Return the mean loss of the last pass through the data.

    Args:
        losses: Of the batches, at least one.
    """
    return fmean(losses[-(TRAINING // BATCH) :])


@torch.no_grad()
def accuracy(model: torch.nn.Module, images: torch.Tensor, digits: torch.Tensor) -> float:
    """Return the share of images that the model recognises.

    Args:
        model: The classifier.
        images: (count, 64).
        digits: (count,).
    """
    right = model(images).argmax(dim=1) == digits
    return float(right.double().mean())


CASE = Case(
    name="digits",
    title="Handwritten digits, hybrid classifier",
    measure="held-out accuracy",
    target="mean loss of the last 22 batches <= 0.6",
    steps=330,
    quick_steps=3,
    grid=tuple((c, q) for c in (0.01, 0.03, 0.1, 0.3, 1.0) for q in (0.03, 0.1, 0.3, 1.0)),
    rates={
        DEFAULT: (),
        "SOAP": (0.03, 0.03),
        "Adam": (0.03, 0.1),
        "SGD": (0.3, 1.0),
        PENNYLANE: (0.03, 0.1),
    },
    log_scale=False,
    train=train,
    borrowed=(PENNYLANE,),
)
