"""Reads a PennyLane tape for the native engine: what the circuit is made of, its angles and its initial state.

Every gate is translated once, whatever is asked for afterwards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.circuit.any_angle import Undecomposed
from fubini.circuit.decompose import PREPARATIONS, taken_apart
from fubini.circuit.measured import all_wires, measures_all_wires, numbered
from fubini.errors import UnsupportedCircuitError
from fubini.native.gates import NativeGate, angle_values, native_gates, refuse
from fubini.native.measurements import Measurement, measurement_of


@dataclass(frozen=True)
class Structure:
    """Everything that a circuit is made of, hashable and picklable.

    Args:
        wires: Wire labels; the first one is the most significant bit.
        num_angles: Number of angles.
        gates: The gates in order.
        measurements: What is measured.
        takes_state: Whether each call brings the initial state.
    """

    wires: tuple[Any, ...]
    num_angles: int
    gates: tuple[NativeGate, ...]
    measurements: tuple[Measurement, ...]
    takes_state: bool = False


@dataclass
class Gates:
    """Gates that are translated one after the other.

    Attributes:
        gates: The gates so far.
        values: Of their angles, in order: scalars, or (B,) for a batch, of whatever library the operations hold.
        operations: The operations that were translated.
        wires: Labels of their wires, in the order in which they are met.
        preparation: The state preparation at the start, where each call brings the initial state.
    """

    gates: list[NativeGate] = field(default_factory=list)
    values: list[Any] = field(default_factory=list)
    operations: list[Any] = field(default_factory=list)
    wires: dict[Any, None] = field(default_factory=dict)
    preparation: Any = None

    def prepare(self, op: Any) -> None:
        """Start from a state preparation.

        Args:
            op: Basis states become gates; the amplitudes of all others are an argument of the circuit.
        """
        self.operations.append(op)
        self.wires.update(dict.fromkeys(op.wires))
        if not isinstance(op, qml.BasisState):
            self.preparation = op
            return
        bits = qml.math.toarray(op.parameters[0])
        self.gates += [
            NativeGate("table", "PauliX", (wire,))
            for wire, bit in zip(op.wires, bits, strict=True)
            if int(bit) == 1
        ]

    def take(self, op: Any) -> bool:
        """Translate an operation; return whether the engine knows it, else nothing has changed."""
        found = native_gates(op, len(self.values))
        if found is None:
            return False
        self.gates += found
        self.values += angle_values(op)
        self.operations.append(op)
        # PennyLane puts the wires of controlled gates together whenever they are asked for.
        whole = len(found) == 1 and found[0].kind == "table" and not found[0].controls
        for wire in (whole and found[0].wires) or op.wires:
            self.wires[wire] = None
        return True

    def decompose(self, operations: Sequence[Any]) -> None:
        """Translate operations, or what they can be taken apart into.

        Args:
            operations: In the order in which they act.

        Raises:
            UnsupportedCircuitError: Names the operation that can neither be run nor decomposed.
        """
        try:
            taken_apart(operations, self.take, refuse)
        except Undecomposed as error:
            raise UnsupportedCircuitError(
                f"{error.operation.name}: the native engine does not know this operation, and it has no decomposition into "
                "gates that it knows. Decompose it with qml.transforms.decompose, or run the QNode on its device "
                "(engine='device')."
            ) from error

    def structure(self, wires: Sequence[Any], measurements: Sequence[Any] = ()) -> Structure:
        """Return the circuit's structure.

        Args:
            wires: Wire labels, most significant bit first.
            measurements: What is measured, PennyLane's objects.

        Raises:
            ValueError: If wires are missing.
            UnsupportedCircuitError: For no wires, or a measurement that the engine does not know.
        """
        labels = tuple(wires)
        index = {wire: i for i, wire in enumerate(labels)}
        used = [*self.wires, *(wire for process in measurements for wire in process.wires)]
        missing = list(dict.fromkeys(wire for wire in used if wire not in index))
        if missing:
            raise ValueError(
                f"wires: expected all wires of the tape, {missing} are missing in {labels}"
            )
        if not labels:
            raise UnsupportedCircuitError("circuit: expected at least one wire, got none")
        measured = tuple(measurement_of(process, index) for process in measurements)
        takes_state = self.preparation is not None
        return Structure(labels, len(self.values), tuple(self.gates), measured, takes_state)

    def state(self, wires: Sequence[Any]) -> Any:
        """Return the amplitudes that the preparation brings, (N,) or (B, N); None without one.

        Args:
            wires: As for ``structure``.
        """
        if self.preparation is None:
            return None
        prepared = self.preparation.state_vector(wire_order=list(wires))
        batch = self.preparation.batch_size
        size = 2 ** len(wires)
        return qml.math.reshape(prepared, (size,) if batch is None else (batch, size))


@dataclass(frozen=True)
class Reading:
    """What a tape is for the native engine.

    Attributes:
        structure: What the circuit is made of.
        parts: Its gates, with their angles and the operations that they were translated from.
    """

    structure: Structure
    parts: Gates

    @cached_property
    def angles(self) -> Any:
        """Angles, (A,), or (B, A) when a parameter is broadcast; torch with its graph if any parameter is, else NumPy."""
        return _stacked(self.parts.values)

    @cached_property
    def state(self) -> Any:
        """Amplitudes of the initial state, (N,) or (B, N), or None when the circuit starts from |0...0>."""
        return self.parts.state(self.structure.wires)

    @cached_property
    def batch(self) -> int | None:
        """Number of inputs; None where no parameter is broadcast."""
        start = None if self.parts.preparation is None else self.parts.preparation.batch_size
        return _batch(self.parts.values) if start is None else int(start)


def read(tape: Any, device: Any = None, wires: Sequence[Any] | None = None) -> Reading:
    """Read a tape, translating every gate once.

    Every real gate parameter is an angle, whether it is trainable or not; matrices, observables and basis states are
    constants of the circuit. A state preparation at the start (StatePrep, AmplitudeEmbedding) makes the initial state an
    argument of each call.

    Args:
        tape: ``qml.tape.QuantumScript``; broadcast parameters of shape (B,) count as one angle each.
        device: The PennyLane device, whose wires a measurement of all of them covers.
        wires: Wire order; default: PennyLane's where a measurement covers all wires, else that of the gates.

    Returns:
        The structure, the angles and the initial state.

    Raises:
        UnsupportedCircuitError: Names the operation or measurement that the engine does not know.
        ValueError: If wires are missing.
    """
    if tape.shots:
        raise UnsupportedCircuitError(
            f"shots: the native engine computes exact values, and the tape asks for {tape.shots.total_shots} shots. "
            "Remove the shots, or run the QNode on its device (engine='device')."
        )
    operations = tape.operations
    parts = Gates()
    prepared = bool(operations) and isinstance(operations[0], PREPARATIONS)
    if prepared:
        parts.prepare(operations[0])
    parts.decompose(operations[prepared:])
    if wires is None:
        if measures_all_wires(tape):
            wires = all_wires(tape, device)
        else:
            wires = numbered(parts.wires, tape.measurements)
    return Reading(parts.structure(wires, tape.measurements), parts)


def _stacked(values: list[Any]) -> Any:
    """(A,) or (B, A) from scalars and (B,) arrays; torch if any is a torch tensor."""
    if not values:
        return np.zeros(0)
    batch = _batch(values)
    live = [value for value in values if isinstance(value, torch.Tensor)]
    if not live:
        arrays = [np.asarray(qml.math.toarray(value), dtype=np.float64) for value in values]
        return np.stack(np.broadcast_arrays(*arrays), axis=-1)
    device, shape = live[0].device, () if batch is None else (batch,)
    tensors = [
        value.to(torch.float64)
        if isinstance(value, torch.Tensor)
        else torch.as_tensor(value, dtype=torch.float64, device=device)
        for value in values
    ]
    return torch.stack([tensor.expand(shape) for tensor in tensors], dim=-1)


def _batch(values: Sequence[Any]) -> int | None:
    """The number of inputs that scalars and (B,) arrays are of."""
    found = {len(value) for value in values if getattr(value, "ndim", 0) == 1}
    if len(found) > 1:
        raise ValueError(f"angles: expected one batch size, got {sorted(found)}")
    return next(iter(found), None)
