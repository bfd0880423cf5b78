"""What is compiled, what runs in every call, and that nothing is ever frozen that could change."""

import functools
import random
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini

WIRES = 2
SCALE = 0.5
TABLE = {"gates": [1, 2], "shift": np.array([0.1, 0.2])}


def measure() -> Any:
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1) @ qml.X(0))]


def layer_of(function: Any, engine: Any = "auto", weights: Any = 3) -> fubini.QuantumLayer:
    torch.manual_seed(1)
    return fubini.QuantumLayer(
        qml.QNode(function, qml.device("default.qubit", wires=WIRES)),
        {"weights": weights},
        engine=engine,
    ).double()


def check(layer: fubini.QuantumLayer, x: torch.Tensor) -> None:
    """Values and gradients are those of the QNode as it is now."""
    oracle = qml.qnn.TorchLayer(
        layer.qnode, {"weights": layer.weights.shape}, {"weights": layer.weights.detach()}
    )
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    mine, theirs = layer(a), oracle(b)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    cotangent = torch.linspace(0.3, 1.7, mine.numel(), dtype=torch.float64).reshape(mine.shape)
    layer.weights.grad = None
    mine.backward(cotangent)
    theirs.backward(cotangent)
    zero = torch.zeros_like
    for p, q in ((layer.weights, oracle.weights), (a, b)):
        mine_grad = zero(p) if p.grad is None else p.grad
        torch.testing.assert_close(
            mine_grad, zero(q) if q.grad is None else q.grad, rtol=0, atol=1e-10
        )


# -- affine and traced --------------------------------------------------------------------------------------------


def plain(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.RX(weights[0], 0)
    qml.CRY(weights[1], [1, 0])
    qml.RZ(weights[2], 1)
    return measure()


def arithmetic(inputs: Any, weights: Any) -> Any:
    qml.RX(2 * weights[0] - inputs[..., 0] / 3 + 0.2, 0)
    qml.RY(weights[0] + weights[1], 1)
    qml.U3(weights[0], weights[2], inputs[..., 1], wires=0)
    qml.CNOT([0, 1])
    qml.RX(weights[2] * 0.5, 1)
    return measure()


def product(inputs: Any, weights: Any) -> Any:
    qml.RX(weights[0] * inputs[..., 0], 0)
    qml.RY(torch.sin(weights[1]) + inputs[..., 1] ** 2, 1)
    qml.CRX(weights[2], [0, 1])
    return measure()


def amplitudes(inputs: Any, weights: Any) -> Any:
    qml.AmplitudeEmbedding(inputs + 2, wires=[0], normalize=True)
    qml.CRX(weights[0], [0, 1])
    return measure()


def branch_on_weights(inputs: Any, weights: Any) -> Any:
    if weights[0] > 1.0:
        qml.Hadamard(0)
    qml.RX(inputs[..., 0], 0)
    qml.RY(weights[1], 1)
    return measure()


def number_of_a_weight(inputs: Any, weights: Any) -> Any:
    qml.RX(inputs[..., 0] + weights[1], 0)
    qml.RY(weights[0].item(), 1)
    return measure()


def detached(inputs: Any, weights: Any) -> Any:
    qml.RX(inputs[..., 0] + weights[1], 0)
    qml.RY(weights[0].detach(), 1)
    return measure()


def repeated_by_value(inputs: Any, weights: Any) -> Any:
    for _ in range(int(abs(weights[0].detach())) + 1):
        qml.RX(inputs[..., 0], 0)
    qml.RY(weights[1], 0)
    return measure()


def helper(t: Any) -> None:
    qml.RY(SCALE * t, 0)


def with_helper(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    helper(weights[0])
    return measure()


FORMS: list[tuple[Any, str]] = [
    (plain, "affine in"),
    (arithmetic, "affine in"),
    (with_helper, "affine in"),
    (product, "known functions of"),
    (amplitudes, "known functions of"),
    (branch_on_weights, "asks a tensor for gt"),
    (number_of_a_weight, "asks a tensor for item"),
    (detached, "asks a tensor for detach"),
]


@pytest.mark.parametrize(("function", "reason"), FORMS, ids=[f[0].__name__ for f in FORMS])
def test_forms(function: Any, reason: str) -> None:
    layer = layer_of(function)
    layer(torch.rand(3, 2, dtype=torch.float64))
    assert reason in layer.explain()


@pytest.mark.parametrize(
    "function", [*(f[0] for f in FORMS), repeated_by_value], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("shape", [(2,), (4, 2), (2, 3, 2)])
def test_values_and_gradients_at_many_weights(function: Any, shape: Any) -> None:
    layer = layer_of(function, engine="native")
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            layer.weights.copy_(torch.randn(3, generator=generator, dtype=torch.float64) * 2)
        check(layer, torch.rand(shape, generator=generator, dtype=torch.float64))


def test_gradcheck_and_second_derivatives() -> None:
    layer = layer_of(arithmetic, engine="native")
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    weights = layer.weights.detach().clone().requires_grad_()

    def function(inputs: Any, values: Any) -> Any:
        return torch.func.functional_call(layer, {"weights": values}, (inputs,))

    assert torch.autograd.gradcheck(function, (x, weights))
    assert torch.autograd.gradgradcheck(function, (x, weights))


def test_torch_func_transforms() -> None:
    layer = layer_of(arithmetic, engine="native")
    x = torch.rand(4, 2, dtype=torch.float64)
    w = layer.weights.detach()

    def function(values: Any, inputs: Any) -> Any:
        return torch.func.functional_call(layer, {"weights": values}, (inputs,))

    expected = torch.autograd.functional.jacobian(lambda v: function(v, x), w)
    torch.testing.assert_close(torch.func.jacrev(function)(w, x), expected)
    torch.testing.assert_close(torch.func.jacfwd(function)(w, x), expected)
    per_sample = torch.func.vmap(torch.func.jacrev(function), (None, 0))(w, x)
    torch.testing.assert_close(per_sample, expected)
    values, tangents = torch.func.jvp(lambda v: function(v, x), (w,), (torch.ones_like(w),))
    torch.testing.assert_close(tangents, expected.sum(-1))
    torch.testing.assert_close(values, layer(x).detach())
    _, pullback = torch.func.vjp(lambda v: function(v, x), w)
    torch.testing.assert_close(pullback(torch.ones_like(values))[0], expected.sum((0, 1)))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        _, tangent = torch.autograd.forward_ad.unpack_dual(layer(dual))
    by_inputs = torch.autograd.functional.jacobian(layer, x)
    torch.testing.assert_close(tangent, by_inputs.sum((-1, -2)))


# -- guards -------------------------------------------------------------------------------------------------------


class Holder:
    """Owns the quantum function and what it uses."""

    def __init__(self) -> None:
        self.scale = 0.5
        self.angles = torch.tensor([0.1, 0.2], dtype=torch.float64)
        self.options = {"entangle": True, "wires": [0, 1]}

    def function(self, inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs * self.scale, wires=self.options["wires"])
        if self.options["entangle"]:
            qml.CNOT([0, 1])
        qml.RX(weights[0] + self.angles[1], 0)
        return measure()


def change_scale(holder: Holder) -> None:
    holder.scale = 0.7


def change_angles_in_place(holder: Holder) -> None:
    holder.angles[1] += 1.0


def replace_angles(holder: Holder) -> None:
    holder.angles = torch.tensor([0.1, 2.0], dtype=torch.float64)


def change_data(holder: Holder) -> None:
    holder.angles.data[1] = -1.0  # does not raise the version counter


def change_option(holder: Holder) -> None:
    holder.options["entangle"] = False


def change_nested_list(holder: Holder) -> None:
    holder.options["wires"].reverse()


CHANGES = [
    change_scale,
    change_angles_in_place,
    replace_angles,
    change_data,
    change_option,
    change_nested_list,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda c: c.__name__)
@pytest.mark.parametrize("how", ["method", "closure", "partial"])
def test_changed_attributes_compile_anew(change: Any, how: str) -> None:
    holder = Holder()

    def closure(inputs: Any, weights: Any) -> Any:
        return holder.function(inputs, weights)

    def free(owner: Any, inputs: Any, weights: Any) -> Any:
        return owner.function(inputs, weights)

    bound = functools.partial(free, holder)
    bound.__name__ = "bound"  # type: ignore[attr-defined]
    function = {"method": holder.function, "closure": closure, "partial": bound}[how]
    layer = layer_of(function)
    x = torch.rand(3, 2, dtype=torch.float64)
    check(layer, x)
    change(holder)
    check(layer, x)


def test_changed_closure_cell_and_global(monkeypatch: pytest.MonkeyPatch) -> None:
    factor = 0.3

    def function(inputs: Any, weights: Any) -> Any:
        qml.RX(factor * inputs[..., 0], 0)
        helper(weights[0])
        qml.RY(float(TABLE["shift"][0]) * weights[1], 1)
        return measure()

    layer = layer_of(function)
    x = torch.rand(3, 2, dtype=torch.float64)
    check(layer, x)
    assert "compiled circuit" in layer.explain()
    factor = 0.9
    check(layer, x)
    monkeypatch.setattr(f"{__name__}.SCALE", 1.5)
    check(layer, x)
    monkeypatch.setitem(TABLE, "shift", np.array([0.7, 0.2]))
    check(layer, x)


def noisy_python(inputs: Any, weights: Any) -> Any:
    qml.RX(inputs[..., 0] + random.random(), 0)
    return measure()


def noisy_numpy(inputs: Any, weights: Any) -> Any:
    qml.RX(inputs[..., 0] + np.random.default_rng().normal(), 0)
    return measure()


GENERATOR = np.random.default_rng(0)


def noisy_generator(inputs: Any, weights: Any) -> Any:
    qml.RX(inputs[..., 0] + GENERATOR.normal(), 0)
    return measure()


HIDDEN = torch.nn.Parameter(torch.tensor(0.3))


def hidden_parameter(inputs: Any, weights: Any) -> Any:
    qml.RX(inputs[..., 0] + HIDDEN, 0)
    return measure()


class Computed:
    @property
    def value(self) -> float:
        return random.random()


COMPUTED = Computed()


def computed_attribute(inputs: Any, weights: Any) -> Any:
    qml.RX(inputs[..., 0] + COMPUTED.value, 0)
    return measure()


@pytest.mark.parametrize(
    "function",
    [noisy_python, noisy_numpy, noisy_generator, hidden_parameter, computed_attribute],
    ids=lambda f: f.__name__,
)
def test_what_is_not_understood_runs_in_every_call(function: Any) -> None:
    layer = layer_of(function)
    x = torch.zeros(1, 2, dtype=torch.float64)
    first, second = layer(x), layer(x)
    assert "runs in every call" in layer.explain()
    if function is not hidden_parameter:
        assert not torch.equal(first, second)


def test_hidden_parameters_get_their_gradient() -> None:
    layer = layer_of(hidden_parameter)
    HIDDEN.grad = None
    layer(torch.zeros(1, 2, dtype=torch.float64)).sum().backward()
    assert HIDDEN.grad is not None
    assert HIDDEN.grad.abs() > 0.1


# -- engine choice ------------------------------------------------------------------------------------------------


def with_channel(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.RX(weights[0], 0)
    qml.DepolarizingChannel(0.1, 0)
    return measure()


def test_engine_choice() -> None:
    x = torch.rand(2, 2, dtype=torch.float64)
    noisy = fubini.QuantumLayer(
        qml.QNode(with_channel, qml.device("default.mixed", wires=2)), {"weights": 3}
    )
    noisy(x.float())
    assert noisy.engine == "device"
    assert "no noiseless state-vector simulator" in noisy.explain()
    shots = qml.QNode(plain, qml.device("default.qubit", wires=2, seed=1), shots=10)
    layer = fubini.QuantumLayer(shots, {"weights": 3})
    layer(x.float())
    assert layer.engine == "device"
    assert "10 shots" in layer.explain()
    with pytest.raises(
        fubini.UnsupportedCircuitError, match="engine: 'native' cannot run this circuit"
    ):
        fubini.QuantumLayer(shots, {"weights": 3}, engine="native")(x.float())


def test_a_new_qnode_is_compiled() -> None:
    layer = layer_of(plain)
    x = torch.rand(2, 2, dtype=torch.float64)
    check(layer, x)
    layer.qnode = qml.QNode(arithmetic, qml.device("default.qubit", wires=WIRES))
    check(layer, x)


def test_no_device_call_on_the_native_engine() -> None:
    layer = layer_of(plain)
    with qml.Tracker(layer.qnode.device) as tracker:
        layer(torch.rand(4, 2, dtype=torch.float64)).sum().backward()
    assert tracker.totals == {}


# -- passes that wait for their backward pass ----------------------------------------------------------------------


def test_states_kept_for_the_backward_pass_serve_one_pass_each() -> None:
    layer = layer_of(arithmetic)
    first, second = (
        torch.full((5, 2), v, dtype=torch.float64, requires_grad=True) for v in (0.3, 0.8)
    )
    expected = [
        torch.autograd.grad(layer(x).sum(), [layer.weights, x], create_graph=True)
        for x in (first, second)
    ]  # create_graph takes the path that keeps nothing
    a, b = layer(first).sum(), layer(second).sum()
    for total, x, wanted in ((b, second, expected[1]), (a, first, expected[0])) * 2:
        found = torch.autograd.grad(total, [layer.weights, x], retain_graph=True)
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-14)


def test_weights_changed_between_forward_and_backward_pass_are_an_error() -> None:
    layer = layer_of(arithmetic)
    total = layer(torch.rand(3, 2)).sum()
    with torch.no_grad():
        layer.weights += 1.0
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_states_too_large_to_keep_are_computed_again() -> None:
    wires = 19  # 9 states of 8 MB each

    def function(inputs: Any, weights: Any) -> Any:
        qml.RX(weights[0] * 0.7, 0)
        qml.RY(inputs[..., 0], wires - 1)
        qml.CNOT([0, wires - 1])
        return qml.expval(qml.Z(wires - 1))

    x = torch.linspace(0.1, 0.9, 9, dtype=torch.float64).reshape(9, 1).requires_grad_()
    layer = fubini.QuantumLayer(
        qml.QNode(function, qml.device("default.qubit", wires=wires)), {"weights": 2}
    ).double()
    layer(x).sum().backward()
    # <Z> = cos(0.7 w) cos(x)
    angle = 0.7 * layer.weights.detach()[0]
    torch.testing.assert_close(
        x.grad, -torch.cos(angle) * torch.sin(x.detach()), rtol=0, atol=1e-12
    )
    expected = -0.7 * torch.sin(angle) * torch.cos(x.detach()).sum()
    torch.testing.assert_close(layer.weights.grad[0], expected, rtol=0, atol=1e-12)


def trigonometric(inputs: Any, weights: Any) -> Any:
    qml.RX(torch.sin(inputs[..., 0]) * weights[0], 0)
    qml.CRY(weights[1], [0, 1])
    return measure()


def prepared(inputs: Any, weights: Any) -> Any:
    qml.AmplitudeEmbedding(inputs, [0], normalize=True)
    qml.CRY(weights[1], [0, 1])
    return measure()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("function", [arithmetic, trigonometric, prepared])
def test_batched_gradients(function: Any) -> None:
    """is_grads_batched and vectorize use a vmap that does not ask autograd functions for their rule."""
    layer = layer_of(function)
    x = torch.linspace(0.1, 0.8, 6, dtype=torch.float64).reshape(3, 2).requires_grad_()
    jacobian = torch.autograd.functional.jacobian
    expected = jacobian(layer, x)
    for options in ({}, {"strategy": "forward-mode"}):
        found = jacobian(layer, x, vectorize=True, **options)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-13)
    y = layer(x)
    each = torch.eye(y.numel(), dtype=torch.float64).reshape(-1, *y.shape)
    found = torch.autograd.grad(y, [layer.weights, x], each, is_grads_batched=True)
    rows = [torch.autograd.grad(layer(x), [layer.weights, x], row) for row in each]
    for k in range(2):
        torch.testing.assert_close(found[k], torch.stack([row[k] for row in rows]))


def test_values_that_torch_func_hides_are_an_error_with_the_remedy() -> None:
    x = torch.rand(3, 2, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"qnode: .*validate_norm=False"):
        torch.func.jacrev(layer_of(prepared))(x)


@pytest.mark.parametrize(
    "gate",
    [
        lambda w, x: qml.exp(qml.X(0) @ qml.Y(1), 1j * w[0] + 0.3j),
        lambda w, x: qml.exp(qml.Z(0) + 2 * qml.Z(1), torch.complex(0 * x, x)),
        lambda w, x: qml.ctrl(qml.adjoint(qml.exp(qml.X(0), -2j * w[1])), 1),
    ],
)
def test_exponentials_of_torch_tensors_run_natively(gate: Any) -> None:
    """Torch has no iscomplexobj, so these went to the device."""

    def function(inputs: Any, weights: Any) -> Any:
        qml.RY(inputs[..., 0], 0)
        qml.H(1)
        gate(weights, inputs[..., 1])
        qml.RX(weights[2], 0)
        return measure()

    layer = layer_of(function)
    for x in (torch.rand(2).double(), torch.rand(5, 2).double()):
        check(layer, x)
    assert layer.engine == "native"


@pytest.mark.parametrize("function", [arithmetic, trigonometric])
def test_half_precision(function: Any) -> None:
    """NumPy has no bfloat16."""
    layer = layer_of(function)
    x = torch.tensor([[0.5, 0.25], [-0.75, 1.0]])
    expected = layer(x)
    for dtype in (torch.bfloat16, torch.float16):
        half = layer.to(dtype)
        rounded = x.to(dtype).requires_grad_()
        result = half(rounded)
        result.sum().backward()
        assert result.dtype == rounded.grad.dtype == half.weights.grad.dtype == dtype
        torch.testing.assert_close(result.float(), expected.float(), rtol=0, atol=0.05)
        half.weights.grad = None


def test_complex_inputs_are_refused() -> None:
    """Their imaginary part was dropped."""
    with pytest.raises(TypeError, match=r"inputs: expected real numbers, got torch\.complex64"):
        layer_of(arithmetic)(torch.ones(3, 2, dtype=torch.complex64))
