"""The energy metric of the optimizer: against the explicit second-order expansion, in all ways of use, and what it refuses."""

import copy
import io
import itertools

import numpy as np
import pennylane as qml
import pytest
import scipy.sparse
import torch
from torch.nn.utils import parametrize

import fubini
from fubini import NumericalError, QNGOptimizer, UnsupportedCircuitError
from fubini.blocks import DenseBlock, OperatorBlock

WIRES = 3
DEVICE = qml.device("default.qubit", wires=WIRES)


def random_circuit(seed):
    """A random complex circuit of two arguments with shared weights and a global phase, and its observable."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("IXYZ"), WIRES)) for _ in range(7)]
    observable = qml.Hamiltonian(
        [*rng.normal(size=7), 2.5], [*map(qml.pauli.string_to_pauli_word, words), qml.Identity(0)]
    )
    axes = rng.choice(["X", "Y", "Z"], (2, WIRES))

    def function(w, a, measured=lambda: qml.expval(observable)):
        for layer in range(2):
            for i in range(WIRES):
                getattr(qml, f"R{axes[layer, i]}")(w[layer, i], i)
                qml.RY(0.3 - 2 * w[layer, i], i)
            qml.GlobalPhase(a[layer], wires=0)
            qml.IsingXY(a[layer], [0, 2])
            for i in range(WIRES):
                qml.CNOT([i, (i + 1) % WIRES])
        return measured()

    weights = [torch.tensor(rng.normal(size=s), requires_grad=True) for s in ((2, WIRES), (2,))]
    return qml.QNode(function, DEVICE), weights, qml.matrix(observable, wire_order=range(WIRES))


def curvature(function, arguments, matrix):
    """2 Re <d_i psi|P (H - E) P|d_j psi> from autograd's derivatives of the state."""
    leaves = [a.detach() for a in arguments]

    def state(*args):
        tape = qml.tape.make_qscript(function)(*args)
        script = qml.tape.QuantumScript(tape.operations, [qml.state()])
        return qml.execute([script], DEVICE, diff_method="backprop")[0]

    parts = [
        torch.autograd.functional.jacobian(
            lambda *x, part=part: getattr(state(*x), part), tuple(leaves)
        )
        for part in ("real", "imag")
    ]
    flat = [torch.cat([p.reshape(2**WIRES, -1) for p in part], 1).numpy() for part in parts]
    tangents = flat[0] + 1j * flat[1]
    psi = state(*leaves).numpy()
    tangents = tangents - np.outer(psi, psi.conj() @ tangents)
    energy = (psi.conj() @ matrix @ psi).real
    return 2 * (tangents.conj().T @ (matrix @ tangents - energy * tangents)).real


def flat(tensors):
    return torch.cat([t.detach().reshape(-1) for t in tensors]).numpy()


def gradient_of(tensors):
    return torch.cat([t.grad.reshape(-1) for t in tensors]).numpy()


def layer_of(qnode, weights):
    shapes = {n: tuple(t.shape) for n, t in zip("wa", weights, strict=True)}
    layer = fubini.QuantumLayer(qnode, shapes)
    with torch.no_grad():
        for parameter, value in zip(layer.parameters(), weights, strict=True):
            parameter.data = value.detach().clone()
    return layer


@pytest.mark.parametrize("products", [False, True])
@pytest.mark.parametrize("way", ["bare", "layer", "closure"])
@pytest.mark.parametrize("seed", range(3))
def test_a_step_is_that_of_the_second_order_expansion(seed, way, products, monkeypatch):
    qnode, weights, matrix = random_circuit(seed)
    if products:
        monkeypatch.setattr("fubini.optim.energy_source._DENSE", 0)
    expected = curvature(qnode.func, weights, matrix)
    lowest = np.linalg.eigvalsh(expected)[0]
    assert lowest < -0.01
    lam = 0.01 if seed else 20.0
    if way == "bare":
        energy, params = fubini.compiled(qnode), weights
        opt = QNGOptimizer(params, metric="energy", lam=lam)
        call = lambda: energy(*weights)
    else:
        layer = layer_of(qnode, weights)
        opt = QNGOptimizer(layer, metric="energy", lam=lam)
        params, call = list(layer.parameters()), layer
    before = flat(params)

    def closure():
        opt.zero_grad()
        loss = call()
        loss.backward()
        return loss

    if way == "closure":
        opt.step(closure)
    else:
        closure()
        opt.step()
    raised = lam < -1.1 * lowest
    mu = -2 * lowest if raised else lam
    step = np.linalg.solve(expected + mu * np.eye(len(expected)), gradient_of(params))
    # Conjugate gradients end at a residual of 1e-10.
    tolerance = 1e-8 if products else 1e-10
    np.testing.assert_allclose(flat(params), before - step, atol=tolerance, rtol=tolerance)
    [part] = opt._last.proposal.parts
    np.testing.assert_allclose(part.block.dense().numpy(), expected, atol=1e-10)
    assert isinstance(part.block._inner, OperatorBlock if products else DenseBlock)
    text = opt.explain()
    assert "Rayleigh-Gauss-Newton" in text
    assert ("raised to" in text) == raised


def ising(spins=6, sign=1.0):
    def function(w):
        for i in range(spins):
            qml.Hadamard(i)
        for layer in w:
            for i in range(spins):
                qml.IsingZZ(layer[0], [i, (i + 1) % spins])
            for i in range(spins):
                qml.RX(layer[1], i)
        terms = [qml.Z(i) @ qml.Z((i + 1) % spins) + qml.X(i) for i in range(spins)]
        return qml.expval(-sign * qml.sum(*terms))

    return qml.QNode(function, qml.device("default.qubit", wires=spins))


GROUND = -2 / np.sin(np.pi / 12)


def descend(opt, call, steps=60, closure=True):
    """Train; the losses."""
    losses = []

    def evaluate():
        opt.zero_grad()
        loss = call()
        loss.backward()
        return loss

    for _ in range(steps):
        if closure:
            losses.append(opt.step(evaluate).item())
        else:
            losses.append(evaluate().item())
            opt.step()
    return losses


@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("products", [False, True])
def test_critical_ising_chain_to_the_last_digit(closure, products, monkeypatch):
    if products:
        monkeypatch.setattr("fubini.optim.energy_source._DENSE", 0)
    energy = fubini.compiled(ising())
    for seed in range(2):
        w = torch.tensor(np.random.default_rng(seed).uniform(0, np.pi, (3, 2)), requires_grad=True)
        opt = QNGOptimizer([w], metric="energy")
        losses = descend(opt, lambda w=w: energy(w), 25, closure)
        # The rounding of a sum of products is some 1e-15 of it.
        assert abs(losses[-1] - GROUND) < 1e-12 * abs(GROUND)
        # Without progress that rounding does not hide, no step goes up.
        assert all(b <= a + 1e-13 for a, b in itertools.pairwise(losses))


def test_trials_take_neither_a_closure_nor_a_backward_pass():
    energy = fubini.compiled(ising())
    w = torch.tensor(np.random.default_rng(4).uniform(0, np.pi, (3, 2)), requires_grad=True)
    opt = QNGOptimizer([w], metric="energy")
    calls = 0

    def closure():
        nonlocal calls
        calls += 1
        opt.zero_grad()
        loss = energy(w)
        loss.backward()
        return loss

    trials = 0
    for _ in range(12):
        opt.step(closure)
        trials += opt.diagnostics()["evaluations"] - 1
    assert calls == 12 <= trials


def test_weights_that_are_computed_are_judged_by_the_closure():
    layer = fubini.QuantumLayer(ising(), {"w": (3, 2)})

    class Bounded(torch.nn.Module):
        def forward(self, x):
            return torch.pi * torch.sigmoid(x)

    parametrize.register_parametrization(layer, "w", Bounded())
    start = torch.tensor(np.random.default_rng(1).normal(size=(3, 2)))
    layer.parametrizations.w.original.data = start
    opt = QNGOptimizer(layer, metric="energy")
    losses = descend(opt, layer, 20)
    assert losses[-1] < losses[0] - 0.1
    assert losses == sorted(losses, reverse=True)
    # Without one, a damping serves that nothing has to judge; one that was asked for needs it.
    descend(opt, layer, 1, closure=False)
    strict = QNGOptimizer(layer, metric="energy", lam=fubini.LevenbergMarquardt())
    before = copy.deepcopy(layer.state_dict())
    with pytest.raises(RuntimeError, match="expected a closure"):
        descend(strict, layer, 1, closure=False)
    assert all(torch.equal(v, before[n]) for n, v in layer.state_dict().items())


@pytest.mark.parametrize("sign", ["minus", "maximize", "both", "half", "constant", "affine"])
def test_multiples_of_the_energy_take_its_steps(sign):
    energy = fubini.compiled(ising())
    start = torch.tensor(np.random.default_rng(3).uniform(0, np.pi, (3, 2)))
    negative = fubini.compiled(ising(sign=-1.0))
    functions = {
        "minus": lambda w: -negative(w),
        "maximize": negative,
        "both": lambda w: -energy(w),
        "half": lambda w: 0.5 * energy(w),
        "affine": lambda w: 1 + torch.stack([energy(w), energy(w)]).mean() / 7,
        "constant": lambda w: 1.0 + energy(w),
    }
    ends = []
    for function, maximize in ((energy, False), (functions[sign], sign in ("maximize", "both"))):
        w = start.clone().requires_grad_()
        opt = QNGOptimizer([w], metric="energy", maximize=maximize)
        descend(opt, lambda w=w, function=function: function(w), 4)
        ends.append(w.detach())
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("factor", [1e-6, 0.3, 3.0, -2.0, 1e6])
def test_multiples_are_known_to_the_end(factor):
    """Gradients of little more than rounding tell a factor only roughly; the loss tells it too."""
    w = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    opt = QNGOptimizer([w], metric="energy", maximize=factor < 0)
    losses = descend(opt, lambda: factor * E1(w), 25)
    assert losses[-1] / factor == pytest.approx(-np.sqrt(1.25), abs=1e-14)
    again = QNGOptimizer([w], metric="energy", maximize=factor < 0)
    assert descend(again, lambda: factor * E1(w), 2)[-1] == pytest.approx(losses[-1], rel=1e-14)
    v = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    opt = QNGOptimizer([v], metric="energy", maximize=factor < 0)
    losses = descend(opt, lambda: factor * (E1(v) + 1.0), 25)
    assert losses[-1] / factor == pytest.approx(1.0 - np.sqrt(1.25), abs=1e-14)


RNG = np.random.default_rng(5)
MATRIX = RNG.normal(size=(8, 8))
MATRIX = (MATRIX + MATRIX.T) / 2
OBSERVABLES = {
    "matrix": qml.Hermitian(MATRIX, range(WIRES)),
    "sparse": qml.SparseHamiltonian(scipy.sparse.csr_matrix(MATRIX), wires=range(WIRES)),
    "projector": -2.0 * qml.Projector([1, 0, 1], range(WIRES)),
    "sum with identity": qml.sum(qml.Z(0) @ qml.Z(1), 0.5 * qml.X(2), 3.0 * qml.Identity(1)),
    "degenerate": qml.Z(0) @ qml.Z(1) + qml.Z(1) @ qml.Z(2),
    "identity": 2.0 * qml.Identity(0),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", OBSERVABLES)
def test_observables_of_all_kinds(name, dtype):
    qnode, weights, _ = random_circuit(8)

    def function(w, a):
        return qnode.func(w, a, lambda: qml.expval(OBSERVABLES[name]))

    other = qml.QNode(function, DEVICE)
    energy = fubini.compiled(other)
    leaves = [w.detach().to(dtype).requires_grad_() for w in weights]
    opt = QNGOptimizer(leaves, metric="energy")
    losses = descend(opt, lambda: energy(*leaves), 40, closure=False)
    if name != "identity":
        assert losses[-1] < losses[0] - 0.1
    # At its end nothing is left to gain along any axis.
    bound = 1e-5 if dtype is torch.float64 else 2e-3
    assert max(float(w.grad.abs().max()) for w in leaves) < bound
    assert all(bool(w.isfinite().all()) for w in leaves)


def test_starts_without_gradient_or_curvature():
    def function(w):
        qml.RY(w[0], 0)
        return qml.expval(qml.Z(0))

    energy = fubini.compiled(qml.QNode(function, DEVICE))
    for start, end in ((0.0, 0.0), (np.pi / 2, np.pi)):
        w = torch.tensor([start], dtype=torch.float64, requires_grad=True)
        opt = QNGOptimizer([w], metric="energy")
        descend(opt, lambda w=w: energy(w), 12, closure=False)
        assert w.item() == pytest.approx(end, abs=1e-7)


def test_several_energies_are_their_sum():
    qnode, weights, matrix = random_circuit(1)
    other, others, another = random_circuit(2)
    shared = weights
    first, second = fubini.compiled(qnode), fubini.compiled(other)
    both = shared + others
    opt = QNGOptimizer(both, metric="energy", lam=50.0)
    before = flat(both)
    opt.zero_grad()
    (first(*shared) + second(*others) + second(*shared)).backward()
    opt.step()
    expected = np.zeros((16, 16))
    expected[:8, :8] = curvature(qnode.func, shared_at(before, 0), matrix) + curvature(
        other.func, shared_at(before, 0), another
    )
    expected[8:, 8:] = curvature(other.func, shared_at(before, 8), another)
    step = np.linalg.solve(expected + 50.0 * np.eye(16), gradient_of(both))
    np.testing.assert_allclose(flat(both), before - step, atol=1e-10)
    opt.zero_grad()
    (first(*shared) - second(*others)).backward()
    with pytest.raises(UnsupportedCircuitError, match="several energies with different factors"):
        opt.step()


def shared_at(values, start):
    part = torch.tensor(values[start : start + 8])
    return [part[:6].reshape(2, WIRES), part[6:]]


def test_resuming_goes_on_to_the_bit():
    layer = layer_of(*random_circuit(6)[:2])
    opt = QNGOptimizer(layer, metric="energy")
    descend(opt, layer, 3)
    buffer = io.BytesIO()
    torch.save([layer.state_dict(), opt.state_dict()], buffer)
    buffer.seek(0)
    states = torch.load(buffer, weights_only=True)
    again = layer_of(*random_circuit(6)[:2])
    resumed = QNGOptimizer(again, metric="energy")
    again.load_state_dict(states[0])
    resumed.load_state_dict(states[1])
    copied, copied_opt = copy.deepcopy((layer, opt))
    runs = [descend(o, m, 6) for o, m in ((opt, layer), (resumed, again), (copied_opt, copied))]
    assert runs[0] == runs[1] == runs[2]
    for name, value in layer.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])


# -- what is refused, with nothing changed --------------------------------------------------------------------------


def small(w):
    qml.RY(w[0], 0)
    qml.RY(w[1], 1)
    qml.CNOT([0, 1])
    return qml.expval(qml.Z(0) @ qml.Z(1) + 0.5 * qml.X(1))


def returning(measurement):
    def circuit(w):
        qml.RY(w[0], 0)
        qml.RX(w[1], 1)
        return measurement()

    return fubini.compiled(qml.QNode(circuit, DEVICE))


E1 = fubini.compiled(qml.QNode(small, DEVICE))
LOSSES = {
    "square": (lambda w, _: E1(w) ** 2, "another function of it"),
    "exponential": (lambda w, _: 2 * E1(w).exp(), "another function of it"),
    "product": (lambda w, _: 3 - E1(w) * E1(w), "another function of it"),
    "inverse": (lambda w, _: torch.ones(()) / E1(w), "another function of it"),
    "penalty": (lambda w, _: E1(w) + 0.1 * (w**2).sum(), "further terms"),
    "factor": (lambda w, v: v * E1(w), "depends on a parameter of shape"),
    "probabilities": (
        lambda w, _: returning(lambda: qml.probs(wires=0))(w)[0],
        "one expectation value",
    ),
    "variance": (lambda w, _: returning(lambda: qml.var(qml.Z(0)))(w), "one expectation value"),
    "two": (
        lambda w, _: sum(returning(lambda: [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))])(w)),
        "one expectation value",
    ),
    "shots": (
        lambda w, _: fubini.compiled(qml.set_shots(qml.QNode(small, DEVICE), 10))(w),
        "has 10 shots",
    ),
    "device": (
        lambda w, _: fubini.compiled(qml.QNode(small, qml.device("default.mixed", wires=2)))(w),
        "default.mixed",
    ),
    "QNode": (lambda w, _: qml.QNode(small, DEVICE)(w), "no weight of a circuit that was seen"),
}


@pytest.mark.parametrize("closure", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_other_losses_are_refused(name, closure):
    loss, message = LOSSES[name]
    w = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    v = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    opt = QNGOptimizer([w, v], metric="energy")
    with pytest.raises(UnsupportedCircuitError, match=message):
        descend(opt, lambda: loss(w, v), 1, closure)
    assert w.tolist() == [0.3, 0.7]
    assert v.item() == 2.0


def test_data_and_classical_layers_are_refused():
    @qml.qnode(DEVICE)
    def circuit(inputs, w):
        qml.RX(inputs[..., 0], 0)
        return small(w)

    layer = fubini.QuantumLayer(circuit, {"w": 2})
    with pytest.raises(UnsupportedCircuitError, match="without data"):
        QNGOptimizer(layer, metric="energy")
    with pytest.raises(UnsupportedCircuitError, match="without data"):
        QNGOptimizer(qml.qnn.TorchLayer(circuit, {"w": 2}), metric="energy")
    w = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    energy = fubini.compiled(circuit)
    opt = QNGOptimizer([w], metric="energy")
    for rows in (torch.rand(4, 1, dtype=torch.float64), torch.rand(1, dtype=torch.float64)):
        with pytest.raises(UnsupportedCircuitError, match="without data"):
            descend(opt, lambda rows=rows: energy(rows, w).sum(), 1)
        opt.zero_grad()

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.circuit = fubini.QuantumLayer(qml.QNode(small, DEVICE), {"w": 2})
            self.head = torch.nn.Linear(1, 1)

        def forward(self):
            return self.head(self.circuit().reshape(1, 1)).sum()

    model = Model()
    opt = QNGOptimizer(model, metric="energy")
    with pytest.raises(UnsupportedCircuitError, match=r"depends on head\.weight, head\.bias"):
        descend(opt, model, 1)
    # Layers that the loss does not touch are none of its business.
    assert descend(opt, model.circuit, 8)[-1] == pytest.approx(-np.sqrt(1.25), abs=1e-6)


def test_arguments_that_may_be_data_are_asked_for():
    w = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    opt = QNGOptimizer([w], metric="energy")
    with pytest.raises(TypeError, match=r"fubini\.compiled\(qnode, weights=\['w'\]\)"):
        descend(opt, lambda: E1(w + 1.0), 1)
    assert w.tolist() == [0.3, 0.7]
    energy = fubini.compiled(qml.QNode(small, DEVICE), weights=["w"])
    opt.zero_grad()
    losses = descend(opt, lambda: energy(w + 1.0), 20)
    assert losses[-1] == pytest.approx(-np.sqrt(1.25), abs=1e-12)


def test_options_that_do_not_go_with_it():
    w = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    for options, message in (
        ({"approx": "block-diag"}, "approx: expected None or 'auto'"),
        ({"averaging": 0.5}, "averaging: expected 0"),
        ({"update_every": 2}, "update_every: expected 1"),
        ({"momentum": fubini.Spring(0.5)}, "momentum: expected a number"),
        ({"step_rule": fubini.TrustRegion(0.1)}, "step_rule: expected Armijo"),
        ({"loss": torch.nn.MSELoss()}, "which knows its loss"),
        ({"likelihood": "gaussian"}, "likelihood: expected None"),
    ):
        with pytest.raises(ValueError, match=message):
            QNGOptimizer([w], metric="energy", **options)
    opt = QNGOptimizer([w], metric="energy")

    def closure():
        opt.zero_grad()
        loss = E1(w)
        loss.backward()
        return loss, E1.metric()

    with pytest.raises(ValueError, match="metric function"):
        opt.step(closure)
    opt = QNGOptimizer([{"params": [w]}], metric="energy", step_rule=fubini.Armijo(), lam=0.1)
    losses = descend(opt, lambda: E1(w), 30)
    assert losses[-1] == pytest.approx(-np.sqrt(1.25), abs=1e-8)


# -- where rounding is all there is -----------------------------------------------------------------------------------


def one_qubit(observable):
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(w):
        qml.RY(w[0], 0)
        qml.RX(w[1], 0)
        qml.RZ(w[2], 1)
        return qml.expval(observable)

    return fubini.compiled(circuit), torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)


def taken(energy, w, steps, closure=False, **options):
    """The energies before each step."""
    opt = QNGOptimizer([w], metric="energy", **options)

    def loss():
        opt.zero_grad()
        value = energy(w)
        value.backward()
        return value

    found = []
    for _ in range(steps):
        value = opt.step(loss) if closure else loss()
        if not closure:
            opt.step()
        found.append(value.item())
    return found


@pytest.mark.parametrize("closure", [False, True])
@pytest.mark.parametrize("options", [{}, {"lam": 1e-20}, {"maximize": True}])
def test_weights_stay_where_the_energy_is_constant(closure, options):
    energy, start = one_qubit(3.0 * qml.Identity(0))
    w = torch.nn.Parameter(start.clone())
    taken(energy, w, 5, closure, **options)
    assert torch.equal(w.detach(), start)


def test_damping_by_the_diagonal_says_what_serves_weights_without_influence():
    energy, start = one_qubit(qml.Z(0) + 0.3 * qml.X(0))
    w = torch.nn.Parameter(start.clone())
    with pytest.raises(NumericalError, match=r"pass lam=fubini\.Relative\(0\.5\) or a number"):
        taken(energy, w, 4, lam=fubini.Diagonal(0.1))
    for lam in (fubini.Relative(0.5), 0.5):
        w = torch.nn.Parameter(start.clone())
        losses = taken(energy, w, 4, lam=lam)
        assert losses[-1] < losses[0]


def test_gradients_by_a_cast_to_float32_are_the_energy_s():
    energy, start = one_qubit(qml.Z(0) + 0.3 * qml.X(0))
    w = torch.nn.Parameter(start.clone())
    losses = taken(lambda w: energy(w.float().double()), w, 12)
    assert losses[-1] == pytest.approx(-np.hypot(1.0, 0.3), abs=1e-6)
    w = torch.nn.Parameter(start.clone())
    with pytest.raises(UnsupportedCircuitError, match="cast to a narrower dtype"):
        taken(lambda w: energy(w.half().double()), w, 1)
    with pytest.raises(UnsupportedCircuitError, match="multiple of the energy's"):
        taken(lambda w: energy(w.float().double()) + 1e-5 * w.float().sin().sum(), w, 1)
