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

from fubini.circuit.any_angle import dimensions, rebind


@dataclass(frozen=True, eq=False)
class Sweep:
    """A circuit at ``rows`` settings.

    Attributes:
        operations: In order; a parameter of a row-dependent operation has a leading axis of length ``rows``.
        measurements: What every row measures.
        rows: Number of settings, 1 for a circuit without such an axis.
        shots: Of every row; None for exact results.
        by: Indices of operations by whose angle the device differentiates the results by itself; such a sweep's answer
            is the results of all measurements, and their derivatives.
    """

    operations: tuple[Any, ...]
    measurements: tuple[Any, ...]
    rows: int = 1
    shots: int | None = None
    by: tuple[int, ...] = ()

    @property
    def wires(self) -> Any:
        """Wires of the circuit."""
        return qml.wires.Wires.all_wires(
            [op.wires for op in self.operations] + [m.wires for m in self.measurements]
        )

    def distinct(self) -> tuple["Sweep", npt.NDArray[np.intp] | None]:
        """Return the sweep over rows that differ, and for every row which of them it is; None: all differ."""
        if self.rows < 2:
            return self, None
        columns = [
            np.ascontiguousarray(p).reshape(self.rows, -1).view(np.uint8)
            for op in self.operations
            if op.batch_size is not None
            for p, n in zip(op.data, _dims(op), strict=True)
            if np.ndim(p) > n
        ]
        joined = np.concatenate([np.zeros((self.rows, 0), np.uint8), *columns], axis=1)
        keys = [row.tobytes() for row in joined]
        first: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        if len(first) == self.rows:
            return self, None
        rank = {key: k for k, key in enumerate(first)}
        rows = np.array(list(first.values()))
        return self.take(rows), np.array([rank[key] for key in keys])

    def take(self, rows: npt.NDArray[np.intp]) -> "Sweep":
        """Return the sweep over some of the rows."""
        operations = tuple(
            op if op.batch_size is None else rebind(op, _data(op, rows)) for op in self.operations
        )
        return Sweep(operations, self.measurements, len(rows), self.shots, self.by)

    def broadcast_tape(self) -> Any:
        """Return all rows as one tape."""
        return self._tape(self.operations)

    def single_tapes(self) -> list[Any]:
        """Return one tape per row."""
        columns = [_single(op, self.rows) for op in self.operations]
        return [self._tape([column[row] for column in columns]) for row in range(self.rows)]

    def _tape(self, operations: Sequence[Any]) -> Any:
        trainable = []
        if self.by:
            starts = np.cumsum([0, *(len(op.data) for op in operations)])
            trainable = starts[list(self.by)].tolist()
        return qml.tape.QuantumScript(operations, self.measurements, self.shots, trainable)


def is_derived(tape: Any) -> bool:
    """Return whether a device is to give a tape's derivatives with its results."""
    return bool(tape.trainable_params)


def sweep_of(operations: Sequence[Any], measurement: Any, shots: int | None = None) -> Sweep:
    """Return the sweep over the rows that the operations have, if any."""
    rows = next((op.batch_size for op in operations if op.batch_size is not None), 1)
    return Sweep(tuple(operations), (measurement,), rows, shots)


def repeated(op: Any, times: int) -> Any:
    """Return an operation whose rows, if it has any, come several times over."""
    if op.batch_size is None:
        return op
    return rebind(op, _data(op, np.tile(np.arange(op.batch_size), times)))


def _dims(op: Any) -> tuple[int, ...]:
    """Dimensions of the parameters without the batch."""
    return dimensions(op) or (0,) * len(op.data)


def _data(op: Any, rows: Any) -> list[Any]:
    """The parameters at some rows."""
    return [p[rows] if np.ndim(p) > n else p for p, n in zip(op.data, _dims(op), strict=True)]


def _single(op: Any, rows: int) -> list[Any]:
    """The operation of every row; rows with equal parameters share it."""
    if op.batch_size is None:
        return [op] * rows
    seen: dict[bytes, Any] = {}
    result = []
    for row in range(rows):
        data = _data(op, row)
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
