"""How fast is the Fubini-Study metric beside PennyLane's and TensorCircuit-NG's?

RY and RZ on every wire and a ring of CNOTs, repeated. The full metric beside ``qml.adjoint_metric_tensor`` and
TensorCircuit-NG's ``experimental.qng`` on JAX, jitted, in double precision, warm, its compilation beside it; the
block-diagonal one beside ``qml.metric_tensor`` on default.qubit and lightning.qubit. PennyLane is called in two ways: on
a QNode whose weights are torch parameters, as users call it, and on a tape with plain NumPy parameters, which is the
fastest way there is and what the goals are about. What would take longer than the limit is left out, and so is
TensorCircuit-NG where it is not installed. The mean over a batch of inputs and the product with a vector have no
counterpart: the mean's parts are compared with one forward pass of the same batch.

PennyLane is called at least twice where one call takes less than ten seconds, with one thread and with two, of which the
faster counts; JAX takes the threads it finds. fubini is timed with one thread and with two; the goals are for two.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import torch

import common
import fubini
from fubini.metric import circuits
from fubini.native.circuit import Circuit
from fubini.options import Approx

CASES = [(4, 3), (8, 6), (10, 6), (12, 8)]
INPUTS = 64
# Seconds for one call of PennyLane's; its time is predicted to grow as the cube of the number of angles.
LIMIT = 60.0
AGAIN = 10.0  # a call that takes less is made again, so that its least time is a warm one
THREADS = (1, 2)
TAPE_BLOCKS = ("block default", "block lightning")
QNODE_BLOCKS = ("block default, QNode", "block lightning, QNode")
GOALS = {"full": 2000.0, "block-diag": 500.0}
JAX = "TensorCircuit-NG"
JAX_GOAL = 40.0
FORWARD_GOAL = 2.0  # parts of the mean metric, in forward passes


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
        return [qml.expval(qml.Z(k)) for k in range(wires)]

    return circuit


def jax_metric(wires: int, layers: int, weights: Any) -> tuple[Callable[[], Any], float] | None:
    """TensorCircuit-NG's jitted full metric and the seconds of its first call; None where it is not installed."""
    try:
        import jax
        import tensorcircuit as tc
        from tensorcircuit import experimental
    except ImportError:
        return None
    jax.config.update("jax_enable_x64", True)
    tc.set_backend("jax")
    tc.set_dtype("complex128")

    def state(values: Any) -> Any:
        values = values.reshape(layers, 2, wires)
        circuit = tc.Circuit(wires)
        for layer in range(layers):
            for k in range(wires):
                circuit.ry(k, theta=values[layer, 0, k])
            for k in range(wires):
                circuit.rz(k, theta=values[layer, 1, k])
            for k in range(wires):
                circuit.cnot(k, (k + 1) % wires)
        return circuit.state()

    compiled = jax.jit(experimental.qng(state, postprocess=None))
    values = jax.numpy.asarray(weights.reshape(-1))

    def call() -> Any:
        return compiled(values).block_until_ready()

    return call, once(call)[1]


def once(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a call, and its seconds."""
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


def least(call: Callable[[], Any]) -> tuple[Any, float]:
    """The result of a slow call and its least seconds: of at least two calls, unless one takes too long."""
    result, seconds = once(call)
    total = seconds
    for _ in range(4):
        if seconds > AGAIN:
            break
        again = once(call)[1]
        seconds, total = min(seconds, again), total + again
        if total > 1.0:
            break
    return result, seconds


def pennylane(
    wires: int, layers: int, weights: Any, slow: dict[str, tuple[int, float]]
) -> dict[str, Any]:
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
    parameter = torch.tensor(weights, requires_grad=True)

    def user_blocks(device: Any) -> Any:
        user = qml.QNode(qnode.func, device)
        return qml.metric_tensor(user, approx="block-diag")(parameter).detach()

    calls = {
        "adjoint_metric_tensor": lambda: qml.adjoint_metric_tensor(tape),
        "adjoint_metric_tensor, QNode": lambda: qml.adjoint_metric_tensor(qnode)(
            parameter
        ).detach(),
        TAPE_BLOCKS[0]: lambda: blocks(qnode.device),
        TAPE_BLOCKS[1]: lambda: blocks(lightning),
        QNODE_BLOCKS[0]: lambda: user_blocks(qnode.device),
        QNODE_BLOCKS[1]: lambda: user_blocks(lightning),
    }
    results: dict[str, Any] = {}
    for name, call in calls.items():
        angles, seconds = slow.get(name, (weights.size, 0.0))
        if seconds * (weights.size / angles) ** 3 > LIMIT:
            results[name] = None
            continue
        found = []
        for count in THREADS:
            with common.threads(count):
                found.append(least(call))
        results[name] = min(found, key=lambda one: one[1])
        slow[name] = (weights.size, results[name][1])
    return results


def case(
    wires: int, layers: int, seconds: float, slow: dict[str, tuple[int, float]]
) -> dict[str, Any]:
    """Time one case, after checking that both sides agree."""
    rng = np.random.default_rng(0)
    weights = rng.uniform(0, 2 * np.pi, (layers, 2, wires))
    qnode = qml.QNode(ansatz(wires, layers), qml.device("default.qubit", wires=wires))
    circuit = Circuit.from_qnode(qnode, weights)
    angles = weights.reshape(-1)
    batch = rng.uniform(0, 2 * np.pi, (INPUTS, len(angles)))
    vector = rng.normal(size=len(angles))
    theirs = pennylane(wires, layers, weights, slow)
    full = fubini.metric_tensor(circuit)(angles)
    size = len(angles)
    differences = {}
    for name, found in theirs.items():
        if found is None:
            continue
        expected = np.asarray(found[0]).reshape(size, size)
        if name.startswith("block"):
            ours = np.zeros((size, size))
            for indices, block in fubini.metric_tensor(circuit, "block-diag")(angles):
                ours[np.ix_(indices, indices)] = block
        else:
            ours = full
        differences[name] = float(np.abs(ours - expected).max())
        if differences[name] > 1e-9:
            raise RuntimeError(f"{name} differs by {differences[name]:.1e} at {wires} qubits")
    forms: tuple[Approx, ...] = (None, "block-diag", "diag")
    one = {form: fubini.metric_tensor(circuit, form) for form in forms}
    mean = {form: fubini.metric_tensor(circuit, form, reduce="mean") for form in forms}
    calls: dict[str, Callable[[], Any]] = {
        "full": lambda: one[None](angles),
        "block-diag": lambda: one["block-diag"](angles),
        "diag": lambda: one["diag"](angles),
        "product": lambda: circuits.metric_vector_product(circuit, angles, vector),
        f"full, mean of {INPUTS}": lambda: mean[None](batch),
        f"block-diag, mean of {INPUTS}": lambda: mean["block-diag"](batch),
        f"diag, mean of {INPUTS}": lambda: mean["diag"](batch),
        f"forward of {INPUTS}": lambda: circuit.expval(batch),
    }
    jax = jax_metric(wires, layers, weights) if wires >= 8 else None
    if jax is not None:
        differences[JAX] = float(np.abs(np.asarray(jax[0]()).real - full).max())
        if differences[JAX] > 1e-9:
            raise RuntimeError(f"{JAX} differs by {differences[JAX]:.1e} at {wires} qubits")
        calls[JAX] = jax[0]
    by_threads = {}
    for count in THREADS:
        with common.threads(count):
            timings = common.interleaved(calls, seconds=seconds)
        by_threads[count] = {name: timing.as_dict() for name, timing in timings.items()}
    theirs_jax = {count: timings.pop(JAX, None) for count, timings in by_threads.items()}
    return {
        "qubits": wires,
        "layers": layers,
        "angles": size,
        "fubini": by_threads,
        "pennylane_s": {name: found and found[1] for name, found in theirs.items()},
        "jax": jax and {"first_call_s": jax[1], "by_threads": theirs_jax},
        "largest_difference": differences,
    }


def row(result: dict[str, Any]) -> list[str]:
    """One line of the table, in milliseconds with one thread and with two."""
    columns = zip(*(timings.values() for timings in result["fubini"].values()), strict=True)
    cells = [f"({result['qubits']}, {result['layers']})", str(result["angles"])]
    return cells + [" / ".join(f"{1e3 * one['min_s']:.3f}" for one in column) for column in columns]


def comparison(result: dict[str, Any]) -> list[str]:
    """The other side's time as multiples of ours, with the goals."""
    theirs = result["pennylane_s"]

    def ours(name: str) -> list[float]:
        return [timings[name]["min_s"] for timings in result["fubini"].values()]

    def times(ratios: list[float], goal: float | None) -> str:
        met = "" if goal is None else " (met)" if ratios[-1] >= goal else " (missed)"
        return " / ".join(f"{ratio:.0f}x" for ratio in ratios) + met

    def faster(part: str, names: tuple[str, ...], goal: float | None) -> str:
        known = [theirs[name] for name in names if theirs[name] is not None]
        return times([min(known) / one for one in ours(part)], goal) if known else "left out"

    cells = [f"({result['qubits']}, {result['layers']})"]
    cells.append(faster("full", ("adjoint_metric_tensor",), GOALS["full"]))
    cells.append(faster("full", ("adjoint_metric_tensor, QNode",), None))
    if result["jax"] is None:
        cells += ["left out", "-"]
    else:
        seconds = [timing["min_s"] for timing in result["jax"]["by_threads"].values()]
        ratios = [other / one for other, one in zip(seconds, ours("full"), strict=True)]
        cells += [times(ratios, JAX_GOAL), f"{result['jax']['first_call_s']:.1f}"]
    cells.append(faster("block-diag", TAPE_BLOCKS, GOALS["block-diag"]))
    cells.append(faster("block-diag", QNODE_BLOCKS, None))
    for part in ("block-diag", "diag"):
        pairs = zip(ours(f"{part}, mean of {INPUTS}"), ours(f"forward of {INPUTS}"), strict=True)
        ratios = [mean / forward for mean, forward in pairs]
        met = "met" if max(ratios) < FORWARD_GOAL else "missed"
        cells.append(f"{' / '.join(f'{ratio:.2f}' for ratio in ratios)} ({met})")
    return cells


def run(quick: bool) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        quick: Two cases and fewer samples.

    Returns:
        Everything measured.
    """
    slow: dict[str, tuple[int, float]] = {}
    cases = CASES[:2] if quick else CASES
    results = [case(*sizes, 0.1 if quick else 0.5, slow) for sizes in cases]
    head = ["(qubits, layers)", "angles", *(f"{name} ms" for name in results[0]["fubini"][1])]
    common.print_table(
        "Fubini-Study metric, 1 / 2 threads", head, [row(result) for result in results]
    )
    head = [
        "(qubits, layers)",
        f"full: PennyLane (goal {GOALS['full']:.0f}x)",
        "its QNode",
        f"{JAX} (goal {JAX_GOAL:.0f}x)",
        "its first call s",
        f"block-diag: PennyLane (goal {GOALS['block-diag']:.0f}x)",
        "its QNode",
        f"block-diag in forward passes (goal {FORWARD_GOAL:.0f})",
        "diag in forward passes",
    ]
    common.print_table(
        "The other side's time in ours, with 1 / 2 threads",
        head,
        [comparison(result) for result in results],
    )
    return {"cases": results}
