"""How many executions do gradient and metric take on a PennyLane device, and how long, next to PennyLane's own?

RY and RZ on every wire and a ring of CNOTs, repeated, queued wire by wire. Gradients against ``qml.gradients.param_shift``
with and without broadcasting, the block-diagonal metric against ``qml.metric_tensor(approx="block-diag")``, the full one
against ``qml.metric_tensor``, on the same device. Both sides start from a circuit that is ready, with NumPy parameters,
and run what they need on the device. "tapes" are circuits that the device is handed, where all settings of a
broadcast one count once. lightning.qubit does not broadcast: its gradient is the device's own adjoint one, which is not
the parameter-shift rule that it is compared with, and the shift rule for comparison; its block-diagonal metric is one tape
where the device has wires to spare, and one per layer where it has none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pennylane as qml
import torch

import common
from fubini.circuit.angles import gate_tape
from fubini.circuit.tape import GateTape
from fubini.devices.executor import executor_of
from fubini.devices.metric import blocks_job, full_metric_job
from fubini.devices.shifts import gradient_job

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


@dataclass(frozen=True)
class Comparison:
    """What fubini does on a device, and what PennyLane does for the same.

    Attributes:
        quantity: What both compute.
        ours: How fubini does it.
        theirs: PennyLane's function.
        device: The device of both.
        call: fubini's call, (gates, device) -> array over the angles.
        transform: PennyLane's, tape -> (tapes, function).
    """

    quantity: str
    ours: str
    theirs: str
    device: Any
    call: Callable[[GateTape, Any], Any]
    transform: Callable[[Any], Any]


def gradient(gates: GateTape, device: Any, rule: Any = None) -> Any:
    return gradient_job(gates, rule=rule).run(executor_of(device)).jacobian[0, 0]


def block_diagonal(gates: GateTape, device: Any) -> Any:
    executor = executor_of(device)
    blocks = blocks_job(gates, executor, diagonal=False).run(executor)
    return dense(blocks, len(gates.trainable))


def full(gates: GateTape, device: Any) -> Any:
    executor = executor_of(device)
    return full_metric_job(gates, executor).run(executor)[0].values[0]


def comparisons(name: str, wires: int) -> list[Comparison]:
    """What is compared on a device of a name."""
    shift, blocks = qml.gradients.param_shift, partial(qml.metric_tensor, approx="block-diag")
    whole = partial(qml.metric_tensor, aux_wire="auxiliary")
    device = qml.device(name)
    if name == "default.qubit":
        one = "shifts, one broadcast tape"
        broadcast = partial(shift, broadcast=True)
        return [
            Comparison("gradient", one, "param_shift", device, gradient, shift),
            Comparison("gradient", one, "param_shift, broadcast", device, gradient, broadcast),
            Comparison(
                "block-diag", "layers as settings", "metric_tensor", device, block_diagonal, blocks
            ),
            Comparison("full", "derivative states", "metric_tensor", device, full, whole),
        ]
    shifts = partial(gradient, rule="shift")
    fixed = qml.device(name, wires=wires)
    return [
        Comparison("gradient", "the device's adjoint", "param_shift", device, gradient, shift),
        Comparison("gradient", "shifts (asked for)", "param_shift", device, shifts, shift),
        Comparison(
            "block-diag", "layers as branches", "metric_tensor", device, block_diagonal, blocks
        ),
        Comparison(
            "block-diag",
            "one tape per layer (no wire to spare)",
            "metric_tensor",
            fixed,
            block_diagonal,
            blocks,
        ),
        Comparison("full", "derivative states", "metric_tensor", device, full, whole),
    ]


def compare(one: Comparison, wires: int, layers: int, seconds: float) -> dict[str, Any]:
    """Count and time one comparison, after checking that both sides agree."""
    weights = np.random.default_rng(0).uniform(0, 2 * np.pi, (layers, wires, 2))
    qnode = qml.QNode(ansatz(wires, layers), one.device)
    (tape,), _ = qml.transforms.convert_to_numpy_parameters(
        qml.workflow.construct_tape(qnode)(weights)
    )
    tape.trainable_params = list(range(weights.size))
    gates = gate_tape(qnode, (torch.tensor(weights, requires_grad=True),), {}, [0])

    def mine() -> Any:
        return one.call(gates, one.device)

    def theirs() -> Any:
        tapes, post = one.transform(tape)
        return post(qml.execute(tapes, one.device, diff_method=None, cache=False))

    tapes = len(one.transform(tape)[0])
    before = executor_of(one.device).usage
    value = mine()
    used = executor_of(one.device).usage - before
    entry: dict[str, Any] = {
        "quantity": one.quantity,
        "how": {"fubini": one.ours, "pennylane": one.theirs},
        "tapes": {"fubini": used.tapes, "pennylane": tapes},
        "calls": {"fubini": used.calls, "pennylane": 1},
    }
    if tapes <= MOST_CIRCUITS:
        expected = np.asarray(theirs()).reshape(value.shape)
        # The blocks of the two are cut differently, and both are parts of the full metric.
        common_part = (value != 0) & (expected != 0)
        difference = float(np.abs((value - expected)[common_part]).max())
        if difference > 1e-9:
            raise RuntimeError(f"{one} differs by {difference:.1e}")
        timings = common.interleaved(
            {"fubini": mine, "pennylane": theirs}, seconds=seconds, rounds=5
        )
        entry["seconds"] = {key: timing.as_dict() for key, timing in timings.items()}
    return entry


def case(wires: int, layers: int, name: str, seconds: float) -> dict[str, Any]:
    """All comparisons on one device."""
    results = [compare(one, wires, layers, seconds) for one in comparisons(name, wires)]
    return {"qubits": wires, "layers": layers, "device": name, "results": results}


def rows(result: dict[str, Any]) -> list[list[str]]:
    """Lines of the table."""
    lines = []
    for entry in result["results"]:
        tapes = entry["tapes"]
        cells = [f"({result['qubits']}, {result['layers']})", result["device"], entry["quantity"]]
        cells += [entry["how"]["fubini"], entry["how"]["pennylane"]]
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
    head = ["(qubits, layers)", "device", "quantity", "fubini", "PennyLane", "tapes", "PennyLane's"]
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
