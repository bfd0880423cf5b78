"""Ground states: the critical Ising chain with the QAOA ansatz, and the random circuit of Stokes et al.

Transverse-field Ising: H = -sum Z_i Z_(i+1) - sum X_i on a ring of N spins; QAOA with p = N / 2 layers, IsingZZ(gamma_l) on
the bonds and RX(beta_l) on the spins, from |+...+>; all angles start uniform in [0, pi). The ansatz reaches the ground
state, E0 = -2 / sin(pi / 2N). Reached: relative error 1e-4.

Stokes et al. 2020, arXiv:1909.02108: RY(pi / 4) on every wire, then L layers of a random RX, RY or RZ on each and a brick of
CZ; H = Z0 Z1, lowest energy -1.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import torch

import fubini
from problems.race import Contender, Settings, levenberg_marquardt, lrs

_CIRCUITS: dict[Any, fubini.Circuit] = {}


class Energy:
    """The expectation value of a circuit over some of its angles, with its exact metric.

    Args:
        circuit: With one output.
        start: Where to begin.
        constants: Values of the circuit's first angles, which stay.
    """

    def __init__(
        self, circuit: fubini.Circuit, start: np.ndarray, constants: np.ndarray | None = None
    ) -> None:
        self.p = torch.from_numpy(start.copy()).requires_grad_()
        self.parameters = [self.p]
        self._circuit = circuit
        self._constants = np.zeros(0) if constants is None else constants
        self._at: bytes = b""
        self._found: tuple[float, np.ndarray] = (0.0, start)

    def next_batch(self) -> None:
        """There is no data."""

    def angles(self) -> np.ndarray:
        """All angles of the circuit, (1, A)."""
        return np.concatenate([self._constants, self.p.detach().numpy()])[None]

    def loss_and_gradient(self) -> torch.Tensor:
        """Return the energy after writing its gradient; evaluated once where it is asked for twice in a row."""
        angles = self.angles()
        if angles.tobytes() != self._at:
            values, gradient, _ = fubini._core.vjp(self._circuit.program, angles, np.ones((1, 1)))
            self._at = angles.tobytes()
            self._found = values[0, 0], gradient[0, len(self._constants) :].copy()
        self.p.grad = torch.from_numpy(self._found[1])
        return torch.tensor(self._found[0])

    def metric(self, approx: Any) -> torch.Tensor:
        """The metric as a matrix; ``approx`` as in ``Circuit.metric``."""
        first, angles = len(self._constants), self.angles()[0]
        found = fubini.metric_tensor(self._circuit, approx)(angles)
        if approx == "diag":
            found = np.diag(found)
        elif approx == "block-diag":
            blocks, found = found, np.zeros((len(angles), len(angles)))
            for indices, block in blocks:
                found[np.ix_(indices, indices)] = block
        return torch.from_numpy(np.ascontiguousarray(found[first:, first:]))

    def qng(self, settings: Settings) -> tuple[Any, Callable[[], Any]]:
        """Return our optimizer; ``approx`` names the metric."""
        options = levenberg_marquardt(settings)
        approx = options.pop("approx", None)
        opt = fubini.QNGOptimizer([self.p], **options)
        return opt, lambda: (self.loss_and_gradient(), lambda _: self.metric(approx))


def tied(circuit: fubini.Circuit, weights: list[int]) -> fubini.Circuit:
    """The circuit with one angle for all gates that share a weight.

    Args:
        circuit: With an angle for each gate.
        weights: The weight of each angle.
    """
    structure = circuit.structure

    def renumbered(gate: Any) -> Any:
        slots = [
            p if p.slot < 0 else dataclasses.replace(p, slot=weights[p.slot])
            for p in gate.parameters
        ]
        return dataclasses.replace(gate, parameters=tuple(slots))

    gates = tuple(renumbered(gate) for gate in structure.gates)
    return fubini.Circuit(dataclasses.replace(structure, num_angles=max(weights) + 1, gates=gates))


def ising(spins: int, seed: int) -> Energy:
    """The Ising problem from a random start."""
    if ("ising", spins) not in _CIRCUITS:
        wires = range(spins)
        bonds = [(i, (i + 1) % spins) for i in wires]
        terms = [qml.Z(i) @ qml.Z(j) for i, j in bonds] + [qml.X(i) for i in wires]
        energy = qml.expval(qml.Hamiltonian([-1.0] * len(terms), terms))
        gates: list[Any] = [qml.Hadamard(i) for i in wires]
        weights: list[int] = []
        for layer in range(spins // 2):
            gates += [qml.IsingZZ(0.0, bond) for bond in bonds] + [qml.RX(0.0, i) for i in wires]
            weights += [2 * layer] * spins + [2 * layer + 1] * spins
        plain = fubini.Circuit.from_tape(qml.tape.QuantumScript(gates, [energy]))
        _CIRCUITS["ising", spins] = tied(plain, weights)
    start = np.random.default_rng(seed).uniform(0, math.pi, spins)
    return Energy(_CIRCUITS["ising", spins], start)


def ising_target(spins: int) -> float:
    """The energy with a relative error of 1e-4."""
    return -2 / math.sin(math.pi / (2 * spins)) * (1 - 1e-4)


def stokes(wires: int, layers: int, seed: int) -> Energy:
    """The random circuit, with gates and start from the seed."""
    rng = np.random.default_rng(seed)
    gates: list[Any] = [qml.RY(math.pi / 4, i) for i in range(wires)]
    for layer in range(layers):
        kinds = rng.integers(3, size=wires)
        gates += [(qml.RX, qml.RY, qml.RZ)[kind](0.0, i) for i, kind in enumerate(kinds)]
        gates += [qml.CZ([i, i + 1]) for i in range(layer % 2, wires - 1, 2)]
    observable = qml.expval(qml.Z(0) @ qml.Z(1))
    circuit = fubini.Circuit.from_tape(qml.tape.QuantumScript(gates, [observable]))
    start = rng.uniform(0, 2 * math.pi, wires * layers)
    return Energy(circuit, start, np.full(wires, math.pi / 4))


FIXED_LR = (0.003, 0.01, 0.03, 0.1, 0.3)
CONTENDERS = (
    Contender("SGD", "sgd", lrs(*FIXED_LR)),
    Contender("Adam", "adam", lrs(*FIXED_LR)),
    Contender("L-BFGS (torch)", "lbfgs", lrs(0.3, 1.0)),
    Contender("L-BFGS (SciPy)", "scipy", ({"maxcor": 10}, {"maxcor": 30})),
    Contender("QNG, fixed lr", "qng", lrs(0.02, 0.05, 0.1, 0.2, lam=1e-3)),
    Contender("QNG, Levenberg-Marquardt", "qng", ({"lm": 3e-3},)),
)
