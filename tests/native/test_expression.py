"""The native evaluator of expressions against torch: every kind, special points, random programs, all derivatives."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fubini
from expression_programs import (
    BINARY,
    SPECIAL,
    UNARY,
    Builder,
    point,
    product_layer,
    random_builder,
)
from fubini import _core

# One function: a few units in the last place of the library's and torch's, more for second derivatives,
# whose formulas cancel where they differ.
VALUE, SECOND = 1e-14, 1e-12
CANCELLED = 4 * np.finfo(float).eps
# Tens of functions one after the other, whose derivatives are below about 30 each.
PROGRAM = 1e-8

EXPONENTS = [0.0, 1.0, 2.0, 3.0, 4.0, -1.0, -2.0, -3.0, 0.5, -0.5, 1.7]
CASES = [(kind, 0.0) for kind in UNARY] + [("power_constant", c) for c in EXPONENTS]
NO_WEIGHTS = np.zeros(0)


def close(found, expected, tolerance, absolute=1e-300):
    expected = np.asarray(expected)
    # Below the smallest normal number torch's vector functions flush to zero.
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=absolute)


def points():
    rng = np.random.default_rng(0)
    ordinary = [rng.normal(size=20), rng.uniform(-1, 1, 10), rng.uniform(1, 5, 10)]
    return np.concatenate([SPECIAL, *ordinary])


def unary(kind, exponent):
    builder = Builder(0, 1)
    output = builder.add(kind, builder.add("input", 0), -1, exponent)
    return builder, builder.build([output], 1)


def test_every_kind_is_tested():
    known = {"weight", "input", "sum", "power_constant", *UNARY, *BINARY}
    assert set(_core.expression_kinds()) == known
    assert {k for k, n in _core.expression_kinds().items() if n == 2} == set(BINARY)


@pytest.mark.parametrize(("kind", "exponent"), CASES)
def test_functions_of_one_argument_equal_torch_at_ordinary_and_special_points(kind, exponent):
    builder, e = unary(kind, exponent)
    x = points()[:, None]
    ones = np.ones_like(x)
    leaf = torch.tensor(x, requires_grad=True)
    y = builder.reference([1], torch.zeros(0, dtype=torch.float64), leaf)
    values = e.evaluate(NO_WEIGHTS, x)
    close(values, y.detach(), VALUE)
    # -0.0 and 0.0 are different arguments of what comes after.
    zeros = values == 0
    np.testing.assert_array_equal(np.signbit(values[zeros]), np.signbit(y.detach()[zeros]))
    first = e.vjp(NO_WEIGHTS, x, ones)[1]
    second = e.hessian_product(NO_WEIGHTS, x, ones, None, ones)[1]
    if not y.requires_grad:
        assert kind == "detach"
        assert not first.any()
        assert not second.any()
        return
    (gradient,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    # 1 - tanh(x) ** 2 and its like cancel, and lose what the rounding of the square is worth.
    cancelled = CANCELLED if kind in {"tanh", "sigmoid"} else 1e-300
    close(first, gradient.detach(), VALUE, cancelled)
    close(e.jvp(NO_WEIGHTS, x, None, 2 * ones), 2 * gradient.detach(), VALUE, 2 * cancelled)
    close(e.jacobian(NO_WEIGHTS, x, [0], True)[1][:, 0], gradient.detach(), VALUE, cancelled)
    expected = torch.zeros_like(leaf)
    if gradient.requires_grad:
        (found,) = torch.autograd.grad(gradient.sum(), leaf)
        expected = expected + found
    # Where a derivative is infinite, torch's own double backward depends on the order of its factors.
    finite = np.isfinite(first) & np.isfinite(expected.numpy())
    assert finite.sum() > 10
    close(second[finite], expected.numpy()[finite], SECOND, 2 * cancelled)


@pytest.mark.parametrize("kind", BINARY)
def test_functions_of_two_arguments_equal_torch_at_ordinary_and_special_points(kind):
    builder = Builder(0, 2)
    u, v = builder.add("input", 0), builder.add("input", 1)
    output = builder.add(kind, u, v)
    e = builder.build([output], 1)
    x = np.stack([p.ravel() for p in np.meshgrid(points(), points())], -1).copy()
    ones = np.ones((len(x), 1))
    leaf = torch.tensor(x, requires_grad=True)
    y = BINARY[kind](leaf[:, 0], leaf[:, 1])[:, None]
    close(e.evaluate(NO_WEIGHTS, x), y.detach(), VALUE)
    (gradient,) = torch.autograd.grad(y.sum(), leaf, create_graph=True)
    first = e.vjp(NO_WEIGHTS, x, ones)[1]
    close(first, gradient.detach(), VALUE)
    ordinary = (np.abs(x) < 10).all(-1) & (np.abs(x) > 0.05).all(-1) & (x[:, 0] != x[:, 1])
    ordinary &= np.isfinite(first).all(-1)
    assert ordinary.sum() > 300
    for direction in np.eye(2):
        tangents = np.tile(direction, (len(x), 1))
        pushed = gradient.detach().numpy()[:, direction > 0]
        one_sided = e.jvp(NO_WEIGHTS, x, None, tangents)
        close(one_sided[ordinary], pushed[ordinary], VALUE)
        second = e.hessian_product(NO_WEIGHTS, x, ones, None, tangents)[1]
        expected = torch.zeros_like(leaf)
        if gradient.requires_grad:
            (found,) = torch.autograd.grad(
                gradient, leaf, torch.tensor(tangents), retain_graph=True
            )
            expected = expected + found
        # Terms of mixed derivatives cancel.
        np.testing.assert_allclose(
            second[ordinary], expected.numpy()[ordinary], rtol=1e-11, atol=1e-9
        )


@pytest.mark.parametrize("kind", ["relu", "sign", "floor", "maximum", "minimum"])
def test_infinite_cotangents_do_not_pass_where_torch_chooses_zero(kind):
    # sqrt(relu(x)) and the like at x < 0: the cotangent that arrives is infinite, the gradient is 0.
    builder = Builder(0, 2)
    u, v = builder.add("input", 0), builder.add("input", 1)
    e = builder.build([builder.add(kind, u, v if kind in BINARY else -1)], 1)
    x = np.array([[-1.0, 5.0], [5.0, -1.0]])
    leaf = torch.tensor(x, requires_grad=True)
    y = BINARY[kind](leaf[:, 0], leaf[:, 1]) if kind in BINARY else UNARY[kind](leaf[:, 0])
    cotangents = np.full((2, 1), np.inf)
    (gradient,) = torch.autograd.grad(y, leaf, torch.tensor(cotangents[:, 0]))
    np.testing.assert_array_equal(e.vjp(NO_WEIGHTS, x, cotangents)[1], gradient)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), batch=st.integers(0, 70), by_row=st.booleans())
def test_random_programs_equal_torch(seed, batch, by_row):
    rng = np.random.default_rng(seed)
    weights, inputs = int(rng.integers(0, 5)), int(rng.integers(0, 4))
    builder = random_builder(rng, weights, inputs, int(rng.integers(1, 25)))
    size = len(builder.nodes)
    outputs = [int(k) for k in rng.integers(max(0, size - 12), size, 5)]
    e = builder.build(outputs, 3)
    w, x = point(rng, weights, inputs, batch, by_row)
    cotangents = rng.normal(size=(batch, 5))
    dw, dx = rng.normal(size=w.shape), rng.normal(size=x.shape)
    w_leaf, x_leaf = (torch.tensor(a, requires_grad=True) for a in (w, x))

    def run(a, b):
        return builder.reference(outputs, a, b)

    def gradients(a, b):
        y = (run(a, b) * torch.tensor(cotangents)).sum()
        if not y.requires_grad:
            return torch.zeros_like(a), torch.zeros_like(b)
        return torch.autograd.grad(
            y, (a, b), create_graph=True, materialize_grads=True, allow_unused=True
        )

    def check(found, expected):
        expected = expected.detach().numpy(force=True)
        np.testing.assert_allclose(found, expected, rtol=PROGRAM, atol=PROGRAM)

    check(e.evaluate(w, x), run(w_leaf, x_leaf))
    by_w, by_x = gradients(w_leaf, x_leaf)
    for found, expected in zip(e.vjp(w, x, cotangents), (by_w, by_x), strict=True):
        check(found, expected)
    along = (by_w * torch.tensor(dw)).sum() + (by_x * torch.tensor(dx)).sum()
    pushed = e.jvp(w, x, dw, dx)
    np.testing.assert_allclose((pushed * cotangents).sum(), along.item(), rtol=1e-6, atol=1e-6)
    expected = (torch.zeros_like(w_leaf), torch.zeros_like(x_leaf))
    if along.requires_grad:
        expected = torch.autograd.grad(
            along, (w_leaf, x_leaf), materialize_grads=True, allow_unused=True
        )
    for found, want in zip(e.hessian_product(w, x, cotangents, dw, dx), expected, strict=True):
        check(found, want)
    # One cotangent at a time gives the Jacobian.
    rows = [4, 0, 2]
    jacobian_w, jacobian_x = e.jacobian(w, x, rows, True)
    assert jacobian_w.shape[0] in ({batch} if by_row else {1, batch})
    every_row = np.broadcast_to(w, (batch, weights)).copy()
    for r, row in enumerate(rows):
        pick = np.zeros((batch, 5))
        pick[:, row] = 1
        want_w, want_x = e.vjp(every_row, x, pick)
        np.testing.assert_allclose(
            np.broadcast_to(jacobian_w[:, r], want_w.shape), want_w, rtol=1e-12, atol=1e-12
        )
        np.testing.assert_allclose(jacobian_x[:, r], want_x, rtol=1e-12, atol=1e-12)


def test_rows_and_threads_do_not_change_bits():
    rng = np.random.default_rng(5)
    builder = random_builder(rng, 5, 3, 40)
    e = builder.build(list(range(len(builder.nodes) - 6, len(builder.nodes))), 6)
    before = fubini.get_num_threads()
    w, x = point(rng, 5, 3, 4096, False)
    cotangents = rng.normal(size=(4096, 6))
    values = e.evaluate(w, x)
    _, by_inputs = e.vjp(w, x, cotangents)
    try:
        for batch in [*range(1, 71), 4096]:
            part, weighted = x[:batch].copy(), cotangents[:batch].copy()
            results = []
            for threads in (1, 2):
                fubini.set_num_threads(threads)
                results.append(
                    [
                        e.evaluate(w, part),
                        *e.vjp(w, part, weighted),
                        *e.hessian_product(w, part, weighted, w, part),
                    ]
                )
            for one, two in zip(*results, strict=True):
                np.testing.assert_array_equal(one, two)
            # A row's results do not depend on the rows beside it.
            np.testing.assert_array_equal(results[0][0], values[:batch])
            np.testing.assert_array_equal(results[0][2], by_inputs[:batch])
            by_row = np.tile(w, (batch, 1))
            np.testing.assert_array_equal(e.evaluate(by_row, part), values[:batch])
    finally:
        fubini.set_num_threads(before)


def test_jacobians_have_one_row_where_inputs_do_not_matter():
    builder = Builder(3, 2)
    w = [builder.add("weight", p) for p in range(3)]
    x = builder.add("input", 0)
    affine = builder.sum(0.1, (2.0, w[0], -1), (1.0, x, -1), (1.0, builder.add("sin", x), -1))
    curved = builder.sum(-0.0, (1.0, builder.add("exp", w[1]), w[2]), (1.0, affine, -1))
    scaled = builder.sum(-0.0, (1.0, w[0], x))
    gone = builder.sum(-0.0, (1.0, builder.add("detach", w[0]), x))
    e = builder.build([affine, curved, scaled, gone], 4)
    rng = np.random.default_rng(0)
    for batch in (0, 1, 9):
        weights, inputs = point(rng, 3, 2, batch, False)
        found, by_inputs = e.jacobian(weights, inputs, [0, 1, 3], True)
        assert found.shape == (1, 3, 3)
        assert by_inputs.shape == (batch, 3, 2)
        exp = math.exp(weights[1])
        expected = [[2.0, 0, 0], [2.0, exp * weights[2], exp], [0, 0, 0]]
        np.testing.assert_allclose(found[0], expected, rtol=VALUE)
        found, none = e.jacobian(weights, inputs, [2])
        assert none is None
        np.testing.assert_array_equal(found[:, 0, 0], inputs[:, 0])
        assert found.shape == (batch, 1, 3)


def test_tangents_of_none_are_not_multiplied():
    # w ** x at w < 0: the derivative by x is NaN, and must not reach the one by w.
    builder = Builder(1, 1)
    e = builder.build([builder.add("power", builder.add("weight", 0), builder.add("input", 0))], 1)
    w, x, one = np.array([-2.0]), np.array([[3.0]]), np.ones((1, 1))
    np.testing.assert_array_equal(e.jvp(w, x, np.ones(1), None), [[12.0]])
    assert e.vjp(w, x, one)[0] == 12
    assert e.hessian_product(w, x, one, np.ones(1), None)[0] == -12
    assert np.isnan(e.jvp(w, x, np.ones(1), np.zeros((1, 1))))


@pytest.mark.parametrize("angles", [2, 0])
def test_a_jacobian_looks_at_one_output_at_a_time(angles):
    # The derivative of sqrt(x) at 0 is infinite, and 0 times it must not reach that of x ** 2.
    builder = Builder(1, 0)
    x = builder.add("weight", 0)
    e = builder.build(
        [builder.add("sqrt", x), builder.sum(-0.0, (1.0, x, x), (1.0, x, -1))], angles
    )
    found, _ = e.jacobian(np.zeros(1), np.zeros((1, 0)), [1, 0, 1])
    np.testing.assert_array_equal(found[0, :, 0], [1, np.inf, 1])


def test_signed_zeros_survive_sums_without_a_constant():
    builder = Builder(0, 1)
    negative = builder.sum(-0.0, (-1.0, builder.add("input", 0), -1))
    e = builder.build([builder.add("atan2", negative, builder.sum(-1.0))], 1)
    assert e.evaluate(NO_WEIGHTS, np.zeros((1, 1))) == -math.pi


GARBAGE = {
    "unknown kind": {"nodes": [("eval", 0, 0, 0.0)]},
    "weight out of range": {"nodes": [("weight", 2, -1, 0.0)]},
    "input out of range": {"nodes": [("input", -1, -1, 0.0)]},
    "argument is itself": {"nodes": [("sin", 0, -1, 0.0)]},
    "second argument missing": {"nodes": [("weight", 0, -1, 0.0), ("power", 0, -1, 0.0)]},
    "terms missing": {"nodes": [("sum", 0, 3, 0.0)]},
    "terms begin nowhere": {"nodes": [("sum", -1, 1, 0.0)]},
    "a negative number of terms": {"nodes": [("sum", 1, -1, 0.0)]},
    "a term out of range": {"nodes": [("sum", 0, 1, 0.0)]},
    "outputs out of range": {"outputs": [1]},
    "fewer outputs than angles": {"angles": 2},
    "half an amplitude": {"outputs": [0, 0]},
    "negative angles": {"angles": -1},
    "negative weights": {"weights": -1},
}


@pytest.mark.parametrize("name", GARBAGE)
def test_programs_that_make_no_sense_are_refused(name):
    arguments = {
        "weights": 2,
        "inputs": 2,
        "nodes": [("weight", 0, -1, 0.0)],
        "terms": [(1.0, 0, 0)],
        "outputs": [0],
        "angles": 1,
    }
    with pytest.raises(ValueError, match="expected"):
        _core.Expression(**{**arguments, **GARBAGE[name]})


def test_arrays_that_do_not_fit_are_refused():
    builder, outputs = product_layer(3, 2)
    e = builder.build(outputs, 3)
    w, x, c = np.zeros(6), np.zeros((4, 2)), np.zeros((4, 3))
    for bad in (
        np.zeros(5),
        np.zeros((3, 6)),
        np.zeros((4, 5)),
        np.zeros((1, 4, 6)),
        np.array(0.0),
    ):
        with pytest.raises(ValueError, match="weights: expected"):
            e.evaluate(bad, x)
    for bad in (np.zeros(2), np.zeros((4, 3)), np.zeros((4, 2, 1))):
        with pytest.raises(ValueError, match="inputs: expected"):
            e.vjp(w, bad, c)
    for bad in (np.zeros((4, 2)), np.zeros((3, 3)), np.zeros(3)):
        with pytest.raises(ValueError, match="cotangents: expected"):
            e.vjp(w, x, bad)
    with pytest.raises(ValueError, match="weight_tangents: expected"):
        e.jvp(w, x, np.zeros((4, 6)), None)
    with pytest.raises(ValueError, match="input_tangents: expected"):
        e.hessian_product(w, x, c, None, np.zeros((3, 2)))
    for row in (-1, 3, 2**31 - 1):
        with pytest.raises(ValueError, match=r"rows\[0\]: expected"):
            e.jacobian(w, x, [row])
    for bad in (x.astype(np.float32), np.zeros((2, 4)).T):
        with pytest.raises(TypeError):
            e.evaluate(w, bad)
