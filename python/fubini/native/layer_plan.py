"""Which rotations of a circuit form a layer, and what is run for the layers' blocks of the metric.

:func:`layer_plan` finds the layers once per circuit, on the elementary operations that the engine compiled the gates to,
and compiles one sweep that meets the state of every layer on its way.
"""

import functools
from dataclasses import dataclass

import numpy as np

from fubini import _core
from fubini.circuit.gate_layers import GateShape, find_layers
from fubini.circuit.pauli import (
    PauliSum,
    bits_of,
    collected,
    dense,
    on_bits,
    sums_commute,
    symmetric_product,
)
from fubini.native.circuit import Circuit
from fubini.options import LayerRule

#: Products of generators with more words are left to derivative states.
MAX_WORD_PAIRS = 250_000
# Matrices of constants on more wires are not made: their gates count as dependent, which is exact.
_MAX_CONSTANT_WIRES = 4


@dataclass(frozen=True)
class LayerBlock:
    """Angles whose metric block is evaluated together.

    Attributes:
        angles: Indices of the angles, ascending.
        generators: Generator K of each angle, for exp(-i t K); None where an angle's rotations are in several layers,
            and the block comes from derivative states.
        before: How many operations of the plan's order prepare the state in which the generators' covariances are
            the block.
    """

    angles: tuple[int, ...]
    generators: tuple[PauliSum, ...] | None
    before: int = 0


class LayerPlan:
    """The blocks of a circuit's metric, and what is run to get them.

    Every layer's state is met on the way of one sweep over the circuit, its operations reordered so that each layer
    comes as late as it can. There the words in K_i and K_i K_j are measured.

    Args:
        program: The circuit's program.
        order: Operations in the order of the layers.
        blocks: Blocks in the order of the layers; every angle is in exactly one.
    """

    def __init__(
        self, program: _core.Program, order: list[int], blocks: tuple[LayerBlock, ...]
    ) -> None:
        self.blocks = blocks
        self._program = program
        self._order = order
        self._sweeps: dict[bool, _core.Program] = {}
        self.counts = [len(block.angles) for block in blocks if block.generators is not None]
        #: The blocks' angles, one block after the other.
        self.columns = np.array([a for block in blocks for a in block.angles], dtype=np.intp)

    def sweep(self, diagonal: bool) -> _core.Program:
        """Return the program whose stages are the blocks with generators."""
        if diagonal not in self._sweeps:
            stages = [
                (block.before, moments(block.generators, diagonal))
                for block in self.blocks
                if block.generators is not None
            ]
            self._sweeps[diagonal] = self._program.staged(self._order, stages)
        return self._sweeps[diagonal]


@dataclass
class _Unit:
    """Consecutive operations that the layers treat as one gate."""

    operations: list[int]
    shape: GateShape
    slot: int


def layer_plan(
    circuit: Circuit, rule: LayerRule = "wires", trainable: frozenset[int] | None = None
) -> LayerPlan:
    """Return the blocks of a circuit's metric; found once for each circuit and rule.

    Args:
        circuit: The circuit.
        rule: Which gates form a layer, see :mod:`fubini.circuit.gate_layers`.
        trainable: Angles of which the metric is wanted, so that others, which encode inputs, cut no layer; None: all.

    Returns:
        The plan; angles that the state does not depend on are its last block.
    """
    known = circuit.plans.get((rule, trainable))
    if known is None:
        known = circuit.plans[rule, trainable] = _layer_plan(circuit, rule, trainable)
    return known


@functools.lru_cache(maxsize=128)
def _layer_plan(circuit: Circuit, rule: LayerRule, trainable: frozenset[int] | None) -> LayerPlan:
    """The same for circuits that may be copies: finding an equal one compares their gates."""
    units = _units(circuit.program, trainable)
    layers = find_layers(tuple(unit.shape for unit in units), rule)
    home: dict[int, int] = {}
    split: set[int] = set()  # angles with rotations in several layers
    for number, layer in enumerate(layers):
        for gate in layer.gates:
            slot = units[gate].slot
            if home.setdefault(slot, number) != number:
                split.add(slot)
                home[slot] = number
    order: list[int] = []
    placed: set[int] = set()
    blocks = []
    for number, layer in enumerate(layers):
        # What earlier layers need never depends on this layer, so it may precede it as well.
        for unit in layer.before:
            if unit not in placed:
                placed.add(unit)
                order += units[unit].operations
        angles = tuple(sorted(slot for slot, where in home.items() if where == number))
        if not angles:
            continue
        sums: dict[int, PauliSum] = dict.fromkeys(angles, ())
        for gate in layer.gates:
            if units[gate].slot in sums:
                sums[units[gate].slot] += units[gate].shape.generator or ()
        generators = tuple(collected(sums[a]) for a in angles)
        if split.intersection(angles) or sum(map(len, generators)) ** 2 > MAX_WORD_PAIRS:
            blocks.append(LayerBlock(angles, None))
        else:
            blocks.append(LayerBlock(angles, generators, len(order)))
    wanted = range(circuit.num_angles) if trainable is None else sorted(trainable)
    idle = tuple(a for a in wanted if a not in home)
    if idle:
        blocks.append(LayerBlock(idle, None))
    return LayerPlan(circuit.program, order, tuple(blocks))


def moments(generators: tuple[PauliSum, ...], diagonal: bool) -> list[tuple[int, int, float, int]]:
    """Words of <K_i>, numbered from 0, and of Re <K_i K_j>, in the order that the kernel expects."""
    terms = [(x, z, c, i) for i, generator in enumerate(generators) for x, z, c in generator]
    moment = len(generators)
    for i, left in enumerate(generators):
        for right in [left] if diagonal else generators[: i + 1]:
            terms += [(x, z, c, moment) for x, z, c in symmetric_product(left, right)]
            moment += 1
    return terms


def _units(program: _core.Program, trainable: frozenset[int] | None) -> list[_Unit]:
    units: list[_Unit] = []
    for index, row in enumerate(program.operations()):
        kind, _, _, _, _, _, slot, coefficient, offset, support = row
        if kind != "rotation" or slot < 0 or coefficient == 0:
            angle = offset if kind == "rotation" else 0.0
            matrix = _constant(program, index, kind, angle, support)
            units.append(_Unit([index], GateShape(support, False, None, matrix), -1))
            continue
        terms = tuple((x, z, coefficient / 2 * c) for x, z, c in program.expansion(index))
        last = units[-1] if units else None
        # A gate with one angle may be several commuting rotations; a layer must not cut it.
        if last is not None and last.slot == slot and last.shape.generator is not None:
            known = last.shape.generator
            if sums_commute(known, terms):
                last.operations.append(index)
                last.shape = GateShape(
                    last.shape.support | support, last.shape.trainable, known + terms
                )
                continue
        wanted = trainable is None or slot in trainable
        units.append(_Unit([index], GateShape(support, wanted, terms), slot))
    return units


def _constant(
    program: _core.Program, index: int, kind: str, angle: float, support: int
) -> tuple[int, bytes] | None:
    """The matrix of a constant rotation or flip on its wires, as GateShape wants it."""
    if kind not in ("rotation", "flip") or support.bit_count() > _MAX_CONSTANT_WIRES:
        return None
    bits = bits_of(support)
    word = dense(on_bits(tuple(program.expansion(index)), bits), len(bits))
    projector = word @ word  # K = word * projector, and the word squares to one
    identity = np.eye(len(word))
    if kind == "flip":
        matrix = identity - projector + word
    else:
        matrix = identity + (np.cos(angle / 2) - 1) * projector - 1j * np.sin(angle / 2) * word
    return len(matrix), np.ascontiguousarray(matrix, dtype=complex).tobytes()
