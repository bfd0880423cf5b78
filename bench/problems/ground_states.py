"""Ground states to be found: chemistry, spin chains, MaxCut and a random circuit, as QNodes without data.

- H2, LiH, H4: STO-3G, Jordan-Wigner, by PennyLane's own Hartree-Fock solver, which needs nothing from the network. H2 at
  1.3228 bohr with the circuit of the demo from uniform angles; LiH at 1.595 and the square H4 of side 1.5 angstrom with all
  singles and doubles (``qml.UCCSD``), from amplitudes N(0, .1).
- Ising N: critical ring -sum Z Z - sum X, QAOA with N / 2 layers from angles uniform in [0, pi); the ansatz reaches the
  ground state, -2 / sin(pi / 2N).
- XXZ: open chain sum XX + YY + .5 ZZ of 6 spins; Ising 3x3: open, -sum ZZ - 3.044 sum X. Both with layers of RY, RZ and a
  ring of CNOT, from angles uniform in [0, 2 pi).
- MaxCut n, p: sum (ZZ - 1) / 2 over the edges of a random 3-regular graph of n nodes, QAOA with p layers, from [0, pi).
- deep: -|<0|U|0>|^2 on 10 wires, 10 layers of RY, RZ and a ladder of CZ, from [0, 2 pi).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import networkx
import numpy as np
import pennylane as qml
import torch

import fubini
from fubini.demo.molecule import make_circuit

BOHR = 1.8897259886  # per angstrom
Start = Callable[[np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Case:
    """A circuit and its starts.

    Attributes:
        name: For the table.
        qnode: Of one tensor of weights.
        shape: Of the weights.
        start: Draws flat weights.
        floor: The energy that an optimizer is to reach; None: the lowest that any run finds.
    """

    name: str
    qnode: Any
    shape: tuple[int, ...]
    start: Start
    floor: float | None = None

    def problem(self) -> fubini.EnergyProblem:
        """The energy of flat weights."""
        return fubini.energy_problem(self.qnode, torch.zeros(self.shape, dtype=torch.float64))


def uniform(width: float, size: int) -> Start:
    return lambda rng: rng.uniform(0, width, size)


def qnode(wires: int, function: Callable[..., Any]) -> Any:
    return qml.QNode(function, qml.device("default.qubit", wires=wires))


def h2() -> Case:
    return Case("H2", make_circuit(), (2, 4, 3), uniform(2 * math.pi, 24))


@functools.cache
def molecule(name: str) -> Any:
    """The Hamiltonian of a molecule with four electrons, by the differentiable Hartree-Fock solver."""
    side = 1.5 * BOHR / math.sqrt(2)
    symbols, places = {
        "LiH": (["Li", "H"], [[0, 0, 0], [0, 0, 1.595 * BOHR]]),
        "H4": (["H"] * 4, [[side, 0, 0], [0, side, 0], [-side, 0, 0], [0, -side, 0]]),
    }[name]
    found, _ = qml.qchem.molecular_hamiltonian(qml.qchem.Molecule(symbols, np.array(places)))
    return found


def uccsd(name: str) -> Case:
    hamiltonian = molecule(name)
    wires = len(hamiltonian.wires)
    singles, doubles = qml.qchem.excitations(4, wires)
    s_wires, d_wires = qml.qchem.excitations_to_wires(singles, doubles)
    reference = qml.qchem.hf_state(4, wires)

    def energy(w: torch.Tensor) -> Any:
        qml.UCCSD(w, range(wires), s_wires, d_wires, reference)
        return qml.expval(hamiltonian)

    size = len(singles) + len(doubles)
    return Case(name, qnode(wires, energy), (size,), lambda rng: rng.normal(0, 0.1, size))


def qaoa(hamiltonian: Any, bonds: list[tuple[int, int]], wires: int) -> Callable[..., Any]:
    def energy(w: torch.Tensor) -> Any:
        for i in range(wires):
            qml.Hadamard(i)
        for layer in w:
            for bond in bonds:
                qml.IsingZZ(layer[0], bond)
            for i in range(wires):
                qml.RX(layer[1], i)
        return qml.expval(hamiltonian)

    return energy


def ising(spins: int) -> Case:
    bonds = [(i, (i + 1) % spins) for i in range(spins)]
    terms = [qml.Z(i) @ qml.Z(j) for i, j in bonds] + [qml.X(i) for i in range(spins)]
    energy = qaoa(qml.Hamiltonian([-1.0] * len(terms), terms), bonds, spins)
    floor = -2 / math.sin(math.pi / (2 * spins))
    start = uniform(math.pi, spins)
    return Case(f"Ising {spins}", qnode(spins, energy), (spins // 2, 2), start, floor)


def maxcut(nodes: int, layers: int) -> Case:
    edges = sorted(networkx.random_regular_graph(3, nodes, seed=nodes).edges)
    terms = [qml.Z(i) @ qml.Z(j) for i, j in edges]
    hamiltonian = qml.Hamiltonian(
        [0.5] * len(edges) + [-0.5 * len(edges)], [*terms, qml.Identity(0)]
    )
    energy = qaoa(hamiltonian, edges, nodes)
    start = uniform(math.pi, 2 * layers)
    return Case(f"MaxCut {nodes}, p = {layers}", qnode(nodes, energy), (layers, 2), start)


def efficient(name: str, hamiltonian: Any, layers: int) -> Case:
    wires = len(hamiltonian.wires)

    def energy(w: torch.Tensor) -> Any:
        for layer in w:
            for i in range(wires):
                qml.RY(layer[i, 0], i)
                qml.RZ(layer[i, 1], i)
            for i in range(wires):
                qml.CNOT([i, (i + 1) % wires])
        return qml.expval(hamiltonian)

    start = uniform(2 * math.pi, 2 * layers * wires)
    return Case(name, qnode(wires, energy), (layers, wires, 2), start)


def xxz() -> Case:
    terms = [p(i) @ p(i + 1) for i in range(5) for p in (qml.X, qml.Y, qml.Z)]
    return efficient("XXZ 6", qml.Hamiltonian([1.0, 1.0, 0.5] * 5, terms), 8)


def square() -> Case:
    bonds = [(i, i + 1) for i in range(9) if i % 3 < 2] + [(i, i + 3) for i in range(6)]
    terms = [qml.Z(i) @ qml.Z(j) for i, j in bonds] + [qml.X(i) for i in range(9)]
    hamiltonian = qml.Hamiltonian([-1.0] * len(bonds) + [-3.044] * 9, terms)
    return efficient("Ising 3x3", hamiltonian, 6)


def deep() -> Case:
    wires, layers = 10, 10
    words = qml.Projector([0] * wires, wires=range(wires))

    def overlap(w: torch.Tensor) -> Any:
        for layer in w:
            for i in range(wires):
                qml.RY(layer[i, 0], i)
                qml.RZ(layer[i, 1], i)
            for i in range(wires - 1):
                qml.CZ([i, i + 1])
        return qml.expval(-1.0 * words)

    start = uniform(2 * math.pi, 2 * layers * wires)
    return Case("deep 10", qnode(wires, overlap), (layers, wires, 2), start, -1.0)


CASES: tuple[Callable[[], Case], ...] = (
    h2,
    lambda: uccsd("H4"),
    lambda: uccsd("LiH"),
    lambda: ising(8),
    lambda: ising(10),
    lambda: ising(12),
    lambda: ising(14),
    xxz,
    square,
    lambda: maxcut(10, 4),
    lambda: maxcut(10, 8),
    lambda: maxcut(12, 4),
    lambda: maxcut(12, 8),
    deep,
)
QUICK: tuple[Callable[[], Case], ...] = (h2, lambda: uccsd("H4"), lambda: ising(8), xxz)
