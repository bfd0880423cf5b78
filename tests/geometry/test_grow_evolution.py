"""Growing along an evolution stays within the bound of the residual; redundant operations are pruned."""

import itertools
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import scipy.linalg

import fubini
from geometry_cases import ising, random_hamiltonian


def two_local(wires: int) -> list[Any]:
    pool = [qml.PauliRot(0.0, a, [k]) for k in range(wires) for a in "XYZ"]
    return pool + [
        qml.PauliRot(0.0, a + b, [i, j])
        for i, j in itertools.combinations(range(wires), 2)
        for a in "XYZ"
        for b in "XYZ"
    ]


def infidelities(found: fubini.Grown, hamiltonian: Any, first: Any) -> Any:
    matrix = qml.matrix(hamiltonian, wire_order=range(len(hamiltonian.wires)))
    states = found.state(found.trajectory)
    assert found.times is not None
    exact = [scipy.linalg.expm(-1j * (t - found.times[0]) * matrix) @ first for t in found.times]
    return np.array([1 - abs(np.vdot(a, b)) ** 2 for a, b in zip(states, exact, strict=True)])


@pytest.mark.parametrize("tolerance", [0.3, 0.02])
def test_quench_stays_within_the_residuals_bound(tolerance: float) -> None:
    hamiltonian, first = ising(3), np.eye(8)[0]
    times = np.linspace(0.0, 1.0, 5)
    found = fubini.grow(hamiltonian, two_local(3), times=times, tolerance=tolerance)
    assert found.residuals is not None
    assert found.infidelity_bound is not None
    assert found.trajectory is not None
    assert (found.residuals <= 1.5 * tolerance).all()
    assert "stayed near or below" in found.reason
    missed = infidelities(found, hamiltonian, first)
    assert (missed <= found.infidelity_bound + 1e-12).all()
    assert missed[-1] < 0.1 * tolerance
    assert found.trajectory.shape == (5, len(found.operations))
    assert not found.trajectory[0].any()
    added = [step.time for step in found.history]
    assert added == sorted(added)
    assert "infidelity at most" in repr(found)


def test_a_circuit_that_no_candidate_helps_has_a_bound_without_any_weight() -> None:
    hamiltonian = qml.Z(0) @ qml.Z(1) + 0.5 * (qml.X(0) + qml.X(1))
    pool = [qml.RY(0.0, 0), qml.RY(0.0, 1)]
    found = fubini.grow(hamiltonian, pool, lambda: qml.X(0), times=[0.0, 0.3])
    assert "no candidate lowered the residual" in found.reason
    assert not found.operations
    assert found.angle_bound is not None
    missed = infidelities(found, hamiltonian, np.eye(4)[2])
    assert (missed <= np.sin(found.angle_bound) ** 2 + 1e-12).all()
    np.testing.assert_allclose(
        found.angle_bound, [0.0, 0.3 * np.sqrt(0.5)], atol=1e-12
    )  # Var H = 1/2


def test_random_hamiltonians_stay_within_the_bound() -> None:
    words = ["".join(w) for w in itertools.product("IXYZ", repeat=3)][1:]
    every_word = [qml.PauliRot(0.0, word, range(3)) for word in words]
    for seed in range(3):
        hamiltonian = random_hamiltonian(3, np.random.default_rng(seed))
        found = fubini.grow(
            hamiltonian,
            every_word,
            lambda: [qml.RY(0.5 + k, k) for k in range(3)],
            times=[0.0, 0.2, 0.4],
            tolerance=0.05,
        )
        first = found.state(np.zeros_like(found.weights))
        assert found.infidelity_bound is not None
        missed = infidelities(found, hamiltonian, first)
        assert (missed <= found.infidelity_bound + 1e-12).all()
        assert missed[-1] < 1e-3


def test_a_pool_that_is_too_small_says_so_and_keeps_its_bound() -> None:
    hamiltonian = ising(3)
    pool = [qml.RX(0.0, k) for k in range(3)]
    found = fubini.grow(hamiltonian, pool, times=[0.0, 0.3])
    assert "no candidate lowered the residual" in found.reason
    assert found.infidelity_bound is not None
    assert found.infidelity_bound[-1] > 1e-3
    missed = infidelities(found, hamiltonian, np.eye(8)[0])
    assert (missed <= found.infidelity_bound + 1e-12).all()
    few = fubini.grow(hamiltonian, two_local(3), times=[0.0, 0.1], max_operations=2)
    assert "2 operations were added, with the residual" in few.reason


def test_imaginary_time_lowers_the_energy() -> None:
    hamiltonian = ising(3)

    def prepare() -> None:
        for k in range(3):
            qml.RY(0.3 + 0.1 * k, k)

    found = fubini.grow(
        hamiltonian,
        two_local(3),
        prepare,
        times=np.linspace(0, 6, 7),
        time="imaginary",
        tolerance=1e-2,
    )
    energy = found.qnode()
    assert found.trajectory is not None
    energies = [float(energy(w)) for w in found.trajectory]
    assert (np.diff(energies) < 0).all()
    exact = np.linalg.eigvalsh(qml.matrix(hamiltonian, wire_order=range(3)))[0]
    assert found.energy - exact < 1e-3


def test_evolution_goes_on_from_a_ground_state() -> None:
    """A quench: the ground state of one field, then another."""
    before = fubini.grow(
        ising(3, 0.4), two_local(3), lambda: [qml.RY(0.2, k) for k in range(3)], tolerance=1e-7
    )
    after = ising(3, 1.2)
    found = fubini.grow(after, two_local(3), before, times=[0.0, 0.3], tolerance=0.02)
    assert found.operations[: len(before.operations)] == before.operations
    assert found.infidelity_bound is not None
    missed = infidelities(found, after, before.state())
    assert missed[-1] <= found.infidelity_bound[-1] + 1e-12


# -- pruning ----------------------------------------------------------------------------------------------------------


def test_redundant_operations_are_pruned_and_the_state_stays() -> None:
    """More operations than the 14 directions of three qubits, of which pruning leaves no more than those."""
    found = fubini.grow(ising(3), two_local(3), times=[0.0, 1.0], tolerance=1e-3)
    pool = two_local(3)
    rng = np.random.default_rng(0)
    longer = fubini.grow(random_hamiltonian(3, rng), pool, found, times=[0.0, 0.3], tolerance=1e-3)
    assert len(longer.operations) > 14
    pruned = longer.pruned(1e-8)
    assert len(pruned.operations) <= 14
    assert abs(np.vdot(pruned.state(), longer.state())) ** 2 > 1 - 1e-8
    assert pruned.energy == pytest.approx(longer.energy, abs=1e-3)
    assert f"{len(longer.operations) - len(pruned.operations)} operations pruned" in pruned.reason
    assert float(pruned.qnode()(pruned.weights)) == pytest.approx(pruned.energy, abs=1e-10)
    untouched = fubini.grow(ising(2), two_local(2), lambda: [qml.RY(0.2, k) for k in range(2)])
    assert len(untouched.pruned().operations) == len(untouched.operations)


def test_a_grown_circuit_evolves_as_any_other() -> None:
    """fubini.evolve of the grown circuit, from where growing ended, misses what it has no directions for, and bounds it."""
    hamiltonian = ising(3)
    found = fubini.grow(hamiltonian, two_local(3), times=[0.0, 0.3], tolerance=1e-3)
    more = fubini.evolve(found.qnode(), found.weights, [0.3, 0.35], tolerance=1e-3)
    matrix = qml.matrix(hamiltonian, wire_order=range(3))
    exact = scipy.linalg.expm(-0.05j * matrix) @ found.state()
    missed = 1 - abs(np.vdot(exact, more.states()[-1])) ** 2
    assert missed <= more.infidelity_bound[-1] + 1e-12
    assert missed < 1e-3
