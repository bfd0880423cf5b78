"""Energies: layers without data, QNodes as compiled torch functions, and PennyLane's optimizers with our metric."""

import copy
import pickle
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch
from pennylane import numpy as pnp

import fubini

# Rounding of a few dozen gates in float64; PennyLane's own results carry as much.
EXACT = {"rtol": 0.0, "atol": 1e-12}
WIRES, DEPTH = 3, 2
SHAPE = (DEPTH, WIRES, 2)
ISING = qml.Hamiltonian(
    [1.0, 1.0, 1.0, 0.7, 0.7, 0.7],
    [qml.Z(i) @ qml.Z((i + 1) % WIRES) for i in range(WIRES)] + [qml.X(i) for i in range(WIRES)],
)


def ansatz(w: Any) -> None:
    for layer in range(DEPTH):
        for wire in range(WIRES):
            qml.RY(w[layer, wire, 0], wire)
            qml.RZ(w[layer, wire, 1], wire)
        for wire in range(WIRES):
            qml.CNOT([wire, (wire + 1) % WIRES])


def one(w: Any) -> Any:
    ansatz(w)
    return qml.expval(ISING)


def nonlinear(w: Any) -> Any:
    ansatz(torch.sin(w) * w[0, 0, 0])
    return qml.expval(ISING)


def listed(w: Any) -> Any:
    ansatz(w)
    return [qml.expval(ISING), qml.probs(wires=[0, 1])]


def paired(w: Any) -> Any:
    ansatz(w)
    return qml.expval(qml.Z(0)), qml.expval(qml.X(1))


def branching(w: Any) -> Any:
    ansatz(w if w[0, 0, 0] > 0 else 2 * w)
    return qml.expval(ISING)


def node(function: Any, device: str = "default.qubit", **options: Any) -> Any:
    return qml.QNode(function, qml.device(device, wires=WIRES), **options)


@qml.qnode(qml.device("default.qubit", wires=WIRES))
def module_energy(w: Any) -> Any:
    return one(w)


def start(seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(SHAPE, generator=generator, dtype=torch.float64, requires_grad=True)


def layer_of(function: Any = one, **options: Any) -> fubini.QuantumLayer:
    qnode = function if isinstance(function, qml.QNode) else node(function)
    return fubini.QuantumLayer(qnode, {"w": SHAPE}, {"w": start()}, **options)


def flat(result: Any) -> torch.Tensor:
    parts = result if isinstance(result, list | tuple) else [result]
    return torch.cat([p.reshape(-1) for p in parts])


# -- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [one, nonlinear, branching, listed, paired])
def test_a_layer_without_data_gives_the_qnode_s_values_and_gradients(function: Any) -> None:
    layer, w = layer_of(function), start()
    for _ in range(2):
        got, expected = layer(), flat(node(function)(w))
        assert got.shape == (() if len(expected) == 1 else expected.shape)
        torch.testing.assert_close(got.reshape(-1), expected, **EXACT)
        (a,) = torch.autograd.grad((got.reshape(-1) ** 2).sum(), layer.w)
        (b,) = torch.autograd.grad((expected**2).sum(), w)
        torch.testing.assert_close(a, b, **EXACT)
    assert layer.engine == "native"


def test_its_second_derivatives_and_torch_func() -> None:
    layer, w = layer_of(), start().detach()
    expected = torch.autograd.functional.hessian(node(one), w)

    def f(w: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(layer, {"w": w}, ())

    torch.testing.assert_close(torch.autograd.functional.hessian(f, w), expected, **EXACT)
    torch.testing.assert_close(torch.func.hessian(f)(w), expected, **EXACT)
    several = torch.stack([w, 2 * w])
    each = torch.stack([node(one)(v) for v in several])
    torch.testing.assert_close(torch.vmap(f)(several), each, **EXACT)


@pytest.mark.parametrize("approx", [None, "block-diag", "diag", "auto"])
@pytest.mark.parametrize("function", [one, nonlinear, branching])
@pytest.mark.parametrize("engine", ["auto", "device"])
def test_a_step_of_natural_gradient_is_that_of_the_metric(
    approx: Any, function: Any, engine: Any
) -> None:
    layer, w = layer_of(function, engine=engine), start()
    kept = None if approx == "auto" else approx
    metric = fubini.metric_tensor(node(function), kept, joint=True, engine="native")(w).detach()
    (gradient,) = torch.autograd.grad(node(function)(w), w)
    size = w.numel()
    change = torch.linalg.solve(metric + 0.1 * torch.eye(size).double(), gradient.reshape(-1))
    opt = fubini.QNGOptimizer(layer, lr=0.2, approx=approx, lam=0.1)
    layer().backward()
    opt.step()
    expected = w.detach() - 0.2 * change.reshape(SHAPE)
    torch.testing.assert_close(layer.w.detach(), expected, rtol=0, atol=1e-9)


class Scaled(torch.nn.Module):
    """A model in which the circuit is evaluated twice, behind a factor."""

    def __init__(self, layer: fubini.QuantumLayer) -> None:
        super().__init__()
        self.layer, self.factor = layer, torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self) -> torch.Tensor:
        return self.factor * (self.layer() + self.layer() ** 2)


@pytest.mark.parametrize("approx", [None, "block-diag", "auto"])
def test_a_model_that_evaluates_it_twice(approx: Any) -> None:
    model, w = Scaled(layer_of()), start()
    kept = None if approx == "auto" else approx
    metric = fubini.metric_tensor(node(one), kept, joint=True)(w).detach()
    energy = node(one)(w)
    (gradient,) = torch.autograd.grad(0.5 * (energy + energy**2), w)
    opt = fubini.QNGOptimizer(model, lr=0.2, approx=approx, lam=0.1, metric="quantum")
    model().backward()
    opt.step()
    change = torch.linalg.solve(metric + 0.1 * torch.eye(w.numel()).double(), gradient.reshape(-1))
    expected = w.detach() - 0.2 * change.reshape(SHAPE)
    torch.testing.assert_close(model.layer.w.detach(), expected, rtol=0, atol=1e-9)


def stepped(w: torch.Tensor, metric: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    damped = metric + 0.1 * torch.eye(w.numel()).double()
    return w - 0.1 * torch.linalg.solve(damped, gradient.reshape(-1)).reshape(w.shape)


def test_a_weight_that_is_computed_from_a_parameter() -> None:
    class Square(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x**2

    layer = layer_of()
    torch.nn.utils.parametrize.register_parametrization(layer, "w", Square())
    (p,) = layer.parameters()
    before = p.detach().clone()
    metric = fubini.metric_tensor(node(one), joint=True)((before**2).requires_grad_()).detach()
    jacobian = torch.diag(2 * before.reshape(-1))
    opt = fubini.QNGOptimizer(layer, lr=0.1, approx=None, lam=0.1)
    layer().backward()
    opt.step()
    expected = stepped(before, jacobian @ metric @ jacobian, p.grad)
    torch.testing.assert_close(p.detach(), expected, rtol=0, atol=1e-9)


def test_two_layers_that_share_their_weight() -> None:
    first, second = layer_of(), layer_of(nonlinear)
    second.w = first.w
    w = start()
    metrics = [fubini.metric_tensor(node(f), joint=True)(w).detach() for f in (one, nonlinear)]
    opt = fubini.QNGOptimizer(torch.nn.ModuleList([first, second]), lr=0.1, approx=None, lam=0.1)
    (first() + second()).backward()
    opt.step()
    expected = stepped(w.detach(), sum(metrics), first.w.grad)
    torch.testing.assert_close(first.w.detach(), expected, rtol=0, atol=1e-9)


def test_the_metric_of_a_layer_without_data_and_its_siblings() -> None:
    layer, w = layer_of(), start()
    expected = fubini.metric_tensor(node(one))(w)
    torch.testing.assert_close(fubini.metric_tensor(layer)(), expected, **EXACT)
    on_device = fubini.metric_tensor(layer, engine="device")()
    torch.testing.assert_close(on_device, expected.detach(), rtol=0, atol=1e-9)
    torch.testing.assert_close(fubini.quantum_fisher(layer)(), 4 * expected, **EXACT)
    size = w.numel()
    matrix = expected.detach().reshape(size, size).numpy()
    np.testing.assert_allclose(fubini.metric_spectrum(layer)().matrix, matrix, **EXACT)
    dense = fubini.metric_operator(layer)().dense()
    np.testing.assert_allclose(np.asarray(dense), matrix, **EXACT)


@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
def test_the_device_engine(device: str) -> None:
    layer, w = layer_of(node(one, device), engine="device"), start()
    got, expected = layer(), node(one)(w)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-9)
    (a,), (b,) = torch.autograd.grad(got, layer.w), torch.autograd.grad(expected, w)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-9)
    assert "device" in layer.explain()


def test_shots() -> None:
    device = qml.device("default.qubit", wires=WIRES, seed=3)
    qnode = qml.set_shots(qml.QNode(one, device), 20000)
    layer = layer_of(qnode)
    plan = layer.cost()
    before = layer.usage.shots
    energy = layer()
    energy.backward()
    assert energy.shape == ()
    assert layer.usage.shots - before == plan.forward.shots + plan.backward.shots > 0
    (expected,) = torch.autograd.grad(node(one)(w := start()), w)
    # Six words and shifts of 20000 shots: standard errors of about 0.01.
    torch.testing.assert_close(layer.w.grad, expected, rtol=0, atol=0.1)
    opt = fubini.QNGOptimizer(layer, lr=0.1, lam=fubini.SignalToNoise())
    opt.zero_grad()
    layer().backward()
    opt.step()
    assert node(one)(layer.w.detach()) < node(one)(start().detach())


def test_copies_and_pickles() -> None:
    layer = layer_of(module_energy)
    expected = layer()
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(), expected, **EXACT)
        assert other.input_arg is None


def test_export() -> None:
    layer = layer_of()
    program = torch.export.export(layer, ())
    torch.testing.assert_close(program.module()(), layer(), **EXACT)


def test_inputs_where_none_belong_and_none_where_they_do() -> None:
    layer = layer_of()
    with pytest.raises(TypeError, match=r"inputs: expected none.*call layer\(\)"):
        layer(torch.zeros(2))
    with pytest.raises(TypeError, match="inputs: expected none for a layer without data"):
        fubini.metric_tensor(layer)(torch.zeros(2))

    def with_data(inputs: Any, w: Any) -> Any:
        qml.RX(inputs[..., 0], 0)
        return one(w)

    with pytest.raises(TypeError, match=r"inputs: expected a torch tensor.*call layer\(inputs\)"):
        layer_of(with_data)()


def test_a_batch_of_weights_is_no_layer() -> None:
    layer = fubini.QuantumLayer(node(one), {"w": (*SHAPE, 4)})
    with pytest.raises(ValueError, match="weight_shapes: expected weights of one circuit"):
        layer()
    noisy = fubini.QuantumLayer(qml.set_shots(node(one), 10), {"w": (*SHAPE, 4)})
    with pytest.raises(ValueError, match="weight_shapes: expected weights of one circuit"):
        noisy()


def test_the_fisher_metric_of_a_model_with_it() -> None:
    """With a batch of data in front of a circuit that is the same for all, the joint metric is the definition's."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.linear = layer_of(paired), torch.nn.Linear(2, 2).double()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.linear(x) * self.layer()

    torch.manual_seed(0)
    model, x, y = Model(), torch.rand(4, 2).double(), torch.rand(4, 2).double()
    parameters = list(model.parameters())
    rows = []
    for out in model(x).reshape(-1):
        found = torch.autograd.grad(out, parameters, retain_graph=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    jacobian = torch.stack(rows)
    loss = torch.nn.functional.mse_loss(model(x), y)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)])
    # The mean over four inputs of J^T J, with the variance of mse_loss as a likelihood: 2 / 2 outputs.
    metric = jacobian.T @ jacobian / 4
    change = torch.linalg.solve(metric + 0.1 * torch.eye(len(metric)).double(), gradient)
    opt = fubini.QNGOptimizer(
        model, lr=1.0, metric="fisher", likelihood=torch.nn.MSELoss(), approx=None, lam=0.1
    )
    before = torch.cat([p.detach().reshape(-1) for p in parameters])
    torch.nn.functional.mse_loss(model(x), y).backward()
    opt.step()
    after = torch.cat([p.detach().reshape(-1) for p in parameters])
    torch.testing.assert_close(after, before - change, rtol=0, atol=1e-8)


# -- compiled QNodes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [one, nonlinear, branching, listed, paired])
def test_a_compiled_qnode_is_the_qnode(function: Any) -> None:
    qnode = node(function)
    energy, w = fubini.compiled(qnode), start()
    for _ in range(2):
        got, expected = energy(w), qnode(w)
        assert type(got) is type(expected)
        torch.testing.assert_close(got, expected, **EXACT)
        (a,), (b,) = (torch.autograd.grad((flat(r) ** 2).sum(), w) for r in (got, expected))
        torch.testing.assert_close(a, b, **EXACT)
        assert "native" in energy.explain()


@pytest.mark.parametrize("function", [one, nonlinear])
def test_hessians_of_a_compiled_qnode(function: Any) -> None:
    energy, w = fubini.compiled(node(function)), start().detach()
    expected = torch.autograd.functional.hessian(node(function), w)
    torch.testing.assert_close(torch.autograd.functional.hessian(energy, w), expected, **EXACT)
    torch.testing.assert_close(torch.func.hessian(energy)(w), expected, **EXACT)


def rotated(theta: Any, x: Any, scale: float = 1.0, flip: bool = False) -> Any:
    qml.RY(scale * theta[..., 0], 0)
    qml.RX(x * theta[..., 1], 1)
    if flip:
        qml.X(0)
    qml.CNOT([0, 1])
    return qml.expval(qml.Z(0) @ qml.Z(1))


@pytest.mark.parametrize(
    ("theta", "x", "options"),
    [
        ((2,), (), {}),
        ((2,), (), {"scale": 2.0}),
        ((2,), (), {"flip": True}),
        ((2,), (5,), {}),
        ((5, 2), (5,), {"scale": 0.5}),
        ((5, 2), (), {}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_several_arguments_constants_and_batches(
    theta: Any, x: Any, options: Any, dtype: Any
) -> None:
    qnode = node(rotated)
    energy = fubini.compiled(qnode)
    torch.manual_seed(1)
    leaves = [torch.rand(s, dtype=dtype, requires_grad=True) for s in (theta, x)]
    # In float32 both compute the angles and their derivatives with its rounding.
    close = EXACT if dtype == torch.float64 else {"rtol": 0.0, "atol": 1e-5}
    for _ in range(2):
        got, expected = energy(leaves[0], x=leaves[1], **options), qnode(*leaves, **options)
        assert got.dtype == expected.dtype == torch.float64
        torch.testing.assert_close(got, expected, **close)
        for a, b in zip(
            torch.autograd.grad((got**2).sum(), leaves),
            torch.autograd.grad((expected**2).sum(), leaves),
            strict=True,
        ):
            torch.testing.assert_close(a, b, **close)
        assert "native" in energy.explain()


@pytest.mark.parametrize("function", [one, branching])
def test_two_views_of_one_parameter_keep_their_graph_in_the_first_call(function: Any) -> None:
    """Arguments that share memory: what the first call computes is differentiated as the second's is."""

    def two(a: Any, b: Any) -> Any:
        return function(torch.stack([a, b]))

    p = start()
    (expected,) = torch.autograd.grad(node(function)(p), p)
    energy = fubini.compiled(node(two))
    for _ in range(2):
        (got,) = torch.autograd.grad(energy(p[0], p[1]), p)
        torch.testing.assert_close(got, expected, **EXACT)


def test_what_is_the_qnode_s_own_matter() -> None:
    w = start()
    shots = fubini.compiled(qml.set_shots(node(one), 10))
    assert "10 shots" in shots.explain()
    shots(w)
    assert "10 shots" in shots.explain()
    energy = fubini.compiled(node(one))
    assert isinstance(energy(w.detach().numpy()), float | np.ndarray)
    assert "none of its arguments is a torch tensor" in energy.explain()

    def star(*w: Any) -> Any:
        return one(w[0])

    starred = fubini.compiled(node(star))
    torch.testing.assert_close(starred(w), node(one)(w), **EXACT)
    assert "without names" in starred.explain()
    with pytest.raises(TypeError):
        energy(w, 1, 2)
    with pytest.raises(TypeError, match="qnode: expected a QNode, got function"):
        fubini.compiled(one)


def test_captured_numbers_are_compared() -> None:
    settings = {"field": 1.0}

    def energy_of(w: Any) -> Any:
        ansatz(w * settings["field"])
        return qml.expval(ISING)

    energy, w = fubini.compiled(node(energy_of)), start()
    for field in (1.0, 2.0, 1.0, -0.5):
        settings["field"] = field
        torch.testing.assert_close(energy(w), node(energy_of)(w), **EXACT)


def weighed(c: Any, w: Any) -> Any:
    ansatz(w)
    return qml.expval(c[0] * qml.Z(0) + c[1] * qml.X(1))


def matrix(c: Any, w: Any) -> Any:
    ansatz(w)
    return qml.expval(qml.Hermitian(torch.diag(c), 0))


def unitary(c: Any, w: Any) -> Any:
    ansatz(w)
    qml.QubitUnitary(torch.diag(torch.exp(1j * c)), 1)
    return qml.expval(qml.X(1))


def counted(c: Any, w: Any) -> Any:
    for _ in range(int(3 * c[0])):
        ansatz(w)
    return qml.expval(qml.X(1))


def evolved(c: Any, w: Any) -> Any:
    ansatz(w)
    qml.ApproxTimeEvolution(qml.Hamiltonian([c[0], c[1]], [qml.Z(0), qml.X(1)]), 0.3, 2)
    return qml.expval(qml.Z(1))


@pytest.mark.parametrize("function", [weighed, matrix, unitary, counted, evolved])
def test_arguments_that_are_no_angles_are_never_kept(function: Any) -> None:
    """Coefficients, matrices and counts of one call are not those of the next."""
    qnode, w = node(function), start()
    energy = fubini.compiled(qnode)
    layer = fubini.QuantumLayer(node(function), {"c": (2,), "w": SHAPE}).double()
    layer.c.requires_grad_(False)
    for c in ([0.4, 0.5], [0.8, 0.9], [0.8, -0.1]):
        c = torch.tensor(c, dtype=torch.float64)
        with torch.no_grad():
            layer.c.copy_(c)
            layer.w.copy_(w)
        torch.testing.assert_close(energy(c, w), qnode(c, w), **EXACT)
        torch.testing.assert_close(layer(), qnode(c, w), **EXACT)


def test_a_captured_tensor_keeps_its_gradient() -> None:
    w, angle = start(), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def captured(w: Any) -> Any:
        ansatz(w)
        qml.RX(angle, 0)
        return qml.expval(qml.Z(0))

    energy = fubini.compiled(node(captured))
    (expected,) = torch.autograd.grad(node(captured)(w), angle)
    for _ in range(2):
        (got,) = torch.autograd.grad(energy(w), angle)
        torch.testing.assert_close(got, expected, **EXACT)


def embedded(x: Any, w: Any) -> Any:
    qml.AngleEmbedding(x, wires=range(3))
    ansatz(w)
    return [qml.expval(ISING), qml.probs(wires=[0])]


def multiplied(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x[:, 0] * w[0, 0, 0] + torch.sin(x[:, 1]), 0)
    return qml.expval(ISING)


def projected(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x @ w[0, :, 0], 0)
    return qml.expval(ISING)


def centred(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x[:, 0] - x[:, 0].mean(), 0)
    return qml.expval(ISING)


def turned(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x.flip(0)[:, 0], 0)
    return qml.expval(ISING)


def by_the_first(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x[:, 0], 0)
    qml.RZ(x[0, 1], 0)
    return qml.expval(ISING)


def along_features(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x[0], 0)
    return qml.expval(ISING)


def by_position(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(torch.arange(len(x)).double() * x[:, 0], 0)
    return qml.expval(ISING)


def by_row(x: Any, w: Any) -> Any:
    ansatz(w)
    qml.RX(x[:, 0] * w[0, :, 0], 0)
    return qml.expval(ISING)


@pytest.mark.parametrize(
    ("function", "understood"),
    [
        (embedded, True),
        (multiplied, True),
        (projected, True),
        *((f, False) for f in (centred, turned, by_the_first, along_features)),
        *((f, False) for f in (by_position, by_row)),
    ],
)
def test_an_argument_whose_rows_are_inputs(function: Any, understood: bool) -> None:
    """Its batch is compiled where row b of the results is that of row b alone, and only there."""
    qnode, w = node(function), start()
    energy = fubini.compiled(qnode)
    # As many rows as features and wires: nothing but what is computed tells axes apart.
    for seed in range(3):
        torch.manual_seed(seed)
        x = torch.rand(3, 3, dtype=torch.float64, requires_grad=True)
        got, expected = flat(energy(x, w)), flat(qnode(x, w))
        torch.testing.assert_close(got, expected, **EXACT)
        for a, b in zip(
            torch.autograd.grad((got**2).sum(), (x, w)),
            torch.autograd.grad((expected**2).sum(), (x, w)),
            strict=True,
        ):
            torch.testing.assert_close(a, b, **EXACT)
    assert ("compiled circuit" in energy.explain()) is understood
    metric = fubini.metric_tensor(energy)(x.detach(), w)
    on_device = fubini.metric_tensor(qnode, engine="device")(x.detach(), w)
    torch.testing.assert_close(metric, on_device, rtol=0, atol=1e-9)


def test_metrics_copies_and_siblings_of_a_compiled_qnode() -> None:
    energy, w = fubini.compiled(module_energy), start()
    expected = fubini.metric_tensor(node(one), "block-diag")(w)
    torch.testing.assert_close(energy.metric("block-diag")(w), expected, **EXACT)
    torch.testing.assert_close(fubini.metric_tensor(energy, "block-diag")(w), expected, **EXACT)
    assert fubini.metric_spectrum(energy)(w).rank > 0
    for other in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        torch.testing.assert_close(other(w), energy(w), **EXACT)
    assert fubini.compiled(energy).qnode is energy.qnode


# -- recipes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("approx", [None, "block-diag"])
def test_the_recipe_of_a_closure_with_bare_parameters(approx: Any) -> None:
    """It takes the steps of the layer, and the unchanged QNode in ``metric_tensor`` is compiled once."""
    qnode = node(one)
    energy = fubini.compiled(qnode)
    w = torch.nn.Parameter(start().detach())
    opt = fubini.QNGOptimizer([w], lr=0.1, lam=0.01)

    def closure() -> Any:
        opt.zero_grad()
        loss = energy(w)
        loss.backward()
        return loss, fubini.metric_tensor(qnode, approx)

    layer = layer_of()
    other = fubini.QNGOptimizer(layer, lr=0.1, lam=0.01, approx=approx)
    for _ in range(4):
        opt.step(closure)
        other.zero_grad()
        layer().backward()
        other.step()
    torch.testing.assert_close(w.detach(), layer.w.detach(), rtol=0, atol=1e-9)
    assert "compiled circuit" in energy.explain()


def test_the_unchanged_qnode_in_a_closure_is_compiled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = []
    compiling = fubini.compile.calls.compile_function

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        return compiling(*args, **kwargs)

    monkeypatch.setattr(fubini.compile.calls, "compile_function", counted)
    qnode = node(one)
    energy, w = fubini.compiled(qnode), start()
    for _ in range(3):
        energy(w).backward()
        fubini.metric_tensor(qnode)(w)
        fubini.metric_tensor(energy, "diag")(w)
    assert len(runs) == 1


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_pennylane_s_optimizers_with_our_metric(momentum: float | None) -> None:
    cost = node(one)
    w = pnp.array(start().detach().numpy(), requires_grad=True)
    if momentum is None:
        opt, reference = (qml.QNGOptimizer(0.1, lam=0.01) for _ in range(2))
    else:
        opt, reference = (qml.MomentumQNGOptimizer(0.1, momentum, lam=0.01) for _ in range(2))
    a = b = w
    theirs = qml.metric_tensor(cost, approx="block-diag")
    ours = fubini.metric_tensor(cost, "block-diag", layers="queue")  # PennyLane's layers
    for _ in range(2):
        a = opt.step(cost, a, metric_tensor_fn=ours)
        b = reference.step(cost, b, metric_tensor_fn=theirs)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)
    assert cost(a) < cost(w)


def full(w: Any) -> Any:
    """The full metric over angles, by PennyLane's adjoint method."""
    return qml.adjoint_metric_tensor(node(one))(w)


@pytest.mark.parametrize("made", ["metric_tensor", "compiled"])
def test_pennylane_s_optimizer_with_the_full_metric_and_step_and_cost(made: str) -> None:
    """``metric_tensor_fn=fubini.metric_tensor(cost)`` as it stands, and what ``fubini.compiled`` has."""
    cost = node(one)
    ours = fubini.metric_tensor(cost) if made == "metric_tensor" else fubini.compiled(cost).metric()
    opt, reference = (qml.QNGOptimizer(0.1, lam=0.01) for _ in range(2))
    a = b = pnp.array(start().detach().numpy(), requires_grad=True)
    for _ in range(2):
        a, value = opt.step_and_cost(cost, a, metric_tensor_fn=ours)
        b, expected = reference.step_and_cost(cost, b, metric_tensor_fn=full)
        np.testing.assert_allclose(value, expected, **EXACT)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-8)


def test_pennylane_s_optimizer_with_several_weights_and_a_classical_function_of_the_cost() -> None:
    def two(v: Any, w: Any) -> Any:
        ansatz(v)
        ansatz(w)
        return qml.expval(ISING)

    cost, w = node(two), start().detach().numpy()
    ours = fubini.metric_tensor(cost, "block-diag", layers="queue")
    theirs = qml.metric_tensor(cost, approx="block-diag")

    def loss(v: Any, w: Any) -> Any:
        return cost(v, w) ** 2

    for function in (cost, loss):
        weights = [[pnp.array(k * w, requires_grad=True) for k in (1.0, 0.5)] for _ in range(2)]
        for parts, metric in zip(weights, (ours, theirs), strict=True):
            # A function that is no QNode takes its gradient from autograd, and its metric from the QNode.
            parts[:] = qml.QNGOptimizer(0.1, lam=0.01).step(
                function, *parts, metric_tensor_fn=metric
            )
        np.testing.assert_allclose(weights[0], weights[1], rtol=0, atol=1e-8)


def test_siblings_that_take_no_metric_function_say_so() -> None:
    """QNSPSA estimates its own metric: PennyLane hands what it is given to the circuit, which refuses it."""
    cost = node(one)
    w = pnp.array(start().detach().numpy(), requires_grad=True)
    opt = qml.QNSPSAOptimizer(stepsize=0.1, blocking=False, seed=1)
    assert cost(opt.step(cost, w)).shape == ()
    with pytest.raises(TypeError, match="metric_tensor_fn"):
        opt.step(cost, w, metric_tensor_fn=fubini.metric_tensor(cost))


@pytest.mark.parametrize("rows", [False, True])
def test_compiled_qnodes_in_a_model_are_compiled_in_the_first_step(
    monkeypatch: pytest.MonkeyPatch, rows: bool
) -> None:
    runs = []
    compiling = fubini.compile.calls.compile_function

    def counted(*args: Any, **kwargs: Any) -> Any:
        runs.append(1)
        return compiling(*args, **kwargs)

    monkeypatch.setattr(fubini.compile.calls, "compile_function", counted)
    qnode = node(embedded)
    circuit, w = fubini.compiled(qnode), torch.nn.Parameter(start().detach())
    opt = fubini.QNGOptimizer([w], 0.1)
    x = torch.rand(4, 3, dtype=torch.float64)

    def closure() -> Any:
        opt.zero_grad()
        results = [circuit(row, w) for row in x] if rows else [circuit(x, w)]
        loss = sum(one.sum() for result in results for one in result)
        loss.backward()
        return loss

    opt.step(closure)
    # For the call, where all tensors count as weights, which finds a batch, and for the metric.
    assert len(runs) <= 3
    before = len(runs)
    for _ in range(3):
        opt.step(closure)
    assert len(runs) == before
