"""Layers of gates whose metric block needs one circuit: which gates belong together, and what comes before them.

Gates form a partial order: a gate depends on an earlier one, directly or through gates between. Gates that do not
depend on each other can be moved next to each other, so the covariances of their generators in one state are an exact
sub-matrix of the Fubini-Study metric. Three rules say when two gates that share a wire depend on each other:

* ``"wires"``: always, unless both have an angle and their generators commute. An IsingZZ chain is one layer, the order
  in which gates on different wires or commuting rotations are queued does not matter, and circuits that are queued
  layer by layer get the layers that PennyLane gives them.
* ``"maximal"``: unless they commute, whether they have an angle or not. The fewest circuits, and the same layers for
  every order in which commuting gates can be queued. Rotations move through CNOTs with which they commute, so blocks
  differ from PennyLane's.
* ``"queue"``: always; and layers are cut greedily in queue order, as PennyLane cuts them.
"""

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pennylane as qml

from fubini.circuit.pauli import PauliSum, bits_of, dense, on_bits, sums_commute
from fubini.options import LayerRule, check_rule

# A dense commutator on more wires would cost more than the circuit that a finer partition adds.
_MAX_DENSE_WIRES = 7


@dataclass(frozen=True)
class GateShape:
    """What decides about dependence: hashable, and free of angle values.

    Attributes:
        support: Bit mask of the wires.
        trainable: Whether the angle depends on weights.
        generator: Pauli sum of a gate with an angle, else None.
        matrix: For gates without an angle: (size, bytes of the matrix on the gate's wires in mask order), or None
            where it is unknown or differs between inputs.
    """

    support: int
    trainable: bool
    generator: PauliSum | None
    matrix: tuple[int, bytes] | None = None


@dataclass(frozen=True)
class Layer:
    """Gates of one block.

    Attributes:
        gates: Indices of the trainable gates, ascending.
        before: Indices of the gates that must precede them, in queue order.
    """

    gates: tuple[int, ...]
    before: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def find_layers(gates: tuple[GateShape, ...], rule: LayerRule = "wires") -> tuple[Layer, ...]:
    """Partition the trainable gates of a circuit into layers.

    Args:
        gates: The circuit in queue order.
        rule: ``"wires"``, ``"maximal"`` or ``"queue"``, see the module.

    Returns:
        Layers in order; every trainable gate is in exactly one.

    Raises:
        ValueError: If the rule is unknown.
    """
    check_rule(rule)
    ancestors: list[int] = []
    for i, gate in enumerate(gates):
        found = 0
        for j in range(i - 1, -1, -1):
            if found >> j & 1 or not gate.support & gates[j].support:
                continue
            if _depends(gates[j], gate, rule):
                found |= ancestors[j] | 1 << j
        ancestors.append(found)

    trainable = [i for i, gate in enumerate(gates) if gate.trainable]
    groups = _greedy(trainable, ancestors) if rule == "queue" else _levels(trainable, ancestors)
    layers = []
    for group in groups:
        before = functools.reduce(lambda mask, i: mask | ancestors[i], group, 0)
        layers.append(Layer(tuple(group), tuple(i for i in range(len(gates)) if before >> i & 1)))
    return tuple(layers)


def _levels(trainable: list[int], ancestors: list[int]) -> list[list[int]]:
    level: dict[int, int] = {}
    groups: list[list[int]] = []
    for i in trainable:
        level[i] = 1 + max((level[j] for j in level if ancestors[i] >> j & 1), default=-1)
        if level[i] == len(groups):
            groups.append([])
        groups[level[i]].append(i)
    return groups


def _greedy(trainable: list[int], ancestors: list[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for i in trainable:
        if not groups or any(ancestors[i] >> j & 1 for j in groups[-1]):
            groups.append([])
        groups[-1].append(i)
    return groups


def _depends(a: GateShape, b: GateShape, rule: LayerRule) -> bool:
    if rule == "queue":
        return True
    if a.generator is not None and b.generator is not None:
        return not _generators_commute(a.generator, b.generator)
    return rule == "wires" or not _commute_dense(a, b)


_generators_commute = functools.lru_cache(maxsize=4096)(sums_commute)


@functools.lru_cache(maxsize=4096)
def _commute_dense(a: GateShape, b: GateShape) -> bool:
    wires = bits_of(a.support | b.support)
    if len(wires) > _MAX_DENSE_WIRES:
        return False
    left, right = _matrix(a, wires), _matrix(b, wires)
    if left is None or right is None:
        return False
    return bool(np.allclose(left @ right, right @ left, rtol=0, atol=1e-12))


def _matrix(gate: GateShape, wires: list[int]) -> npt.NDArray[np.complex128] | None:
    """Return the generator or the matrix on the given wires (generator and gate commute with the same operators)."""
    size = len(wires)
    if gate.generator is not None:
        return dense(on_bits(gate.generator, wires), size)
    if gate.matrix is None:
        return None
    length, entries = gate.matrix
    matrix = np.frombuffer(entries, dtype=complex).reshape(length, length)
    found: npt.NDArray[np.complex128] = qml.math.expand_matrix(matrix, bits_of(gate.support), wires)
    return found
