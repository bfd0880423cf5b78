"""Which gates form a block, by each rule."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from fubini.circuit.angles import gate_tape
from fubini.circuit.gate_layers import find_layers
from fubini.circuit.pauli import dense, known_pauli_sum, product_basis, restrict, sums_commute
from fubini.options import LayerRule


def layers_of(
    function: Callable[[Any], Any], count: int, rule: LayerRule, wires: int = 4
) -> list[tuple[int, ...]]:
    """Layers as positions among the trainable gates."""
    qnode = qml.QNode(
        lambda w: (function(w), qml.probs(wires=0))[1], qml.device("default.qubit", wires=wires)
    )
    tape = gate_tape(qnode, (torch.rand(count, dtype=torch.float64, requires_grad=True),), {}, [0])
    order = {gate: k for k, gate in enumerate(tape.trainable)}
    return [
        tuple(order[i] for i in layer.gates)
        for layer in find_layers(tuple(g.shape for g in tape.gates), rule)
    ]


def three_qubit(p: Any) -> None:
    qml.RZ(p[0], 0), qml.RZ(p[1], 1)
    qml.CNOT([0, 1]), qml.CNOT([1, 2])
    qml.RY(p[2], 1), qml.RX(p[3], 2)


def ising_chain(p: Any) -> None:
    for k in range(3):
        qml.IsingZZ(p[k], [k, k + 1])


def same_wire(p: Any) -> None:
    qml.RZ(p[0], 0), qml.RZ(p[1], 0), qml.RX(p[2], 0)


def through_a_fixed_gate(p: Any) -> None:
    qml.RZ(p[0], 0), qml.RY(0.3, 0), qml.RZ(p[1], 0)


def crossing_words(p: Any) -> None:
    qml.IsingXX(p[0], [0, 1]), qml.IsingZZ(p[1], [0, 1]), qml.RX(p[2], 0)


def phase_between(p: Any) -> None:
    qml.RZ(p[0], 0), qml.CZ([0, 1]), qml.PhaseShift(p[1], 0)


CASES: list[tuple[Callable[[Any], None], int, dict[str, list[tuple[int, ...]]]]] = [
    (
        three_qubit,
        4,
        {"wires": [(0, 1), (2, 3)], "maximal": [(0, 1, 3), (2,)], "queue": [(0, 1), (2, 3)]},
    ),
    (ising_chain, 3, {"wires": [(0, 1, 2)], "maximal": [(0, 1, 2)], "queue": [(0,), (1,), (2,)]}),
    (
        same_wire,
        3,
        {"wires": [(0, 1), (2,)], "maximal": [(0, 1), (2,)], "queue": [(0,), (1,), (2,)]},
    ),
    (through_a_fixed_gate, 2, {rule: [(0,), (1,)] for rule in ("wires", "maximal", "queue")}),
    (
        crossing_words,
        3,
        {"wires": [(0, 1), (2,)], "maximal": [(0, 1), (2,)], "queue": [(0,), (1,), (2,)]},
    ),
    (phase_between, 2, {"wires": [(0,), (1,)], "maximal": [(0, 1)], "queue": [(0,), (1,)]}),
]


@pytest.mark.parametrize(
    ("function", "count", "expected"), CASES, ids=lambda v: getattr(v, "__name__", "")
)
@pytest.mark.parametrize("rule", ["wires", "maximal", "queue"])
def test_layers(function: Any, count: int, expected: Any, rule: LayerRule) -> None:
    assert layers_of(function, count, rule) == expected[rule]


@pytest.mark.parametrize("rule", ["wires", "maximal"])
def test_layers_do_not_depend_on_queue_order(rule: LayerRule) -> None:
    """pennylane#1738: RY0 RZ0 RY1 RZ1 ... and RY* RZ* are the same circuit."""

    def interleaved(p: Any) -> None:
        for wire in range(4):
            qml.RY(p[wire], wire), qml.RZ(p[4 + wire], wire)

    def layered(p: Any) -> None:
        for wire in range(4):
            qml.RY(p[wire], wire)
        for wire in range(4):
            qml.RZ(p[4 + wire], wire)

    assert layers_of(layered, 8, rule) == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert layers_of(interleaved, 8, rule) == [(0, 2, 4, 6), (1, 3, 5, 7)]


def test_maximal_layers_do_not_depend_on_the_order_of_commuting_gates() -> None:
    def after(p: Any) -> None:
        qml.RY(p[0], 0), qml.CNOT([0, 1]), qml.RX(p[1], 1), qml.RY(p[2], 1)

    def before(p: Any) -> None:
        qml.RY(p[0], 0), qml.RX(p[1], 1), qml.CNOT([0, 1]), qml.RY(p[2], 1)

    assert layers_of(after, 3, "maximal") == layers_of(before, 3, "maximal") == [(0, 1), (2,)]


@pytest.mark.parametrize("seed", range(12))
def test_queue_layers_are_those_of_pennylane(seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = [(int(rng.integers(5)), rng.permutation(4)[:2].tolist()) for _ in range(25)]

    def function(p: Any) -> None:
        for k, (kind, wires) in enumerate(steps):
            if kind == 0:
                qml.CNOT(wires)
            elif kind == 4:
                qml.IsingXX(p[k], wires)
            else:
                [qml.RX, qml.RY, qml.RZ][kind - 1](p[k], wires[0])

    w = torch.rand(25, requires_grad=True)
    tape = qml.workflow.construct_tape(
        qml.QNode(
            lambda w: (function(w), qml.probs(wires=0))[1], qml.device("default.qubit", wires=4)
        )
    )(w)
    order = {info["op_idx"]: k for k, info in enumerate(tape.par_info)}
    expected = [tuple(order[i] for i in layer.ops_inds) for layer in tape.graph.parametrized_layers]
    assert layers_of(function, 25, "queue") == [layer for layer in expected if layer]


def test_pauli_sums_equal_pennylane_matrices() -> None:
    positions = {"a": 0, 3: 1, "c": 2}
    cases = [
        qml.X("a") @ qml.Y("c"),
        0.5 * qml.Z(3) + 2.0 * qml.X("a") @ qml.Z("c"),
        qml.Projector([1], wires=3) @ qml.X("a"),
        qml.Hermitian(np.array([[1.0, 2 - 1j], [2 + 1j, 0.0]]), wires="c"),
        qml.CRX(0.1, ["c", "a"]).generator(),
        qml.SingleExcitation(0.1, [3, "a"]).generator(),
    ]
    for observable in cases:
        terms = known_pauli_sum(observable, positions, 3)
        assert terms is not None
        expected = qml.matrix(observable, wire_order=["a", 3, "c"])
        np.testing.assert_allclose(dense(terms, 3), expected, atol=1e-14)
    assert (
        known_pauli_sum(qml.Hermitian(np.eye(2), 3) @ qml.s_prod(1j, qml.X("a")), positions, 3)
        is None
    )


@pytest.mark.parametrize("seed", range(30))
def test_commutation_of_sums_equals_dense_commutator(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def draw() -> tuple[tuple[int, int, float], ...]:
        return tuple(
            (int(rng.integers(8)), int(rng.integers(8)), 1.0)
            for _ in range(int(rng.integers(1, 4)))
        )

    a, b = draw(), draw()
    left, right = dense(a, 3), dense(b, 3)
    assert sums_commute(a, b) == np.allclose(left @ right, right @ left)


def test_product_basis() -> None:
    xx, zz, zi = (0b11, 0, 1.0), (0, 0b11, 1.0), (0, 0b10, 0.5)
    assert product_basis([(zz,), (zi,)], 2) == {0: "Z", 1: "Z"}
    assert product_basis([(xx,), (zz,)], 2) is None
    assert restrict((xx, (0b01, 0, 2.0)), [0, 1], 2) == ((0, 0b11, 1.0), (0, 0b01, 2.0))


def test_unknown_rule() -> None:
    with pytest.raises(ValueError, match="layers: expected 'wires'"):
        find_layers((), "best")  # type: ignore[arg-type]
