"""fubini.grow: against finite differences, dense mathematics, a reference of its own for ADAPT-VQE, and published energies."""

import itertools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import scipy.linalg
import scipy.optimize
import torch

import fubini
from circuits import ANGLE_GATES, random_circuit
from fubini.geometry.minimise import hessian, minimise
from fubini.geometry.pool import pool_of
from geometry_cases import ising, random_hamiltonian

MOLECULES = Path(__file__).parents[1] / "molecules"
CHEMICAL_ACCURACY = 1.6e-3  # hartree


def molecule(name: str) -> tuple[Any, Callable[[], Any], list[Any]]:
    """Hamiltonian, Hartree-Fock state, and the excitations of it: doubles, then singles."""
    content = json.loads((MOLECULES / f"{name}.json").read_text())
    qubits, electrons = len(content["words"][0]), content["electrons"]
    words = [
        {k: letter for k, letter in enumerate(word) if letter != "I"} for word in content["words"]
    ]
    sentence = qml.pauli.PauliSentence(
        {
            qml.pauli.PauliWord(word): c
            for word, c in zip(words, content["coefficients"], strict=True)
        }
    )
    singles, doubles = qml.qchem.excitations(electrons, qubits)
    pool = [qml.DoubleExcitation(0.0, wires) for wires in doubles]
    pool += [qml.SingleExcitation(0.0, wires) for wires in singles]
    occupied = qml.qchem.hf_state(electrons, qubits)
    return sentence.operation(), lambda: qml.BasisState(occupied, range(qubits)), pool


def ground_energy(name: str) -> float:
    return float(json.loads((MOLECULES / f"{name}.json").read_text())["ground"])


KINDS = [
    qml.RX(0.0, 0),
    qml.PhaseShift(0.0, 1),
    qml.CRY(0.0, [2, 0]),
    qml.IsingXY(0.3, [0, 3]),
    qml.PauliRot(0.0, "XYZ", [1, 2, 3]),
    qml.SingleExcitation(0.0, [1, 3]),
    qml.DoubleExcitation(0.0, [0, 1, 2, 3]),
    qml.FermionicSingleExcitation(0.0, [0, 1, 2]),
    qml.FermionicDoubleExcitation(0.0, [0, 1], [2, 3]),
    qml.evolve(qml.X(0) @ qml.Y(2) + 0.5 * qml.Z(1), 0.0),
    qml.ctrl(qml.RZ(0.0, 1), control=[0, 2]),
]


def start() -> None:
    for k in range(4):
        qml.RY(0.4 + 0.3 * k, k)
        qml.RZ(0.7 - 0.2 * k, k)
    for k in range(3):
        qml.CNOT([k, k + 1])


def appended(hamiltonian: Any, op: Any, weight: float) -> float:
    """Energy of an operation behind the start, by PennyLane."""

    @qml.qnode(qml.device("default.qubit", wires=4))
    def energy() -> Any:
        start()
        if isinstance(op, qml.ops.Evolution):
            qml.evolve(op.base, weight)
        elif isinstance(op, qml.ops.Controlled) and op.name == "C(RZ)":
            qml.ctrl(qml.RZ(weight, 1), control=[0, 2])
        else:
            qml.ops.functions.bind_new_parameters(op, [weight])
        return qml.expval(hamiltonian)

    return float(energy())


def test_gradients_of_a_pool_are_finite_differences() -> None:
    hamiltonian = random_hamiltonian(4, np.random.default_rng(1))
    found = fubini.pool_scores(hamiltonian, KINDS, start)
    h = 2e-3  # a fourth-order rule: its error is below 1e-10
    expected = [
        (
            8 * (appended(hamiltonian, op, h) - appended(hamiltonian, op, -h))
            - (appended(hamiltonian, op, 2 * h) - appended(hamiltonian, op, -2 * h))
        )
        / (12 * h)
        for op in KINDS
    ]
    np.testing.assert_allclose(found.gradients, expected, atol=1e-8)
    pool = pool_of(KINDS, hamiltonian, start)
    psi = pool.chain([]).state(np.zeros(0))
    np.testing.assert_allclose(pool.gradients(psi), expected, atol=1e-8)
    assert found.best() == int(np.argmax(np.abs(expected)))


@pytest.mark.parametrize("seed", range(2))
def test_gradients_of_every_gate_behind_random_circuits(seed: int) -> None:
    """Finite differences through PennyLane, for all one-angle gates on random wires."""
    rng = np.random.default_rng(seed)
    front = random_circuit(seed)
    inputs, weights = (t.detach() for t in front.draw(seed, None))
    wires, hamiltonian = front.wires, random_hamiltonian(front.wires, rng)
    # PSWAP swaps where its angle is 0.
    identities = [(gate, size) for gate, size in ANGLE_GATES if gate is not qml.PSWAP]
    kinds = [(g, rng.permutation(wires)[:size].tolist()) for g, size in identities if size <= wires]

    def prepare() -> None:
        front.gates(inputs, weights)

    @qml.qnode(qml.device("default.qubit", wires=wires))
    def energy(number: int, weight: float) -> Any:
        prepare()
        gate, places = kinds[number]
        gate(weight, wires=places)
        return qml.expval(hamiltonian)

    found = fubini.pool_scores(hamiltonian, [gate(0.0, wires=w) for gate, w in kinds], prepare)
    h = 2e-3
    for k, gradient in enumerate(found.gradients):
        near, far = (float(energy(k, s)) - float(energy(k, -s)) for s in (h, 2 * h))
        assert gradient == pytest.approx((8 * near - far) / (12 * h), abs=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_dense_mathematics(seed: int) -> None:
    """Gradients 2 Re <psi|H t>, lengths and gains, from matrices and least squares, behind a circuit with weights."""
    rng = np.random.default_rng(seed)
    hamiltonian = random_hamiltonian(3, rng)
    matrix = qml.matrix(hamiltonian, wire_order=range(3))
    words = ["".join(w) for w in itertools.product("IXYZ", repeat=3)][1:]
    pool = [qml.PauliRot(0.0, word, range(3)) for word in words]
    grown = fubini.grow(
        hamiltonian, pool, lambda: [qml.RY(0.3, k) for k in range(3)], max_operations=3
    )
    grown.weights[:] = rng.normal(size=3)
    generators = [qml.pauli.string_to_pauli_word(w, {k: k for k in range(3)}) for w in words]
    dense = [qml.matrix(g, wire_order=range(3)) for g in generators]

    def state(weights: Any) -> Any:
        psi = np.zeros(8, dtype=complex)
        psi[0] = 1.0
        for k in range(3):
            psi = qml.matrix(qml.RY(0.3, k), wire_order=range(3)) @ psi
        for op, weight in zip(grown.operations, weights, strict=True):
            g = dense[words.index(op.hyperparameters["pauli_word"])]
            psi = scipy.linalg.expm(-0.5j * weight * g) @ psi
        return psi

    psi = state(grown.weights)
    np.testing.assert_allclose(grown.state(), psi, atol=1e-12)
    step = 1e-3
    own = [
        (
            8 * (state(grown.weights + step * e) - state(grown.weights - step * e))
            - (state(grown.weights + 2 * step * e) - state(grown.weights - 2 * step * e))
        )
        / (12 * step)
        for e in np.eye(3)
    ]
    new = [-0.5j * g @ psi for g in dense]

    def real(v: Any) -> Any:
        v = v - psi * np.vdot(psi, v)
        return np.concatenate([v.real, v.imag])

    tangents, candidates = np.array([real(v) for v in own]), np.array([real(v) for v in new])
    for flow, target in (("real", real(-1j * matrix @ psi)), ("imaginary", real(-matrix @ psi))):
        scores = fubini.pool_scores(hamiltonian, pool, grown, time=flow)  # type: ignore[arg-type]

        def residual(rows: Any, target: Any = target) -> float:
            found = np.linalg.lstsq(rows.T, target, rcond=1e-6)[0]
            return float(((rows.T @ found - target) ** 2).sum())

        alone = residual(tangents)
        assert scores.residual == pytest.approx(np.sqrt(alone), abs=1e-8)
        gains = [alone - residual(np.vstack([tangents, c])) for c in candidates]
        np.testing.assert_allclose(scores.gains, gains, atol=1e-7)
        np.testing.assert_allclose(scores.lengths, (candidates**2).sum(axis=1), atol=1e-12)
        gradients = [2 * np.vdot(matrix @ psi, v).real for v in new]
        np.testing.assert_allclose(scores.gradients, gradients, atol=1e-12)
        natural = np.abs(gradients) / np.maximum(np.linalg.norm(candidates, axis=1), 1e-12)
        moves = scores.lengths > 1e-6
        np.testing.assert_allclose(scores.by("natural")[moves], natural[moves], atol=1e-9)


# -- ground states ----------------------------------------------------------------------------------------------------


def reference(
    hamiltonian: Any, pool: Sequence[Any], prepare: Callable[[], Any], steps: int
) -> tuple[list[int], list[float]]:
    """ADAPT-VQE with dense matrices and SciPy, by the letter of arXiv:1812.11173."""
    wires = sorted(hamiltonian.wires)
    matrix = qml.matrix(hamiltonian, wire_order=wires).real
    first = qml.matrix(prepare, wire_order=wires)()[:, 0].real
    # Excitations are exp(w A) with A^3 = -A / 4: 1 + 2 sin(w / 2) A + 4 (1 - cos(w / 2)) A^2.
    turns = [
        [qml.matrix(qml.ops.functions.bind_new_parameters(op, [w]), wires) for w in (np.pi, -np.pi)]
        for op in pool
    ]
    generators = [(there - back).real / 4 for there, back in turns]
    chosen: list[int] = []
    energies: list[float] = []
    weights = np.zeros(0)

    def state(w: Any) -> Any:
        psi = first
        for k, weight in zip(chosen, w, strict=True):
            once = generators[k] @ psi
            twice = generators[k] @ once
            psi = psi + 2 * np.sin(weight / 2) * once + 4 * (1 - np.cos(weight / 2)) * twice
        return psi

    def energy(w: Any) -> float:
        psi = state(w)
        return float(psi @ matrix @ psi)

    for _ in range(steps):
        psi = state(weights)
        slopes = [abs(2 * (matrix @ psi) @ (a @ psi)) for a in generators]
        chosen.append(int(np.flatnonzero(np.array(slopes) > max(slopes) * (1 - 1e-6))[0]))
        found = scipy.optimize.minimize(
            energy, np.append(weights, 0.0), method="BFGS", options={"gtol": 1e-7}
        )
        weights = found.x
        energies.append(float(found.fun))
    return chosen, energies


def test_adapt_vqe_of_h4_is_that_of_a_reference() -> None:
    """The same operations in the same order, the same energies; then chemical accuracy."""
    hamiltonian, prepare, pool = molecule("h4")
    found = fubini.grow(hamiltonian, pool, prepare)
    chosen, energies = reference(hamiltonian, pool, prepare, 4)
    assert [step.candidate for step in found.history[:4]] == chosen
    np.testing.assert_allclose([s.after for s in found.history[:4]], energies, atol=1e-8)
    after = [step.after for step in found.history]
    assert (np.diff(after) < 0).all()
    assert found.energy == after[-1]
    assert found.energy - ground_energy("h4") < CHEMICAL_ACCURACY
    assert len(found.operations) < len(pool)
    assert "below 0.001" in found.reason
    more = fubini.grow(hamiltonian, pool, found, tolerance=1e-5)
    assert more.energy < found.energy
    assert more.operations[: len(found.operations)] == found.operations


def test_adapt_vqe_of_lih() -> None:
    hamiltonian, prepare, pool = molecule("lih")
    ground = ground_energy("lih")
    found = fubini.grow(hamiltonian, pool, prepare)
    assert 0.0 < found.energy - ground < 1e-5
    # Two electrons: the first five doubles are in chemical accuracy.
    assert found.history[4].after - ground < CHEMICAL_ACCURACY
    assert {op.name for op in found.operations[:5]} == {"DoubleExcitation"}


def test_published_course_of_h3() -> None:
    """PennyLane's documentation of AdaptiveOptimizer; it optimises the newest weight alone, by ten gradient steps."""
    hamiltonian, prepare, pool = molecule("h3+")
    found = fubini.grow(hamiltonian, pool, prepare)
    places = [list(op.wires) for op in found.operations]
    assert places == [[0, 1, 4, 5], [0, 1, 2, 3]]
    np.testing.assert_allclose([s.score for s in found.history], [0.14399873, 0.1349], atol=2e-4)
    assert found.history[0].score == pytest.approx(0.1439987277673651, abs=1e-7)
    np.testing.assert_allclose(
        [s.after for s in found.history], [-1.2613740232, -1.2743971720], atol=5e-5
    )
    np.testing.assert_allclose(found.weights, [0.20, 0.19], atol=0.01)
    empty = fubini.grow(hamiltonian, pool, prepare, max_operations=0)
    assert empty.energy == pytest.approx(-1.2465499384199699, abs=1e-6)
    assert "0 operations were added" in empty.reason


@pytest.mark.parametrize("score", ["gradient", "natural", "gain"])
def test_every_score_finds_the_ground_state_of_an_ising_chain(score: Any) -> None:
    hamiltonian = ising(4)
    pool = [qml.RY(0.0, k) for k in range(4)]
    pool += [
        qml.PauliRot(0.0, word, [k, k + 1]) for k in range(3) for word in ("XY", "YX", "YZ", "ZY")
    ]
    found = fubini.grow(
        hamiltonian, pool, lambda: [qml.RY(0.3, k) for k in range(4)], score=score, tolerance=1e-6
    )
    exact = np.linalg.eigvalsh(qml.matrix(hamiltonian, wire_order=range(4)))[0]
    assert 0 <= found.energy - exact + 1e-12 < 1e-6


def test_newtons_method_finds_what_scipy_finds() -> None:
    hamiltonian, prepare, pool = molecule("h4")
    made = pool_of(pool, hamiltonian, prepare)
    chain = made.chain(made.elements[:8], True)
    rng = np.random.default_rng(0)
    for _ in range(3):
        first = 0.3 * rng.normal(size=8)
        step = 1e-5
        differences = [
            (chain.gradient(first + step * e) - chain.gradient(first - step * e)) / (2 * step)
            for e in np.eye(8)
        ]
        np.testing.assert_allclose(hessian(chain, first), differences, atol=1e-8)
        found = minimise(chain, first, 1.0)
        assert np.abs(chain.gradient(found)).max() < 1e-9
        assert np.linalg.eigvalsh(hessian(chain, found))[0] > -1e-8
        theirs = scipy.optimize.minimize(chain.energy, first, jac=chain.gradient, method="BFGS")
        assert chain.energy(found) < theirs.fun + 1e-9


def test_the_circuit_is_an_ordinary_quantum_function() -> None:
    hamiltonian, prepare, pool = molecule("h3+")
    found = fubini.grow(hamiltonian, pool, prepare)
    energy = found.qnode()
    assert float(energy(found.weights)) == pytest.approx(found.energy, abs=1e-10)
    text = qml.draw(energy, show_matrices=False)(found.weights)
    assert text.count("G²(0.19)") == 8
    lightning = found.qnode(qml.device("lightning.qubit", wires=6), diff_method="adjoint")
    assert float(lightning(found.weights)) == pytest.approx(found.energy, abs=1e-10)
    w = torch.tensor(found.weights, requires_grad=True)
    value = fubini.compiled(energy)(w)
    value.backward()
    assert w.grad is not None
    assert w.grad.abs().max() < 1e-8

    @qml.qnode(qml.device("default.qubit", wires=6))
    def mine() -> Any:
        found.circuit()
        return qml.state()

    assert abs(np.vdot(mine(), found.state())) == pytest.approx(1.0, abs=1e-12)
    assert "2 operations, energy -1.2744" in repr(found)
    assert "DoubleExcitation on [0, 1, 4, 5]" in repr(found)
    with pytest.raises(ValueError, match="weights: expected 2, one for each operation, got 1"):
        energy(found.weights[:1])


def test_an_optimizer_of_ones_own() -> None:
    hamiltonian, prepare, pool = molecule("h3+")

    def optimize(energy: Any, weights: torch.Tensor) -> torch.Tensor:
        w = weights.clone().requires_grad_()
        optimizer = torch.optim.LBFGS([w], line_search_fn="strong_wolfe", max_iter=100)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            value: torch.Tensor = energy(w)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return w.detach()

    found = fubini.grow(hamiltonian, pool, prepare, optimize=optimize)
    assert found.energy == pytest.approx(fubini.grow(hamiltonian, pool, prepare).energy, abs=1e-8)
    with pytest.raises(ValueError, match="optimize: expected it to return 1 weights"):
        fubini.grow(hamiltonian, pool, prepare, optimize=lambda energy, w: w[:0])


def test_a_pool_of_two_hundred_costs_less_than_twenty_gradients() -> None:
    hamiltonian, prepare, pool = molecule("h4")
    found = fubini.grow(hamiltonian, pool, prepare)
    many = [qml.SingleExcitation(0.0, w) for w in itertools.permutations(range(8), 2)]
    many += [qml.DoubleExcitation(0.0, list(w)) for w in itertools.permutations(range(8), 4)]
    made = pool_of(many[:200], hamiltonian, prepare)
    chain = found._pool.chain(found._elements, True)

    def seconds(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(20):
            begin = time.perf_counter()
            call()
            times.append(time.perf_counter() - begin)
        return min(times)

    one = seconds(lambda: chain.gradient(found.weights))
    every = seconds(lambda: made.gradients(chain.state(found.weights)))
    assert every < 20 * one  # measured: 3


# -- errors -----------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named() -> None:
    hamiltonian, pool = qml.Z(0) + qml.X(1), [qml.RX(0.0, 0), qml.RX(0.0, 1)]

    def call(h: Any = hamiltonian, p: Any = pool, s: Any = None, **options: Any) -> Any:
        return fubini.grow(h, p, s, **options)

    def measuring() -> Any:
        return qml.expval(qml.Z(0))

    for arguments, error, message in [
        ({"h": qml.Z(5)}, ValueError, r"hamiltonian: expected an operator on wires.*\[0, 1\]"),
        ({"h": 1j * qml.Z(0)}, ValueError, "hamiltonian: expected a Hermitian operator"),
        ({"h": np.eye(2)}, TypeError, "hamiltonian: expected a PennyLane operator, got ndarray"),
        ({"h": float("nan") * qml.Z(0)}, ValueError, "hamiltonian: expected finite"),
        ({"p": []}, ValueError, "pool: expected at least one operation, got none"),
        ({"p": qml.RX(0.0, 0)}, TypeError, "pool: expected a list of operations, got RX"),
        ({"p": [qml.RX(0.0, 0), "RY"]}, TypeError, r"pool\[1\]: expected an operation"),
        ({"p": [qml.Rot(0, 0, 0, 0)]}, ValueError, r"pool\[0\]: expected an operation with one"),
        ({"p": [qml.PSWAP(0.0, [0, 1])]}, ValueError, r"pool\[0\]: expected .* the identity"),
        ({"p": [qml.CNOT([0, 1])]}, ValueError, r"pool\[0\]: expected an operation with one"),
        ({"p": [qml.U2(0.1, 0.2, 0)]}, ValueError, r"pool\[0\]: expected an operation with one"),
        (
            {"p": [qml.exp(qml.X(0), 0.0j)]},
            fubini.UnsupportedCircuitError,
            r"pool\[0\]: Exp at a real parameter .* qml.evolve",
        ),
        ({"s": 3}, TypeError, "start: expected a function without arguments"),
        ({"s": lambda w: None}, TypeError, "start: expected a function without arguments"),
        ({"s": measuring}, TypeError, "start: expected operations only"),
        ({"times": [0.0, 0.0]}, ValueError, "times: expected two or more that rise"),
        ({"times": [1.0, 0.5]}, ValueError, "times: expected two or more that rise"),
        ({"times": [0.0]}, ValueError, "times: expected two or more that rise"),
        ({"times": [0.0, np.nan]}, ValueError, "times: expected finite numbers"),
        ({"times": [0, 1], "optimize": min}, ValueError, "optimize: expected None in time"),
        ({"time": "both"}, ValueError, "time: expected one of 'real', 'imaginary', got 'both'"),
        ({"score": "size"}, ValueError, "score: expected one of 'gradient', 'natural', 'gain'"),
        ({"times": [0, 1], "score": "natural"}, ValueError, "score: expected 'gain' in real time"),
        ({"tolerance": 0.0}, ValueError, "tolerance: expected a finite number above 0"),
        ({"max_operations": -1}, ValueError, "max_operations: expected 0 or more"),
        ({"max_operations": 1.5}, TypeError, "max_operations: expected an integer"),
    ]:
        with pytest.raises(error, match=message):
            call(**arguments)
    grown = call(max_operations=1)
    with pytest.raises(ValueError, match="infidelity: expected a number from 0 to 1"):
        grown.pruned(-1.0)
    wider = call(qml.Z(2), [qml.RX(0.0, 2), qml.RY(0.0, 2)], grown)
    assert len(wider.state()) == 8
    vector = call(s=lambda: qml.StatePrep(np.ones(4) / 2, [0, 1]))
    with pytest.raises(ValueError, match=r"start: expected a circuit on the wires \[0, 1, 2\]"):
        call(qml.Z(2), [qml.RX(0.0, 2)], vector)


def test_operations_that_are_not_the_identity_at_zero_are_refused() -> None:
    class Odd(qml.operation.Operation):
        num_wires = 1

        @staticmethod
        def compute_decomposition(w: Any, wires: Any) -> list[Any]:
            return [qml.RX(w, wires), qml.Hadamard(wires)]

        def __init__(self, w: Any, wires: Any) -> None:
            super().__init__(w, wires=wires)

    with pytest.raises(ValueError, match=r"pool\[0\]: expected an operation that is the identity"):
        fubini.grow(qml.Z(0), [Odd(0.0, 0)])
