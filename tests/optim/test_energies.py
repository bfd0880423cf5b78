"""Energies of circuits without data: the flat problem, its curvature, and the way to the minimum."""

from functools import partial

import numpy as np
import pennylane as qml
import pytest
import scipy.optimize
import scipy.sparse
import torch

import fubini
from fubini import UnsupportedCircuitError
from fubini.circuit.pauli import NoPauliSum, pauli_sum

WIRES = 4


def random_energy(seed, layers=2):
    """A random circuit of two tensors, with shared weights, offsets and factors, and a random Hamiltonian."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("IXYZ"), WIRES)) for _ in range(9)]
    hamiltonian = qml.Hamiltonian(
        rng.normal(size=9), [qml.pauli.string_to_pauli_word(w) for w in words]
    )
    axes = rng.choice(["X", "Y", "Z"], (layers, WIRES))

    def function(w, a):
        for layer in range(layers):
            for i in range(WIRES):
                getattr(qml, f"R{axes[layer, i]}")(w[layer, i], i)
                qml.RY(0.3 - 2 * w[layer, i], i)
            qml.IsingXY(a[layer], [0, 3])
            for i in range(WIRES):
                qml.CNOT([i, (i + 1) % WIRES])
            qml.SingleExcitation(a[0], [layer, layer + 1])
        return qml.expval(hamiltonian)

    weights = torch.tensor(rng.normal(size=(layers, WIRES)))
    shared = torch.tensor(rng.normal(size=layers))
    qnode = qml.QNode(function, qml.device("default.qubit", wires=WIRES))
    return qnode, (weights, shared), qml.matrix(hamiltonian, wire_order=range(WIRES))


def second_order(qnode, arguments, matrix):
    """(E, gradient, 2 Re <d_i psi|P (H - E) P|d_j psi>) from the state's derivatives by autograd."""

    def state(*args):
        tape = qml.tape.make_qscript(qnode.func)(*args)
        script = qml.tape.QuantumScript(tape.operations, [qml.state()])
        device = qml.device("default.qubit", wires=range(WIRES))
        return qml.execute([script], device, diff_method="backprop")[0]

    parts = [
        torch.autograd.functional.jacobian(
            lambda *x, part=part: getattr(torch.as_tensor(state(*x)), part), arguments
        )
        for part in ("real", "imag")
    ]
    flat = [torch.cat([p.reshape(2**WIRES, -1) for p in part], 1).numpy() for part in parts]
    tangents = flat[0] + 1j * flat[1]
    psi = state(*arguments).detach().numpy()
    tangents = tangents - np.outer(psi, psi.conj() @ tangents)
    energy = (psi.conj() @ matrix @ psi).real
    image = matrix @ tangents - energy * tangents
    return (
        energy,
        2 * (tangents.conj().T @ matrix @ psi).real,
        2 * (tangents.conj().T @ image).real,
        (tangents.conj().T @ tangents).real,
    )


@pytest.mark.parametrize("seed", range(2))
def test_model_is_the_second_order_expansion(seed):
    qnode, arguments, matrix = random_energy(seed)
    problem = fubini.energy_problem(qnode, *arguments)
    assert problem.size == 10
    x = problem.start
    energy, gradient, curvature, metric = second_order(qnode, arguments, matrix)
    model = problem.model(x)
    # Sums of some hundred products of numbers of order 1.
    assert abs(model.energy - energy) < 1e-12
    np.testing.assert_allclose(model.gradient, gradient, atol=1e-12)
    np.testing.assert_allclose(model.curvature, curvature, atol=1e-11)
    np.testing.assert_allclose(model.metric, metric, atol=1e-12)
    assert (model.curvature == model.curvature.T).all()
    np.testing.assert_allclose(problem.metric(x), metric, atol=1e-12)
    found = problem.expansion(x)
    assert found[0] == model.energy
    assert np.array_equal(found[1], model.gradient)
    assert np.array_equal(found[2], model.curvature)
    vectors = np.random.default_rng(seed).normal(size=(3, 10))
    products = problem.curvature_product(x, vectors)
    np.testing.assert_allclose(products, vectors @ curvature, atol=1e-11)
    np.testing.assert_allclose(problem.curvature_product(x, vectors[0]), products[0], atol=1e-12)
    value, slope = problem.value_and_gradient(x)
    assert abs(value - energy) < 1e-12
    np.testing.assert_allclose(slope, gradient, atol=1e-12)
    np.testing.assert_allclose(problem.energies(np.stack([x, x])), energy, atol=1e-12)


def test_functions_of_several_weights_are_pulled_back():
    qnode, (weights, shared), matrix = random_energy(7)

    def mixed(w, a):
        return qnode.func(torch.sin(w) * a[0], a + w[0, 1])

    other = qml.QNode(mixed, qnode.device)
    problem = fubini.energy_problem(other, weights, shared)
    energy, gradient, curvature, metric = second_order(other, (weights, shared), matrix)
    model = problem.model(problem.start)
    assert abs(model.energy - energy) < 1e-12
    np.testing.assert_allclose(model.gradient, gradient, atol=1e-12)
    np.testing.assert_allclose(model.curvature, curvature, atol=1e-11)
    np.testing.assert_allclose(model.metric, metric, atol=1e-12)
    v = np.linspace(-1, 1, problem.size)
    np.testing.assert_allclose(
        problem.curvature_product(problem.start, v), curvature @ v, atol=1e-11
    )


def test_only_tensors_with_a_gradient_move():
    qnode, (weights, shared), _ = random_energy(3)
    problem = fubini.energy_problem(qnode, weights, a=shared.requires_grad_())
    assert problem.size == 2
    whole = fubini.energy_problem(qnode, weights, shared.detach())
    expected = whole.value_and_gradient(whole.start)
    value, gradient = problem.value_and_gradient(problem.start)
    assert abs(value - expected[0]) < 1e-12
    np.testing.assert_allclose(gradient, expected[1][-2:], atol=1e-12)
    args, kwargs = problem.arguments(np.array([0.5, 0.25]))
    assert args[0] is weights
    assert kwargs["a"].tolist() == [0.5, 0.25]
    problem.write(np.array([0.5, 0.25]))
    assert shared.tolist() == [0.5, 0.25]


@pytest.mark.parametrize("spins", [6, 10])
def test_weights_of_many_gates_have_sweeps_of_their_own(spins):
    """The tangents' two layouts, by the number of gates a weight has, and any number of threads."""

    def function(w):
        for i in range(spins):
            qml.Hadamard(i)
        for layer in w:
            for i in range(spins):
                qml.IsingZZ(layer[0], [i, (i + 1) % spins])
            for i in range(spins):
                qml.RX(layer[1], i)
        return qml.expval(qml.sum(*(qml.Z(i) @ qml.Y(i - 1) + qml.X(i) for i in range(1, spins))))

    w = torch.linspace(0.1, 1.2, 12, dtype=torch.float64).reshape(6, 2)
    qnode = qml.QNode(function, qml.device("default.qubit", wires=spins))
    problem = fubini.energy_problem(qnode, w)
    x, model = problem.start, problem.model(problem.start)
    value, gradient = problem.value_and_gradient(x)
    assert abs(value - model.energy) < 1e-12
    np.testing.assert_allclose(model.gradient, gradient, atol=1e-11)
    np.testing.assert_allclose(
        problem.curvature_product(x, np.eye(12)), model.curvature, atol=1e-10
    )
    circuit = fubini.Circuit.from_qnode(qnode, w)
    angles = circuit.angles_of(qml.workflow.construct_tape(qnode)(w)).numpy()
    per_gate = fubini.metric_tensor(circuit)(angles)
    places = np.repeat(np.arange(12), spins)  # the weight of every angle
    pull = (places[:, None] == np.arange(12)).astype(float)
    expected = pull.T @ per_gate @ pull
    np.testing.assert_allclose(model.metric, expected, atol=1e-10)
    np.testing.assert_allclose(problem.metric(x), expected, atol=1e-10)
    threads = fubini.get_num_threads()
    try:
        for count in (1, 2):
            fubini.set_num_threads(count)
            assert problem.model(x).curvature.tobytes() == model.curvature.tobytes()
    finally:
        fubini.set_num_threads(threads)


def test_a_fixed_number_of_particles_and_a_projector():
    """States with few amplitudes, and an observable that is no sum of words."""

    def function(w, observable):
        qml.BasisState(np.array([1, 1, 0, 0, 0]), wires=range(5))
        qml.DoubleExcitation(w[0], [0, 1, 2, 3])
        for k in range(4):
            qml.SingleExcitation(w[k], [k, k + 1])
        qml.FermionicDoubleExcitation(w[4], [0, 1], [2, 3, 4])
        return qml.expval(observable)

    w = torch.linspace(-1, 1, 5, dtype=torch.float64)
    words = qml.sum(*(qml.X(k) @ qml.X(k + 1) + qml.Y(k) @ qml.Y(k + 1) for k in range(4)))
    for observable in (words + 0.5 * qml.Z(1) @ qml.Z(4), qml.Projector([0, 1, 0], [1, 2, 4])):
        device = qml.device("default.qubit", wires=5)
        qnode = qml.QNode(partial(function, observable=observable), device)
        problem = fubini.energy_problem(qnode, w)
        model = problem.model(problem.start)
        value, gradient = problem.value_and_gradient(problem.start)
        assert abs(value - model.energy) < 1e-12
        assert abs(value - float(qnode(w))) < 1e-12
        np.testing.assert_allclose(model.gradient, gradient, atol=1e-12)
        np.testing.assert_allclose(
            problem.curvature_product(problem.start, np.eye(5)), model.curvature, atol=1e-12
        )
        assert np.array_equal(problem.curvature(problem.start), model.curvature)
        np.testing.assert_allclose(model.metric, problem.metric(problem.start), atol=1e-12)


@pytest.mark.parametrize("angles", ["weights", "functions"])
def test_initial_states_that_stay_as_they_are(angles):
    rng = np.random.default_rng(5)
    state = rng.normal(size=8) + 1j * rng.normal(size=8)
    hamiltonian = qml.X(0) @ qml.Z(1) + 0.5 * qml.Y(2) @ qml.Z(0) - 0.7 * qml.Z(1) @ qml.X(2)

    def circuit(w):
        qml.StatePrep(state, wires=range(3), normalize=True)
        v = w if angles == "weights" else torch.sin(w)
        for layer in v:
            for i in range(3):
                qml.RY(layer[i, 0], i)
                qml.RZ(2 * layer[i, 1], i)
            qml.CNOT([0, 1])
            qml.CNOT([1, 2])
        return qml.expval(hamiltonian)

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=3))
    w = torch.tensor(rng.normal(size=(2, 3, 2)), requires_grad=True)
    problem = fubini.energy_problem(qnode, w)
    model = problem.model(problem.start)
    expected = qnode(w)
    expected.backward()
    value, gradient = problem.value_and_gradient(problem.start)
    for found, slope in ((value, gradient), (model.energy, model.gradient)):
        assert abs(found - expected.item()) < 1e-12
        np.testing.assert_allclose(slope, w.grad.reshape(-1), atol=1e-12)
    products = problem.curvature_product(problem.start, np.eye(12))
    np.testing.assert_allclose(products, model.curvature, atol=1e-12)
    np.testing.assert_allclose(problem.metric(problem.start), model.metric, atol=1e-12)
    ground = np.linalg.eigvalsh(qml.matrix(hamiltonian, wire_order=range(3)))[0]
    assert fubini.minimize(qnode, w).energy >= ground - 1e-12

    def moved(w, state):
        qml.StatePrep(state, wires=range(3), normalize=True)
        qml.RY(w[0], 0)
        return qml.expval(hamiltonian)

    other = qml.QNode(moved, qnode.device)
    with pytest.raises(UnsupportedCircuitError, match="initial state"):
        fubini.minimize(other, torch.ones(1), torch.linspace(0, 1, 8, dtype=torch.float64))


def ising(spins):
    def function(w):
        for i in range(spins):
            qml.Hadamard(i)
        for layer in w:
            for i in range(spins):
                qml.IsingZZ(layer[0], [i, (i + 1) % spins])
            for i in range(spins):
                qml.RX(layer[1], i)
        terms = [qml.Z(i) @ qml.Z((i + 1) % spins) + qml.X(i) for i in range(spins)]
        return qml.expval(-1.0 * qml.sum(*terms))

    return qml.QNode(function, qml.device("default.qubit", wires=spins))


def test_critical_ising_chain_to_the_last_digit():
    spins = 6
    ground = -2 / np.sin(np.pi / (2 * spins))
    for seed in range(5):
        w = torch.tensor(np.random.default_rng(seed).uniform(0, np.pi, (3, 2)))
        found = fubini.minimize(ising(spins), w)
        assert found.success
        assert found.steps <= 60
        # The energy is a sum of products whose rounding is some 1e-15 of it.
        assert abs(found.energy - ground) < 1e-12 * abs(ground)
        assert abs(float(ising(spins)(w)) - ground) < 1e-12 * abs(ground)
        assert found.energies == sorted(found.energies, reverse=True)


def test_products_take_the_same_way_as_matrices(monkeypatch):
    w = torch.tensor(np.random.default_rng(1).uniform(0, np.pi, (3, 2)))
    problem = fubini.energy_problem(ising(6), w)
    expected = fubini.minimize(problem)
    monkeypatch.setattr("fubini.energies.minimize._DENSE", 0)
    found = fubini.minimize(problem)
    assert abs(found.energy - expected.energy) < 1e-11
    assert found.success


def test_the_rest_of_the_hessian_is_learnt(monkeypatch):
    """Where the ansatz does not reach the ground state, Rayleigh-Gauss-Newton alone converges linearly."""
    edges = [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 0),
        (0, 4),
        (1, 5),
        (2, 6),
        (3, 7),
        (4, 6),
        (5, 7),
        (4, 5),
        (6, 7),
    ]

    def energy(w):
        for i in range(8):
            qml.Hadamard(i)
        for layer in w:
            for edge in edges:
                qml.IsingZZ(layer[0], edge)
            for i in range(8):
                qml.RX(layer[1], i)
        return qml.expval(qml.sum(*(qml.Z(i) @ qml.Z(j) for i, j in edges)))

    qnode = qml.QNode(energy, qml.device("default.qubit", wires=8))
    problem = fubini.energy_problem(qnode, torch.zeros(3, 2, dtype=torch.float64))
    starts = np.random.default_rng(0).uniform(0, np.pi, (3, 6))
    with_rest = [fubini.minimize(problem, x) for x in starts]
    monkeypatch.setattr("fubini.energies.minimize._LATE", 0.0)
    without = [fubini.minimize(problem, x) for x in starts]
    for found, plain in zip(with_rest, without, strict=True):
        assert found.energy == pytest.approx(plain.energy, abs=1e-10)
        assert np.abs(found.gradient).max() < 1e-6
    assert sum(f.steps for f in with_rest) < 0.8 * sum(p.steps for p in without)


def test_products_while_far_away_and_the_matrix_in_the_end(monkeypatch):
    w = torch.tensor(np.random.default_rng(1).uniform(0, np.pi, (3, 2)))
    problem = fubini.energy_problem(ising(6), w)
    expected = fubini.minimize(problem)
    monkeypatch.setattr("fubini.energies.minimize._MANY", 1)
    monkeypatch.setattr("fubini.energies.minimize._DEAR", 1)
    matrices = []
    expansion = problem.expansion
    monkeypatch.setattr(problem, "expansion", lambda x: matrices.append(x) or expansion(x))
    found = fubini.minimize(problem)
    assert abs(found.energy - expected.energy) < 1e-11
    assert 0 < len(matrices) <= found.steps  # with matrices alone one more


def test_ends_are_named():
    w = torch.tensor(np.random.default_rng(2).uniform(0, np.pi, (3, 2)))
    problem = fubini.energy_problem(ising(6), w)
    seen = []
    short = fubini.minimize(problem, max_steps=3, callback=lambda x, e: seen.append((x.copy(), e)))
    assert (short.steps, short.success) == (3, False)
    assert [e for _, e in seen] == short.energies[1:]
    assert problem.energy(seen[-1][0]) == pytest.approx(short.energy, abs=1e-12)
    early = fubini.minimize(problem, target=-4.0)
    assert early.success
    assert early.energy <= -4.0 < early.energies[-2]
    again = fubini.minimize(problem, fubini.minimize(problem).x)
    assert again.steps <= 2
    assert np.array_equal(fubini.minimize(problem, max_steps=0).x, problem.start)


def test_scipy_finds_the_same():
    w = torch.tensor(np.random.default_rng(2).uniform(0, np.pi, (3, 2)))
    problem = fubini.energy_problem(ising(6), w)
    theirs = scipy.optimize.minimize(problem.value_and_gradient, problem.start, jac=True)
    assert theirs.fun == pytest.approx(fubini.minimize(problem).energy, abs=1e-6)


REFUSED = {
    "variance": (lambda w: qml.var(qml.Z(0)), "one expectation value"),
    "two values": (lambda w: [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))], "one expectation value"),
    "probabilities": (lambda w: qml.probs(wires=0), "one expectation value"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_energy_is_refused(name):
    measured, message = REFUSED[name]

    def function(w):
        qml.RX(w[0], 0)
        qml.CNOT([0, 1])
        return measured(w)

    qnode = qml.QNode(function, qml.device("default.qubit", wires=2))
    w = torch.tensor([0.3])
    with pytest.raises(UnsupportedCircuitError, match=message):
        fubini.minimize(qnode, w)
    assert w.item() == pytest.approx(0.3)


def test_other_devices_inputs_and_starts_are_refused():
    @qml.qnode(qml.device("default.mixed", wires=1))
    def mixed(w):
        qml.RX(w[0], 0)
        return qml.expval(qml.Z(0))

    with pytest.raises(UnsupportedCircuitError, match=r"default\.mixed"):
        fubini.energy_problem(mixed, torch.tensor([0.3]))
    with pytest.raises(TypeError, match="QNode"):
        fubini.energy_problem(lambda w: w, torch.tensor([0.3]))
    problem = fubini.energy_problem(ising(2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="shape"):
        fubini.minimize(problem, np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        fubini.minimize(problem, np.array([np.nan, 0.0]))
    with pytest.raises(ValueError, match="max_steps"):
        fubini.minimize(problem, max_steps=-1)


def test_tensors_that_share_their_memory_are_refused():
    @qml.qnode(qml.device("default.qubit", wires=1))
    def circuit(a, b):
        qml.RX(a[0], 0)
        qml.RY(b[1], 0)
        return qml.expval(qml.Z(0))

    w = torch.tensor([0.3, 0.4], requires_grad=True)
    for a, b in ((w, w), (w, w.detach()), (w.detach(), w)):
        with pytest.raises(ValueError, match="memory that two arguments share"):
            fubini.minimize(circuit, a, b)
    with pytest.raises(ValueError, match="an expanded tensor"):
        fubini.minimize(circuit, torch.tensor([0.3]).expand(2), torch.zeros(2))
    assert w.tolist() == pytest.approx([0.3, 0.4])
    base = torch.tensor([[0.3, 0.4], [0.5, 0.6], [0.7, 0.8]], dtype=torch.float64)
    before = base.clone()
    row = base.view(-1)
    for a, b in (
        (row[:2], row[1:3]),
        (row[::2], row[2:4]),
        (row[1:3], row.view(torch.float32)[4:6]),
    ):
        with pytest.raises(ValueError, match="memory of their own"):
            fubini.minimize(circuit, a, b)
    assert torch.equal(base, before)
    found = fubini.minimize(circuit, base[:, 0], base[:, 1])  # columns interleave and share nothing
    assert circuit(base[:, 0], base[:, 1]).item() == pytest.approx(found.energy, abs=1e-12)
    constant = w.detach().clone()
    found = fubini.minimize(circuit, w, constant.expand(2))
    assert found.energy == pytest.approx(circuit(w, constant).item(), abs=1e-6)


def test_an_energy_that_is_constant_moves_nothing():
    @qml.qnode(qml.device("default.qubit", wires=1))
    def circuit(w):
        qml.Rot(*w, wires=0)
        return qml.expval(3.0 * qml.Identity(0))

    start = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    w = start.clone()
    found = fubini.minimize(circuit, w)
    assert found.success
    assert found.steps == 0
    assert torch.equal(w, start)


def test_the_first_damping_is_the_gradient_where_the_curvature_is_rounding():
    @qml.qnode(qml.device("default.qubit", wires=1))
    def circuit(w):
        qml.RY(w[0], 0)
        return qml.expval(qml.Z(0))

    found = fubini.minimize(circuit, torch.tensor([np.pi / 2], dtype=torch.float64))
    assert found.energy == pytest.approx(-1.0, abs=1e-14)
    assert found.energies[1] == pytest.approx(-np.sin(1.0), abs=1e-6)  # a step of 1 rad
    problem = fubini.energy_problem(circuit, torch.tensor([np.pi / 2]))
    assert problem.magnitude == 1.0
    assert 0.0 < problem.noise < 1e-14


def test_refusals_of_arguments_have_a_remedy_that_works():
    def function(w, h=0.7):
        qml.RY(w[0], 0)
        qml.RX(w[1], 0)
        return qml.expval(qml.Z(0) + qml.s_prod(h, qml.X(0)))

    circuit = qml.QNode(function, qml.device("default.qubit", wires=1))
    lowest = -np.hypot(1.0, 0.7)
    for w in (np.array([0.1, 0.2]), [0.1, 0.2], np.array([1, 2])):
        with pytest.raises(UnsupportedCircuitError, match=r"torch\.as_tensor\(w\)$"):
            fubini.minimize(circuit, w)
    with pytest.raises(
        UnsupportedCircuitError, match=r"torch\.as_tensor\(w, dtype=torch.float64\)$"
    ):
        fubini.minimize(circuit, torch.tensor([1, 2]))
    w = np.array([0.1, 0.2])
    assert fubini.minimize(circuit, torch.as_tensor(w)).energy == pytest.approx(lowest)
    assert circuit(w) == pytest.approx(lowest)  # as_tensor shares the array's memory

    h = torch.tensor(0.7, dtype=torch.float64)
    with pytest.raises(UnsupportedCircuitError, match=r"its observable looks .* h\.item\(\)"):
        fubini.minimize(circuit, torch.as_tensor(w), h)
    assert fubini.minimize(circuit, torch.as_tensor(w), h.item()).energy == pytest.approx(lowest)
    for made in (qml.Hamiltonian, qml.dot):

        def other(w, h, made=made):
            qml.RY(w[0], 0)
            return qml.expval(made([1.0, h], [qml.Z(0), qml.X(0)]))

        with pytest.raises(UnsupportedCircuitError, match="its observable looks"):
            fubini.minimize(qml.QNode(other, circuit.device), torch.as_tensor(w), h)

    def star(*arguments):
        return function(*arguments)

    with pytest.raises(UnsupportedCircuitError, match="name them, as in def circuit"):
        fubini.minimize(qml.QNode(star, circuit.device), torch.as_tensor(w))


@pytest.mark.parametrize("wires", [["b", "a", "c"], [3, 1, 0, 2, 4]])
def test_sparse_hamiltonians_are_sums_of_words(wires):
    rng = np.random.default_rng(len(wires))
    words = ["".join(rng.choice(list("IXYZ"), len(wires))) for _ in range(7)]
    places = dict(enumerate(wires))
    hamiltonian = qml.Hamiltonian(
        rng.normal(size=7),
        [qml.pauli.string_to_pauli_word(w, {v: k for k, v in places.items()}) for w in words],
    )
    sparse = qml.SparseHamiltonian(hamiltonian.sparse_matrix(wire_order=wires), wires=wires)
    index = {wire: k for k, wire in enumerate(sorted(wires, key=str))}
    found, expected = (
        {(x, z): c for x, z, c in pauli_sum(h, index, len(wires))} for h in (sparse, hamiltonian)
    )
    assert set(found) == {key for key, c in expected.items() if c}
    for key, c in found.items():
        assert c == pytest.approx(expected[key], abs=1e-14)

    @qml.qnode(qml.device("default.qubit", wires=sorted(wires, key=str)))
    def energy(w, observable):
        for k, wire in enumerate(wires):
            qml.RY(w[k], wire)
        qml.CNOT(wires[:2])
        return qml.expval(observable)

    w = torch.linspace(0.2, 1.7, len(wires), dtype=torch.float64)
    values = []
    for observable in (sparse, hamiltonian):
        qnode = qml.QNode(partial(energy.func, observable=observable), energy.device)
        problem = fubini.energy_problem(qnode, w)
        values.append(problem.energy(problem.start))
    assert values[0] == pytest.approx(values[1], abs=1e-12)
    assert values[0] == pytest.approx(float(energy(w, hamiltonian)), abs=1e-12)


def test_multiples_of_projectors_on_many_wires():
    wires = list(range(9))
    bits = [1, 0, 0, 1, 1, 0, 0, 0, 1]
    found = pauli_sum(-2.0 * qml.Projector(bits, wires), {w: w for w in wires}, 10)
    outcome = 2 * int("".join(map(str, bits)), 2)
    diagonal = np.zeros(2**10)
    index = np.arange(2**10)
    for x, z, c in found:
        assert x == 0
        diagonal += c * (1.0 - 2.0 * (np.bitwise_count(index & z) & 1))
    expected = np.zeros(2**10)
    expected[outcome : outcome + 2] = -2.0
    np.testing.assert_allclose(diagonal, expected, atol=1e-13)


def test_sparse_hamiltonians_that_are_not_are_refused():
    matrix = scipy.sparse.csr_matrix(np.diag([1.0, 2.0], 1)[:2, :2] + 0.0)
    with pytest.raises(NoPauliSum, match="Hermitian"):
        pauli_sum(qml.SparseHamiltonian(matrix, wires=[0]), {0: 0}, 1)
    anti = scipy.sparse.coo_matrix((np.ones(2**13), (np.arange(2**13), np.arange(2**13)[::-1])))
    noise = scipy.sparse.random(2**13, 2**13, 3e-4, random_state=1)
    with pytest.raises(NoPauliSum, match="combinations"):
        pauli_sum(
            qml.SparseHamiltonian((anti + noise + noise.T).tocsr(), wires=range(13)),
            {k: k for k in range(13)},
            13,
        )
