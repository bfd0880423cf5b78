"""What does a natural-gradient step cost, in gradients, as parameters become many?

RY and RZ on every wire and a ring of CNOTs, repeated, and the energy of the transverse-field Ising chain: one step is
the gradient, the metric in one of three forms, and the solution of (g + lam I) d = gradient. Dense forms the matrix.
Dual forms a factor X with g = X X^T, shown where X has fewer columns than rows. Matrix-free forms neither: conjugate
gradients on products with g, preconditioned by the block-diagonal metric and started from the last step's direction,
until the residual is a tenth, or a hundredth, of the gradient; the goal is at most 25 gradients for every number of
parameters.

Peak memory is the growth of a fresh process during its first step, by Linux's account of its largest resident set: a
process that has computed before, and its forks, hold memory that the step would take again. Everything runs on one
thread.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pennylane as qml
from numpy.typing import NDArray

import common
import fubini
from fubini import _core
from fubini.metric import circuits
from fubini.native.circuit import Circuit

Real = NDArray[np.float64]
Step = Callable[[], Real]

QUBITS = [10, 12]
PARAMETERS = [100, 200, 500, 1000, 2000, 3000, 4000]
GOAL = 25.0
DAMPING = 1e-2
LEARNING_RATE = 0.05
SLOW = 0.5  # seconds; what takes longer is timed once
TOLERANCES = {"matrix-free, 0.1": 0.1, "matrix-free, 0.01": 0.01}
STATUS = Path("/proc/self/status")


class Problem:
    """A circuit, its angles after one step, and the direction of that step.

    Args:
        wires: How many.
        layers: How many times RY, RZ and the ring.
        moved: Whether that step is made; otherwise there is no last direction.
    """

    def __init__(self, wires: int, layers: int, moved: bool = True) -> None:
        operations = []
        for _ in range(layers):
            operations += [qml.RY(0.0, w) for w in range(wires)]
            operations += [qml.RZ(0.0, w) for w in range(wires)]
            operations += [qml.CNOT([w, (w + 1) % wires]) for w in range(wires)]
        words = [qml.Z(w) @ qml.Z((w + 1) % wires) for w in range(wires)]
        words += [qml.X(w) for w in range(wires)]
        energy = qml.expval(qml.dot([-1.0] * len(words), words))
        self.circuit = Circuit.from_tape(qml.tape.QuantumScript(operations, [energy]), range(wires))
        self.angles: Real = np.random.default_rng(0).uniform(0, 2 * np.pi, self.circuit.num_angles)
        self.iterations: dict[float, int] = {}
        self.last: Real | None = None
        if moved:
            self.last = self.matrix_free(1e-2)
            self.angles = self.angles - LEARNING_RATE * self.last

    def gradient(self) -> Real:
        """One gradient of the energy."""
        result: Real = self.circuit.vjp(self.angles, np.ones(1))
        return result

    def dense(self) -> Real:
        """The direction, from the matrix."""
        matrix = fubini.metric_tensor(self.circuit)(self.angles)
        result: Real = fubini.solve(matrix, self.gradient(), damping=DAMPING)
        return result

    def dual(self) -> Real:
        """The direction, from a factor of the matrix."""
        factor = _core.metric_factor(self.circuit.program, self.angles[None])
        result: Real = fubini.solve(factor, self.gradient(), damping=DAMPING, method="dual")
        return result

    def matrix_free(self, tolerance: float) -> Real:
        """The direction, from products with the matrix."""
        blocks = fubini.metric_tensor(self.circuit, "block-diag")(self.angles)
        index = np.array([indices for indices, _ in blocks])
        damped = np.stack([block for _, block in blocks]) + DAMPING * np.eye(index.shape[1])
        inverse = fubini.solve(damped, np.broadcast_to(np.eye(index.shape[1]), damped.shape).copy())

        def precondition(residual: Real) -> Real:
            direction = np.empty_like(residual)
            direction[..., index] = np.einsum("kij,...kj->...ki", inverse, residual[..., index])
            return direction

        result: Real
        result, info = fubini.solve(
            lambda v: circuits.metric_vector_product(self.circuit, self.angles, v),
            self.gradient(),
            damping=DAMPING,
            method=fubini.CG(tolerance, 2000, precondition, self.last),
            return_info=True,
        )
        self.iterations[tolerance] = int(info.iterations)
        return result

    def steps(self) -> dict[str, Step]:
        """What is timed, by name."""
        steps: dict[str, Step] = {"dense": self.dense}
        if 2 ** (len(self.circuit.wires) + 1) < len(self.angles):
            steps["dual"] = self.dual
        for name, tolerance in TOLERANCES.items():
            steps[name] = lambda tolerance=tolerance: self.matrix_free(tolerance)  # type: ignore[misc]
        return steps


def peak_growth(name: str, wires: int, layers: int) -> int | None:
    """Bytes by which a fresh process grows, at most, while it makes its first step; None off Linux.

    Args:
        name: Of the step.
        wires: As for the problem.
        layers: As for the problem.
    """
    if not STATUS.exists():
        return None
    single = {"FUBINI_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    found = subprocess.run(
        [sys.executable, __file__, name, str(wires), str(layers)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | single,
    )
    return int(found.stdout.split()[-1])


def _print_peak(name: str, wires: int, layers: int) -> None:
    step = Problem(wires, layers, moved=False).steps()[name]
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now the present size
    before = _status("VmRSS")
    step()
    print(_status("VmHWM") - before)


def _status(name: str) -> int:
    for line in STATUS.read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"no {name} in {STATUS}")


def case(problem: Problem, memory: dict[str, int | None], seconds: float) -> dict[str, Any]:
    """Time one problem, after checking the residuals of all directions."""
    steps = problem.steps()
    gradient = problem.gradient()
    residuals, slow = {}, {}
    for name, step in steps.items():
        start = time.perf_counter()
        direction = step()
        elapsed = time.perf_counter() - start
        if elapsed > SLOW:
            slow[name] = common.Timing(elapsed, elapsed)
        product = circuits.metric_vector_product(problem.circuit, problem.angles, direction)
        residual = np.linalg.norm(product + DAMPING * direction - gradient)
        residuals[name] = float(residual / np.linalg.norm(gradient))
        if residuals[name] > 1.01 * TOLERANCES.get(name, 1e-8):
            raise RuntimeError(f"{name}: residual {residuals[name]:.1e}")
    calls: dict[str, Step] = {"gradient": problem.gradient}
    calls |= {name: step for name, step in steps.items() if name not in slow}
    timings = common.interleaved(calls, seconds=seconds, rounds=9) | slow
    base = timings["gradient"].minimum
    return {
        "qubits": len(problem.circuit.wires),
        "parameters": len(problem.angles),
        "gradient_s": base,
        "steps": {
            name: {
                **timings[name].as_dict(),
                "gradients": timings[name].minimum / base,
                "peak_bytes": memory[name],
                "iterations": problem.iterations.get(TOLERANCES.get(name, -1.0)),
                "residual": residuals[name],
            }
            for name in steps
        },
    }


def row(result: dict[str, Any]) -> list[str]:
    """One line of the table."""
    cells = [str(result["qubits"]), str(result["parameters"]), f"{1e3 * result['gradient_s']:.2f}"]
    for name in ("dense", "dual", *TOLERANCES):
        step = result["steps"].get(name)
        if step is None:
            cells.append("-")
            continue
        memory = "" if step["peak_bytes"] is None else f", {step['peak_bytes'] / 1e6:.0f} MB"
        count = "" if step["iterations"] is None else f", {step['iterations']} it."
        cells.append(f"{step['gradients']:.1f}{count}{memory}")
    return cells


def run(quick: bool) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        quick: Few parameters and samples.

    Returns:
        Everything measured.
    """
    sizes = PARAMETERS[:3] if quick else PARAMETERS
    results = []
    with common.threads(1):
        for wires in QUBITS:
            for size in sizes:
                layers = round(size / (2 * wires))
                problem = Problem(wires, layers)
                # Both tolerances need the same memory.
                peaks = {
                    name: peak_growth(name, wires, layers)
                    for name in problem.steps()
                    if name != "matrix-free, 0.01"
                }
                peaks["matrix-free, 0.01"] = peaks["matrix-free, 0.1"]
                results.append(case(problem, peaks, 0.2 if quick else 0.5))
    head = ["qubits", "parameters", "gradient ms", "dense", "dual", *TOLERANCES]
    common.print_table("One natural-gradient step in gradients", head, [row(r) for r in results])
    worst = {name: max(r["steps"][name]["gradients"] for r in results) for name in TOLERANCES}
    for name, ratio in worst.items():
        verdict = "met" if ratio <= GOAL else "missed"
        print(f"{name}: at most {ratio:.1f} gradients (goal {GOAL:.0f}: {verdict})")
    draw(results)
    return {"damping": DAMPING, "cases": results, "largest_ratio": worst, "goal": GOAL}


def draw(results: list[dict[str, Any]]) -> None:
    """Ratios and peak memory over the number of parameters."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    colors = dict(zip(("dense", "dual", *TOLERANCES), ("C0", "C1", "C2", "C3"), strict=True))
    for qubits, line, mark in zip(QUBITS, ("-", "--"), ("o", "s"), strict=True):
        for name, color in colors.items():
            chosen = [r for r in results if r["qubits"] == qubits and name in r["steps"]]
            for axis, key, unit in zip(axes, ("gradients", "peak_bytes"), (1.0, 1e6), strict=True):
                points = [
                    (r["parameters"], max(r["steps"][name][key], 1e4) / unit)
                    if key == "peak_bytes"
                    else (r["parameters"], r["steps"][name][key])
                    for r in chosen
                    if r["steps"][name][key] is not None
                ]
                if points:
                    x, y = zip(*points, strict=True)
                    label = f"{name}, {qubits} qubits" if key == "gradients" else None
                    axis.plot(x, y, line, marker=mark, color=color, label=label)
    axes[0].axhline(GOAL, color="grey", linewidth=1, label=f"goal for matrix-free: {GOAL:.0f}")
    axes[0].set_title("Time of one natural-gradient step")
    axes[0].set_ylabel("gradients")
    axes[1].set_title("Peak memory of one step")
    axes[1].set_ylabel("MB")
    for axis in axes:
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlabel("parameters")
        axis.grid(True, which="both", alpha=0.2)
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(common.picture_path("scaling"), dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    _print_peak(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
