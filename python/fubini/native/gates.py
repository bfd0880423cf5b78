"""PennyLane operations as gates of the native engine.

The gate table itself is in C++ (``cpp/core/gates.cpp``); this module maps PennyLane's operations onto it: controls,
adjoints and powers of table gates, Pauli rotations, exponentials of Hermitian operators, and constant matrices.
"""

import itertools
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pennylane as qml

from fubini import _core
from fubini.circuit.decompose import IGNORED
from fubini.circuit.observables import words_of
from fubini.circuit.pauli import walsh
from fubini.errors import UnsupportedCircuitError

#: Name -> (wires, parameters) of every gate that the engine knows by name. PSWAP is left out: it is a swap and a rotation,
#: and layers of gates are to be found among these parts, as they are on devices.
TABLE: dict[str, tuple[int, int]] = {
    name: (wires, parameters) for name, wires, parameters in _core.gate_table() if name != "PSWAP"
}

#: Excitations of fermions under the Jordan-Wigner map: the same gate of qubits, and the sign of its angle.
_FERMIONIC = {
    "FermionicSingleExcitation": ("SingleExcitation", -1.0),
    "FermionicDoubleExcitation": ("DoubleExcitation", 1.0),
}

#: What angles are the parameters of, just as they are.
_WITH_ANGLES = frozenset({*TABLE, *_FERMIONIC, "PauliRot", "MultiRZ"})

#: Constants on more wires than this are left to PennyLane's decomposition.
MAX_MATRIX_WIRES = 8

#: Exponents on more wires than this, 2^k words of Z each, are left to PennyLane.
MAX_SPECTRAL_WIRES = 6


class Parameter(NamedTuple):
    """``coefficient * angles[slot] + offset``; slot -1 stands for the offset alone."""

    slot: int
    coefficient: float = 1.0
    offset: float = 0.0


class NativeGate(NamedTuple):
    """One call of the engine's program builder; wires are labels until the circuit numbers them.

    Args:
        kind: "table", "pauli", "matrix" or "diagonal".
        name: Gate of the table, or the Pauli word.
        wires: Target wires.
        controls: Control wires.
        control_values: 0 or 1 for each control.
        adjoint: Whether the inverse is applied.
        parameters: One per gate parameter.
        data: Bytes of the complex128 constant, for "matrix" and "diagonal".
    """

    kind: str
    name: str
    wires: tuple[Any, ...]
    controls: tuple[Any, ...] = ()
    control_values: tuple[int, ...] = ()
    adjoint: bool = False
    parameters: tuple[Parameter, ...] = ()
    data: bytes = b""


def angle_values(op: Any) -> list[Any]:
    """Real gate parameters of an operation, in the order in which the engine counts them.

    Args:
        op: A PennyLane operation that ``native_gates`` accepts.

    Returns:
        Scalars, or arrays of shape (B,) for a batch, of whatever library the operation holds.
    """
    if op.name in _WITH_ANGLES:
        return list(op.data)
    if isinstance(op, qml.ops.Adjoint) or _is_plain_controlled(op):
        return angle_values(op.base)
    if isinstance(op, qml.ops.Evolution):
        return [op.data[0]]
    if isinstance(op, qml.ops.Exp):
        coefficient = op.data[0]
        is_complex = "complex" in qml.math.get_dtype_name(coefficient)
        return [qml.math.imag(coefficient) if is_complex else 0.0]
    return []


def native_gates(op: Any, first_slot: int = 0) -> list[NativeGate] | None:
    """Translates one PennyLane operation.

    Args:
        op: The operation.
        first_slot: Index of its first angle in the circuit.

    Returns:
        The gates in the order in which they act, or None when the engine needs the operation decomposed.
    """
    name = op.name
    wires = tuple(op.wires)
    if name == "Identity" or name in IGNORED:
        return []
    if name in TABLE:
        slots = tuple(Parameter(first_slot + i) for i in range(len(op.data)))
        return [NativeGate("table", name, () if name == "GlobalPhase" else wires, parameters=slots)]
    if name in _FERMIONIC:
        return _fermionic(op, first_slot)
    if name == "PauliRot":
        word = op.hyperparameters["pauli_word"]
        return [NativeGate("pauli", word, wires, parameters=(Parameter(first_slot),))]
    if name == "MultiRZ":
        return [NativeGate("pauli", "Z" * len(wires), wires, parameters=(Parameter(first_slot),))]
    if isinstance(op, qml.ops.Adjoint) or _is_plain_controlled(op):
        return _adjoint_or_controlled(op, first_slot)
    if isinstance(op, qml.ops.Exp):
        return _exponential(op, first_slot)
    if isinstance(op, qml.ops.Pow):
        return _power(op)
    return _constant(op)


def _fermionic(op: Any, first_slot: int) -> list[NativeGate]:
    """exp(angle (T - T^+)) as one rotation, where PennyLane makes two or eight: that of qubits, with the sign of those between."""
    name, sign = _FERMIONIC[op.name]
    double = op.hyperparameters
    runs = (double["wires1"], double["wires2"]) if double else (op.wires,)
    ends = tuple(end for run in runs for end in (run[0], run[-1]))
    between = [wire for run in runs for wire in run[1:-1]]
    signs = [NativeGate("table", "CZ", (wire, ends[0])) for wire in between]
    excitation = NativeGate("table", name, ends, parameters=(Parameter(first_slot, sign),))
    return [*signs, excitation, *signs]


def _is_plain_controlled(op: Any) -> bool:
    return isinstance(op, qml.ops.Controlled) and op.name not in TABLE


def _adjoint_or_controlled(op: Any, first_slot: int) -> list[NativeGate] | None:
    gates = native_gates(op.base, first_slot)
    if gates is None:
        return None
    if isinstance(op, qml.ops.Adjoint):
        return [gate._replace(adjoint=not gate.adjoint) for gate in reversed(gates)]
    controls = tuple(op.control_wires)
    values = tuple(int(value) for value in op.control_values)
    return [
        g._replace(controls=controls + g.controls, control_values=values + g.control_values)
        for g in gates
    ]


def _exponential(op: Any, first_slot: int) -> list[NativeGate] | None:
    """exp(i a H) for a Hermitian H: one rotation per word of a commuting Pauli sum, else in H's eigenbasis."""
    if getattr(op, "num_steps", None) is not None:
        return None
    sign = -1.0 if isinstance(op, qml.ops.Evolution) else 1.0
    if sign > 0 and not _is_zero(qml.math.real(op.data[0])):
        return None
    sentence = words_of(op.base) or {}
    if any(qml.math.requires_grad(weight) for weight in sentence.values()):
        raise UnsupportedCircuitError(
            f"{op.name}: the coefficients of the exponent require a gradient, and the engine takes them as "
            "constants. Use qml.ApproxTimeEvolution or qml.PauliRot with the products as angles."
        )
    pairs = itertools.combinations(sentence, 2)
    if not sentence or not all(one.commutes_with(other) for one, other in pairs):
        return _spectral(op, sign, first_slot)
    gates = []
    for word, weight in sentence.items():
        weight = complex(qml.math.toarray(weight))
        if abs(weight.imag) > 1e-12 * max(1.0, abs(weight)):
            return None
        gates.append(_rotation("".join(word.values()), tuple(word), sign * weight.real, first_slot))
    return gates


def _rotation(word: str, wires: tuple[Any, ...], weight: float, slot: int) -> NativeGate:
    """exp(i a w P), which is exp(-i t P / 2) with t = -2 a w."""
    return NativeGate("pauli", word, wires, parameters=(Parameter(slot, -2.0 * weight),))


def _spectral(op: Any, sign: float, first_slot: int) -> list[NativeGate] | None:
    """exp(i a H) = V exp(i a D) V^dagger, where the diagonal D is a sum of 2^k words of Z."""
    base, wires = op.base, tuple(op.base.wires)
    if len(wires) > MAX_SPECTRAL_WIRES or not base.has_matrix:
        return None
    sentence = words_of(base)
    present = base if sentence is None else qml.pauli.PauliSentence(sentence)
    matrix = _constant_array(base, qml.matrix(present, wire_order=wires), 2)
    if not np.allclose(matrix, matrix.conj().T, rtol=0, atol=1e-12 * np.abs(matrix).max()):
        return None
    values, vectors = np.linalg.eigh(matrix)
    weights = walsh(values) / len(values)
    gates = [_matrix_gate(op.name, wires, vectors.conj().T)]
    for mask, weight in enumerate(weights.tolist()):
        if abs(weight) > 1e-15 * np.abs(values).max():
            word = f"{mask:0{len(wires)}b}".replace("0", "I").replace("1", "Z")
            gates.append(_rotation(word, wires, sign * weight, first_slot))
    return [*gates, _matrix_gate(op.name, wires, vectors)]


def _matrix_gate(name: str, wires: tuple[Any, ...], matrix: Any) -> NativeGate:
    data = np.ascontiguousarray(matrix, dtype=np.complex128).tobytes()
    return NativeGate("matrix", name, wires, data=data)


def _is_zero(value: Any) -> bool:
    return bool(np.all(np.abs(np.asarray(qml.math.toarray(value))) < 1e-14))


def _power(op: Any) -> list[NativeGate] | None:
    """Powers of parametrised gates are decomposed by PennyLane, to the same gate at a multiple of the angle."""
    if op.data:
        return None
    if isinstance(op.z, int) and 0 <= op.z <= 8:
        gates = native_gates(op.base)
        return None if gates is None else gates * op.z
    return _constant(op)


def _constant(op: Any) -> list[NativeGate] | None:
    name = op.name
    wires = tuple(op.wires)
    if name == "DiagonalQubitUnitary":
        diagonal = _constant_array(op, op.data[0], 1)
        return [NativeGate("diagonal", name, wires, data=diagonal.tobytes())]
    is_matrix = name in {"QubitUnitary", "BlockEncode"}
    if not is_matrix and (op.data or op.has_decomposition or not op.has_matrix):
        return None
    if len(wires) > MAX_MATRIX_WIRES or isinstance(op, qml.operation.StatePrepBase):
        return None
    matrix = _constant_array(op, op.matrix() if not is_matrix else qml.matrix(op), 2)
    return [_matrix_gate(name, wires, matrix)]


def _constant_array(op: Any, value: Any, ndim: int) -> np.ndarray[Any, np.dtype[np.complex128]]:
    if any(qml.math.requires_grad(data) for data in op.data):
        raise UnsupportedCircuitError(
            f"{op.name}: its matrix requires a gradient, and the native engine takes matrices as constants. "
            "Detach it, or parametrise the gate by angles."
        )
    array = np.ascontiguousarray(qml.math.toarray(qml.math.detach(value)), dtype=np.complex128)
    if array.ndim != ndim:
        raise UnsupportedCircuitError(
            f"{op.name}: expected one matrix for the whole batch, got an array of shape {array.shape}. "
            "Parametrise the gate by angles, or use the device engine."
        )
    return array


def refuse(op: Any) -> None:
    """Refuse what no decomposition can help with.

    Raises:
        UnsupportedCircuitError: For channels and mid-circuit measurements.
    """
    kind: Any = type(op)
    if not _is_refused(kind):
        return
    if isinstance(op, qml.operation.Channel):
        raise UnsupportedCircuitError(
            f"{op.name}: the native engine simulates pure states, and this is a noise channel. "
            "Run the QNode on its device (engine='device')."
        )
    raise UnsupportedCircuitError(
        f"{op.name}: mid-circuit measurements are not supported by the native engine. "
        "Use qml.defer_measurements on the QNode, or run it on its device (engine='device')."
    )


@lru_cache(maxsize=1024)
def _is_refused(kind: type) -> bool:
    return issubclass(kind, (qml.operation.Channel, qml.ops.MidMeasure, qml.ops.Conditional))
