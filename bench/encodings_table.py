"""Ways to encode data that are more than rotations by features: a layer's training step beside TorchLayer.

Every circuit has ``layers`` layers of RY and RZ by weights and a ring of CNOTs. TorchLayer runs with backprop on
default.qubit, which broadcasts the batch and is the faster of PennyLane's devices here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pennylane as qml
import torch

import common
import fubini

SIZES = [(4, 3, 32), (8, 6, 32)]
TERMS = 300


def _rotations(weights: Any, wires: int) -> None:
    for k in range(wires):
        qml.RY(weights[k, 0], k)
        qml.RZ(weights[k, 1], k)
    for k in range(wires):
        qml.CNOT([k, (k + 1) % wires])


def _affine(inputs: Any, weights: Any, wires: int) -> None:
    qml.AngleEmbedding(inputs, wires=range(wires))
    for layer in weights:
        _rotations(layer, wires)


def _reuploading(inputs: Any, weights: Any, wires: int) -> None:
    for layer in weights:
        for k in range(wires):
            qml.RY(layer[k, 0] * inputs[..., k] + layer[k, 1], k)
            qml.RZ(layer[k, 2], k)
        for k in range(wires):
            qml.CNOT([k, (k + 1) % wires])


def _arctan(inputs: Any, weights: Any, wires: int) -> None:
    for k in range(wires):
        qml.RY(torch.arctan(inputs[..., k]), k)
        qml.RZ(torch.arctan(inputs[..., k] ** 2), k)
    for layer in weights:
        _rotations(layer, wires)


def _zz_feature_map(inputs: Any, weights: Any, wires: int) -> None:
    for k in range(wires):
        qml.Hadamard(k)
        qml.RZ(2 * inputs[..., k], k)
    for k in range(wires - 1):
        qml.CNOT([k, k + 1])
        qml.RZ(2 * (torch.pi - inputs[..., k]) * (torch.pi - inputs[..., k + 1]), k + 1)
        qml.CNOT([k, k + 1])
    for layer in weights:
        _rotations(layer, wires)


def _amplitudes(inputs: Any, weights: Any, wires: int) -> None:
    qml.AmplitudeEmbedding(inputs, wires=range(wires), normalize=True)
    for layer in weights:
        _rotations(layer, wires)


def _hamiltonian(wires: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    letters = torch.randint(0, 4, (TERMS, wires), generator=generator).tolist()
    words = [qml.pauli.PauliWord({k: "IXYZ"[p] for k, p in enumerate(w) if p}) for w in letters]
    coefficients = torch.rand(TERMS, generator=generator, dtype=torch.float64).tolist()
    return qml.Hamiltonian(coefficients, [w.operation(wire_order=range(wires)) for w in words])


#: Name -> what prepares the state, and the goal as a multiple of TorchLayer's time.
ENCODINGS: dict[str, tuple[Callable[[Any, Any, int], None], float]] = {
    "affine": (_affine, 100),
    "re-uploading w x + b": (_reuploading, 100),
    "arctan": (_arctan, 100),
    "ZZ feature map": (_zz_feature_map, 100),
    "Linear, AmplitudeEmbedding": (_amplitudes, 30),
    f"captured Hamiltonian of {TERMS} terms": (_affine, 100),
}


def qnode(name: str, wires: int) -> Any:
    """Return the QNode of an encoding."""
    prepare = ENCODINGS[name][0]
    if name.startswith("captured"):
        observable = _hamiltonian(wires)

        def energy(inputs: Any, weights: Any) -> Any:
            prepare(inputs, weights, wires)
            return qml.expval(observable)

        function: Any = energy
    else:

        def circuit(inputs: Any, weights: Any) -> Any:
            prepare(inputs, weights, wires)
            return [qml.expval(qml.Z(k)) for k in range(wires)]

        function = circuit
    return qml.QNode(function, qml.device("default.qubit", wires=wires), diff_method="backprop")


def _step(model: torch.nn.Module, x: torch.Tensor) -> Callable[[], Any]:
    parameters = list(model.parameters())

    def step() -> None:
        for parameter in parameters:
            parameter.grad = None
        x.grad = None
        model(x).sum().backward()

    return step


def run(quick: bool, threads: int) -> list[dict[str, Any]]:
    """Run all encodings at all sizes and print the table.

    Args:
        quick: Only the small size, for a second each.
        threads: As it is printed.

    Returns:
        The results.
    """
    results: list[dict[str, Any]] = []
    rows = []
    for wires, layers, count in SIZES[:1] if quick else SIZES:
        affine: float | None = None
        for name, (_, goal) in ENCODINGS.items():
            torch.manual_seed(0)
            shape = (layers, wires, 3)
            weights = torch.rand(shape, dtype=torch.float64)
            behind = name.startswith("Linear")
            x = torch.rand(count, wires, dtype=torch.float64, requires_grad=True)
            front = torch.nn.Linear(wires, 2**wires, dtype=torch.float64)
            models = []
            for kind in (fubini.QuantumLayer, qml.qnn.TorchLayer):
                layer = kind(qnode(name, wires), {"weights": shape}, {"weights": weights})
                models.append(torch.nn.Sequential(front, layer) if behind else layer)
            torch.testing.assert_close(models[0](x), models[1](x), rtol=0, atol=1e-9)
            calls = {n: _step(m, x) for n, m in zip(("fubini", "TorchLayer"), models, strict=True)}
            timings = common.interleaved(
                calls, seconds=1.0 if quick else 6.0, rounds=40, slice_s=2e-2
            )
            ours, theirs = (timings[n].as_dict() for n in ("fubini", "TorchLayer"))
            affine = affine or ours["min_s"]
            ratio = theirs["min_s"] / ours["min_s"]
            median = theirs["median_s"] / ours["median_s"]
            layer = models[0][1] if behind else models[0]
            results.append(
                {
                    "case": name,
                    "qubits": wires,
                    "layers": layers,
                    "inputs": count,
                    "fubini": ours,
                    "TorchLayer": theirs,
                    "ratio": [ratio, median],
                    "goal": goal,
                    "to_affine": ours["min_s"] / affine,
                    "explain": layer.explain(),
                }
            )
            rows.append(
                [
                    f"({wires}, {layers}, {count}) {name}",
                    f"{ours['min_s'] * 1e3:.3g} / {ours['median_s'] * 1e3:.3g}",
                    f"{theirs['min_s'] * 1e3:.3g} / {theirs['median_s'] * 1e3:.3g}",
                    f"{ratio:.0f} / {median:.0f} (goal {goal:g} {'+' if ratio >= goal else '-'})",
                    f"{ours['min_s'] / affine:.2f}",
                    "compiled" if "compiled" in layer.explain() else "every call",
                ]
            )
    head = [
        "(qubits, layers, inputs)",
        "fubini ms",
        "TorchLayer ms",
        "ratio",
        "to affine",
        "how",
    ]
    common.print_table(
        f"encodings, forward + backward, {threads} threads; minimum / median; goal reached: +",
        head,
        rows,
    )
    return results
