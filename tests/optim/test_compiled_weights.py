"""Weights that a model passes to ``fubini.compiled(qnode)``: the optimizer knows them, and steps as with a layer.

The references are the same models written with ``QuantumLayer``, and explicit metrics.
"""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini
from compiled_weights import (
    EXACT,
    SHAPE,
    WIRES,
    Bare,
    Layered,
    Tensor,
    X,
    Y,
    batch,
    body,
    circuit,
    device,
    energy,
    first_weights,
    node,
    observables,
    other_energy,
    rows,
    trained,
)


@qml.qnode(device())
def branching(inputs: Tensor, w: Tensor) -> Any:
    body(inputs, w if w[0, 0] > -5 else 2 * w)
    return observables()


@qml.qnode(device())
def amplitudes(inputs: Tensor, w: Tensor) -> Any:
    qml.AmplitudeEmbedding(inputs, range(2), pad_with=0.1, normalize=True)
    body(torch.zeros(WIRES), w)
    return observables()


def by_name(q: Any, x: Tensor, w: Any) -> Tensor:
    return torch.stack(q(w=w, inputs=x), -1)


def unbound(q: Any, x: Tensor, w: Any) -> Tensor:
    return torch.stack([torch.stack(q(row, w=w)) for row in x.unbind()])


def parts(q: Any, x: Tensor, w: Any) -> Tensor:
    return torch.cat([batch(q, x[:2], w), rows(q, x[2:], w)])


def mapped(q: Any, x: Tensor, w: Any) -> Tensor:
    q(x[0], w)  # compiled
    return torch.stack(torch.vmap(lambda row: q(row, w))(x), -1)


@pytest.mark.parametrize("approx", [None, "block-diag", "diag", "auto"])
@pytest.mark.parametrize("call", [batch, rows, by_name, unbound, parts, mapped])
def test_the_steps_are_those_of_a_layer(call: Any, approx: Any) -> None:
    _, expected = trained(Layered(), approx=approx)
    opt, got = trained(Bare(call), approx=approx)
    torch.testing.assert_close(got, expected, **EXACT)
    assert "node(w): 6 x 6" in opt.explain()


@pytest.mark.parametrize("call", [batch, rows])
@pytest.mark.parametrize(("qnode", "where"), [(branching, "is not compiled"), (amplitudes, "")])
def test_functions_that_run_in_every_call_and_amplitudes(call: Any, qnode: Any, where: Any) -> None:
    _, expected = trained(Layered(qnode))
    opt, got = trained(Bare(call, fubini.compiled(qnode)))
    torch.testing.assert_close(got, expected, **EXACT)
    assert where in opt.explain()


@pytest.mark.parametrize("call", [batch, rows])
def test_devices(call: Any) -> None:
    slow = qml.QNode(node.func, device("default.mixed"))
    _, expected = trained(Layered(), x=X[:2], steps=1)
    opt, got = trained(Bare(call, fubini.compiled(slow)), x=X[:2], steps=1)
    # The metric of a density matrix carries a few digits less, and the damping is 1e-3.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-7)
    assert "node(w), which runs on its device: 6 x 6" in opt.explain()


# -- weights that are made of parameters ----------------------------------------------------------------------------
class Split(Bare):
    """Two circuits with parts of one parameter."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.pre(x))
        for w in self.w[:, None]:
            x = batch(circuit, x, w)
        return self.post(x)


class SplitLayers(Bare):
    def __init__(self) -> None:
        super().__init__()
        del self.w
        self.layers = torch.nn.ModuleList(
            fubini.QuantumLayer(node, {"w": (1, WIRES)}, {"w": w[None]}) for w in first_weights()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.pre(x))
        for layer in self.layers:
            x = layer(x)
        return self.post(x)


@pytest.mark.parametrize("approx", [None, "block-diag", "auto"])
def test_circuits_with_parts_of_one_parameter_are_layers_of_their_own(approx: Any) -> None:
    model, layers = Split(), SplitLayers()
    trained(model, approx=approx)
    trained(layers, approx=approx)
    expected = torch.cat([layer.w for layer in layers.layers])
    torch.testing.assert_close(model.w, expected, **EXACT)
    torch.testing.assert_close(model.pre.weight, layers.pre.weight, **EXACT)


def metric_by_parameter(model: Bare, weight: Callable[[Tensor], Tensor]) -> Tensor:
    """The metric over the parameter of a weight that is a function of it, explicitly."""
    p = model.w.detach()
    x = torch.tanh(model.pre(X)).detach() * torch.pi / 2
    w = weight(p).detach().requires_grad_()
    g = fubini.metric_tensor(node, argnums=1, reduce="mean", joint=True)(x, w).detach()
    jacobian = torch.autograd.functional.jacobian(lambda v: weight(v).reshape(-1), p)
    jacobian = jacobian.reshape(w.numel(), p.numel())
    return jacobian.T.double() @ g @ jacobian.double()


WEIGHTS: dict[str, Callable[[Tensor], Tensor]] = {
    "sine": torch.sin,
    "scaled": lambda p: 2.0 * p / 3 - p**2,
    "flipped": lambda p: p.flip(0),
    "transposed": lambda p: p.t().reshape(SHAPE),
    "repeated": lambda p: p[:1].expand(2, -1),
    "normalised": lambda p: torch.pi * torch.softmax(p, -1),
    "product": lambda p: p @ p.t() @ p,
    "joined": lambda p: torch.cat([p[1:], torch.tanh(p[:1])]),
}


@pytest.mark.parametrize("call", [batch, rows])
@pytest.mark.parametrize("name", WEIGHTS)
def test_a_weight_that_is_a_function_of_a_parameter(name: str, call: Any) -> None:
    class Computed(Bare):
        def weight(self) -> Tensor:
            return WEIGHTS[name](self.w)

    model = Computed(call)
    before, g = model.w.detach().clone(), metric_by_parameter(model, WEIGHTS[name])
    opt, _ = trained(model, steps=1, approx=None, lam=0.1)
    assert model.w.grad is not None
    change = torch.linalg.solve(g + 0.1 * torch.eye(len(g)).double(), model.w.grad.reshape(-1))
    expected = before - 0.1 * change.reshape(SHAPE)
    torch.testing.assert_close(model.w.detach(), expected, rtol=0, atol=1e-10)
    assert "node(w)" in opt.explain()


def test_a_parameter_of_another_precision() -> None:
    class Cast(Bare):
        def weight(self) -> Tensor:
            return self.w.double()

    low, layer = Cast(rows), Layered()
    low.w = torch.nn.Parameter(low.w.detach().float())
    trained(low, steps=1)
    trained(layer, steps=1)
    # The parameter is rounded to float32.
    torch.testing.assert_close(low.w.detach().double(), layer.q.w.detach(), rtol=0, atol=1e-6)


class Mask(Bare):
    """The weight is a parameter and another tensor: or are these data?"""

    def weight(self) -> Tensor:
        return self.w * torch.ones(SHAPE, dtype=torch.float64)


def test_what_may_be_a_weight_or_not_is_for_the_caller_to_say() -> None:
    model = Mask(rows)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match=r"node: expected its argument w .*weights=\['w'\]"):
        trained(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    _, expected = trained(Layered())
    _, got = trained(Mask(rows, fubini.compiled(node, weights=["w"])))
    torch.testing.assert_close(got, expected, **EXACT)


def test_weights_that_are_named_leave_the_others_data() -> None:
    class Scaled(Bare):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.scale = torch.nn.Parameter(torch.tensor([1.0, 2.0, 0.5]).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.post(self.call(self.q, x[:, :3] * self.scale, self.w))

    for call in (batch, rows):
        opt, _ = trained(Scaled(call, fubini.compiled(node, "w")), steps=1)
        assert "node(w): 6 x 6" in opt.explain()
    trained(Scaled(batch, fubini.compiled(node)), steps=1)  # the rows of a batch are data
    with pytest.raises(TypeError, match=r"argument inputs .*weights=\['w'\] if inputs is data"):
        trained(Scaled(rows, fubini.compiled(node)), steps=1)
    opt, _ = trained(Scaled(rows, fubini.compiled(node, ("inputs", "w"))), steps=1)
    assert "node(inputs, w): 9 x 9" in opt.explain()


def test_names_of_weights_are_checked() -> None:
    with pytest.raises(ValueError, match=r"weights: expected names .*\['inputs', 'w'\], got 'v'"):
        fubini.compiled(node, "v")
    named = fubini.compiled(node, "w")
    assert named.weights == ("w",)
    for other in (copy.deepcopy(named), pickle.loads(pickle.dumps(named)), fubini.compiled(named)):
        assert other.weights == ("w",)


@pytest.mark.parametrize("weights", [None, "ws"])
def test_weights_without_names_of_their_own(weights: Any) -> None:
    def star(*ws: Tensor) -> Any:
        for k, w in enumerate(ws):
            qml.RY((k + 1) * w, 0)
            qml.RX(0.3, 0)
        return qml.expval(qml.Z(0))

    def named(a: Tensor, b: Tensor) -> Any:
        return star(a, b)

    q = fubini.compiled(qml.QNode(star, device()), weights)
    ws = [torch.nn.Parameter(torch.tensor(v).double()) for v in (0.4, 0.7)]
    layer = fubini.QuantumLayer(
        qml.QNode(named, device()), {"a": 1, "b": 1}, {"a": ws[0], "b": ws[1]}
    )
    opt, other = fubini.QNGOptimizer(ws, 0.1), fubini.QNGOptimizer(layer, 0.1)
    q(*ws).backward()
    layer().backward()
    opt.step()
    other.step()
    with pytest.raises(TypeError, match="positional argument"):
        energy(ws[0], ws[1])
    assert "star(ws[0], ws[1]), which is not compiled: 2 x 2" in opt.explain()
    torch.testing.assert_close(ws, [layer.a, layer.b], **EXACT)


def test_weights_in_keyword_arguments_of_any_name() -> None:
    def free(**ws: Tensor) -> Any:
        qml.RY(ws["a"], 0)
        qml.RX(ws["b"], 0)
        return qml.expval(qml.Z(0))

    ws = [torch.nn.Parameter(torch.tensor(v).double()) for v in (0.4, 0.7)]
    opt = fubini.QNGOptimizer(ws, 0.1, lam=0.0)
    fubini.compiled(qml.QNode(free, device()))(a=ws[0], b=ws[1]).backward()
    g = torch.tensor([0.25, 0.25 * torch.cos(ws[0].detach()) ** 2])
    expected = torch.stack(ws).detach() - 0.1 * torch.stack([w.grad for w in ws]) / g
    opt.step()
    torch.testing.assert_close(torch.stack(ws).detach(), expected, **EXACT)


def test_tensors_in_lists_are_refused_by_name() -> None:
    def listed(inputs: Tensor, w: Any) -> Any:
        body(inputs, torch.stack(list(w)))
        return observables()

    class Listed(Bare):
        def weight(self) -> Any:
            return list(self.w)

    model = Listed(batch, fubini.compiled(qml.QNode(listed, device())))
    with pytest.raises(
        TypeError, match=r"listed: .*argument w: its tensors are in a list; pass each"
    ):
        trained(model)


def test_vmap_over_something_else_than_inputs() -> None:
    class Wide(Bare):
        def forward(self, x: Tensor) -> Tensor:
            f = torch.vmap(lambda a, b: torch.stack(circuit(a, w=b)), in_dims=(0, None))
            return self.post(f(x[:, :3], self.w))

    circuit(X[0, :3], w=first_weights())
    _, got = trained(Wide())  # one tensor is mapped: inputs
    assert torch.isfinite(got).all()

    class Both(Bare):
        def forward(self, x: Tensor) -> Tensor:
            ws = torch.rand(len(x), *SHAPE, dtype=torch.float64)
            f = torch.vmap(lambda a, b: torch.stack(pair(a, b, self.w)))
            return self.post(f(x[:, :3], ws))

    def two(inputs: Tensor, v: Tensor, w: Tensor) -> Any:
        body(inputs, v)
        body(inputs, w)
        return observables()

    pair = fubini.compiled(qml.QNode(two, device()))
    pair(X[0, :3], first_weights(), first_weights())
    with pytest.raises(
        TypeError, match=r"two: .*torch\.func\.vmap maps it; call the circuit with a batch"
    ):
        trained(Both())


# -- Fisher matrices ------------------------------------------------------------------------------------------------
FISHER: dict[str, dict[str, Any]] = {
    "blocks": {"loss": torch.nn.MSELoss()},
    "joint": {"loss": torch.nn.MSELoss(), "approx": None},
    "diagonal": {"loss": torch.nn.MSELoss(), "approx": "diag"},
    "hybrid": {"loss": torch.nn.MSELoss(), "metric": "hybrid"},
    "hybrid diagonal": {"loss": torch.nn.MSELoss(), "metric": "hybrid", "approx": "diag"},
    "empirical": {"metric": "fisher", "likelihood": torch.nn.MSELoss(), "fisher": "empirical"},
}


@pytest.mark.parametrize("call", [batch, rows, by_name, parts])
@pytest.mark.parametrize("name", FISHER)
def test_fisher_matrices_are_those_of_a_layer(name: str, call: Any) -> None:
    if name.startswith("hybrid") and call in (rows, parts):
        pytest.skip("its bound depends on how many calls a datum has")
    _, expected = trained(Layered(), **FISHER[name])
    opt, got = trained(Bare(call), **FISHER[name])
    # Rows one by one are columns of their own: sums in another order, and the damping is 1e-2 of the curvature.
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)
    assert name == "joint" or "node(w): 6 x 6" in opt.explain()


def test_fisher_matrices_of_parts_of_one_parameter() -> None:
    model, layers = Split(), SplitLayers()
    trained(model, loss=torch.nn.MSELoss(), approx=None)
    trained(layers, loss=torch.nn.MSELoss(), approx=None)
    expected = torch.cat([layer.w for layer in layers.layers])
    torch.testing.assert_close(model.w.detach(), expected.detach(), **EXACT)


def test_a_fisher_matrix_of_an_energy_in_a_model() -> None:
    class Energies(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = torch.nn.Parameter(first_weights())

        def forward(self) -> Tensor:
            return torch.stack([energy(self.w), other_energy(self.w)])

    model, y = Energies(), torch.tensor([0.3, 0.1]).double()
    before = model.w.detach().clone()
    jacobian = torch.autograd.functional.jacobian(
        lambda w: torch.stack([energy(w), other_energy(w)]), before
    )
    jacobian = jacobian.reshape(2, -1)
    opt = fubini.QNGOptimizer(
        model, 1.0, metric="fisher", likelihood=torch.nn.MSELoss(), approx="block-diag", lam=0.1
    )
    torch.nn.functional.mse_loss(model(), y).backward()
    opt.step()
    # The mean over 2 numbers of (f - y)^2 is 2 / 2 times the negative logarithm of unit variance.
    g = jacobian.T @ jacobian
    change = torch.linalg.solve(g + 0.1 * torch.eye(len(g)).double(), model.w.grad.reshape(-1))
    torch.testing.assert_close(model.w.detach(), before - change.reshape(SHAPE), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            Bare(batch, fubini.compiled(branching)),
            r"w: it is a weight of branching\(w\), which is not compiled",
        ),
        (Bare(mapped), r"w: it is a weight of node\(w\), which torch\.func maps"),
        (Mask(batch), "w: expected a parameter of a layer with a rule"),
    ],
)
def test_what_has_no_rule_in_a_fisher_pass(model: Any, message: str) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TypeError, match=message):
        trained(model, loss=torch.nn.MSELoss())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    # The remedy: torch differentiates through the circuit.
    trained(model, loss=torch.nn.MSELoss(), approx=None)


def test_a_computed_weight_in_a_fisher_pass() -> None:
    class Computed(Bare):
        def weight(self) -> Tensor:
            return torch.sin(self.w)

    with pytest.raises(
        TypeError, match=r"w: it is a weight of node\(w\), whose argument w is computed"
    ):
        trained(Computed(), loss=torch.nn.MSELoss())

    def sine(inputs: Tensor, w: Tensor) -> Any:
        body(inputs, torch.sin(w))
        return observables()

    # The remedy.
    qnode = qml.QNode(sine, device())
    _, expected = trained(Layered(qnode), loss=torch.nn.MSELoss())
    _, got = trained(Bare(batch, fubini.compiled(qnode)), loss=torch.nn.MSELoss())
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_a_batch_of_weights() -> None:
    """An argument that is a batch to the circuit, and named a weight: every row has its own."""

    class Scaled(Bare):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self.scale = torch.nn.Parameter(torch.tensor([1.0, 2.0, 0.5]).double())

        def forward(self, x: Tensor) -> Tensor:
            return self.post(self.call(self.q, x[:, :3] * self.scale, self.w))

    both = fubini.compiled(node, ("inputs", "w"))
    results = [trained(Scaled(call, both), approx=None)[1] for call in (batch, rows)]
    torch.testing.assert_close(*results, rtol=0, atol=1e-11)


@pytest.mark.parametrize("call", [batch, rows])
def test_models_in_single_precision(call: Any) -> None:
    _, expected = trained(Layered(), steps=1)
    layers, model = Layered().float(), Bare(call).float()
    x, y = X.float(), Y.float()
    for one in (layers, model):
        opt = fubini.QNGOptimizer(one, 0.1, metric="quantum")
        torch.nn.functional.mse_loss(one(x).float(), y).backward()
        opt.step()
    assert model.w.dtype == torch.float32
    # Rounding of float32, and damping of 1e-3.
    torch.testing.assert_close(model.w, layers.q.w, rtol=0, atol=2e-5)
    torch.testing.assert_close(
        model.w.detach().double().reshape(-1), expected[-6:], rtol=0, atol=2e-5
    )


@pytest.mark.parametrize("left", [True, False])
def test_products_with_a_constant_matrix_are_not_told_from_data(left: bool) -> None:
    basis = torch.rand(3, 3, dtype=torch.float64)

    class Mixed(Bare):
        def weight(self) -> Tensor:
            return torch.stack(
                [basis @ row if left else self.w @ basis for row in self.w][:1]
            ).reshape(-1, 3)

    for q in (circuit, fubini.compiled(node, "w")):
        if q is circuit:
            with pytest.raises(TypeError, match=r"node: expected its argument w"):
                trained(Mixed(rows, q))
        else:
            opt, _ = trained(Mixed(rows, q))
            assert "node(w): 6 x 6" in opt.explain()
