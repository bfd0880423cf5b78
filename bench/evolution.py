"""What does a right-hand side of variational time evolution cost beside Qiskit's, and which method needs fewest of them?

RY and RZ on every wire and a ring of CNOTs, repeated, and the transverse Ising ring. One right-hand side is the metric, what
the Hamiltonian does to the state, and the velocity of the weights. Qiskit's is that of ``VarQRTE`` in its fastest
mode, ``ReverseQGT`` and ``ReverseEstimatorGradient``, called a few times since it takes seconds; metric and right-hand side of
both must agree to 1e-10. fubini's is timed natively, and through the PennyLane front: all of ``fubini.evolve`` on the
QNode, its bounds, energies and result included, over the number of its right-hand sides.

The methods: a quench of the open Ising chain by an ansatz that can follow it nearly, over a unit of time; the infidelity is
that with the exact state.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pennylane as qml
import scipy.linalg

import common
import fubini
from fubini.geometry.ansatz import ansatz
from fubini.geometry.flow import Flow
from fubini.geometry.hamiltonians import hamiltonian_of
from fubini.geometry.tangents import tangents

GOAL = 1000.0  # times Qiskit, through the front
NATIVE_GOAL = 0.2  # ms at the first case
CASES = [(4, 8), (6, 10)]
FIELD = 0.9
METHODS = [("metric", 1e-4), ("RK45", 1e-4), ("DOP853", 1e-4), ("LSODA", 1e-4)]
METHODS += [("metric", 1e-6), ("RK45", 1e-6), ("DOP853", 1e-6), ("LSODA", 1e-6)]


def ring(qubits: int) -> Any:
    """The transverse Ising ring."""
    bonds = [-1.0 * qml.Z(k) @ qml.Z((k + 1) % qubits) for k in range(qubits)]
    return qml.sum(*bonds, *[-FIELD * qml.X(k) for k in range(qubits)])


def energy(qubits: int) -> Any:
    """The QNode; its weights are (layers, 2, qubits)."""
    hamiltonian = ring(qubits)

    def function(w: Any) -> Any:
        for layer in w:
            for k in range(qubits):
                qml.RY(layer[0, k], k)
            for k in range(qubits):
                qml.RZ(layer[1, k], k)
            for k in range(qubits):
                qml.CNOT([k, (k + 1) % qubits])
        return qml.expval(hamiltonian)

    return qml.QNode(function, qml.device("default.qubit", wires=qubits))


def peer(qubits: int, layers: int, weights: Any, calls: int) -> tuple[Any, Any, float]:
    """Qiskit's metric and right-hand side at these weights, and the least seconds for both and the velocity."""
    from qiskit.circuit import ParameterVector, QuantumCircuit
    from qiskit.quantum_info import SparsePauliOp
    from qiskit_algorithms.gradients import DerivativeType, ReverseEstimatorGradient, ReverseQGT
    from qiskit_algorithms.time_evolvers.variational import RealMcLachlanPrinciple
    from qiskit_algorithms.time_evolvers.variational.solvers.var_qte_linear_solver import (
        VarQTELinearSolver,
    )

    parameters = ParameterVector("w", 2 * qubits * layers)
    following = iter(parameters)
    circuit = QuantumCircuit(qubits)
    for _ in range(layers):
        for k in range(qubits):
            circuit.ry(next(following), k)
        for k in range(qubits):
            circuit.rz(next(following), k)
        for k in range(qubits):
            circuit.cx(k, (k + 1) % qubits)
    words = [("ZZ", [k, (k + 1) % qubits], -1.0) for k in range(qubits)]
    words += [("X", [k], -FIELD) for k in range(qubits)]
    hamiltonian = SparsePauliOp.from_sparse_list(words, num_qubits=qubits)
    gradient = ReverseEstimatorGradient(derivative_type=DerivativeType.IMAG)
    principle = RealMcLachlanPrinciple(qgt=ReverseQGT(), gradient=gradient)
    solver = VarQTELinearSolver(principle, hamiltonian, circuit, gradient_params=list(parameters))
    values = dict(zip(parameters, weights.reshape(-1), strict=True))
    seconds = []
    for _ in range(calls):
        start = time.perf_counter()
        _, metric, side = solver.solve_lse(values)
        seconds.append(time.perf_counter() - start)
    return metric, side, min(seconds)


def case(qubits: int, layers: int, quick: bool) -> dict[str, Any]:
    """Time one case, after checking that both sides agree."""
    weights = np.random.default_rng(0).uniform(0, 2 * np.pi, (layers, 2, qubits))
    qnode = energy(qubits)
    own = ansatz(qnode, weights)
    flow = Flow(own, hamiltonian_of(own, None, None, 0.0), "real", 1e-6)
    options = {"method": "RK4", "step": 1e-3, "tolerance": 1e-6}

    def front() -> Any:
        return fubini.evolve(qnode, weights, [0.0, 0.02], **options)

    evaluations = front().evaluations
    with common.threads(1):
        timings = common.interleaved(
            {"native": lambda: flow(0.0, own.weights), "front": front},
            seconds=0.2 if quick else 1.0,
        )
        result = {
            "qubits": qubits,
            "weights": int(weights.size),
            "native_s": timings["native"].minimum,
            "front_s": timings["front"].minimum / evaluations,
            "evaluations": evaluations,
        }
        try:
            metric, side, seconds = peer(qubits, layers, weights, 1 if quick else 3)
        except ImportError:
            return {**result, "qiskit_s": None}
    found = tangents(own, own.weights, flow.hamiltonian.operators)
    difference = max(
        float(np.abs(found.metric()[0] - metric).max()),
        float(np.abs(found.weights[0] @ found.operators[0, 0] - side).max()),
    )
    if difference > 1e-10:
        raise RuntimeError(f"Qiskit differs by {difference:.1e} at {qubits} qubits")
    return {**result, "qiskit_s": seconds, "largest_difference": difference}


def methods() -> list[dict[str, Any]]:
    """Evaluations, infidelity and its bound of every method on one quench."""
    qubits, layers, end = 4, 8, 1.0
    hamiltonian = qml.sum(
        *[-1.0 * qml.Z(k) @ qml.Z(k + 1) for k in range(qubits - 1)],
        *[-FIELD * qml.X(k) for k in range(qubits)],
    )

    @qml.qnode(qml.device("default.qubit", wires=qubits))
    def quench(w: Any) -> Any:
        for layer in w:
            for k in range(qubits - 1):
                qml.IsingZZ(layer[k], [k, k + 1])
            for k in range(qubits):
                qml.RX(layer[qubits - 1 + k], k)
        return qml.expval(hamiltonian)

    start = 0.05 * np.random.default_rng(3).normal(size=(layers, 2 * qubits - 1))
    unitary = scipy.linalg.expm(-1j * end * qml.matrix(hamiltonian, wire_order=range(qubits)))
    found = []
    for method, tolerance in METHODS:
        began = time.perf_counter()
        result = fubini.evolve(quench, start, [0, end], method=method, tolerance=tolerance)
        seconds = time.perf_counter() - began
        psi = result.states()
        infidelity = 1 - abs(np.vdot(unitary @ psi[0], psi[1])) ** 2
        found.append(
            {
                "method": method,
                "tolerance": tolerance,
                "evaluations": result.evaluations,
                "steps": result.steps,
                "seconds": seconds,
                "infidelity": float(infidelity),
                "bound": float(result.infidelity_bound[-1]),
            }
        )
    return found


def row(one: dict[str, Any], goal: float | None) -> list[str]:
    """One line of the first table."""
    native = 1e3 * one["native_s"]
    met = "" if goal is None else " (met)" if native <= goal else " (missed)"
    cells = [f"({one['qubits']}, {one['weights']})", f"{native:.3f}{met}"]
    cells.append(f"{1e3 * one['front_s']:.3f}")
    if one["qiskit_s"] is None:
        return [*cells, "not installed", "-", "-"]
    ratio = one["qiskit_s"] / one["front_s"]
    met = "met" if ratio >= GOAL else "missed"
    cells += [f"{1e3 * one['qiskit_s']:.0f}", f"{ratio:.0f}x ({met})"]
    return [*cells, f"{one['largest_difference']:.0e}"]


def run(quick: bool) -> dict[str, Any]:
    """Run the benchmark.

    Args:
        quick: One call of Qiskit's, and fewer samples.

    Returns:
        Everything measured.
    """
    cases = [case(*sizes, quick) for sizes in CASES]
    common.print_table(
        f"A right-hand side in ms, one thread (goals: {NATIVE_GOAL} ms natively, {GOAL:.0f}x)",
        ["(qubits, weights)", "native", "through evolve", "Qiskit", "ratio", "difference"],
        [row(one, NATIVE_GOAL if k == 0 else None) for k, one in enumerate(cases)],
    )
    found = methods()
    head = ["method", "tolerance", "right-hand sides", "steps", "seconds", "infidelity", "bound"]
    common.print_table(
        "A quench of four qubits over a unit of time",
        head,
        [
            [
                one["method"],
                f"{one['tolerance']:.0e}",
                str(one["evaluations"]),
                str(one["steps"]),
                f"{one['seconds']:.2f}",
                f"{one['infidelity']:.1e}",
                f"{one['bound']:.1e}",
            ]
            for one in found
        ],
    )
    return {"cases": cases, "methods": found}
