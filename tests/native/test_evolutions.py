"""Time evolutions in batches, controlled, inverted and repeated; fixed operations that have a matrix: both engines."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini
from special_angles import matrix_of

D = torch.float64
WIRES = [0, 1, "c"]
HAMILTONIANS = {
    "word": qml.Z(0),
    "commuting": qml.dot([0.3, 0.7], [qml.Z(0), qml.Z(0) @ qml.Z(1)]),
    "not commuting": qml.dot([0.3, 0.7], [qml.Z(0) @ qml.X(1), qml.X(0)]),
}
FORMS: dict[str, Callable[[Any, Any], Any]] = {
    "evolve": qml.evolve,
    "adjoint": lambda h, t: qml.adjoint(qml.evolve(h, t)),
    "controlled": lambda h, t: qml.ctrl(qml.evolve(h, t), "c"),
    "exponential": lambda h, t: qml.exp(h, -1j * t),
    "controlled exponential": lambda h, t: qml.ctrl(qml.exp(h, -1j * t), "c"),
    "power": lambda h, t: qml.pow(qml.evolve(h, t), 2),
    "adjoint of controlled": lambda h, t: qml.adjoint(qml.ctrl(qml.evolve(h, t), "c")),
}
TIMES: dict[str, Callable[[Any, Any], Any]] = {
    "x^2": lambda x, w: x[..., 0] ** 2,
    "w x": lambda x, w: w[0] * x[..., 0],
    "sin w": lambda x, w: torch.sin(w[0]),
}


def body(form: str, hamiltonian: str, time: Any, w: Any) -> list[Any]:
    return [
        qml.RY(w[0], 0),
        qml.RY(0.4, 1),
        qml.Hadamard("c"),
        FORMS[form](HAMILTONIANS[hamiltonian], time),
        qml.RX(w[1], 1),
        qml.CNOT([0, 1]),
        qml.RX(0.3, 0),
    ]


def reference(form: str, hamiltonian: str, time: Any, x: Any, w: Any) -> tuple[Any, Any, Any]:
    """<Z1>, its gradient and the metric at one input, from derivatives of the product of matrices."""

    def state(v: torch.Tensor) -> torch.Tensor:
        psi = torch.zeros(8, dtype=torch.complex128)
        psi[0] = 1.0
        with qml.QueuingManager.stop_recording():
            for op in body(form, hamiltonian, TIMES[time](x, v), v):
                psi = matrix_of(op, WIRES) @ psi
        return torch.view_as_real(psi)

    psi = torch.view_as_complex(state(w))
    jacobian = torch.autograd.functional.jacobian(state, w).transpose(1, 2).contiguous()
    slopes = torch.view_as_complex(jacobian)
    z = torch.as_tensor(qml.matrix(qml.Z(1), wire_order=WIRES)).to(psi)
    overlap = slopes.conj().T @ psi
    metric = (slopes.conj().T @ slopes - torch.outer(overlap, overlap.conj())).real
    return (psi.conj() @ z @ psi).real, 2 * (psi.conj() @ z @ slopes).real, metric


@pytest.mark.parametrize("engine", ["native", "device"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("hamiltonian", HAMILTONIANS)
def test_evolutions(hamiltonian: str, form: str, engine: Any) -> None:
    w = torch.tensor([0.3, 0.7], dtype=D)
    # Every form with every kind of time; batches of one and none where weights and inputs meet.
    for time, batch in [("w x", None), ("w x", 1), ("w x", 3), ("x^2", 3), ("sin w", 3)]:
        x = torch.linspace(0.2, 1.4, batch or 1, dtype=D)[:, None]
        rows = [reference(form, hamiltonian, time, row, w) for row in x]
        values, gradients, metrics = (torch.stack(parts) for parts in zip(*rows, strict=True))

        def circuit(inputs: Any, w: Any, time: str = time) -> Any:
            body(form, hamiltonian, TIMES[time](inputs, w), w)
            return qml.expval(qml.Z(1))

        qnode = qml.QNode(circuit, qml.device("default.qubit", wires=WIRES))
        if engine == "device":
            qnode = qml.QNode(circuit, qnode.device, diff_method="parameter-shift")
        layer = fubini.QuantumLayer(qnode, {"w": 2}, {"w": w}, engine=engine).double()
        inputs = x if batch else x[0]
        result = layer(inputs)
        (gradient,) = torch.autograd.grad(result.sum(), layer.w)
        torch.testing.assert_close(result.reshape(-1), values, rtol=0, atol=1e-12)
        # Shift rules with several frequencies amplify rounding a thousandfold.
        torch.testing.assert_close(gradient, gradients.sum(0), rtol=0, atol=1e-9)
        found = fubini.metric_tensor(layer)(inputs).detach()
        np.testing.assert_allclose(
            np.broadcast_to(found, metrics.shape),
            metrics,
            rtol=0,
            atol=1e-10,
            err_msg=f"{time} {batch}",
        )


FIXED: dict[str, Callable[[], Any]] = {
    "QFT": lambda: qml.QFT(wires=range(3)),
    "adjoint QFT": lambda: qml.adjoint(qml.QFT)(wires=range(3)),
    "GroverOperator": lambda: qml.GroverOperator(wires=range(3)),
    "IntegerComparator": lambda: qml.IntegerComparator(1, wires=range(3)),
    "square root of X": lambda: qml.pow(qml.X(0), 0.5),
    "controlled product": lambda: qml.ctrl(qml.prod(qml.X(0), qml.Y(1)), 2),
    "OutAdder": lambda: qml.OutAdder([0], [1], [2]),
}


@pytest.mark.parametrize("name", FIXED)
def test_first_and_second_call_of_a_metric_are_the_same(name: str) -> None:
    """The first call once went to the device, and had no gradient, for what the second one ran natively."""

    def apply(t: Any) -> None:
        qml.RX(t[0], 0)
        qml.RY(t[1], 1)
        FIXED[name]()
        qml.RZ(t[2], 2)
        qml.RX(t[1], 0)

    @qml.qnode(qml.device("default.qubit", wires=3))
    def circuit(t: Any) -> Any:
        apply(t)
        return qml.expval(qml.Z(0))

    def explicit(t: torch.Tensor) -> torch.Tensor:
        @qml.qnode(qml.device("default.qubit", wires=3), interface="torch", diff_method="backprop")
        def state(v: Any) -> Any:
            apply(v)
            return qml.state()

        psi = state(t)
        slopes = torch.autograd.functional.jacobian(lambda v: torch.view_as_real(state(v)), t)
        d = torch.view_as_complex(slopes.transpose(1, 2).contiguous())
        overlap = d.conj().T @ psi
        return (d.conj().T @ d - torch.outer(overlap, overlap.conj())).real

    w = torch.tensor([0.3, 0.4, 0.5], dtype=D, requires_grad=True)
    weights = torch.arange(9, dtype=D).reshape(3, 3).cos()
    step = 1e-5 * torch.eye(3, dtype=D)
    slopes = torch.stack(
        [(explicit(w.detach() + s) - explicit(w.detach() - s)) / 2e-5 for s in step]
    )
    expected = (slopes * weights).sum(dim=(1, 2))
    for _ in range(2):
        found = fubini.metric_tensor(circuit, engine="native")(w)
        torch.testing.assert_close(found.detach(), explicit(w.detach()), rtol=0, atol=1e-12)
        (gradient,) = torch.autograd.grad((found * weights).sum(), w)
        # Central differences: h^2 / 6 of third derivatives, and rounding of 1e-16 / h.
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-8)


def test_metric_of_a_qsvt() -> None:
    def function(w: Any) -> Any:
        qml.RY(0.4, 0)
        projectors = [qml.PCPhase(w[k], dim=2, wires=[0, 1]) for k in range(3)]
        qml.QSVT(qml.BlockEncode([[0.1, 0.2], [0.3, 0.4]], wires=[0, 1]), projectors)
        return qml.expval(qml.Z(0))

    circuit = qml.QNode(function, qml.device("default.qubit", wires=2))
    w = torch.tensor([0.3, 0.9, -0.4], dtype=D, requires_grad=True)
    first, second = (fubini.metric_tensor(circuit)(w) for _ in range(2))
    on_device = fubini.metric_tensor(circuit, engine="device")(w)
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    torch.testing.assert_close(first.detach(), on_device.detach(), rtol=0, atol=1e-12)
    assert first.requires_grad


def test_qnode_that_expands_its_batch() -> None:
    def function(inputs: Any, w: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.StronglyEntanglingLayers(w, wires=range(2))
        return qml.expval(qml.Z(0))

    plain = qml.QNode(function, qml.device("default.qubit", wires=2))
    expanding = qml.transforms.broadcast_expand(plain)
    w, x = torch.rand(1, 2, 3, dtype=D), torch.rand(3, 2, dtype=D)
    found, expected = (
        fubini.metric_tensor(fubini.QuantumLayer(q, {"w": (1, 2, 3)}, {"w": w}).double())(x)
        for q in (expanding, plain)
    )
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=0, atol=1e-12)
