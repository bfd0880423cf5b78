"""What is read from a QNode, and what is refused."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from fubini.circuit.angles import gate_tape

DEVICE = qml.device("default.qubit", wires=3)


def tape_of(function: Any, *args: Any, weights: tuple[int, ...] = (0,), **options: Any) -> Any:
    return gate_tape(
        qml.QNode(function, options.pop("device", DEVICE), **options), args, {}, weights
    )


def w(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()


def test_classical_arithmetic_and_shared_weights() -> None:
    def function(a: Any, x: Any) -> Any:
        qml.RX(2 * a[0] + 1, 0)
        qml.RY(a[0] * x[..., 0], 1)
        qml.RZ(torch.sin(a[1]) + x[..., 1], 0)
        qml.RX(x[..., 1], 1)
        return qml.probs()

    x = torch.tensor([[0.5, 0.1], [0.7, -0.2]], dtype=torch.float64)
    a = w(2)
    tape = tape_of(function, a, x)
    slope = float(torch.cos(a[1].detach()))
    assert tape.batch == 2
    np.testing.assert_allclose(tape.jacobian[0], [[2, 0], [0.5, 0], [0, slope]])
    np.testing.assert_allclose(tape.jacobian[1], [[2, 0], [0.7, 0], [0, slope]])
    np.testing.assert_allclose(tape.angles[:, 1], (a[0] * x[:, 0]).detach())


def test_the_jacobian_has_one_row_set_when_it_does_not_depend_on_the_input() -> None:
    def function(a: Any, x: Any) -> Any:
        qml.AngleEmbedding(x, wires=range(3))
        qml.RX(3 * a[0], 0)
        return qml.probs()

    tape = tape_of(function, w(1), torch.rand(8, 3))
    assert tape.jacobian.shape == (1, 1, 1)
    assert tape.trainable == [3]


def test_float32_weights_are_computed_in_float64() -> None:
    def function(a: Any) -> Any:
        qml.RX(a[0] / 3, 0)
        return qml.probs()

    a = torch.tensor([1.0], requires_grad=True)
    assert tape_of(function, a).angles[0, 0] == 1.0 / 3.0


@pytest.mark.parametrize(
    "labels", [["a", "b"], [5, 2], [1, 0], ["aux", 3]], ids=lambda v: "-".join(map(str, v))
)
@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
@pytest.mark.parametrize("own_wires", [True, False])
def test_any_wire_labels(labels: list[Any], device: str, own_wires: bool) -> None:
    def function(a: Any, names: Any) -> Any:
        qml.RY(0.4, names[0])
        qml.RX(a[0], names[0])
        qml.CRY(a[1], [names[1], names[0]])
        qml.IsingXX(a[2], [names[0], names[1]])
        qml.IsingZZ(a[2] * a[1], [names[1], names[0]])
        return qml.probs(wires=names[1])

    a = w(3)
    dev = qml.device(device, wires=["spare", *labels, "end"] if own_wires else None)
    qnode = qml.QNode(lambda v: function(v, labels), dev)
    plain = qml.QNode(lambda v: function(v, [0, 1]), qml.device("default.qubit", wires=2))
    for approx in (None, "block-diag", "diag"):
        torch.testing.assert_close(
            fubini.metric_tensor(qnode, approx)(a), fubini.metric_tensor(plain, approx)(a)
        )


def shots(a: Any) -> Any:
    qml.RX(a[0], 0)
    return qml.expval(qml.Z(0))


def measured(a: Any) -> Any:
    qml.RX(a[0], 0)
    qml.measure(0)
    return qml.expval(qml.Z(0))


def conditional(a: Any) -> Any:
    m = qml.measure(0)
    qml.cond(m, qml.RX)(a[0], 0)
    return qml.expval(qml.Z(0))


def channel(a: Any) -> Any:
    qml.RX(a[0], 0)
    qml.DepolarizingChannel(0.1, 0)
    return qml.expval(qml.Z(0))


def without_generator(a: Any) -> Any:
    qml.QubitUnitary(torch.linalg.matrix_exp(1j * a[0] * torch.eye(2, dtype=torch.complex128)), 0)
    return qml.expval(qml.Z(0))


def cut(a: Any) -> Any:
    qml.RX(float(a[0].detach()), 0)
    return qml.expval(qml.Z(0))


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (shots, {"shots": 100}, "100 shots"),
    (measured, {}, "mid-circuit measurement"),
    (conditional, {}, "mid-circuit measurement"),
    (channel, {"device": qml.device("default.mixed", wires=1)}, "DepolarizingChannel is a channel"),
    (without_generator, {}, "QubitUnitary"),
    (cut, {}, "none"),
]


@pytest.mark.parametrize(
    ("function", "options", "message"), REFUSED, ids=lambda v: getattr(v, "__name__", "")
)
def test_refused_by_name(function: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tape_of(function, w(1), **options)


@pytest.mark.parametrize("where", ["weight", "input"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_parameters(where: str, value: float) -> None:
    def function(a: Any, x: Any) -> Any:
        qml.RX(a[0] + x[..., 0], 0)
        return qml.probs()

    a, x = torch.tensor([0.1]), torch.tensor([[0.2], [0.3]])
    (a if where == "weight" else x)[0] = value
    with pytest.raises(ValueError, match=r"RX on wires \[0\] is NaN or infinite"):
        tape_of(function, a.requires_grad_(), x)


def test_empty_batch() -> None:
    def function(a: Any, x: Any) -> Any:
        qml.AngleEmbedding(x, wires=range(3))
        qml.RX(a[0], 0)
        return qml.probs()

    with pytest.raises(ValueError, match="inputs: expected at least one input, got an empty batch"):
        tape_of(function, w(1), torch.zeros(0, 3))


def test_nothing_requires_grad() -> None:
    with pytest.raises(ValueError, match="expected at least one that requires grad, got none"):
        fubini.metric_tensor(qml.QNode(shots, DEVICE))(torch.tensor([0.3]))
