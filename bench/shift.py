"""How many executions do gradient and metric take on a PennyLane device, and how long, next to PennyLane's own?

RY and RZ on every wire and a ring of CNOTs, repeated, queued wire by wire. Gradients against ``qml.gradients.param_shift``
with and without broadcasting, the block-diagonal metric against ``qml.metric_tensor(approx="block-diag")``, the full one
against ``qml.metric_tensor``, on the same device. Both sides start from a circuit that is ready, with NumPy parameters,
and run what they need by ``qml.execute``. "tapes" are circuits that the device is handed, where all settings of a
broadcast one count once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import torch

import common
from fubini.device import full_metric, metric_blocks
from fubini.devices.executor import executor_of
from fubini.devices.shifts import gradient_job
from fubini.tape import GateTape, gate_tape

CASES = [(4, 3), (8, 6)]
DEVICES = ["default.qubit", "lightning.qubit"]
GOALS = {"tapes": 10.0, "time": 5.0}
# PennyLane's full metric beyond this number of circuits is counted, and not run.
MOST_CIRCUITS = 600


def ansatz(wires: int, layers: int) -> Callable[[Any], Any]:
    """The quantum function; its argument is (layers, wires, 2)."""

    def circuit(weights: Any) -> Any:
        for layer in range(layers):
            for k in range(wires):
                qml.RY(weights[layer, k, 0], wires=k)
                qml.RZ(weights[layer, k, 1], wires=k)
            for k in range(wires):
                qml.CNOT(wires=[k, (k + 1) % wires])
        return qml.expval(qml.Z(0))

    return circuit


def dense(blocks: list[Any], size: int) -> Any:
    result = np.zeros((size, size))
    for block in blocks:
        result[np.ix_(block.angles, block.angles)] = block.values[0]
    return result


def ours(tape: GateTape, device: Any) -> dict[str, Callable[[], Any]]:
    """What is timed, by name; all return arrays over the angles."""
    size = len(tape.trainable)
    return {
        "gradient": lambda: gradient_job(tape).run(executor_of(device)).jacobian[0, 0],
        "block-diag": lambda: dense(metric_blocks(tape, device, diagonal=False), size),
        "full": lambda: full_metric(tape, device).values[0],
    }


def theirs(tape: Any, device: Any) -> dict[str, tuple[int, Callable[[], Any]]]:
    """Number of tapes and call of each of PennyLane's functions."""

    def transformed(function: Callable[..., Any], **options: Any) -> tuple[int, Callable[[], Any]]:
        def call() -> Any:
            tapes, post = function(tape, **options)
            return post(qml.execute(tapes, device, diff_method=None, cache=False))

        return len(function(tape, **options)[0]), call

    found = {
        "gradient": transformed(qml.gradients.param_shift),
        "block-diag": transformed(qml.metric_tensor, approx="block-diag"),
        "full": transformed(qml.metric_tensor, aux_wire="auxiliary"),
    }
    if device.name == "default.qubit":
        found["gradient, broadcast"] = transformed(qml.gradients.param_shift, broadcast=True)
    return found


def case(wires: int, layers: int, name: str, seconds: float) -> dict[str, Any]:
    """Count and time one case, after checking that both sides agree."""
    weights = np.random.default_rng(0).uniform(0, 2 * np.pi, (layers, wires, 2))
    device = qml.device(name, wires=[*range(wires), "auxiliary"])
    qnode = qml.QNode(ansatz(wires, layers), device)
    (tape,), _ = qml.transforms.convert_to_numpy_parameters(
        qml.workflow.construct_tape(qnode)(weights)
    )
    tape.trainable_params = list(range(weights.size))
    gates = gate_tape(qnode, (torch.tensor(weights, requires_grad=True),), {}, [0])
    results = []
    mine = ours(gates, device)
    for label, (tapes, call) in theirs(tape, device).items():
        quantity = label.split(",")[0]
        before = executor_of(device).usage
        value = mine[quantity]()
        used = executor_of(device).usage - before
        entry: dict[str, Any] = {
            "quantity": label,
            "tapes": {"fubini": used.tapes, "pennylane": tapes},
            "calls": {"fubini": used.calls, "pennylane": 1},
        }
        if tapes <= MOST_CIRCUITS:
            expected = np.asarray(call()).reshape(value.shape)
            # The blocks of the two are cut differently, and both are parts of the full metric.
            common_part = (value != 0) & (expected != 0)
            difference = float(np.abs((value - expected)[common_part]).max())
            if difference > 1e-9:
                raise RuntimeError(f"{label} differs by {difference:.1e} on {name}")
            timings = common.interleaved(
                {"fubini": mine[quantity], "pennylane": call}, seconds=seconds, rounds=5
            )
            entry["seconds"] = {key: timing.as_dict() for key, timing in timings.items()}
        results.append(entry)
    return {"qubits": wires, "layers": layers, "device": name, "results": results}


def rows(result: dict[str, Any]) -> list[list[str]]:
    """Lines of the table."""
    lines = []
    for entry in result["results"]:
        tapes = entry["tapes"]
        cells = [f"({result['qubits']}, {result['layers']})", result["device"], entry["quantity"]]
        cells += [str(tapes["fubini"]), str(tapes["pennylane"])]
        cells.append(verdict(tapes["pennylane"] / tapes["fubini"], GOALS["tapes"]))
        if "seconds" in entry:
            mine, other = (entry["seconds"][k]["min_s"] for k in ("fubini", "pennylane"))
            cells += [
                f"{1e3 * mine:.1f}",
                f"{1e3 * other:.1f}",
                verdict(other / mine, GOALS["time"]),
            ]
        else:
            cells += ["-", "left out", "-"]
        lines.append(cells)
    return lines


def verdict(factor: float, goal: float) -> str:
    return f"{factor:.1f}x ({'met' if factor >= goal else 'missed'})"


def run(quick: bool) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        quick: The smaller case only.

    Returns:
        Everything measured.
    """
    results = [
        case(*sizes, name, 0.2 if quick else 1.0)
        for sizes in (CASES[:1] if quick else CASES)
        for name in DEVICES
    ]
    head = ["(qubits, layers)", "device", "quantity", "tapes", "PennyLane's"]
    head += [
        f"fewer (goal {GOALS['tapes']:.0f}x)",
        "ms",
        "PennyLane's",
        f"faster (goal {GOALS['time']:.0f}x)",
    ]
    common.print_table(
        "Executions on PennyLane devices", head, [line for r in results for line in rows(r)]
    )
    return {"cases": results}
