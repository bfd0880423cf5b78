"""Quantum functions that are meant to be compiled wrongly: every call gives what TorchLayer gives, or is refused."""

import types
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch

import fubini

Change = Callable[[int], Any]
# Builds a QNode with all that it reads, and what changes that before a call.
Maker = Callable[[], tuple[Any, Change]]


def _qnode(function: Any, kind: Any = qml.QNode, **options: Any) -> Any:
    return kind(function, qml.device("default.qubit", wires=2), interface="torch", **options)


def _gates(inputs: Any, w: Any) -> None:
    qml.RX(inputs[..., 0], wires=0)
    qml.RY(inputs[..., 1] * w[0], wires=1)
    qml.CNOT([0, 1])
    qml.RY(w[1], wires=0)


def _trace(layer: Any, change: Change, scale: float = 1.0, calls: int = 5) -> list[torch.Tensor]:
    """Values and gradients of a few calls with changes in between."""
    generator = torch.Generator().manual_seed(3)
    layer = layer.double()
    (weight,) = layer.parameters()
    with torch.no_grad():
        weight.copy_(torch.tensor([0.7, -0.4]))
    found = []
    for call in range(calls):
        if call in {1, 3, 4}:
            change(call)
        x = torch.randn(3, 2, generator=generator, dtype=torch.float64) * scale
        x.requires_grad_()
        y = layer(x)
        target = torch.linspace(0.3, 1.1, y.numel(), dtype=torch.float64).reshape(y.shape)
        found += [y.detach(), *torch.autograd.grad((y * target).sum(), [weight, x])]
    return found


def _check(make: Maker, **options: Any) -> Any:
    qnode, change = make()
    expected = _trace(qml.qnn.TorchLayer(qnode, {"w": 2}), change, **options)
    qnode, change = make()
    layer = fubini.QuantumLayer(qnode, {"w": 2})
    torch.testing.assert_close(_trace(layer, change, **options), expected, rtol=1e-9, atol=1e-9)
    return layer


# -- QNodes that do more than their circuit -----------------------------------------------------------------------------


def _with_processing() -> tuple[Any, Change]:
    factor = [0.5]

    @qml.transform
    def scaled(tape: Any) -> Any:
        return [tape], lambda results: tuple(r * factor[0] for r in results[0])

    def circuit(inputs: Any, w: Any) -> Any:
        _gates(inputs, w)
        return qml.expval(qml.Z(0)), qml.expval(qml.Z(1))

    return scaled(_qnode(circuit)), lambda call: factor.__setitem__(0, 0.5 + call)


def _of_terms() -> tuple[Any, Change]:
    def circuit(inputs: Any, w: Any) -> Any:
        _gates(inputs, w)
        return [qml.expval(0.5 * qml.Z(0) + 1.3 * qml.X(1)), qml.expval(qml.Z(1))]

    return qml.transforms.split_to_single_terms(_qnode(circuit)), lambda call: None


class _Scaled(qml.QNode):  # type: ignore[misc]
    factor = 0.5

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return [self.factor * r for r in super().__call__(*args, **kwargs)]


def _circuit(inputs: Any, w: Any) -> Any:
    _gates(inputs, w)
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


def _of_a_class() -> tuple[Any, Change]:
    qnode = _qnode(_circuit, _Scaled)
    return qnode, lambda call: setattr(qnode, "factor", 0.5 + call)


def _class_later() -> tuple[Any, Change]:
    qnode = _qnode(_circuit)
    return qnode, lambda call: setattr(qnode, "__class__", _Scaled if call != 3 else qml.QNode)


def _transform_later() -> tuple[Any, Change]:
    @qml.transform
    def turned(tape: Any) -> Any:
        return [tape.copy(operations=[qml.RX(0.7, 0), *tape.operations])], lambda r: r[0]

    qnode = _qnode(_circuit)
    return qnode, lambda call: qnode.compile_pipeline.append(turned)


@pytest.mark.parametrize(
    "make", [_with_processing, _of_terms, _of_a_class, _class_later, _transform_later]
)
@pytest.mark.parametrize("method", ["best", "backprop"])
def test_qnodes_that_do_more_than_their_circuit(make: Maker, method: str) -> None:
    def made() -> tuple[Any, Change]:
        qnode, change = make()
        qnode.diff_method = method
        return qnode, change

    _check(made)


def test_the_native_engine_refuses_results_that_a_transform_computes() -> None:
    layer = fubini.QuantumLayer(_with_processing()[0], {"w": 2}, engine="native")
    with pytest.raises(fubini.UnsupportedCircuitError, match="computes with its results"):
        layer(torch.ones(2))


@pytest.mark.parametrize(
    "make", [_with_processing, _of_terms, _of_a_class, _class_later, _transform_later]
)
def test_compiled_qnodes_that_do_more_than_their_circuit(make: Maker) -> None:
    x = torch.tensor([0.3, -0.8], dtype=torch.float64)
    w = torch.tensor([0.7, -0.4], dtype=torch.float64)
    qnode, change = make()
    compiled = fubini.compiled(qnode)
    for call in range(5):
        if call in {1, 3, 4}:
            change(call)
        found, expected = compiled(x, w), qnode(x, w)
        torch.testing.assert_close(torch.stack([*found]), torch.stack([*expected]))


# -- what is read without being called ------------------------------------------------------------------------------------


class _Thing:
    """A thing."""

    def method(self) -> None:
        """A method."""


def _things() -> dict[str, Any]:
    def function() -> None:
        """A function."""

    thing = type("Thing", (_Thing,), {"__doc__": "."})()
    thing.__name__ = "thing"
    return {
        "function": function,
        "class": type(thing),
        "object": thing,
        "module": types.ModuleType("module", "."),
    }


@pytest.mark.parametrize("label", ["__doc__", "__name__"])
@pytest.mark.parametrize("which", ["function", "class", "object", "module"])
@pytest.mark.parametrize("by_string", [False, True])
def test_names_and_descriptions_are_watched(label: str, which: str, by_string: bool) -> None:
    def make() -> tuple[Any, Change]:
        thing = _things()[which]
        if by_string:
            read = lambda: getattr(thing, label)
        elif label == "__doc__":
            read = lambda: thing.__doc__
        else:
            read = lambda: thing.__name__

        def circuit(inputs: Any, w: Any) -> Any:
            _gates(inputs, w)
            qml.RX(0.3 * len(read()), wires=0)
            return qml.expval(qml.Z(0))

        return _qnode(circuit), lambda call: setattr(thing, label, "x" * call)

    _check(make)


# -- operators and classes of PennyLane that change -----------------------------------------------------------------------


def _new_data() -> tuple[Any, Change]:
    observable = qml.Hamiltonian([1.0, 2.0], [qml.Z(0), qml.X(1)])

    def circuit(inputs: Any, w: Any) -> Any:
        _gates(inputs, w)
        return qml.expval(observable)

    return _qnode(circuit), lambda call: setattr(observable, "data", (0.5 + call, 0.2))


def _coefficients_in_place() -> tuple[Any, Change]:
    import numpy as np

    coefficients = np.array([0.5, 0.3])
    observable = qml.Hamiltonian(coefficients, [qml.Z(0), qml.X(1)])

    def circuit(inputs: Any, w: Any) -> Any:
        _gates(inputs, w)
        return qml.expval(observable)

    return _qnode(circuit), lambda call: coefficients.__setitem__(0, 0.5 + call)


@pytest.mark.parametrize("make", [_new_data, _coefficients_in_place])
def test_a_linear_combination_is_measured_by_its_operands(make: Maker) -> None:
    _check(make)


def test_classes_of_pennylane_that_are_replaced_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = qml.RY.__init__
    taken_apart = qml.AngleEmbedding.compute_decomposition

    def make() -> tuple[Any, Change]:
        monkeypatch.setattr(qml.RY, "__init__", whole)
        monkeypatch.setattr(qml.AngleEmbedding, "compute_decomposition", staticmethod(taken_apart))

        def circuit(inputs: Any, w: Any) -> Any:
            qml.AngleEmbedding(inputs, wires=[0, 1])
            _gates(inputs, w)
            return qml.expval(qml.Z(0))

        def change(call: int) -> None:
            def init(self: Any, angle: Any, wires: Any, **options: Any) -> None:
                whole(self, angle * (1 + call), wires=wires, **options)

            def less(*args: Any, **options: Any) -> Any:
                return taken_apart(*args, **options)[:1]

            monkeypatch.setattr(qml.RY, "__init__", init if call < 3 else whole)
            monkeypatch.setattr(
                qml.AngleEmbedding,
                "compute_decomposition",
                staticmethod(less if call > 1 else taken_apart),
            )

        return _qnode(circuit), change

    _check(make)


# -- special values -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-149, 1e-154, 1e140, 0.0])
def test_norms_of_tiny_and_large_vectors(scale: float) -> None:
    def circuit(inputs: Any, w: Any) -> Any:
        norm = torch.linalg.norm(inputs, dim=-1)
        qml.RX(norm / max(scale, 1e-300) * w[0], wires=0)
        return qml.expval(qml.Z(0))

    layer = fubini.QuantumLayer(_qnode(circuit), {"w": 2}).double()
    x = torch.tensor([[0.3, -0.4], [1.0, 2.0]], dtype=torch.float64) * scale
    with torch.no_grad():
        found = layer(x)
        expected = torch.cos(x.norm(dim=-1) / max(scale, 1e-300) * layer.w[0])
    assert layer.compiled(x) is not None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
