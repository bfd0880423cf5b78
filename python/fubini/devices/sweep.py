"""One circuit at many settings of its parameters: what the device engine asks a device to run.

Rows are settings: shifted angles, inputs, or both. A device that broadcasts runs many rows as one tape, any other
device gets a tape per row, in which operations whose parameters do not change are shared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml

from fubini.circuit.unfold import dimensions, rebind
from fubini.options import Real


@dataclass(frozen=True, eq=False)
class Sweep:
    """A circuit at ``rows`` settings.

    Attributes:
        operations: In order; a parameter of a row-dependent operation has a leading axis of length ``rows``.
        measurements: What every row measures.
        rows: Number of settings, None for a circuit without such an axis.
        shots: Of every row; None for exact results.
        by: Indices of operations by whose angle the device differentiates the results by itself; such a sweep's answer
            is the results of all measurements, and their derivatives.
    """

    operations: tuple[Any, ...]
    measurements: tuple[Any, ...]
    rows: int | None = None
    shots: int | None = None
    by: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for op in self.operations:
            if op.batch_size not in (None, self.rows):
                raise ValueError(
                    f"operations: expected parameters of {self.rows} rows, got {op.batch_size} in {op.name}"
                )

    @property
    def circuits(self) -> int:
        """Number of circuits: settings that a device without broadcasting runs one by one."""
        return 1 if self.rows is None else self.rows

    @property
    def wires(self) -> Any:
        """Wires of the circuit."""
        return qml.wires.Wires.all_wires(
            [op.wires for op in self.operations] + [m.wires for m in self.measurements]
        )

    def distinct(self) -> tuple["Sweep", npt.NDArray[np.intp] | None]:
        """Return the sweep over rows that differ, and for every row which of them it is; None: all differ."""
        if self.rows is None or self.rows < 2:
            return self, None
        columns = [
            np.ascontiguousarray(p).reshape(self.rows, -1)
            for op in self.operations
            if op.batch_size is not None
            for p, n in zip(op.data, _dims(op), strict=True)
            if np.ndim(p) > n
        ]
        if not columns:
            return self.take(np.zeros(1, dtype=np.intp)), np.zeros(self.rows, dtype=np.intp)
        joined = np.concatenate([c.view(np.uint8).reshape(self.rows, -1) for c in columns], axis=1)
        keys = np.ascontiguousarray(joined).view(f"V{joined.shape[1]}").reshape(-1)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        if len(first) == self.rows:
            return self, None
        order = np.argsort(first)  # in the order in which they were asked for
        rank = np.empty_like(order)
        rank[order] = np.arange(len(order))
        return self.take(first[order]), rank[inverse.reshape(-1)]

    def take(self, rows: npt.NDArray[np.intp]) -> "Sweep":
        """Return the sweep over some of the rows."""
        operations = tuple(_at(op, rows) for op in self.operations)
        return Sweep(operations, self.measurements, len(rows), self.shots, self.by)

    def broadcast_tape(self) -> Any:
        """Return all rows as one tape."""
        return self._tape(self.operations)

    def single_tapes(self) -> list[Any]:
        """Return one tape per row."""
        if self.rows is None:
            return [self.broadcast_tape()]
        columns = [_single(op, self.rows) for op in self.operations]
        return [
            self._tape(
                [
                    column if isinstance(column, qml.operation.Operator) else column[row]
                    for column in columns
                ]
            )
            for row in range(self.rows)
        ]

    def _tape(self, operations: Sequence[Any]) -> Any:
        tape = qml.tape.QuantumScript(operations, self.measurements, shots=self.shots)
        if self.by:
            starts = np.cumsum([0, *(len(op.data) for op in operations)])
            tape.trainable_params = starts[list(self.by)].tolist()
        return tape


def repeated(op: Any, times: int) -> Any:
    """Return an operation whose rows, if it has any, come several times over."""
    if op.batch_size is None:
        return op
    data = [
        np.tile(p, (times,) + (1,) * (np.ndim(p) - 1)) if np.ndim(p) > n else p
        for p, n in zip(op.data, _dims(op), strict=True)
    ]
    return rebind(op, data)


def _dims(op: Any) -> tuple[int, ...]:
    """Dimensions of the parameters without the batch."""
    return dimensions(op) or (0,) * len(op.data)


def _at(op: Any, rows: Any) -> Any:
    if op.batch_size is None:
        return op
    data = [p[rows] if np.ndim(p) > n else p for p, n in zip(op.data, _dims(op), strict=True)]
    return rebind(op, data)


def _single(op: Any, rows: int) -> Any:
    """The operation of every row; rows with equal parameters share it."""
    if op.batch_size is None:
        return op
    seen: dict[bytes, Any] = {}
    result = []
    for row in range(rows):
        data = [p[row] if np.ndim(p) > n else p for p, n in zip(op.data, _dims(op), strict=True)]
        key = b"".join(np.ascontiguousarray(v).tobytes() for v in data)
        if key not in seen:
            seen[key] = rebind(op, data)
        result.append(seen[key])
    return result


def tape_key(tape: Any) -> tuple[Any, ...]:
    """Return a key by which a tape is equal to itself rebuilt with the same numbers, to the last bit.

    ``tape.hash`` rounds parameters and abbreviates long arrays.
    """
    parts: list[Any] = [tape.shots.total_shots, tuple(tape.trainable_params)]
    for op in tape.operations:
        numbers = tuple((np.shape(p), np.asarray(p).tobytes()) for p in op.data)
        parts.append((op.name, tuple(op.wires), numbers, _settings(op)))
    for measurement in tape.measurements:
        obs = measurement.obs
        values = () if obs is None else tuple(np.asarray(p).tobytes() for p in obs.data)
        parts.append(
            (type(measurement).__name__, repr(measurement), tuple(measurement.wires), values)
        )
    return tuple(parts)


def _settings(op: Any) -> str:
    base = getattr(op, "base", None)
    inner = "" if base is None else f"{base.name}{tuple(base.wires)}{_settings(base)}"
    plain = {
        k: v
        for k, v in op.hyperparameters.items()
        if isinstance(v, str | int | bool | float | tuple | list)
    }
    return f"{inner}{plain}{getattr(op, 'control_values', '')}"


def rows_of(answer: Sequence[Any], count: int) -> list[Real]:
    """Arrays of single rows stacked, measurement by measurement.

    Args:
        answer: For every row its measurements' results.
        count: Number of measurements.

    Returns:
        One array per measurement, (rows, ...).
    """
    return [np.stack([np.asarray(row[m]) for row in answer]) for m in range(count)]
