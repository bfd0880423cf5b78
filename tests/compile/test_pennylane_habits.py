"""What users of ``qml.metric_tensor`` and ``quantum_fisher`` write: its keywords, mixed states, misuse by habit."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch
from pennylane.exceptions import QuantumFunctionError

import fubini


def gates(w: Any) -> None:
    qml.RX(w[0], wires=0)
    qml.RY(w[1], wires=1)
    qml.CNOT([0, 1])
    qml.RZ(w[2], wires=1)
    qml.RY(w[0], wires=1)


def function(w: Any) -> Any:
    gates(w)
    return qml.expval(qml.Z(1))


def qnode() -> Any:
    return qml.QNode(function, qml.device("default.qubit", wires=3))


def weights() -> torch.Tensor:
    return torch.tensor([0.3, 0.4, 0.5], dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("engine", ["native", "device"])
@pytest.mark.parametrize(
    "keywords",
    [
        {"aux_wire": 2},
        {"device_wires": qml.wires.Wires([0, 1, 2])},
        {"allow_nonunitary": False},
        {"allow_nonunitary": True, "aux_wire": 2, "approx": None},
        {"hybrid": True},
    ],
)
def test_keywords_of_the_metric_tensor(keywords: Any, engine: Any) -> None:
    reference = qml.metric_tensor(qnode(), aux_wire=2)(weights())
    found = fubini.metric_tensor(qnode(), engine=engine, **keywords)(weights())
    torch.testing.assert_close(found, reference, rtol=0, atol=1e-12, check_dtype=False)
    fisher = fubini.quantum_fisher(qnode(), engine=engine, **keywords)(weights())
    torch.testing.assert_close(fisher, 4 * reference, rtol=0, atol=1e-11)


@pytest.mark.parametrize("make", [fubini.metric_tensor, fubini.quantum_fisher])
def test_keywords_without_a_meaning_here(make: Any) -> None:
    with pytest.raises(ValueError, match=r"hybrid: expected True.*Circuit.from_qnode"):
        make(qnode(), hybrid=False)
    with pytest.raises(TypeError, match="allow_nonunitary: expected True or False"):
        make(qnode(), allow_nonunitary="no")
    with pytest.raises(TypeError, match="aux_wires"):
        make(qnode(), aux_wires=2)
    # The remedy that the first one names.
    circuit = fubini.Circuit.from_qnode(qnode(), weights())
    assert circuit.num_angles == 4


# -- mixed states ---------------------------------------------------------------------------------------------------


def noisy_gates(w: Any, x: Any) -> None:
    qml.RY(x, wires=0)
    qml.RX(w[0], wires=0)
    qml.AmplitudeDamping(0.3, wires=0)
    qml.CNOT([0, 1])
    qml.DepolarizingChannel(0.05, wires=1)
    qml.RY(2 * w[1], wires=0)
    qml.RX(w[0] * w[1], wires=1)


def noisy(w: Any, x: Any = 0.2) -> Any:
    noisy_gates(w, x)
    return qml.expval(qml.Z(0))


def reference(w: torch.Tensor, x: float = 0.2) -> Any:
    """The quantum Fisher information from density matrices: 2 |<i|d rho|j>|^2 / (p_i + p_j), derivatives by torch."""

    @qml.qnode(qml.device("default.mixed", wires=2), interface="torch", diff_method="backprop")
    def state(w: Any) -> Any:
        noisy_gates(w, x)
        return qml.density_matrix(wires=[0, 1])

    def parts(w: Any) -> Any:
        rho = state(w)
        return torch.stack([rho.real, rho.imag])

    rho = state(w.detach())
    j = torch.autograd.functional.jacobian(parts, w.detach())
    d = torch.complex(j[0], j[1]).movedim(-1, 0)
    p, v = torch.linalg.eigh(rho)
    d = v.conj().T @ d @ v
    weight = 2.0 / (p[:, None] + p[None, :])
    return torch.einsum("aij,bij,ij->ab", d, d.conj(), weight.to(d)).real


def test_the_fisher_information_of_a_mixed_state() -> None:
    w = torch.tensor([0.7, 0.4], dtype=torch.float64, requires_grad=True)
    mixed = qml.QNode(noisy, qml.device("default.mixed", wires=2))
    expected = reference(w)
    found = fubini.quantum_fisher(mixed)(w)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    x = torch.tensor([0.2, 0.9], dtype=torch.float64)
    each = fubini.quantum_fisher(mixed)(w, x)
    stacked = torch.stack([reference(w, float(v)) for v in x])
    torch.testing.assert_close(each, stacked, rtol=0, atol=1e-9)
    mean = fubini.quantum_fisher(mixed, reduce="mean", joint=True)(w, x)
    torch.testing.assert_close(mean, stacked.mean(0), rtol=0, atol=1e-9)


def test_weak_noise_is_close_to_the_pure_state() -> None:
    def circuit(w: Any, strength: float) -> Any:
        gates(w)
        if strength:
            qml.DepolarizingChannel(strength, wires=0)
        return qml.expval(qml.Z(0))

    mixed = qml.QNode(circuit, qml.device("default.mixed", wires=2))
    w = weights()
    pure = fubini.quantum_fisher(mixed)(w, 0.0)
    near = fubini.quantum_fisher(mixed)(w, 1e-5)
    torch.testing.assert_close(pure, 4 * fubini.metric_tensor(qnode())(w), rtol=0, atol=1e-12)
    torch.testing.assert_close(near, pure, rtol=0, atol=1e-3)  # linear in the strength


def test_what_is_refused_of_mixed_states_names_the_call_that_answers() -> None:
    w = weights()
    mixed = qml.QNode(noisy, qml.device("default.mixed", wires=2))
    for call in (fubini.metric_tensor, fubini.geometric_tensor, fubini.metric_operator):
        with pytest.raises(fubini.UnsupportedCircuitError, match=r"fubini.quantum_fisher\(qnode\)"):
            call(mixed)(w)
    with pytest.raises(fubini.UnsupportedCircuitError, match="approx: expected None for a mixed"):
        fubini.quantum_fisher(mixed, approx="block-diag")(w)
    shots = qml.set_shots(mixed, 100)
    with pytest.raises(fubini.UnsupportedCircuitError, match="expected no shots"):
        fubini.quantum_fisher(shots)(w)


# -- misuse ---------------------------------------------------------------------------------------------------------

MISUSES: list[tuple[Callable[[Any, Any], Any], type[Exception], str]] = [
    (fubini.metric_tensor, TypeError, r"approx: .*metric_tensor\(qnode\)\("),
    (
        lambda q, w: fubini.metric_tensor(q, w.detach().numpy()),
        TypeError,
        "approx: expected a word",
    ),
    (fubini.quantum_fisher, TypeError, "approx: expected a word"),
    (fubini.metric_spectrum, TypeError, "approx: expected a word"),
    (lambda q, w: fubini.metric_derivative(q, w, w), TypeError, "approx: expected a word"),
    (fubini.metric_operator, TypeError, r"form: .*metric_operator\(qnode\)\("),
    (lambda q, w: fubini.MetricOperator(q), TypeError, "fubini.metric_operator"),
    (lambda q, w: fubini.MetricOperator(np.eye(2)), TypeError, "MetricOperator.of_matrix"),
    (lambda q, w: fubini.MetricOperator.of_matrix(q), TypeError, "matrix: expected real numbers"),
    (lambda q, w: fubini.MetricOperator.of_matrix(np.ones((2, 3))), ValueError, "matrix: expected"),
    (lambda q, w: fubini.plot_metric(q), TypeError, r"got QNode.*metric_spectrum\(qnode\)"),
    (lambda q, w: fubini.plot_metric(fubini.metric_tensor(q)), TypeError, "got function"),
    (lambda q, w: fubini.metric_tensor(q)(w.to(torch.complex128)), TypeError, "w: expected real"),
]


@pytest.mark.parametrize("number", range(len(MISUSES)))
def test_misuse_is_named(number: int) -> None:
    call, error, message = MISUSES[number]
    if "got" in message:  # of plot_metric
        pytest.importorskip("matplotlib")
    with pytest.raises(error, match=message):
        call(qnode(), weights())


def test_no_trainable_parameters_is_pennylanes_error_too() -> None:
    for kind in (QuantumFunctionError, ValueError):
        with pytest.raises(kind, match="expected at least one that requires grad"):
            fubini.metric_tensor(qnode())(weights().detach())


def returning(what: Callable[[], Any]) -> fubini.QuantumLayer:
    @qml.qnode(qml.device("default.qubit", wires=2))
    def circuit(inputs: Any, w: Any) -> Any:
        qml.RX(w[0] + inputs[..., 0], wires=0)
        return what()

    return fubini.QuantumLayer(circuit, {"w": 2})


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        (lambda: {"a": qml.expval(qml.Z(0))}, TypeError, "got a dict; return a list"),
        (
            lambda: [{"a": qml.expval(qml.Z(0))}, qml.expval(qml.Z(1))],
            TypeError,
            "got a list with dict",
        ),
        (
            lambda: (qml.expval(qml.Z(0)), qml.probs(wires=[0, 1])),
            ValueError,
            "measurements of one shape in a tuple.*return a list",
        ),
    ],
)
@pytest.mark.parametrize("batch", [1, 3])
def test_returns_that_a_layer_cannot_put_together(
    what: Any, error: Any, message: str, batch: int
) -> None:
    with pytest.raises(error, match=message):
        returning(what)(torch.rand(batch, 1))


def test_lists_of_other_shapes_are_put_side_by_side() -> None:
    found = returning(lambda: [qml.expval(qml.Z(0)), qml.probs(wires=[0, 1])])(torch.rand(3, 1))
    assert found.shape == (3, 5)
