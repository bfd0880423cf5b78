"""Every gate of the engine, on every wire order, against PennyLane's default.qubit."""

import itertools

import numpy as np
import pennylane as qml
import pytest
import scipy.linalg

from fubini.errors import UnsupportedCircuitError
from fubini.native.circuit import Circuit
from fubini.native.gates import TABLE, native_gates

# Double precision: tens of gates with rounding errors of 1e-16 each.
TOLERANCE = 1e-12
DEVICE = qml.device("default.qubit")


def reference(tape):
    (result,) = qml.execute([tape], DEVICE, diff_method=None)
    return result


def scrambled(op, num_wires, rng):
    """A tape with an operation between layers that reach every amplitude; returns the state."""
    before = [qml.Rot(*rng.uniform(-3, 3, 3), wires=w) for w in range(num_wires)]
    before += [qml.CRX(0.4, [w, (w + 1) % num_wires]) for w in range(num_wires) if num_wires > 1]
    after = [qml.Rot(*rng.uniform(-3, 3, 3), wires=w) for w in range(num_wires)]
    return qml.tape.QuantumScript([*before, op, *after], [qml.state()])


def assert_equal_state(op, num_wires, rng):
    tape = scrambled(op, num_wires, rng)
    circuit = Circuit.from_tape(tape)
    expected = reference(tape)
    np.testing.assert_allclose(circuit.state(circuit.angles_of(tape)), expected, atol=TOLERANCE)


def table_gate(name, wires, rng):
    parameters = rng.uniform(-3, 3, TABLE[name][1])
    if name == "GlobalPhase":
        return qml.GlobalPhase(*parameters)
    return getattr(qml, name)(*parameters, wires=wires)


@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("name", TABLE)
def test_table_gate_on_every_wire_order(name, adjoint):
    rng = np.random.default_rng(1)
    wires = max(TABLE[name][0], 1)
    for order in itertools.permutations(range(wires + 1), wires):
        op = table_gate(name, order, rng)
        assert_equal_state(qml.adjoint(op) if adjoint else op, wires + 1, rng)


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("values", [(1,), (0,), (0, 1)])
def test_controlled_table_gate(name, values):
    rng = np.random.default_rng(2)
    wires = max(TABLE[name][0], 1)
    controls = list(range(wires, wires + len(values)))
    for op in (table_gate(name, range(wires), rng), table_gate(name, range(wires)[::-1], rng)):
        assert_equal_state(qml.ctrl(op, controls, control_values=values), wires + len(values), rng)


@pytest.mark.parametrize("name", TABLE)
def test_gate_is_executed_natively(name):
    """No table gate may fall through to a decomposition."""
    op = table_gate(name, range(max(TABLE[name][0], 1)), np.random.default_rng(0))
    assert native_gates(op) is not None


def random_unitary(dimension, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(dimension, dimension)) + 1j * rng.normal(size=(dimension, dimension))
    return np.linalg.qr(matrix)[0]


PHASES = np.exp(1j * np.linspace(-2, 3, 4))
OTHER_OPS = {
    "PauliRot": qml.PauliRot(0.7, "XYZ", wires=[2, 0, 1]),
    "PauliRot identity": qml.PauliRot(0.7, "II", wires=[2, 0]),
    "PauliRot Z": qml.PauliRot(-0.7, "ZIZ", wires=[2, 0, 1]),
    "MultiRZ": qml.MultiRZ(0.3, wires=[2, 0, 1]),
    "ctrl PauliRot": qml.ctrl(qml.PauliRot(0.7, "YX", wires=[2, 0]), 1),
    "ctrl MultiRZ": qml.ctrl(qml.MultiRZ(0.7, wires=[2, 0]), 1, control_values=[0]),
    "adjoint ctrl Rot": qml.adjoint(qml.ctrl(qml.Rot(0.1, 0.2, 0.3, wires=2), [0, 1])),
    "MultiControlledX": qml.MultiControlledX([3, 0, 2, 1], control_values=[0, 1, 1]),
    "ctrl SWAP": qml.ctrl(qml.SWAP([0, 3]), [1, 2], control_values=[1, 0]),
    "ctrl ISWAP": qml.ctrl(qml.ISWAP([3, 1]), [0]),
    "ctrl ctrl": qml.ctrl(qml.ctrl(qml.SX(3), 1, control_values=[0]), 2),
    "QubitUnitary 1": qml.QubitUnitary(random_unitary(2, 1), wires=1),
    "QubitUnitary 2": qml.QubitUnitary(random_unitary(4, 2), wires=[2, 0]),
    "QubitUnitary 3": qml.QubitUnitary(random_unitary(8, 3), wires=[2, 0, 1]),
    "adjoint QubitUnitary": qml.adjoint(qml.QubitUnitary(random_unitary(4, 4), wires=[2, 0])),
    "ControlledQubitUnitary": qml.ControlledQubitUnitary(random_unitary(2, 5), wires=[2, 0, 1]),
    "ctrl QubitUnitary": qml.ctrl(qml.QubitUnitary(random_unitary(4, 6), [3, 1]), [0], [0]),
    "DiagonalQubitUnitary": qml.DiagonalQubitUnitary(PHASES, wires=[2, 0]),
    "adjoint Diagonal": qml.adjoint(qml.DiagonalQubitUnitary(PHASES, wires=[0, 2])),
    "ctrl Diagonal": qml.ctrl(qml.DiagonalQubitUnitary(PHASES, wires=[0, 2]), 1),
    "BlockEncode": qml.BlockEncode(np.array([[0.1, 0.2], [0.3, -0.4]]), wires=[1, 2]),
    "SpecialUnitary": qml.SpecialUnitary(np.linspace(-1, 1, 15), wires=[2, 1]),
    "PCPhase": qml.PCPhase(0.4, dim=3, wires=[1, 2]),
    "pow RX": qml.pow(qml.RX(0.3, 1), 2.5),
    "pow CRX": qml.pow(qml.CRX(0.3, [1, 0]), -0.5),
    "pow S": qml.pow(qml.S(1), 3),
    "pow SX": qml.pow(qml.SX(1), 0.5),
    "pow ISWAP": qml.pow(qml.ISWAP([2, 1]), 0.5),
    "pow PauliRot": qml.pow(qml.PauliRot(0.3, "XY", [0, 2]), 3),
    "exp word": qml.exp(qml.X(0) @ qml.Y(2), -0.3j),
    "exp sum": qml.exp(qml.X(0) @ qml.X(1) + 0.4 * qml.Z(0) @ qml.Z(1), 0.7j),
    "evolve word": qml.evolve(qml.Z(1), 0.7),
    "evolve sum": qml.evolve(1.5 * qml.Z(0) @ qml.Z(2) - 0.5 * qml.Z(1) + 0.25 * qml.I(0), 0.9),
    "adjoint evolve": qml.adjoint(qml.evolve(qml.Z(1) @ qml.Y(0), 0.7)),
    "evolve without commuting": qml.evolve(qml.X(0) + 0.3 * qml.Z(0) @ qml.Y(2) - qml.Z(2), 0.7),
    "exp without commuting": qml.exp(qml.X(1) @ qml.X(0) + 0.4 * qml.Z(1), 0.7j),
    "adjoint evolve without commuting": qml.adjoint(qml.evolve(qml.X(3) + qml.Y(3), -0.7)),
    "ctrl evolve without commuting": qml.ctrl(qml.evolve(qml.X(1) + 0.3 * qml.Y(1), 0.7), 2),
    "evolve matrix": qml.evolve(qml.Hermitian(np.diag([1.0, -2.0, 0.5, 0.0]) + 0.3, [2, 0]), 0.4),
    "ctrl evolve": qml.ctrl(qml.evolve(qml.Z(1) + 0.3 * qml.I(1), 0.7), 2),
    "Trotter": qml.TrotterProduct(qml.dot([0.3, 0.4], [qml.X(0), qml.Z(0) @ qml.Z(1)]), 0.8, n=2),
    "ApproxTimeEvolution": qml.ApproxTimeEvolution(qml.X(0) + qml.Z(0) @ qml.Z(2), 0.8, 2),
    "FermionicSingle": qml.FermionicSingleExcitation(0.3, wires=[0, 1, 2]),
    "FermionicDouble": qml.FermionicDoubleExcitation(0.3, wires1=[0, 1], wires2=[2, 3]),
    "QFT": qml.QFT(wires=[2, 0, 1]),
    "adjoint QFT": qml.adjoint(qml.QFT(wires=[2, 0, 1])),
    "Permute": qml.Permute([2, 0, 1], wires=[0, 1, 2]),
    "GroverOperator": qml.GroverOperator(wires=[0, 1, 2]),
    "IQPEmbedding": qml.IQPEmbedding(np.array([0.1, 0.2, 0.3]), wires=[0, 1, 2], n_repeats=2),
    "QAOAEmbedding": qml.QAOAEmbedding(np.array([0.1, 0.2]), np.full((2, 3), 0.4), wires=[0, 1]),
    "SEL": qml.StronglyEntanglingLayers(np.linspace(-2, 2, 27).reshape(3, 3, 3), wires=range(3)),
    "BasicEntangler": qml.BasicEntanglerLayers(np.linspace(-2, 2, 6).reshape(2, 3), wires=range(3)),
    "AllSinglesDoubles": qml.AllSinglesDoubles(
        [0.1, 0.2, 0.3], range(4), np.array([1, 1, 0, 0]), [[0, 2], [1, 3]], [[0, 1, 2, 3]]
    ),
    "UCCSD": qml.UCCSD(
        [0.1, 0.2, 0.3],
        range(4),
        [[0, 1, 2], [1, 2, 3]],
        [[[0, 1], [2, 3]]],
        np.array([1, 1, 0, 0]),
    ),
    "ParticleConservingU2": qml.ParticleConservingU2(
        np.linspace(-1, 1, 14).reshape(2, 7), range(4), init_state=np.array([1, 1, 0, 0])
    ),
    "Select": qml.Select([qml.X(0), qml.RY(0.2, 0)], control=[1]),
    "Reflection": qml.Reflection(qml.Hadamard(1), 0.4),
    "FlipSign": qml.FlipSign([1, 0], wires=[0, 2]),
    "GateFabric": qml.GateFabric(
        np.linspace(-1, 1, 2).reshape(1, 1, 2), range(4), init_state=np.array([1, 1, 0, 0])
    ),
    "Barrier": qml.Barrier([0, 1]),
    "Identity": qml.Identity([0, 1]),
    "BasisState later": qml.BasisState(np.array([1, 0, 1]), wires=[0, 1, 2]),
}


@pytest.mark.parametrize("name", OTHER_OPS)
def test_other_operation(name):
    op = OTHER_OPS[name]
    if name in {
        "AllSinglesDoubles",
        "UCCSD",
        "ParticleConservingU2",
        "GateFabric",
        "BasisState later",
    }:
        tape = qml.tape.QuantumScript([op, qml.RX(0.3, 0)], [qml.state()])
        circuit = Circuit.from_tape(tape)
        expected = reference(tape)
        np.testing.assert_allclose(circuit.state(circuit.angles_of(tape)), expected, atol=TOLERANCE)
    else:
        assert_equal_state(op, 4, np.random.default_rng(3))


UNSUPPORTED = {
    "channel": ([qml.AmplitudeDamping(0.1, 0)], "AmplitudeDamping"),
    "exponent of seven wires": (
        [qml.evolve(qml.X(0) + qml.prod(*(qml.Z(k) for k in range(7))), 0.3)],
        "Evolution",
    ),
    "real exponent": ([qml.exp(qml.X(0), 0.3)], "Exp"),
    "batched matrix": ([qml.QubitUnitary(np.stack([np.eye(2)] * 3), wires=0)], "QubitUnitary"),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_operation_is_named(name):
    operations, expected = UNSUPPORTED[name]
    with pytest.raises(UnsupportedCircuitError, match=expected):
        Circuit.from_tape(qml.tape.QuantumScript(operations, [qml.expval(qml.Z(0))]))


@pytest.mark.parametrize("time", [0.0, 0.9, np.array([0.2, -1.3, 2.0])])
def test_evolution_by_a_sum_without_commuting_words(time):
    hamiltonian = 0.7 * qml.X(0) @ qml.Y(1) + qml.Z(0) - 0.2 * qml.Y(2) + 0.5 * qml.I(0)
    matrix = qml.matrix(hamiltonian, wire_order=range(3))
    observable = qml.matrix(qml.Z(0) @ qml.X(2), wire_order=range(3))
    tape = qml.tape.QuantumScript(
        [qml.Hadamard(0), qml.evolve(hamiltonian, time)],
        [qml.expval(qml.Z(0) @ qml.X(2)), qml.expval(qml.Z(0) @ qml.X(2))],
    )
    circuit = Circuit.from_tape(tape)
    angles = np.asarray(circuit.angles_of(tape))
    assert circuit.num_angles == 1  # one time, however many words
    start = np.kron(np.array([1.0, 1.0]) / np.sqrt(2), np.eye(4)[0])
    for t, value, slope in zip(
        np.atleast_1d(time),
        np.atleast_2d(circuit.expval(angles)),
        np.atleast_2d(circuit.jvp(angles, np.ones_like(angles))),
        strict=True,
    ):
        psi = scipy.linalg.expm(-1j * t * matrix) @ start
        expected = 2 * np.real(psi.conj() @ observable @ (-1j * matrix @ psi))
        np.testing.assert_allclose(value, np.real(psi.conj() @ observable @ psi), atol=1e-13)
        np.testing.assert_allclose(slope, expected, atol=1e-13)
