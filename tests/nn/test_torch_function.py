"""The torch function: every way in which torch differentiates, against torch itself and against PennyLane."""

import numpy as np
import pennylane as qml
import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from fubini import QuantumLayer
from fubini.native.circuit import Circuit
from fubini.nn.expval import expval

# Forward-mode AD inside torch still scripts its own decompositions.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)

DEVICE = qml.device("default.qubit")


def small_tape(parameters):
    x = list(parameters)
    operations = [
        qml.RX(x[0], 0),
        qml.RY(x[1], 1),
        qml.CNOT([0, 1]),
        qml.Rot(x[2], x[3], x[4], wires=1),
        qml.CRZ(x[5], [1, 0]),
        qml.IsingXY(x[6], [0, 1]),
    ]
    return qml.tape.QuantumScript(
        operations, [qml.expval(qml.Z(0)), qml.expval(qml.X(1)), qml.var(qml.Y(0) @ qml.Z(1))]
    )


CIRCUIT = Circuit.from_tape(small_tape(np.ones(7)))


def angles_for(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).uniform(-3, 3, (*shape, 7)))


def pennylane_values(angles):
    (result,) = qml.execute([small_tape(angles)], DEVICE, diff_method="backprop", interface="torch")
    return torch.stack(list(result))


def values(angles):
    return expval(CIRCUIT, angles)


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0,)])
def test_values_have_the_leading_dimensions_of_the_angles(shape):
    angles = angles_for(*shape)
    result = values(angles)
    assert result.shape == (*shape, 3)
    for row, expected in zip(angles.reshape(-1, 7), result.reshape(-1, 3), strict=True):
        torch.testing.assert_close(pennylane_values(row), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_gradcheck(shape):
    angles = angles_for(*shape).requires_grad_()
    assert torch.autograd.gradcheck(values, angles, check_forward_ad=True)


def test_gradgradcheck():
    angles = angles_for(3).requires_grad_()
    assert torch.autograd.gradgradcheck(values, angles, check_fwd_over_rev=True)


def test_gradient_and_hessian_against_pennylane():
    angles = angles_for()
    weights = torch.tensor([0.3, -1.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(
        jacrev(values)(angles),
        torch.autograd.functional.jacobian(pennylane_values, angles),
        atol=1e-11,
        rtol=0,
    )
    torch.testing.assert_close(
        hessian(lambda a: values(a) @ weights)(angles),
        torch.autograd.functional.hessian(lambda a: pennylane_values(a) @ weights, angles),
        atol=1e-11,
        rtol=0,
    )


def test_torch_func_transforms_agree():
    angles = angles_for(4)
    tangents = angles_for(4, seed=1)
    jacobian = torch.tensor(CIRCUIT.jacobian(angles))
    per_sample = vmap(jacrev(values))(angles)
    torch.testing.assert_close(per_sample, jacobian)
    torch.testing.assert_close(vmap(jacfwd(values))(angles), jacobian)
    torch.testing.assert_close(vmap(values, in_dims=1)(angles[None]), values(angles)[:, None])
    out, pushed = jvp(values, (angles,), (tangents,))
    torch.testing.assert_close(out, values(angles))
    torch.testing.assert_close(pushed, torch.einsum("bma,ba->bm", jacobian, tangents))
    _, pull = vjp(values, angles)
    cotangents = torch.ones(4, 3, dtype=torch.float64)
    torch.testing.assert_close(pull(cotangents)[0], jacobian.sum(1))
    torch.testing.assert_close(vmap(grad(lambda a: values(a).sum()))(angles), jacobian.sum(1))
    nested = vmap(vmap(values))(angles.reshape(2, 2, 7))
    torch.testing.assert_close(nested.reshape(4, 3), values(angles))


def test_functional_call():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(7, dtype=torch.float64))

        def forward(self, x):
            return values(self.weight + x)

    layer = Layer()
    weight = angles_for()
    x = angles_for(3, seed=2)
    jacobian = jacrev(lambda w: functional_call(layer, {"weight": w}, (x,)))(weight)
    torch.testing.assert_close(jacobian, torch.tensor(CIRCUIT.jacobian(weight + x)))


def test_float32_in_and_out():
    angles = angles_for(3)
    single = angles.to(torch.float32).requires_grad_()
    result = values(single)
    assert result.dtype == torch.float32
    expected = values(single.detach().double())
    # Computed in float64, rounded once.
    torch.testing.assert_close(result.detach().double(), expected, atol=1e-7, rtol=1e-7)
    result.sum().backward()
    assert single.grad.dtype == torch.float32


def test_third_derivative_is_refused():
    angles = angles_for().requires_grad_()
    (first,) = torch.autograd.grad(values(angles).sum(), angles, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), angles, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivatives"):
        torch.autograd.grad(second.sum(), angles)


@pytest.mark.parametrize("method", ["best", "backprop"])
def test_the_way_to_third_derivatives_that_the_refusal_names(method):
    def circuit(inputs, weights):
        qml.RY(inputs[..., 0], 0)
        qml.RY(weights[0], 0)
        return qml.expval(qml.Z(0))

    def third(engine):
        qnode = qml.QNode(circuit, qml.device("default.qubit", wires=1), diff_method=method)
        layer = QuantumLayer(
            qnode, {"weights": (1,)}, {"weights": torch.tensor([0.4])}, engine=engine
        )
        layer = layer.double()
        x = torch.tensor([[0.3], [0.9]], dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(layer(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        second.sum().backward()
        return x.detach()[:, 0] + layer.weights.detach(), layer.weights.grad

    with pytest.raises(NotImplementedError, match=r"engine='device'.*diff_method='backprop'"):
        third("auto")
    angles, by_weight = third("device")
    # The result is cos(x + w), so its third derivative is sin(x + w).
    torch.testing.assert_close(by_weight, torch.sin(angles).sum()[None], atol=1e-12, rtol=0)


def state_circuit(data):
    tape = qml.tape.QuantumScript(
        [
            qml.AmplitudeEmbedding(data, wires=[0, 1], normalize=True),
            qml.RX(0.3, 0),
            qml.CRY(0.4, [0, 1]),
        ],
        [qml.expval(qml.Z(0)), qml.probs(wires=[1])],
    )
    return Circuit.from_tape(tape), tape


@pytest.mark.parametrize("batch", [1, 4])
def test_gradient_reaches_the_amplitudes(batch):
    data = torch.tensor(np.random.default_rng(0).normal(size=(batch, 4)), requires_grad=True)

    def run(x):
        circuit, tape = state_circuit(x)
        state = circuit.state_of(tape)
        angles = circuit.angles_of(tape)
        return expval(circuit, torch.as_tensor(angles).expand(len(x), 2), state)

    assert torch.autograd.gradcheck(run, data, check_forward_ad=True)

    def reference(x):
        (result,) = qml.execute([state_circuit(x)[1]], DEVICE, diff_method="backprop")
        return torch.cat([torch.as_tensor(p).reshape(len(x), -1) for p in result], -1)

    torch.testing.assert_close(
        torch.autograd.functional.jacobian(run, data),
        torch.autograd.functional.jacobian(reference, data),
        atol=1e-11,
        rtol=0,
    )


def test_second_derivative_through_the_state_is_refused():
    circuit, _ = state_circuit(np.ones(4))
    state = torch.full((4,), 0.5, dtype=torch.complex128, requires_grad=True)
    angles = torch.tensor([0.3, 0.4], dtype=torch.float64, requires_grad=True)
    result = expval(circuit, angles, state).sum()
    with pytest.raises(NotImplementedError, match="initial state"):
        torch.autograd.grad(torch.autograd.grad(result, angles, create_graph=True)[0].sum(), state)


BAD = {
    "angles": (lambda: expval(CIRCUIT, torch.zeros(3, 4)), r"angles: expected shape .*\(3, 4\)"),
    "state": (lambda: expval(CIRCUIT, torch.zeros(7), torch.zeros(4)), "expected None"),
    "no state": (
        lambda: expval(state_circuit(np.ones(4))[0], torch.zeros(2)),
        "state: expected shape",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_call(name):
    call, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        call()


def amplitude_circuit():
    tape = qml.tape.QuantumScript(
        [qml.AmplitudeEmbedding(np.ones(4) / 2, [0, 1])], [qml.expval(qml.X(0)), qml.var(qml.Z(1))]
    )
    return Circuit.from_tape(tape)


@pytest.mark.parametrize("shape", [(), (1,), (2, 3)])
def test_circuit_without_angles_keeps_the_shape_of_the_batch(shape):
    """A circuit of nothing but a state preparation had no size to infer the batch from."""
    states = torch.nn.functional.normalize(torch.rand(*shape, 4, dtype=torch.float64), dim=-1)
    angles = torch.zeros(*shape, 0, dtype=torch.float64)
    assert expval(amplitude_circuit(), angles, states).shape == (*shape, 2)
    mapped = vmap(lambda s: expval(amplitude_circuit(), angles, s))(torch.stack([states, states]))
    assert mapped.shape == (2, *shape, 2)
