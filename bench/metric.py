"""How fast is the Fubini-Study metric beside PennyLane's?

RY and RZ on every wire and a ring of CNOTs, repeated: the full metric against ``qml.adjoint_metric_tensor``, the
block-diagonal one against ``qml.metric_tensor`` on default.qubit and lightning.qubit. What takes PennyLane longer than
the limit is left out. PennyLane gets a tape with plain NumPy parameters, which is much faster there than a QNode with
autograd's tensors. The mean over a batch of inputs and the product with a vector have no counterpart.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml

import common
from fubini.circuit import Circuit

CASES = [(4, 3), (8, 6), (10, 6), (12, 8)]
INPUTS = 64
LIMIT = 60.0  # seconds for one call of PennyLane's
# PennyLane's time grows at least this much from one case to the next.
GROWTH = 3.0
GOALS = {"full": 2000.0, "block-diag": 500.0}


def ansatz(wires: int, layers: int) -> Callable[[Any], Any]:
    """The quantum function; its argument is (layers, 2, wires)."""

    def circuit(weights: Any) -> Any:
        for layer in range(layers):
            for k in range(wires):
                qml.RY(weights[layer, 0, k], wires=k)
            for k in range(wires):  # queued apart, so that PennyLane has the same, fewest layers
                qml.RZ(weights[layer, 1, k], wires=k)
            for k in range(wires):
                qml.CNOT(wires=[k, (k + 1) % wires])
        return qml.expval(qml.Z(0))

    return circuit


def once(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call that is too slow to repeat, and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def pennylane(wires: int, layers: int, weights: Any, slow: dict[str, float]) -> dict[str, Any]:
    """Results and seconds of PennyLane's functions; those expected beyond the limit are None."""
    qnode = qml.QNode(ansatz(wires, layers), qml.device("default.qubit", wires=wires))
    (tape,), _ = qml.transforms.convert_to_numpy_parameters(
        qml.workflow.construct_tape(qnode)(weights)
    )
    tape.trainable_params = list(range(weights.size))

    def blocks(device: Any) -> Any:
        tapes, function = qml.metric_tensor(tape, approx="block-diag")
        return function(qml.execute(tapes, device, diff_method=None))

    lightning = qml.device("lightning.qubit", wires=wires)
    calls = {
        "adjoint_metric_tensor": lambda: qml.adjoint_metric_tensor(tape),
        "block default": lambda: blocks(qnode.device),
        "block lightning": lambda: blocks(lightning),
    }
    results: dict[str, Any] = {}
    for name, call in calls.items():
        if slow.get(name, 0.0) * GROWTH > LIMIT:
            results[name] = None
            continue
        results[name] = once(call)
        slow[name] = results[name][1]
    return results


def case(wires: int, layers: int, seconds: float, slow: dict[str, float]) -> dict[str, Any]:
    """Time one case, after checking that both sides agree."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 2 * np.pi, (layers, 2, wires))
    qnode = qml.QNode(ansatz(wires, layers), qml.device("default.qubit", wires=wires))
    circuit = Circuit.from_qnode(qnode, weights)
    angles = weights.reshape(-1)
    batch = rng.uniform(0, 2 * np.pi, (INPUTS, len(angles)))
    vector = rng.normal(size=len(angles))
    theirs = pennylane(wires, layers, weights, slow)
    full = circuit.metric(angles)
    size = len(angles)
    differences = {}
    for name, found in theirs.items():
        if found is None:
            continue
        expected = np.asarray(found[0]).reshape(size, size)
        if name.startswith("block"):
            ours = np.zeros((size, size))
            for indices, block in circuit.metric(angles, "block-diag"):
                ours[np.ix_(indices, indices)] = block
        else:
            ours = full
        differences[name] = float(np.abs(ours - expected).max())
        if differences[name] > 1e-9:
            raise RuntimeError(f"{name} differs by {differences[name]:.1e} at {wires} qubits")
    timings = common.interleaved(
        {
            "full": lambda: circuit.metric(angles),
            "block-diag": lambda: circuit.metric(angles, "block-diag"),
            "diag": lambda: circuit.metric(angles, "diag"),
            "product": lambda: circuit.metric_vector_product(angles, vector),
            f"full, mean of {INPUTS}": lambda: circuit.metric(batch, reduce="mean"),
            f"block-diag, mean of {INPUTS}": lambda: circuit.metric(
                batch, "block-diag", reduce="mean"
            ),
            f"{INPUTS} states": lambda: circuit.state(batch),
        },
        seconds=seconds,
    )
    return {
        "qubits": wires,
        "layers": layers,
        "angles": size,
        "fubini": {name: timing.as_dict() for name, timing in timings.items()},
        "pennylane_s": {name: found and found[1] for name, found in theirs.items()},
        "largest_difference": differences,
    }


def row(result: dict[str, Any]) -> list[str]:
    """One line of the table, in milliseconds and as multiples."""
    ours = {name: timing["min_s"] for name, timing in result["fubini"].items()}
    theirs = result["pennylane_s"]
    blocks = [s for name, s in theirs.items() if name.startswith("block") and s is not None]
    factors = {
        "full": theirs["adjoint_metric_tensor"],
        "block-diag": min(blocks) if blocks else None,
    }
    cells = [f"({result['qubits']}, {result['layers']})", str(result["angles"])]
    cells += [f"{1e3 * seconds:.3f}" for seconds in ours.values()]
    for name, seconds in factors.items():
        if seconds is None:
            cells.append("left out")
        else:
            factor = seconds / ours[name]
            met = "met" if factor >= GOALS[name] else "missed"
            cells.append(f"{factor:.0f}x ({met})")
    return cells


def run(quick: bool) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        quick: Two cases and fewer samples.

    Returns:
        Everything measured.
    """
    slow: dict[str, float] = {}
    cases = CASES[:2] if quick else CASES
    results = [case(*sizes, 0.1 if quick else 0.5, slow) for sizes in cases]
    head = ["(qubits, layers)", "angles", *(f"{name} ms" for name in results[0]["fubini"])]
    head += [f"{name}: PennyLane's time (goal {goal:.0f}x)" for name, goal in GOALS.items()]
    common.print_table("Fubini-Study metric", head, [row(result) for result in results])
    return {"cases": results}
