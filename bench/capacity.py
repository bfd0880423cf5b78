"""How fast are Fisher matrices beside Qiskit machine learning's, and a pool of candidates beside one gradient?

RY encoding, then RealAmplitudes with one repetition (RY, a chain of CNOTs, RY), and the parity of all qubits, whose two
outcomes are the distribution of both sides. Same weights, same inputs; Qiskit's EstimatorQNN on its exact estimator with
parameter shifts, the default, and fubini's sampler of circuits at many weights, which ``fubini.report`` is made of. The
effective dimensions must agree to 1e-8. Both sides compute one Fisher matrix for every weight and input.

The pool: 200 two-qubit Pauli rotations behind a circuit of 16 such rotations, the energy of a Heisenberg ring; gradients
of all of them at the weight 0, from the weights of the circuit on, beside the circuit's own gradient by its 16 weights.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pennylane as qml

import common
import fubini
from fubini.geometry.capacity import effective_dimension, fisher, reading
from fubini.geometry.pool import pool_of
from fubini.geometry.report_model import Model, model_of

GOAL = 1000.0
POOL_GOAL = 20.0
# The best of so many calls, as ours is the best of many.
PEER_CALLS = 5
DATA = 1000
# (qubits, draws of the weights, inputs)
CASES = [(4, 10, 10), (6, 5, 5)]


def circuit(qubits: int) -> Any:
    """The QNode; its weights are (2, qubits)."""

    def function(inputs: Any, w: Any) -> Any:
        for k in range(qubits):
            qml.RY(inputs[..., k], k)
        for k in range(qubits):
            qml.RY(w[0, k], k)
        for k in reversed(range(qubits - 1)):
            qml.CNOT([k, k + 1])
        for k in range(qubits):
            qml.RY(w[1, k], k)
        return qml.expval(qml.prod(*[qml.Z(k) for k in range(qubits)]))

    return qml.QNode(function, qml.device("default.qubit", wires=qubits))


def peer(qubits: int, weights: Any, inputs: Any) -> Any:
    """Qiskit's effective dimension of the same model."""
    from qiskit.circuit import ParameterVector, QuantumCircuit
    from qiskit.circuit.library import real_amplitudes
    from qiskit.primitives import StatevectorEstimator
    from qiskit_machine_learning.neural_networks import EffectiveDimension, EstimatorQNN

    features = ParameterVector("x", qubits)
    ansatz = real_amplitudes(qubits, reps=1)
    whole = QuantumCircuit(qubits)
    for k, x in enumerate(features):
        whole.ry(x, k)
    whole.compose(ansatz, inplace=True)
    network = EstimatorQNN(
        circuit=whole,
        estimator=StatevectorEstimator(default_precision=0.0),
        input_params=list(features),
        weight_params=list(ansatz.parameters),
        default_precision=0.0,
    )
    return EffectiveDimension(network, weight_samples=weights, input_samples=inputs)


def ours(model: Model, weights: Any) -> float:
    """fubini's, from nothing but the model."""
    read, _ = reading(model.measurements, "auto")
    found = [fisher(f, j, read) for f, j in model.linearised(weights)]
    return float(effective_dimension(np.concatenate(found), DATA))


def case(qubits: int, draws: int, count: int, seconds: float) -> dict[str, Any]:
    """Both sides once compared, and timed."""
    inputs = np.random.default_rng(0).normal(size=(count, qubits))
    model = model_of(circuit(qubits), inputs, {"w": (2, qubits)})
    weights = model.draws(draws, 0)
    matrices = draws * count
    result: dict[str, Any] = {"qubits": qubits, "weights": model.size, "matrices": matrices}
    options = {"weights": {"w": (2, qubits)}, "draws": draws, "data": DATA}
    with common.threads(1):
        timings = common.interleaved(
            {
                "fisher": lambda: ours(model, weights),
                "report": lambda: fubini.report(circuit(qubits), inputs, **options),
            },
            seconds=seconds,
        )
        for name, timing in timings.items():
            result[name] = timing.minimum / matrices
        try:
            theirs = peer(qubits, weights, inputs)
        except ImportError:
            return {**result, "qiskit": None, "difference": None}
        times = []
        for _ in range(PEER_CALLS):
            start = time.perf_counter()
            value = float(theirs.get_effective_dimension(DATA))
            times.append(time.perf_counter() - start)
        result["qiskit"] = min(times) / matrices
    result["difference"] = abs(value - ours(model, weights))
    if result["difference"] > 1e-8:
        raise RuntimeError(f"the effective dimensions differ by {result['difference']:.1e}")
    return result


def pool_case(qubits: int, size: int, seconds: float) -> dict[str, Any]:
    """A pool's gradients beside one gradient of the circuit."""
    pairs = [(i, j) for i in range(qubits) for j in range(i)]
    words = [a + b for a in "XYZ" for b in "XYZ"]
    pool = [qml.PauliRot(0.0, word, pair) for word in words for pair in pairs][:size]
    ring = [
        letter(k) @ letter((k + 1) % qubits)
        for k in range(qubits)
        for letter in (qml.X, qml.Y, qml.Z)
    ]
    made = pool_of(pool, qml.sum(*ring), lambda: [qml.X(k) for k in range(0, qubits, 2)])
    chain = made.chain(made.elements[:: size // 16][:16], True)
    weights = np.random.default_rng(0).normal(size=chain.size)
    with common.threads(1):
        timings = common.interleaved(
            {
                "gradient": lambda: chain.gradient(weights),
                "pool": lambda: made.gradients(chain.state(weights)),
            },
            seconds=seconds,
        )
    found = {name: timing.minimum for name, timing in timings.items()}
    return {"qubits": qubits, "candidates": len(pool), **found}


def run(quick: bool) -> dict[str, Any]:
    """Measure, print and return everything."""
    results = [case(*one, 0.2 if quick else 1.0) for one in CASES[: 1 if quick else None]]
    rows = []
    for r in results:
        theirs = r["qiskit"]
        rows.append(
            [
                f"{r['qubits']} qubits, {r['weights']} weights",
                f"{1e6 * r['fisher']:.2f} us",
                f"{1e6 * r['report']:.1f} us",
                "not installed" if theirs is None else f"{1e3 * theirs:.1f} ms",
                "" if theirs is None else f"{theirs / r['fisher']:.0f} (goal {GOAL:.0f})",
                "" if theirs is None else f"{theirs / r['report']:.0f}",
                "" if theirs is None else f"{r['difference']:.0e}",
            ]
        )
    head = [
        "per Fisher matrix",
        "fubini",
        "whole report",
        "Qiskit",
        "ratio",
        "of the report",
        "difference",
    ]
    common.print_table("effective dimension", head, rows)
    pools = [pool_case(n, 200, 0.2 if quick else 1.0) for n in ((8,) if quick else (8, 12))]
    rows = [
        [
            f"{r['qubits']} qubits, {r['candidates']} candidates",
            f"{1e6 * r['gradient']:.0f} us",
            f"{1e6 * r['pool']:.0f} us",
            f"{r['pool'] / r['gradient']:.1f} (goal {POOL_GOAL:.0f})",
        ]
        for r in pools
    ]
    common.print_table("growing", ["pool", "one gradient", "the pool's", "gradients"], rows)
    return {"capacity": results, "pool": pools}
