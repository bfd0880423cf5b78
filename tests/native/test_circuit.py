"""Circuits as a whole: values and derivatives against default.qubit, and the object's contract."""

import copy
import pickle
import signal
import threading
import time

import numpy as np
import pennylane as qml
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fubini import _core
from fubini.errors import UnsupportedCircuitError
from fubini.native.circuit import Circuit
from fubini.native.gates import TABLE

# Double precision over tens of gates; derivatives sum as many terms.
TOLERANCE = 1e-10
DEVICE = qml.device("default.qubit")

OBSERVABLES = {
    "Z": lambda n: [qml.expval(qml.Z(w)) for w in range(n)],
    "words": lambda n: [
        qml.expval(qml.X(0)),
        qml.expval(qml.Y(n - 1)),
        qml.expval(qml.prod(*[qml.Y(w) for w in range(n)])),
        qml.expval(qml.prod(*[(qml.X, qml.Y, qml.Z)[w % 3](w) for w in range(n)])),
    ],
    "hamiltonian": lambda n: [
        qml.expval(
            qml.dot(
                [0.3, -1.2, 0.7, 0.4],
                [qml.Z(0), qml.X(0) @ qml.X(n - 1) if n > 1 else qml.X(0), qml.I(0), qml.Y(n - 1)],
            )
        ),
        qml.expval(2.0 * qml.Z(0)),
    ],
    "projector": lambda n: [
        qml.expval(qml.Projector([1] * n, wires=range(n))),
        qml.var(qml.Projector([0], wires=[n - 1])),
    ],
    "hermitian": lambda n: [
        qml.expval(qml.Hermitian(np.array([[1.0, 2 - 1j], [2 + 1j, -0.5]]), wires=n - 1))
    ],
    "probs": lambda n: [qml.probs(wires=range(n)[::-1]), qml.probs(wires=[n - 1])],
    "var": lambda n: [qml.var(qml.Z(0)), qml.var(qml.X(n - 1) + 0.5 * qml.Z(n - 1))],
    "mixed": lambda n: [qml.expval(qml.Z(0)), qml.probs(wires=[0]), qml.var(qml.Y(0))],
}


def random_operations(rng, num_wires, num_gates, names, batch=None):
    """Operations with random angles; about half of the angles are broadcast when there is a batch."""
    operations = []
    for _ in range(num_gates):
        name = names[rng.integers(len(names))]
        wires, parameters = TABLE[name]
        if wires > num_wires:
            continue
        shape = () if batch is None or rng.integers(2) else (batch,)
        values = [torch.tensor(rng.uniform(-4, 4, shape)) for _ in range(parameters)]
        if name == "GlobalPhase":
            operations.append(qml.GlobalPhase(*values))
            continue
        order = rng.permutation(num_wires)[:wires].tolist()
        op = getattr(qml, name)(*values, wires=order)
        free = [w for w in range(num_wires) if w not in order]
        if free and rng.integers(6) == 0:
            op = qml.ctrl(op, free[0], control_values=[int(rng.integers(2))])
        operations.append(qml.adjoint(op) if rng.integers(6) == 0 else op)
    return operations


def rebuilt(circuit, tape, angles):
    """The tape at other angles (torch, (A,) or (B, A)), executed on default.qubit; shape (..., M)."""
    operations = []
    slot = 0
    for op in tape.operations:
        count = len(op.data)
        values = [angles[..., slot + i] for i in range(count)]
        operations.append(qml.ops.functions.bind_new_parameters(op, values) if count else op)
        slot += count
    assert slot == circuit.num_angles
    script = qml.tape.QuantumScript(operations, tape.measurements)
    (result,) = qml.execute([script], DEVICE, diff_method="backprop", interface="torch")
    parts = result if isinstance(result, (tuple, list)) else (result,)
    batch = angles.shape[:-1]
    return torch.cat([torch.as_tensor(p).reshape(*batch, -1) for p in parts], dim=-1)


def pennylane_gradient(circuit, tape, angles, cotangents):
    leaf = angles.clone().requires_grad_()
    value = rebuilt(circuit, tape, leaf)
    if not value.requires_grad:  # every parameter drops out
        return torch.zeros_like(leaf)
    (gradient,) = torch.autograd.grad(value, leaf, torch.as_tensor(cotangents), allow_unused=True)
    return torch.zeros_like(leaf) if gradient is None else gradient


def check_against_pennylane(tape):
    circuit = Circuit.from_tape(tape)
    angles = torch.as_tensor(circuit.angles_of(tape)).detach()
    expected = rebuilt(circuit, tape, angles) if circuit.num_angles else None
    got = circuit.expval(angles)
    if expected is None:
        (result,) = qml.execute([tape], DEVICE, diff_method=None)
        parts = result if isinstance(result, (tuple, list)) else (result,)
        expected = torch.cat([torch.as_tensor(p).reshape(-1) for p in parts])
        np.testing.assert_allclose(got, expected, atol=TOLERANCE)
        return
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)
    rng = np.random.default_rng(5)
    cotangents = rng.normal(size=got.shape)
    tangents = rng.normal(size=angles.shape)
    gradient = circuit.vjp(angles, cotangents)
    scale = TOLERANCE * max(1.0, float(np.abs(cotangents).max()))
    # PennyLane cannot differentiate every broadcast gate with torch, so single rows are compared.
    for row in [()] if angles.ndim == 1 else sorted({0, len(angles) // 2, len(angles) - 1}):
        expected = pennylane_gradient(circuit, tape, angles[row], cotangents[row])
        np.testing.assert_allclose(gradient[row], expected, atol=scale)
    jacobian = circuit.jacobian(angles)
    np.testing.assert_allclose(
        np.einsum("...m,...ma->...a", cotangents, jacobian), gradient, atol=scale
    )
    np.testing.assert_allclose(
        circuit.jvp(angles, tangents),
        np.einsum("...ma,...a->...m", jacobian, tangents),
        atol=TOLERANCE,
    )


@pytest.mark.parametrize("measured", OBSERVABLES)
@pytest.mark.parametrize("num_wires", [1, 2, 3, 5])
@pytest.mark.parametrize("batch", [None, 1, 2, 3, 7, 19])
def test_values_and_derivatives(num_wires, batch, measured):
    rng = np.random.default_rng([num_wires, batch or 0])
    operations = random_operations(rng, num_wires, 25, list(TABLE), batch)
    check_against_pennylane(qml.tape.QuantumScript(operations, OBSERVABLES[measured](num_wires)))


FUSIBLE = [
    "RX",
    "RY",
    "RZ",
    "Rot",
    "CNOT",
    "CZ",
    "SWAP",
    "S",
    "PauliX",
    "Hadamard",
    "IsingZZ",
    "CRZ",
]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_wires=st.integers(1, 5),
    num_gates=st.integers(0, 60),
    batch=st.sampled_from([None, 1, 2, 5, 8, 9]),
    names=st.sampled_from([tuple(TABLE), tuple(FUSIBLE)]),
    measured=st.sampled_from(sorted(OBSERVABLES)),
)
def test_random_circuits(seed, num_wires, num_gates, batch, names, measured):
    rng = np.random.default_rng(seed)
    operations = random_operations(rng, num_wires, num_gates, names, batch)
    check_against_pennylane(qml.tape.QuantumScript(operations, OBSERVABLES[measured](num_wires)))


@pytest.mark.slow
@settings(max_examples=2000, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    num_wires=st.integers(1, 6),
    num_gates=st.integers(0, 80),
    batch=st.sampled_from([None, 1, 2, 3, 4, 5, 8, 9, 17, 64]),
    names=st.sampled_from([tuple(TABLE), tuple(FUSIBLE)]),
    measured=st.sampled_from(sorted(OBSERVABLES)),
)
def test_many_random_circuits(seed, num_wires, num_gates, batch, names, measured):
    rng = np.random.default_rng(seed)
    operations = random_operations(rng, num_wires, num_gates, names, batch)
    check_against_pennylane(qml.tape.QuantumScript(operations, OBSERVABLES[measured](num_wires)))


def layered(num_wires, num_layers, batch=None, seed=0):
    """Embedding, then rotations and a ring of CNOT; returns the tape."""
    rng = np.random.default_rng(seed)
    operations = []
    shape = () if batch is None else (batch,)
    for w in range(num_wires):
        operations.append(qml.RX(rng.uniform(-3, 3, shape), w))
    for _ in range(num_layers):
        operations += [qml.Rot(*rng.uniform(-3, 3, 3), wires=w) for w in range(num_wires)]
        operations += [qml.CNOT([w, (w + 1) % num_wires]) for w in range(num_wires)]
    return qml.tape.QuantumScript(operations, [qml.expval(qml.Z(w)) for w in range(num_wires)])


@pytest.mark.parametrize(("num_wires", "batch"), [(4, 37), (9, 5), (13, 2), (15, 1)])
def test_results_do_not_depend_on_the_number_of_threads(num_wires, batch):
    tape = layered(num_wires, 2, batch)
    circuit = Circuit.from_tape(tape)
    angles = circuit.angles_of(tape)
    before = _core.num_threads()
    results = []
    try:
        for threads in (1, 2, 7):
            _core.set_num_threads(threads)
            ones = np.ones((batch, num_wires))
            results.append(
                (
                    circuit.expval(angles),
                    circuit.vjp(angles, ones),
                    circuit.jvp(angles, np.ones_like(angles)),
                    circuit.state(angles),
                )
            )
    finally:
        _core.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("num_wires", [12, 14, 16])
def test_large_circuit_in_chunks(num_wires):
    """Above some size rows are worked off in chunks; the derivative there, against the tangent sweep."""
    tape = layered(num_wires, 1)
    circuit = Circuit.from_tape(tape)
    angles = circuit.angles_of(tape)
    (expected,) = qml.execute(
        [tape], qml.device("lightning.qubit", wires=num_wires), diff_method=None
    )
    np.testing.assert_allclose(circuit.expval(angles), np.stack(expected), atol=TOLERANCE)
    tangent = np.random.default_rng(0).normal(size=angles.shape)
    cotangent = np.random.default_rng(1).normal(size=num_wires)
    np.testing.assert_allclose(
        circuit.jvp(angles, tangent) @ cotangent,
        circuit.vjp(angles, cotangent) @ tangent,
        atol=TOLERANCE,
    )


@pytest.mark.parametrize("batch", [None, 3, 9])
def test_amplitude_embedding_is_an_input(batch):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(4,) if batch is None else (batch, 4))
    tape = qml.tape.QuantumScript(
        [
            qml.AmplitudeEmbedding(data, wires=[2, 0], normalize=True),
            qml.RX(0.3, 1),
            qml.CNOT([0, 1]),
            qml.Rot(0.1, 0.2, 0.3, wires=2),
        ],
        [qml.expval(qml.Z(0)), qml.expval(qml.X(1) @ qml.Y(2)), qml.probs(wires=[1])],
    )
    circuit = Circuit.from_tape(tape)
    assert circuit.takes_state
    angles = np.broadcast_to(circuit.angles_of(tape), (batch or 1, circuit.num_angles))
    states = circuit.state_of(tape)
    values = circuit.expval(angles, states)
    (expected,) = qml.execute([tape], DEVICE, diff_method=None)
    expected = np.concatenate([np.reshape(p, (batch or 1, -1)) for p in expected], axis=-1)
    np.testing.assert_allclose(values, expected, atol=TOLERANCE)

    # Gradient with respect to the amplitudes, by central differences in a random direction.
    states = np.broadcast_to(np.atleast_2d(states), (batch or 1, 8)).astype(complex)
    cotangents = rng.normal(size=values.shape)
    direction = rng.normal(size=states.shape) + 1j * rng.normal(size=states.shape)
    step = 1e-5
    plus = circuit.expval(angles, states + step * direction)
    minus = circuit.expval(angles, states - step * direction)
    slope = np.sum(cotangents * (plus - minus)) / (2 * step)
    _, _, gradient = _core.vjp(
        circuit.program, np.ascontiguousarray(angles), cotangents, states.copy(), True
    )
    assert np.sum((gradient.conj() * direction).real) == pytest.approx(slope, abs=1e-8)
    tangent = _core.jvp(
        circuit.program,
        np.array(angles, order="C"),
        np.zeros(angles.shape),
        states.copy(),
        direction,
    )
    assert np.sum(tangent * cotangents) == pytest.approx(slope, abs=1e-8)


def test_basis_state_and_labels():
    tape = qml.tape.QuantumScript(
        [
            qml.BasisState([1, 0, 1], wires=["b", 7, "a"]),
            qml.CRX(0.4, ["a", 7]),
            qml.CNOT([7, "b"]),
        ],
        [qml.expval(qml.Z("b")), qml.expval(qml.Z(7)), qml.probs(wires=["a", "b"])],
    )
    circuit = Circuit.from_tape(tape)
    assert circuit.wires == ("b", 7, "a")
    assert not circuit.takes_state
    (expected,) = qml.execute([tape], DEVICE, diff_method=None)
    np.testing.assert_allclose(
        circuit.expval(circuit.angles_of(tape)),
        np.concatenate([np.ravel(p) for p in expected]),
        atol=TOLERANCE,
    )


@pytest.mark.parametrize("measured", [qml.state, qml.probs])
def test_from_qnode_uses_the_wires_of_the_device_where_all_are_measured(measured):
    @qml.qnode(qml.device("default.qubit", wires=3))
    def qnode(x):
        qml.RX(x[0], 2)
        qml.CRY(x[1], [2, 0])
        return measured()

    x = np.array([0.3, 0.7])
    circuit = Circuit.from_qnode(qnode, x)
    assert circuit.num_wires == 3
    got = circuit.state(x) if measured is qml.state else circuit.expval(x)
    np.testing.assert_allclose(got, qnode(x), atol=TOLERANCE)


def test_angles_keep_the_graph():
    weights = torch.tensor([0.2, -0.4], dtype=torch.float64, requires_grad=True)
    inputs = torch.linspace(-1, 1, 5, dtype=torch.float64)
    tape = qml.tape.QuantumScript(
        [qml.RX(inputs, 0), qml.RY(2 * weights[0], 0), qml.RX(0.3, 1), qml.CRZ(weights[1], [0, 1])],
        [qml.expval(qml.X(0))],
    )
    circuit = Circuit.from_tape(tape)
    angles = circuit.angles_of(tape)
    assert angles.shape == (5, 4)
    (gradient,) = torch.autograd.grad(angles.sum(), weights)
    np.testing.assert_allclose(gradient, [10, 5])


def test_angles_of_another_structure_are_refused():
    circuit = Circuit.from_tape(layered(2, 1))
    with pytest.raises(ValueError, match="another one"):
        circuit.angles_of(layered(2, 2))


def test_circuit_is_a_value():
    tape = layered(3, 2)
    circuit, same, other = (
        Circuit.from_tape(tape),
        Circuit.from_tape(tape),
        Circuit.from_tape(layered(3, 1)),
    )
    assert circuit == same
    assert hash(circuit) == hash(same)
    assert circuit != other
    assert circuit != 3
    again = pickle.loads(pickle.dumps(circuit))
    assert again == circuit
    angles = circuit.angles_of(tape)
    np.testing.assert_array_equal(again.expval(angles), circuit.expval(angles))
    assert copy.deepcopy(circuit) == circuit
    assert repr(circuit) == "Circuit(wires=[0, 1, 2], gates=15, angles=21, outputs=3)"
    assert circuit.output_shapes == ((), (), ())


CIRCUIT = Circuit.from_tape(layered(2, 1))
BAD_CALLS = {
    "angles": (lambda: CIRCUIT.expval(np.zeros((3, 4))), r"angles: expected shape .*got \(3, 4\)"),
    "scalar": (lambda: CIRCUIT.expval(0.3), "angles: expected shape"),
    "cotangents": (
        lambda: CIRCUIT.vjp(np.zeros((3, 8)), np.zeros((3, 1))),
        r"cotangents: .*\(3, 2\)",
    ),
    "tangents": (lambda: CIRCUIT.jvp(np.zeros(8), np.zeros(7)), "tangents: expected"),
    "state": (lambda: CIRCUIT.expval(np.zeros(8), np.zeros(4)), "state: this circuit starts"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_call(name):
    call, message = BAD_CALLS[name]
    with pytest.raises(ValueError, match=message):
        call()


def test_extension_checks_again():
    program = CIRCUIT.program
    with pytest.raises(ValueError, match="angles: expected shape"):
        _core.expval(program, np.zeros((1, 3)))
    with pytest.raises(TypeError):
        _core.expval(program, np.zeros((1, 8), dtype=np.float32))
    with pytest.raises(ValueError, match="wire 1 occurs twice"):
        _core.ProgramBuilder(2, 0, False).gate("CNOT", [1, 1], [], [], False, [])
    with pytest.raises(ValueError, match="expected a name of the gate table"):
        _core.ProgramBuilder(2, 0, False).gate("CNOPE", [1, 0], [], [], False, [])
    with pytest.raises(ValueError, match="unitary"):
        _core.ProgramBuilder(1, 0, False).matrix(np.ones((2, 2), complex), [0], [], [], False)


UNSUPPORTED = {
    "shots": qml.tape.QuantumScript([qml.X(0)], [qml.expval(qml.Z(0))], shots=10),
    "sample": qml.tape.QuantumScript([qml.X(0)], [qml.sample(wires=0)]),
    "entropy": qml.tape.QuantumScript([qml.X(0)], [qml.vn_entropy(wires=[0])]),
    "no wires": qml.tape.QuantumScript([], [qml.state()]),
    "too many wires": qml.tape.QuantumScript([qml.X(w) for w in range(25)], [qml.expval(qml.Z(0))]),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported_circuit(name):
    with pytest.raises(UnsupportedCircuitError):
        Circuit.from_tape(UNSUPPORTED[name])


def test_state_only_circuit_has_no_values():
    tape = qml.tape.QuantumScript([qml.RX(0.2, 0)], [qml.state()])
    with pytest.raises(ValueError, match=r"circuit\.state"):
        Circuit.from_tape(tape).expval([0.2])


def test_nan_stays_in_its_sample():
    tape = layered(3, 1, batch=10)
    circuit = Circuit.from_tape(tape)
    angles = circuit.angles_of(tape)
    expected = circuit.expval(angles)
    angles[4, 1] = np.nan
    values = circuit.expval(angles)
    assert np.isnan(values[4]).all()
    keep = np.arange(10) != 4
    np.testing.assert_allclose(values[keep], expected[keep], atol=1e-14)


def test_request_beyond_the_memory_limit_is_refused():
    circuit = Circuit.from_tape(layered(10, 1))
    try:
        _core.set_memory_limit(1e4)
        with pytest.raises(MemoryError, match="GB of memory"):
            circuit.expval(np.zeros(circuit.num_angles))
    finally:
        _core.set_memory_limit(0)


def test_derivatives_beyond_the_memory_limit_are_refused():
    circuit = Circuit.from_tape(layered(4, 1))
    angles = np.zeros((300, circuit.num_angles))
    plan = _core.ShiftPlan([0, 1], [[1.0], [1.0]])
    values = np.zeros((len(plan), 300, 2))
    try:
        _core.set_memory_limit(6e3)
        with pytest.raises(MemoryError, match="the derivatives would take"):
            circuit.jvp(angles, angles)
        with pytest.raises(MemoryError, match="the shifted angles would take"):
            plan.angles(angles[:, :2].copy())
        with pytest.raises(MemoryError, match="the derivatives would take"):
            _core.shift_sum(np.asarray(plan.index), np.asarray(plan.coefficient), values, count=2)
    finally:
        _core.set_memory_limit(0)
    assert plan.angles(angles[:, :2].copy()).shape == (4, 300, 2)


def test_keyboard_interrupt_stops_a_sweep():
    circuit = Circuit.from_tape(layered(16, 60))
    timer = threading.Timer(0.3, signal.raise_signal, [signal.SIGINT])
    angles = np.zeros((2000, circuit.num_angles))
    begin = time.perf_counter()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        circuit.expval(angles)
    assert time.perf_counter() - begin < 30
