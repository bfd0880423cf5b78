"""How fast is the engine's arithmetic? Amplitude-gates per second and core, next to what the machine can do.

An amplitude-gate is one amplitude updated by one gate of the circuit as written (RX, RY, RZ, CNOT: fused or not). The
goal is 3e9 per second and core, forward, at 4 to 12 qubits with batches of 64 and more. The peak is measured in the same
process: fused multiply-adds in registers, memory by copying arrays that do not fit the cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pennylane as qml

import common
from fubini import _core
from fubini.native.circuit import Circuit

GOAL = 3e9
# (qubits, layers, inputs)
CASES = [(4, 3, 64), (6, 4, 64), (8, 6, 64), (10, 6, 256), (12, 6, 64), (16, 4, 1), (20, 2, 1)]


def ansatz(wires: int, layers: int) -> Any:
    """Angle encoding, then layers of RX, RY, RZ and a ring of CNOT; <Z> on every wire."""
    operations = [qml.RX(0.1, w) for w in range(wires)]
    for _ in range(layers):
        for w in range(wires):
            operations += [qml.RX(0.1, w), qml.RY(0.2, w), qml.RZ(0.3, w)]
        operations += [qml.CNOT([w, (w + 1) % wires]) for w in range(wires)]
    return qml.tape.QuantumScript(operations, [qml.expval(qml.Z(w)) for w in range(wires)])


def memory_rate() -> float:
    """Bytes per second of copying arrays larger than the cache, read and written."""
    source = np.zeros(1 << 24)
    target = np.empty_like(source)
    timing = common.interleaved({"copy": lambda: np.copyto(target, source)}, seconds=0.5)
    return 2 * source.nbytes / timing["copy"].minimum


def case(wires: int, layers: int, inputs: int) -> dict[str, Any]:
    """Time forward, reverse and tangent sweeps of one circuit on one thread."""
    tape = ansatz(wires, layers)
    circuit = Circuit.from_tape(tape)
    program = circuit.program
    rng = np.random.default_rng(0)
    angles = np.tile(rng.uniform(0, 2 * np.pi, circuit.num_angles), (inputs, 1))
    angles[:, :wires] = rng.uniform(
        0, 1, (inputs, wires)
    )  # the encoding; weights are the same for all inputs
    cotangents = np.ones((inputs, circuit.num_outputs))
    calls = {
        "forward": lambda: _core.expval(program, angles),
        "reverse": lambda: _core.vjp(program, angles, cotangents),
        "tangent": lambda: _core.jvp(program, angles, angles),
    }
    timings = common.interleaved(calls, seconds=1.0)
    updates = len(tape.operations) * 2**wires * inputs
    return {
        "qubits": wires,
        "layers": layers,
        "inputs": inputs,
        "gates": len(tape.operations),
        "times": {name: t.as_dict() for name, t in timings.items()},
        "amplitude_gates_per_s": {name: updates / t.minimum for name, t in timings.items()},
    }


def run(quick: bool) -> dict[str, Any]:
    """Time all cases on one thread.

    Args:
        quick: Only up to 12 qubits.

    Returns:
        The results.
    """
    with common.threads(1):
        results = [case(*c) for c in CASES if not quick or c[0] <= 12]
        fma, copied = common.peak_rate() / 2, memory_rate()
    rows = []
    for r in results:
        rates = r["amplitude_gates_per_s"]
        goal = "" if r["inputs"] < 64 else "+" if rates["forward"] >= GOAL else "-"
        rows.append(
            [
                f"({r['qubits']}, {r['layers']}, {r['inputs']})",
                *(f"{r['times'][name]['min_s'] * 1e6:.0f}" for name in r["times"]),
                *(f"{rate / 1e9:.1f}" for rate in rates.values()),
                goal,
            ]
        )
    common.print_table(
        f"one thread; 1e9 amplitude-gates/s, goal {GOAL / 1e9:g} forward; machine: {fma / 1e9:.1f}e9 fused "
        f"multiply-adds/s, {copied / 1e9:.0f} GB/s copied",
        [
            "(qubits, layers, inputs)",
            "forward us",
            "reverse us",
            "tangent us",
            "forward",
            "reverse",
            "tangent",
            "goal",
        ],
        rows,
    )
    return {"cases": results, "fma_per_s": fma, "copy_bytes_per_s": copied, "goal": GOAL}
