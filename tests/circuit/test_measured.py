"""What is measured is what is returned, in its order, over PennyLane's wires in PennyLane's order."""

from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini

# -- results belong to what is returned -------------------------------------------------------------------------------


def swapped() -> Any:
    a, b = qml.expval(qml.Z(0)), qml.expval(qml.Z(1))
    return [b, a]


def second_only() -> Any:
    qml.expval(qml.Z(0))
    return qml.expval(qml.Z(1))


def other_kind() -> Any:
    qml.expval(qml.Z(0))
    return qml.probs(wires=1)


def from_dictionary() -> Any:
    made = {k: qml.expval(qml.Z(k)) for k in (0, 1)}
    return tuple(made[k] for k in (1, 0))


def twice() -> Any:
    m = qml.expval(qml.Z(0))
    return [m, m]


WRONG = [swapped, second_only, other_kind, from_dictionary, twice]


def rotated(measure: Any) -> Any:
    def function(inputs: Any, weights: Any) -> Any:
        qml.RX(inputs[..., 0], 0)
        qml.RY(weights[0], 1)
        return measure()

    return function


@pytest.mark.parametrize("engine", ["auto", "device"])
@pytest.mark.parametrize("measure", WRONG)
def test_layer_refuses_what_is_not_returned_in_order(measure: Any, engine: Any) -> None:
    qnode = qml.QNode(rotated(measure), qml.device("lightning.qubit", wires=2))
    with pytest.raises(qml.exceptions.QuantumFunctionError, match="order in which they are"):
        fubini.QuantumLayer(qnode, {"weights": (1,)}, engine=engine)(torch.rand(3, 1))


@pytest.mark.parametrize("measure", WRONG)
def test_metric_refuses_what_is_not_returned_in_order(measure: Any) -> None:
    qnode = qml.QNode(rotated(measure), qml.device("default.qubit", wires=2))
    w = torch.rand(1, requires_grad=True)
    with pytest.raises(qml.exceptions.QuantumFunctionError, match="order in which they are"):
        fubini.metric_tensor(qnode)(torch.rand(1), w)


# -- wires ------------------------------------------------------------------------------------------------------------

USED = [
    ((0, 1), (2,)),
    ((2, 1), ()),
    (("a", "c"), ("b",)),
    ((0, 2), (1,)),
    ((2, 0), (1,)),
    ((1,), (0,)),
    ((3, 1), (0, 2)),
]


def spread(used: Any, only: Any) -> Any:
    def circuit(inputs: Any, w: Any) -> Any:
        qml.Barrier([used[-1]])
        for i, wire in enumerate(used):
            qml.RY(0.3 + 0.7 * i + inputs[..., 0], wire)
        qml.ctrl(qml.RX(w[0], used[0]), used[1]) if len(used) > 1 else qml.RX(w[0], used[0])
        qml.prod(qml.RZ(0.3, used[0]), qml.RX(0.2, used[-1]))
        return [qml.probs()] + [qml.expval(qml.Z(m)) for m in only]

    return circuit


@pytest.mark.parametrize("device", ["default.qubit", "lightning.qubit"])
@pytest.mark.parametrize("engine", ["native", "device"])
@pytest.mark.parametrize(("used", "only"), USED)
def test_probabilities_of_all_wires(used: Any, only: Any, engine: Any, device: str) -> None:
    circuit = spread(used, only)
    w, x = torch.tensor([0.4], dtype=torch.float64), torch.rand(3, 1, dtype=torch.float64)
    exact = qml.QNode(circuit, qml.device("default.qubit"))
    expected = [
        np.concatenate([np.atleast_1d(v) for v in exact(row.numpy(), w.numpy())]) for row in x
    ]
    layer = fubini.QuantumLayer(
        qml.QNode(circuit, qml.device(device)), {"w": (1,)}, {"w": w}, engine=engine
    ).double()
    np.testing.assert_allclose(layer(x).detach(), np.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("used", "only"), USED)
def test_states_of_all_wires(used: Any, only: Any) -> None:
    def circuit(w: Any) -> Any:
        for k, wire in enumerate(used):
            qml.RY(w[k], wire)
        qml.RX(0.3, used[0])
        return qml.state(), *(qml.expval(qml.Z(m)) for m in only)

    qnode = qml.QNode(circuit, qml.device("default.qubit"))
    w = np.array([0.3, 1.1])[: len(used)]
    compiled = fubini.Circuit.from_qnode(qnode, w)
    tape = qml.workflow.construct_tape(qnode)(w)
    state = qnode(w)[0]
    np.testing.assert_allclose(compiled.state(compiled.angles_of(tape)), state, atol=1e-12)
    plain = fubini.Circuit.from_tape(tape)
    np.testing.assert_allclose(plain.state(plain.angles_of(tape)), state, atol=1e-12)
