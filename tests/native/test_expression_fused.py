"""Circuits whose angles and initial states are expressions: fused passes against their steps and default.qubit."""

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from expression_programs import Builder, point, product_layer, random_builder
from fubini import _core

# Tens of gates and functions in double precision.
TOLERANCE = 1e-11
WIRES = 3


def circuit(angles: int, embedding: bool = False) -> fubini.Circuit:
    """Rotations and entanglers with one angle each."""
    device = qml.device("default.qubit", wires=WIRES)

    @qml.qnode(device)
    def run(state, values):
        if embedding:
            qml.StatePrep(state, wires=range(WIRES))
        for a in range(angles):
            (qml.RX, qml.RY, qml.RZ)[a % 3](values[a], a % WIRES)
            qml.CNOT([a % WIRES, (a + 1) % WIRES])
        return [qml.expval(qml.Z(0)), qml.expval(qml.X(1) @ qml.Y(2)), qml.expval(qml.Z(2))]

    return fubini.Circuit.from_qnode(run, np.eye(2**WIRES)[0], np.zeros(angles))


def close(found, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("batch", [1, 5, 33, 70])
def test_fused_passes_equal_their_steps(batch):
    rng = np.random.default_rng(batch)
    angles, weights, inputs = 9, 6, 3
    builder = random_builder(rng, weights, inputs, 30)
    nodes = len(builder.nodes)
    e = builder.build([int(k) for k in rng.integers(nodes - 15, nodes, angles)], angles)
    program = circuit(angles).program
    w, x = point(rng, weights, inputs, batch, False)
    parts = [w[:2].copy(), w[2:].reshape(2, 2).copy()]
    cotangents = rng.normal(size=(batch, 3))
    values, passed = _core.forward(program, e, parts, x, True)
    at = e.evaluate(w, x)
    np.testing.assert_array_equal(values, _core.expval(program, at))
    np.testing.assert_array_equal(e.angles(parts, x), at)
    assert e.states(parts, x) is None
    _, by_angles, _ = _core.vjp(program, at, cotangents)
    by_weights, by_inputs = e.vjp(w, x, by_angles)
    for _ in range(2):  # the second time without the kept states
        found_inputs, found_weights = _core.backward(program, e, passed, cotangents)
        close(found_inputs, by_inputs)
        assert [f.shape for f in found_weights] == [(2,), (2, 2)]
        close(np.concatenate([f.ravel() for f in found_weights]), by_weights)
    linear = _core.linearise(program, e, parts, x, True)
    close(linear[0], values)
    jacobian = _core.jacobian(program, at)
    inner_w, inner_x = e.jacobian(w, x, list(range(angles)), True)
    close(linear[1], jacobian @ np.broadcast_to(inner_w, (batch, angles, weights)))
    close(linear[2], jacobian @ inner_x)
    assert _core.linearise(program, e, parts, x, False)[2] is None
    assert _core.forward(program, e, parts, x, False)[1] is None


def embedding_expression(which: str) -> tuple[Builder, list[int], int, int]:
    """Complex amplitudes of inputs, weights, both or constants, normalised, and four angles of weights and inputs."""
    amplitudes = 2**WIRES
    builder = Builder(4 + 2 * amplitudes, 2 * amplitudes)
    w = [builder.add("weight", p) for p in range(builder.weights)]
    x = [builder.add("input", d) for d in range(builder.inputs)]
    parts = {
        "inputs": x,
        "weights": w[4:],
        "both": [builder.sum(-0.0, (1.0, a, b)) for a, b in zip(x, w[4:], strict=True)],
        "constants": [builder.sum(0.2 * k - 1.0) for k in range(2 * amplitudes)],
        "detached": [builder.add("detach", a) for a in x],
    }[which]
    norm = builder.add("rsqrt", builder.sum(-0.0, *[(1.0, p, p) for p in parts]))
    state = [builder.sum(-0.0, (1.0, p, norm)) for p in parts]
    turned = builder.sum(-0.0, (1.0, w[1], x[1]))
    angles = [w[0], builder.add("sin", turned), turned, builder.add("atan", x[0])]
    return builder, angles + state, 4, amplitudes


@pytest.mark.parametrize("which", ["inputs", "weights", "both", "constants", "detached"])
@pytest.mark.parametrize("batch", [1, 6, 40])
def test_initial_states_that_expressions_make_equal_default_qubit(which, batch):
    builder, outputs, angles, amplitudes = embedding_expression(which)
    e = builder.build(outputs, angles)
    rng = np.random.default_rng(batch)
    w, x = point(rng, builder.weights, builder.inputs, batch, False)
    cotangents = rng.normal(size=(batch, 3))

    @qml.qnode(qml.device("default.qubit", wires=WIRES), interface="torch", diff_method="backprop")
    def run(state, values):
        qml.StatePrep(state, wires=range(WIRES), validate_norm=False)
        for a in range(angles):
            (qml.RX, qml.RY, qml.RZ)[a % 3](values[:, a], a % WIRES)
            qml.CNOT([a % WIRES, (a + 1) % WIRES])
        return [qml.expval(qml.Z(0)), qml.expval(qml.X(1) @ qml.Y(2)), qml.expval(qml.Z(2))]

    w_leaf, x_leaf = (torch.tensor(a, requires_grad=True) for a in (w, x))

    def whole(a, b):
        found = builder.reference(outputs, a, b)
        state = torch.view_as_complex(found[:, angles:].reshape(len(b), amplitudes, 2))
        return torch.stack(run(state, found[:, :angles]), -1)

    expected = whole(w_leaf, x_leaf)
    by_w, by_x = torch.autograd.grad((expected * torch.tensor(cotangents)).sum(), (w_leaf, x_leaf))
    program = circuit(angles, embedding=True).program
    values, passed = _core.forward(program, e, [w], x, True)
    close(values, expected.detach())
    assert e.states([w], x).shape == (batch, amplitudes)
    np.testing.assert_array_equal(e.states([w], x).view(float), e.evaluate(w, x)[:, angles:])
    for _ in range(2):
        by_inputs, (by_weights,) = _core.backward(program, e, passed, cotangents)
        close(by_inputs, by_x)
        close(by_weights, by_w)
    linear = _core.linearise(program, e, [w], x, True)
    close(linear[0], values)
    close(np.einsum("bm,bmp->p", cotangents, linear[1]), by_w)
    close(np.einsum("bm,bmd->bd", cotangents, linear[2]), by_x)


def test_an_empty_batch_gives_empty_results():
    builder, outputs, angles, _ = embedding_expression("constants")
    e = builder.build(outputs, angles)
    program = circuit(angles, embedding=True).program
    w, x = np.ones(builder.weights), np.zeros((0, builder.inputs))
    values, passed = _core.forward(program, e, [w], x, True)
    assert values.shape == (0, 3)
    by_inputs, (by_weights,) = _core.backward(program, e, passed, np.zeros((0, 3)))
    assert by_inputs.shape == x.shape
    assert not by_weights.any()


def test_maps_that_do_not_fit_the_program_are_refused():
    builder, outputs, angles, _ = embedding_expression("inputs")
    state = builder.build(outputs, angles)
    no_state = builder.build(outputs[:angles], angles)
    half = builder.build(outputs[:-8], angles)
    more = builder.build([outputs[0], *outputs], angles + 1)
    w, x = np.ones(builder.weights), np.ones((2, builder.inputs))
    takes, starts = (circuit(angles, embedding=flag).program for flag in (True, False))
    for program, bad in [(takes, no_state), (takes, half), (starts, state), (starts, more)]:
        with pytest.raises(ValueError, match="map: expected"):
            _core.forward(program, bad, [w], x, True)
        with pytest.raises(ValueError, match="map: expected"):
            _core.linearise(program, bad, [w], x, True)
    _, passed = _core.forward(takes, state, [w], x, True)
    with pytest.raises(ValueError, match="map: expected"):
        _core.backward(starts, state, passed, np.ones((2, 3)))
    with pytest.raises(ValueError, match="passed: expected"):
        _core.backward(starts, no_state, passed, np.ones((2, 3)))
    twin = circuit(angles, embedding=True).program
    with pytest.raises(ValueError, match="passed: expected"):
        _core.backward(twin, state, passed, np.ones((2, 3)))
    other, other_outputs = product_layer(angles, builder.inputs)
    with pytest.raises(ValueError, match="passed: expected"):
        _core.backward(
            starts,
            other.build(other_outputs, angles),
            _pass(starts, no_state, w, x),
            np.ones((2, 3)),
        )
    with pytest.raises(ValueError, match="weights: expected"):
        _core.forward(takes, state, [w[1:]], x, True)
    with pytest.raises(ValueError, match="inputs: expected"):
        _core.forward(takes, state, [w], x[:, 1:].copy(), True)


def _pass(program, mapping, w, x):
    return _core.forward(program, mapping, [w], x, True)[1]
