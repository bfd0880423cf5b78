"""Handwritten digits: Linear(64, 4) -> four-qubit circuit -> Linear(4, 10), mini-batches, held-out accuracy."""

import time
from typing import Any

import pennylane as qml
import torch

import fubini
from fubini.demo.training import APPROX, Case, Rates, Run, Tick

QUBITS = 4
LAYERS = 3
BATCH = 64
TRAINING = 1408  # 22 batches; the other 389 images are held out


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """Return scikit-learn's 1797 images, (1797, 64), centred and scaled by the training images, and their digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.as_tensor(data.data, dtype=torch.float64)[order]
    training = images[:TRAINING]
    return (images - training.mean(0)) / training.std(), torch.as_tensor(data.target)[order]


def make_model() -> tuple[torch.nn.Sequential, fubini.QuantumLayer]:
    """Return the classifier, with random weights from torch's global generator, and its quantum layer."""

    def circuit(inputs: torch.Tensor, weights: torch.Tensor) -> Any:
        qml.AngleEmbedding(inputs, wires=range(QUBITS))
        qml.StronglyEntanglingLayers(weights, wires=range(QUBITS))
        return [qml.expval(qml.Z(wire)) for wire in range(QUBITS)]

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=QUBITS), interface="torch")
    layer = fubini.QuantumLayer(qnode, {"weights": (LAYERS, QUBITS, 3)})
    model = torch.nn.Sequential(torch.nn.Linear(64, QUBITS), layer, torch.nn.Linear(QUBITS, 10))
    return model.double(), layer


def make_optimizers(
    name: str, rates: Rates, model: torch.nn.Module, layer: fubini.QuantumLayer
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that train the model together.

    QNG moves the circuit's weights; the classical layers around it then get Adam, the best of the others for them.

    Args:
        name: A name of OPTIMIZERS.
        rates: Learning rates of the classical layers and of the circuit.
        model: The classifier.
        layer: Its quantum layer.
    """
    quantum = list(layer.parameters())
    classical = [p for p in model.parameters() if not any(p is q for q in quantum)]
    groups = [{"params": classical, "lr": rates[0]}, {"params": quantum, "lr": rates[1]}]
    if name == "SGD":
        return [torch.optim.SGD(groups)]
    if name == "Adam":
        return [torch.optim.Adam(groups)]
    qng = fubini.QNGOptimizer(quantum, rates[1], model=model, approx=APPROX[name], lam=1e-2)
    return [qng, torch.optim.Adam(classical, lr=rates[0])]


def train(optimizer: str, rates: Rates, steps: int, seed: int, tick: Tick) -> Run:
    """Train the classifier.

    Args:
        optimizer: A name of OPTIMIZERS.
        rates: Learning rates of the classical layers and of the circuit.
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
    seconds = 0.0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model, layer = make_model()
        optimizers = make_optimizers(optimizer, rates, model, layer)
        loss_fn = torch.nn.CrossEntropyLoss()
        batches: tuple[torch.Tensor, ...] = ()
        for step in range(steps):
            if step % epoch == 0:
                batches = torch.split(torch.randperm(TRAINING), BATCH)
            chosen = batches[step % epoch]
            begin = time.perf_counter()
            for opt in optimizers:
                opt.zero_grad()
            loss = loss_fn(model(images[chosen]), digits[chosen])
            loss.backward()
            for opt in optimizers:
                opt.step()
            seconds += time.perf_counter() - begin
            losses.append(loss.item())
            if (step + 1) % epoch == 0 or step + 1 == steps:
                measures.append((step + 1, accuracy(model, images[TRAINING:], digits[TRAINING:])))
            tick()
    return Run(optimizer, rates, losses, measures, None, seconds)


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
    target="",
    steps=330,
    quick_steps=3,
    rate_names=("classical", "circuit"),
    grid=tuple((c, q) for c in (0.01, 0.03, 0.1, 0.3, 1.0) for q in (0.03, 0.1, 0.3, 1.0)),
    rates={
        "SGD": (0.3, 1.0),
        "Adam": (0.03, 0.1),
        "QNG diag": (0.03, 0.03),
        "QNG block-diag": (0.03, 0.1),
    },
    log_scale=False,
    train=train,
)
