"""PennyLane operations taken apart into gates with one angle each, which then has a generator."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.arrays import to_numpy
from fubini.circuit.any_angle import Undecomposed, dimensions, unfold
from fubini.circuit.pauli import known_pauli_sum
from fubini.errors import UnsupportedCircuitError

PREPARATIONS = (qml.operation.StatePrepBase,)
#: In the middle of a circuit, or depending on a result of such.
MEASURED = (qml.ops.MidMeasure, qml.ops.Conditional)

# Matrices: their decompositions look at the values.
_MATRICES = (
    qml.QubitUnitary,
    qml.ControlledQubitUnitary,
    qml.DiagonalQubitUnitary,
    qml.SpecialUnitary,
    qml.BlockEncode,
)

#: Without effect on the state.
IGNORED = frozenset({"Barrier", "Snapshot", "WireCut"})


def taken_apart(
    operations: Sequence[Any], known: Callable[[Any], bool], refuse: Callable[[Any], None]
) -> list[Any]:
    """Take operations apart until an engine knows all of them, by the rules that all engines have in common.

    Args:
        operations: In the order in which they act.
        known: Whether the engine takes an operation as it is.
        refuse: Raises an error for what no decomposition can help with; asked before and after.

    Returns:
        The known operations that do the same.

    Raises:
        Undecomposed: For an operation without a rule or decomposition.
    """
    for op in operations:
        refuse(op)
    found = unfold(operations, known, own_parts)
    for op in found:
        refuse(op)
    return found


def gate_operations(tape: Any, pure: bool = True, keep_preparation: bool = False) -> list[Any]:
    """Decompose to operations with at most one angle, which then has a Pauli-sum generator.

    Args:
        tape: A quantum script.
        pure: Whether channels are refused.
        keep_preparation: Whether the preparation of an initial state that depends on weights stays one operation.

    Returns:
        The operations.

    Raises:
        UnsupportedCircuitError: For what cannot be decomposed so; names the operation.
    """
    first = tape.operations[:1]
    kept = first and isinstance(first[0], PREPARATIONS)
    if not kept or (is_trainable(first[0]) and not keep_preparation):
        first = []
    refuse = functools.partial(_refuse, pure=pure)
    try:
        expanded = taken_apart(tape.operations[len(first) :], _is_gate, refuse)
    except UnsupportedCircuitError:
        raise
    except (
        Undecomposed,
        qml.exceptions.DecompositionUndefinedError,
        AttributeError,
        ImportError,
        IndexError,
        RuntimeError,
        TypeError,
    ) as error:  # what PennyLane's own rules raise for operations they cannot take apart
        raise UnsupportedCircuitError(
            f"qnode: an operation could not be decomposed ({error}); use gates with one angle and a generator for "
            "everything that depends on weights"
        ) from error
    return [op for op in [*first, *expanded] if op.name not in IGNORED]


def own_parts(op: Any) -> list[Any] | None:
    """Take an operation apart so that every parameter of the user drives one angle, where that is possible.

    Returns:
        Its parts in the order in which they act; None where there is no such rule.

    Raises:
        UnsupportedCircuitError: For exponentials that are not unitary, or whose trainable terms do not commute.
    """
    # PennyLane's own rules for U2, U3 and CRot put a parameter into several gates of different layers, and then not
    # even the diagonal of an approximated metric is right for that parameter.
    if isinstance(op, qml.ops.Exp) and not isinstance(op, qml.ops.Evolution):
        return [_as_evolution(op)]
    if isinstance(op, qml.ops.Evolution) and hidden_weights(op):
        return _word_by_word(op)
    if isinstance(op, qml.CRot):
        first, second, third = op.data
        return [qml.CRZ(first, op.wires), qml.CRY(second, op.wires), qml.CRZ(third, op.wires)]
    wire = op.wires[0] if len(op.wires) == 1 else None
    if isinstance(op, qml.Rot):
        return [qml.RZ(op.data[0], wire), qml.RY(op.data[1], wire), qml.RZ(op.data[2], wire)]
    if isinstance(op, qml.U3):  # diag(1, e^i phi) RY(theta) diag(1, e^i delta), exactly
        theta, phi, delta = op.data
        return [qml.PhaseShift(delta, wire), qml.RY(theta, wire), qml.PhaseShift(phi, wire)]
    if isinstance(op, qml.U2):
        phi, delta = op.data
        return [qml.PhaseShift(delta, wire), qml.RY(np.pi / 2, wire), qml.PhaseShift(phi, wire)]
    return None


def _word_by_word(op: Any) -> list[Any]:
    """exp(-i t sum_k c_k P_k) with trainable c_k, for commuting words, as one evolution per word."""
    sentence = op.base.pauli_rep
    words = list(sentence or ())
    if not words or any(not a.commutes_with(b) for a in words for b in words):
        raise UnsupportedCircuitError(
            f"qnode: {op.name} depends on weights through the coefficients of an operator whose terms do not commute; "
            "use qml.TrotterProduct, or make the time the weight"
        )
    return [
        qml.evolve(word.operation(wire_order=op.wires), op.data[0] * sentence[word])
        for word in words
        if len(word)
    ]


def _as_evolution(op: Any) -> Any:
    """exp(i t H) as PennyLane's evolution exp(-i (-t) H), whose parameter is real."""
    real = np.abs(np.real(to_numpy(op.scalar, None))).max(initial=0.0)
    positions = {wire: k for k, wire in enumerate(op.wires)}
    if real > 1e-12 or known_pauli_sum(op.base, positions, len(op.wires)) is None:
        raise UnsupportedCircuitError(
            f"qnode: {op.name} is not unitary or its operator not Hermitian; use qml.evolve(H, t)"
        )
    return qml.evolve(op.base, -qml.math.imag(op.scalar))


def _refuse(op: Any, pure: bool) -> None:
    name = op.name
    if isinstance(op, qml.operation.Channel) and pure:
        raise UnsupportedCircuitError(
            f"qnode: {name} is a channel, and the Fubini-Study metric is defined for pure states; remove it"
        )
    if isinstance(op, MEASURED):
        raise UnsupportedCircuitError(
            f"qnode: {name} is a mid-circuit measurement or depends on one; use qml.defer_measurements(qnode) if the "
            "outcome is not post-selected"
        )


def is_trainable(op: Any) -> bool:
    """Whether one of the parameters requires a gradient."""
    return any(qml.math.requires_grad(p) for p in op.data)


def has_angle(op: Any) -> bool:
    """Whether there is one scalar parameter (per input), as opposed to matrices, state vectors and fixed gates."""
    return len(op.data) == 1 and dimensions(op) == (0,) and not _is_complex(op.data[0])


def _is_complex(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype.is_complex
    return isinstance(value, complex) if dtype is None else np.dtype(dtype).kind == "c"


def _is_gate(op: Any) -> bool:
    if op.name in IGNORED or isinstance(op, (qml.operation.Channel, *MEASURED)):
        return True
    if not op.data and not hidden_weights(op):
        return bool(op.has_matrix)
    if _has_power(op):
        return False  # RX(t)**2 is RX(2 t), which both engines know
    if hidden_weights(op):
        # own_parts takes exponents apart, and PennyLane what is made of other operations; _gate refuses the others.
        return not (isinstance(op, qml.ops.Exp) or op.has_decomposition)
    if has_angle(op):
        return generator_of(op) is not None
    dims = dimensions(op)
    if dims is None or any(n == 0 for n in dims):
        return False
    if is_trainable(op):  # a matrix made of weights: _gate refuses it
        return bool(op.has_matrix) and isinstance(op, _MATRICES)
    return bool(op.has_matrix)


def _has_power(op: Any) -> bool:
    """Whether there is a power in it, be it controlled or inverted."""
    while isinstance(op, (qml.ops.Adjoint, qml.ops.Controlled, qml.ops.Pow)):
        if isinstance(op, qml.ops.Pow):
            return True
        op = op.base
    return False


def hidden_weights(op: Any) -> bool:
    """Whether something that depends on weights is part of the operation without being one of its parameters."""
    leaves, _ = qml.pytrees.flatten(op)
    return any(qml.math.requires_grad(v) and all(v is not p for p in op.data) for v in leaves)


def generator_of(op: Any) -> Any:
    """Return G of exp(i angle G), or None."""
    generator = _generator(op)
    if generator is None:
        return None
    positions = {wire: k for k, wire in enumerate(op.wires)}
    return generator if known_pauli_sum(generator, positions, len(op.wires)) is not None else None


def _generator(op: Any) -> Any:
    """The same as a PennyLane operator, whatever it is; PennyLane's own fails for batches of evolutions."""
    if isinstance(op, qml.ops.Evolution):
        return -1 * op.base
    if isinstance(op, qml.ops.Adjoint):
        inner = _generator(op.base)
        return None if inner is None else -1 * inner
    if isinstance(op, qml.ops.Controlled) and type(op).__name__ in ("Controlled", "ControlledOp"):
        inner = _generator(op.base)
        if inner is None:
            return None
        controls = zip(op.control_values, op.control_wires, strict=True)
        return qml.prod(*(qml.Projector([int(v)], wires=w) for v, w in controls), inner)
    if not op.has_generator:
        return None
    try:
        return op.generator()
    except qml.operation.GeneratorUndefinedError:
        return None
