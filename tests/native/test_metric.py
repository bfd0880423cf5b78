"""The native engine's metric against PennyLane's state and torch's Jacobian, and the contract of the methods."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from angle_circuits import ansatz, drawn
from fubini import _core
from fubini.metric import circuits
from fubini.native import metric as native_metric
from fubini.native.circuit import Circuit
from fubini.native.layer_plan import layer_plan

TOLERANCE = 1e-11  # double precision over tens of gates
RULES = ["wires", "maximal", "queue"]
DEVICE = qml.device("default.qubit")


def expected_metric(tape, angles):
    """From PennyLane's final state and torch's Jacobian: no code of fubini."""

    def state(values):
        operations, slot = [], 0
        for op in tape.operations:
            count = 0 if isinstance(op, qml.StatePrep) else len(op.data)
            new = [values[slot + i] for i in range(count)]
            operations.append(qml.ops.functions.bind_new_parameters(op, new) if count else op)
            slot += count
        script = qml.tape.QuantumScript(operations, [qml.state()])
        (psi,) = qml.execute([script], DEVICE, diff_method="backprop", interface="torch")
        return torch.view_as_real(psi.to(torch.complex128))

    values = torch.as_tensor(angles)
    jacobian = torch.autograd.functional.jacobian(state, values)
    derivatives = torch.complex(jacobian[:, 0], jacobian[:, 1]).numpy()
    psi = torch.view_as_complex(state(values).contiguous()).numpy()
    overlaps = psi.conj() @ derivatives
    return (derivatives.conj().T @ derivatives - np.outer(overlaps.conj(), overlaps)).real


@pytest.mark.parametrize("seed", range(60))
def test_full_metric_is_that_of_the_derivative_states(seed):
    tape, circuit, angles = drawn(seed, prepared=seed % 4 == 0)
    got = circuits.metric(circuit, angles, state=circuit.state_of(tape))
    np.testing.assert_allclose(got, expected_metric(tape, angles), atol=TOLERANCE)
    assert (got == got.T).all()
    assert np.linalg.eigvalsh(got).min() > -1e-13 * max(1.0, np.abs(got).max() * len(got))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(30))
def test_blocks_and_diagonal_are_parts_of_the_full_metric(seed, rule):
    _, circuit, angles = drawn(seed, batch=1 + seed % 4)
    full = circuits.metric(circuit, angles)
    blocks = circuits.metric(circuit, angles, "block-diag", layers=rule)
    assert sorted(a for indices, _ in blocks for a in indices) == list(range(circuit.num_angles))
    for indices, block in blocks:
        np.testing.assert_allclose(block, full[:, indices][:, :, indices], atol=TOLERANCE)
    diagonal = circuits.metric(circuit, angles, "diag", layers=rule)
    np.testing.assert_allclose(diagonal, np.diagonal(full, axis1=1, axis2=2), atol=TOLERANCE)


@pytest.mark.parametrize("batch", range(1, 9))
def test_batch_is_the_same_as_single_inputs(batch):
    tape, circuit, angles = drawn(7 + batch, batch=batch, wires=4)
    full = circuits.metric(circuit, angles)
    assert full.shape == (batch, circuit.num_angles, circuit.num_angles)
    singles = np.stack([circuits.metric(circuit, row) for row in angles])
    np.testing.assert_allclose(full, singles, atol=1e-13)
    np.testing.assert_allclose(full[-1], expected_metric(tape, angles[-1]), atol=TOLERANCE)


@pytest.mark.parametrize("batch", [1, 3, 8, 19])
def test_mean(batch):
    _, circuit, angles = drawn(3, batch=batch)
    singles = [circuits.metric(circuit, row) for row in angles]
    mean = np.mean(singles, axis=0)
    np.testing.assert_allclose(circuits.metric(circuit, angles, reduce="mean"), mean, atol=1e-12)
    np.testing.assert_allclose(
        circuits.metric(circuit, angles, "diag", reduce="mean"), np.diag(mean), atol=1e-12
    )
    for indices, block in circuits.metric(circuit, angles, "block-diag", reduce="mean"):
        np.testing.assert_allclose(block, mean[np.ix_(indices, indices)], atol=1e-12)
    vector = np.linspace(-1, 1, circuit.num_angles)
    product = circuits.metric_vector_product(circuit, angles, vector, reduce="mean")
    np.testing.assert_allclose(product, mean @ vector, atol=TOLERANCE)


@pytest.mark.parametrize("seed", range(30))
def test_product_with_vectors(seed):
    batch = 1 + seed % 9
    tape, circuit, angles = drawn(seed, batch=batch, prepared=seed % 3 == 0)
    state = circuit.state_of(tape)
    full = circuits.metric(circuit, angles, state=state)
    vectors = np.random.default_rng(seed).normal(size=angles.shape)
    got = circuits.metric_vector_product(circuit, angles, vectors, state=state)
    np.testing.assert_allclose(got, np.einsum("bij,bj->bi", full, vectors), atol=TOLERANCE)
    one = circuits.metric_vector_product(circuit, angles[0], vectors[0], state=state)
    np.testing.assert_allclose(one, got[0], atol=1e-13)


@pytest.mark.parametrize("seed", range(8))
def test_several_vectors_for_every_input(seed):
    batch, each = 1 + seed % 4, 1 + seed
    tape, circuit, angles = drawn(seed, batch=batch, prepared=seed % 2 == 0)
    state = None
    if seed % 2 == 0:
        state = np.ascontiguousarray(
            np.broadcast_to(circuit.state_of(tape), (1, 2 ** len(tape.wires)))
        )
        state = np.repeat(state, batch, axis=0) * np.exp(1j * np.arange(batch))[:, None]
    vectors = np.random.default_rng(seed).normal(size=(batch, each, circuit.num_angles))
    full = circuits.metric(circuit, angles, state=state)
    expected = np.einsum("bij,bkj->bki", full, vectors)
    got = _core.metric_vector_product(circuit.program, angles, vectors, state, False)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)
    mean = _core.metric_vector_product(circuit.program, angles, vectors, state, True)
    np.testing.assert_allclose(mean, expected.mean(axis=0), atol=TOLERANCE)
    with pytest.raises(ValueError, match=r"vectors: expected shape \(batch, vectors, angles\)"):
        _core.metric_vector_product(circuit.program, angles, vectors[:, :, 1:].copy(), state, False)


@pytest.mark.parametrize("batch", [1, 3, 9])
@pytest.mark.parametrize("prepared", [False, True])
def test_factor_times_its_transpose_is_the_mean_metric(batch, prepared):
    _, circuit, angles = drawn(11 + batch, batch=batch, wires=3, prepared=prepared)
    state = None
    if prepared:
        rng = np.random.default_rng(batch)
        state = rng.normal(size=(batch, 8)) + 1j * rng.normal(size=(batch, 8))
        state /= np.linalg.norm(state, axis=1, keepdims=True)
    factor = _core.metric_factor(circuit.program, angles, state)
    assert factor.shape == (circuit.num_angles, 16 * batch)
    mean = circuits.metric(circuit, angles, reduce="mean", state=state)
    np.testing.assert_allclose(factor @ factor.T, mean, atol=1e-12)
    # Every input has its own columns.
    for b in range(batch):
        part = factor[:, 16 * b : 16 * (b + 1)]
        alone = circuits.metric(circuit, angles[b], state=None if state is None else state[b])
        np.testing.assert_allclose(batch * part @ part.T, alone, atol=1e-12)
    gradient = np.linspace(-1, 1, circuit.num_angles)
    dense = fubini.solve(mean, gradient, damping=1e-3)
    dual = fubini.solve(factor, gradient, damping=1e-3, method="dual")
    np.testing.assert_allclose(dual, dense, rtol=0, atol=1e-9 * np.abs(dense).max())


def test_factor_beyond_one_panel():
    circuit = ansatz(8, 4)
    angles = np.random.default_rng(4).uniform(-3, 3, (2, circuit.num_angles))
    whole = _core.metric_factor(circuit.program, angles, None)
    threads = _core.num_threads()
    try:
        _core.set_num_threads(1)
        _core.set_memory_limit(1.2e6)
        np.testing.assert_allclose(
            _core.metric_factor(circuit.program, angles, None), whole, atol=1e-14
        )
        _core.set_memory_limit(400e3)
        with pytest.raises(MemoryError, match=r"the factor of the metric would take .* GB"):
            _core.metric_factor(circuit.program, angles, None)
    finally:
        _core.set_memory_limit(0)
        _core.set_num_threads(threads)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_inputs_that_are_initial_states_alone_are_compressed(rank, monkeypatch):
    """The mean over many prepared states is that over eigenvectors of their density matrix, and exact."""
    _, circuit, angles = drawn(5, wires=3, prepared=True)
    rng = np.random.default_rng(rank)
    basis = rng.normal(size=(rank, 8)) + 1j * rng.normal(size=(rank, 8))
    states = (rng.normal(size=(40, rank)) + 1j * rng.normal(size=(40, rank))) @ basis
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    rows = np.repeat(angles[None], 40, axis=0)
    mean = circuits.metric(circuit, rows, state=states).mean(axis=0)
    calls = []
    ensemble = native_metric._metric_of_ensemble
    monkeypatch.setattr(
        native_metric, "_metric_of_ensemble", lambda *a: calls.append(a) or ensemble(*a)
    )
    np.testing.assert_allclose(
        circuits.metric(circuit, rows, reduce="mean", state=states), mean, rtol=0, atol=1e-12
    )
    assert len(calls) == 1
    rows[7, 0] += 0.1  # angles that differ too: no ensemble
    mean = circuits.metric(circuit, rows, state=states).mean(axis=0)
    np.testing.assert_allclose(
        circuits.metric(circuit, rows, reduce="mean", state=states), mean, rtol=0, atol=1e-12
    )
    assert len(calls) == 1


def test_berry_connection_is_the_overlap_with_the_derivative():
    _, circuit, angles = drawn(15, batch=3, wires=3)
    got = _core.berry_connection(circuit.program, angles)
    step = 1e-4
    for b in range(3):
        psi = circuit.state(angles[b])
        for a in range(circuit.num_angles):
            shift = step * (np.arange(circuit.num_angles) == a)
            near = circuit.state(angles[b] + shift) - circuit.state(angles[b] - shift)
            far = circuit.state(angles[b] + 2 * shift) - circuit.state(angles[b] - 2 * shift)
            derivative = (8 * near - far) / (12 * step)
            # Global phases count for the state alone: compare with the part that the engine differentiates.
            assert abs(np.vdot(psi, derivative).real) < 1e-9
            assert abs(np.vdot(psi, derivative).imag - got[b, a]) < 1e-9


def test_initial_states_may_differ_between_inputs():
    _, circuit, angles = drawn(5, batch=3, wires=3, prepared=True)
    rng = np.random.default_rng(0)
    states = rng.normal(size=(3, 8)) + 1j * rng.normal(size=(3, 8))
    states /= np.linalg.norm(states, axis=1, keepdims=True)
    full = circuits.metric(circuit, angles, state=states)
    for b in range(3):
        alone = circuits.metric(circuit, angles[b], state=states[b])
        np.testing.assert_allclose(full[b], alone, atol=1e-13)
    for indices, block in circuits.metric(circuit, angles, "block-diag", state=states):
        np.testing.assert_allclose(block, full[:, indices][:, :, indices], atol=TOLERANCE)


def test_ansatz_has_pennylanes_layers():
    circuit = ansatz(4, 3)
    assert len(layer_plan(circuit).blocks) == 6
    assert layer_plan(circuit) is layer_plan(circuit)


@pytest.mark.parametrize(("wires", "batch"), [(10, 1), (10, 3), (4, 41), (12, 3)])
def test_bits_do_not_depend_on_the_number_of_threads(wires, batch):
    circuit = ansatz(wires, 2)
    angles = np.random.default_rng(2).uniform(-3, 3, (batch, circuit.num_angles))
    threads = _core.num_threads()
    results = []
    try:
        for count in (1, 2, 7):
            _core.set_num_threads(count)
            results.append(
                [
                    circuits.metric(circuit, angles),
                    circuits.metric(circuit, angles, reduce="mean"),
                    circuits.metric_vector_product(circuit, angles, angles),
                    circuits.metric(circuit, angles, "diag"),
                    circuits.metric(circuit, angles, "diag", reduce="mean"),
                    circuits.metric(circuit, angles, "block-diag", reduce="mean")[1][1],
                    _core.metric_factor(circuit.program, angles, None),
                ]
            )
    finally:
        _core.set_num_threads(threads)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert (a == b).all()


def test_states_beyond_the_cache_share_lanes_among_amplitudes():
    """From 14 qubits on a tile holds fewer than eight states."""
    circuit = ansatz(15, 1)
    angles = np.random.default_rng(3).uniform(-3, 3, circuit.num_angles)
    full = circuits.metric(circuit, angles)
    for indices, block in circuits.metric(circuit, angles, "block-diag"):
        np.testing.assert_allclose(block, full[np.ix_(indices, indices)], atol=TOLERANCE)
    vector = np.linspace(-1, 1, circuit.num_angles)
    product = circuits.metric_vector_product(circuit, angles, vector)
    np.testing.assert_allclose(product, full @ vector, atol=TOLERANCE)


def test_tangents_that_do_not_fit_are_computed_again():
    circuit = ansatz(8, 4)
    angles = np.random.default_rng(4).uniform(-3, 3, (2, circuit.num_angles))
    whole, mean = circuits.metric(circuit, angles), circuits.metric(circuit, angles, reduce="mean")
    threads = _core.num_threads()
    try:
        _core.set_num_threads(1)
        _core.set_memory_limit(400e3)
        np.testing.assert_allclose(circuits.metric(circuit, angles), whole, atol=1e-13)
        np.testing.assert_allclose(
            circuits.metric(circuit, angles, reduce="mean"), mean, atol=1e-13
        )
        _core.set_memory_limit(40e3)
        with pytest.raises(MemoryError, match=r"the metric would take .* GB"):
            circuits.metric(circuit, angles)
    finally:
        _core.set_memory_limit(0)
        _core.set_num_threads(threads)


def test_shared_slots_and_idle_angles():
    """Angles of several gates, which tapes do not have, and one that nothing depends on."""
    builder = _core.ProgramBuilder(3, 4, False)
    wires = [0, 1, 2, 0, 1, 2, 0]
    for i, wire in enumerate(wires):
        name = ["RX", "RY", "RZ"][i % 3] if i != 3 else "RY"
        builder.gate(name, [wire], [], [], False, [(i % 3, 0.5 + i, 0.1 * i)])
        builder.gate("CNOT", [wire, (wire + 1) % 3], [], [], False, [])
    program = builder.build()
    angles = np.array([[0.3, -1.2, 0.7, 0.4], [1.3, 0.2, -0.7, 0.9]])
    full = _core.metric(program, angles)
    step = 1e-4
    for b in range(2):
        derivatives = []
        for a in range(4):
            shift = np.eye(4)[a : a + 1] * step
            row = angles[b : b + 1]
            near = _core.state(program, row + shift) - _core.state(program, row - shift)
            far = _core.state(program, row + 2 * shift) - _core.state(program, row - 2 * shift)
            derivatives.append(((8 * near - far) / (12 * step))[0])
        jacobian = np.array(derivatives).T
        psi = _core.state(program, angles[b : b + 1])[0]
        overlaps = psi.conj() @ jacobian
        tensor = jacobian.conj().T @ jacobian - np.outer(overlaps.conj(), overlaps)
        np.testing.assert_allclose(full[b], tensor.real, atol=1e-9)
    chosen = _core.metric(program, angles, None, False, [3, 1])
    np.testing.assert_array_equal(chosen[:, 1, 1], full[:, 1, 1])
    assert (chosen[:, 0] == 0).all()
    with pytest.raises(ValueError, match="columns"):
        _core.metric(program, angles, None, False, [1, 1])


def test_angle_whose_rotations_are_in_several_layers():
    # RY(t) = (S H) RZ(t) (S H)^-1 is one layer; Trotter steps share one angle between many gates.
    generator = qml.dot([0.3, 0.4, -0.2], [qml.X(0), qml.Z(0) @ qml.Z(1), qml.Y(1)])
    tape = qml.tape.QuantumScript(
        [qml.RY(0.2, 0), qml.Rot(0.1, 0.2, 0.3, 1), qml.TrotterProduct(generator, 0.8, n=2)],
        [qml.state()],
    )
    circuit = Circuit.from_tape(tape, wires=[0, 1])
    angles = circuit.angles_of(tape)
    full = circuits.metric(circuit, angles)
    for rule in RULES:
        for indices, block in circuits.metric(circuit, angles, "block-diag", layers=rule):
            np.testing.assert_allclose(block, full[np.ix_(indices, indices)], atol=TOLERANCE)


def test_circuit_without_angles():
    circuit = Circuit.from_tape(qml.tape.QuantumScript([qml.Hadamard(0)], [qml.state()]))
    assert circuits.metric(circuit, np.zeros(0)).shape == (0, 0)
    assert circuits.metric(circuit, np.zeros((3, 0)), "diag").shape == (3, 0)
    assert circuits.metric(circuit, np.zeros((3, 0)), "block-diag") == []
    assert circuits.metric_vector_product(circuit, np.zeros((3, 0)), np.zeros((3, 0))).shape == (
        3,
        0,
    )


def test_bad_requests_say_what_is_wrong():
    circuit = ansatz(3, 1)
    angles = np.zeros((2, 6))
    angles[1, 4] = np.nan
    for approx in (None, "block-diag", "diag"):
        with pytest.raises(ValueError, match=r"nan at angles\[1, 4\]"):
            circuits.metric(circuit, angles, approx)
    with pytest.raises(ValueError, match=r"nan at angles\[4\]"):
        circuits.metric_vector_product(circuit, angles[1], np.zeros(6))
    with pytest.raises(ValueError, match=r"inf at vectors\[2\]"):
        circuits.metric_vector_product(circuit, angles[0], [0, 0, np.inf, 0, 0, 0])
    with pytest.raises(ValueError, match="approx: expected"):
        circuits.metric(circuit, angles[0], "blocks")
    with pytest.raises(ValueError, match="reduce: expected"):
        circuits.metric(circuit, angles[0], reduce="sum")
    with pytest.raises(ValueError, match="layers: expected"):
        circuits.metric(circuit, angles[0], "block-diag", layers="depth")
    with pytest.raises(ValueError, match="empty batch"):
        circuits.metric(circuit, np.zeros((0, 6)), reduce="mean")
    with pytest.raises(ValueError, match="vectors: expected shape"):
        circuits.metric_vector_product(circuit, angles[0], np.zeros(5))
    assert circuits.metric(circuit, np.zeros((0, 6))).shape == (0, 6, 6)


# -- layers: the native metric against the device engine ------------------------------------------------------------


def reuploading(inputs: Any, weights: Any) -> Any:
    for k in range(2):
        qml.AngleEmbedding(inputs * (k + 1), wires=range(3), rotation="Y")
        qml.StronglyEntanglingLayers(weights[k : k + 1], wires=range(3))
        qml.CRX(weights[k, 0, 0] + inputs[..., 1], [2, 0])
        qml.IsingZZ(2 * weights[k, 1, 1], [0, 1])
        qml.U3(weights[k, 0, 1], inputs[..., 0], weights[k, 2, 2], wires=1)
    return qml.expval(qml.Z(0))


@pytest.mark.parametrize("approx", [None, "block-diag", "diag"])
@pytest.mark.parametrize("rule", ["wires", "maximal", "queue"])
@pytest.mark.parametrize("shape", [(3,), (1, 3), (5, 3)])
def test_layer_metric_equals_the_device_engine(
    approx: Any, rule: Any, shape: tuple[int, ...]
) -> None:
    qnode = qml.QNode(reuploading, qml.device("default.qubit", wires=3))
    native = fubini.QuantumLayer(qnode, {"weights": (2, 3, 3)}, engine="native").double()
    device = fubini.QuantumLayer(
        qnode, {"weights": (2, 3, 3)}, {"weights": native.weights.detach()}, engine="device"
    )
    x = torch.rand(shape, dtype=torch.float64)
    assert native.compiled(x) is not None
    for reduce in (None, "mean"):
        options: Any = {"layers": rule, "reduce": reduce, "joint": True}
        mine = fubini.metric_tensor(native, approx, **options)(x)
        theirs = fubini.metric_tensor(device, approx, **options)(x)
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


OF_CIRCUITS = {
    "metric": lambda c, a: (fubini.metric_tensor(c)(a), circuits.metric(c, a)),
    "mean": lambda c, a: (
        fubini.metric_tensor(c, reduce="mean")(a),
        circuits.metric(c, a, reduce="mean"),
    ),
    "diagonal": lambda c, a: (
        fubini.quantum_fisher(c, "diag")(a),
        4 * circuits.metric(c, a, "diag"),
    ),
    "geometric tensor": lambda c, a: (
        fubini.geometric_tensor(c)(a),
        circuits.geometric_tensor(c, a),
    ),
    "operator": lambda c, a: (
        fubini.metric_operator(c, "dual")(a).dense(),
        circuits.metric(c, a, reduce="mean"),
    ),
    "automatic": lambda c, a: (
        fubini.metric_tensor(c, "auto")(a).dense(),
        circuits.metric(c, a, reduce="mean"),
    ),
    "derivative": lambda c, a: (
        fubini.metric_derivative(c, a[0])(a),
        circuits.metric_derivative(c, a, a[0]),
    ),
}


@pytest.mark.parametrize("name", OF_CIRCUITS)
def test_public_functions_take_circuits(name: str) -> None:
    circuit = ansatz(2, 1)
    angles = np.random.default_rng(4).normal(size=(3, circuit.num_angles))
    found, expected = OF_CIRCUITS[name](circuit, angles)
    np.testing.assert_allclose(found, expected, atol=TOLERANCE)


def test_blocks_of_circuits_and_what_they_refuse() -> None:
    circuit = ansatz(2, 1)
    angles = np.arange(1.0, 1 + circuit.num_angles)
    full = fubini.metric_tensor(circuit)(angles)
    blocks = fubini.quantum_fisher(circuit, "block-diag")(angles)
    assert sorted(i for indices, _ in blocks for i in indices) == list(range(len(full)))
    for indices, block in blocks:
        np.testing.assert_allclose(block, 4 * full[np.ix_(indices, indices)], atol=TOLERANCE)
    with pytest.raises(ValueError, match="argnums: expected none for a Circuit"):
        fubini.metric_tensor(circuit, argnums=0)
    with pytest.raises(ValueError, match="engine: expected none for a Circuit"):
        fubini.metric_operator(circuit, engine="device")
    with pytest.raises(AttributeError, match=r"write fubini\.metric_tensor\(circuit, \.\.\.\)"):
        circuit.metric
