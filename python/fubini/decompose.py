"""PennyLane operations taken apart into gates with one angle each, which then has a generator."""

from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini._arrays import to_numpy
from fubini.errors import UnsupportedCircuitError
from fubini.pauli import pauli_sum

PREPARATIONS = (qml.operation.StatePrepBase,)

_IGNORED = {"Barrier", "Snapshot", "WireCut"}  # no effect on the state


def gate_operations(tape: Any, pure: bool = True) -> list[Any]:
    """Decompose to operations with at most one angle, which then has a Pauli-sum generator.

    Args:
        tape: A quantum script.
        pure: Whether channels are refused.

    Returns:
        The operations.

    Raises:
        UnsupportedCircuitError: For what cannot be decomposed so; names the operation.
    """
    for op in tape.operations:
        _refuse(op, pure)
    first = tape.operations[0] if tape.operations else None
    skip_first = isinstance(first, PREPARATIONS) and not is_trainable(first)
    try:
        [expanded], _ = qml.devices.preprocess.decompose(
            tape,
            stopping_condition=_is_gate,
            skip_initial_state_prep=skip_first,
            decomposer=_decomposition,
            name="fubini",
        )
    except UnsupportedCircuitError:
        raise
    except (
        qml.exceptions.DeviceError,
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
    operations = [op for op in expanded.operations if op.name not in _IGNORED]
    for op in operations:
        _refuse(op, pure)
    return operations


def _decomposition(op: Any) -> Any:
    """Decompose so that every parameter of the user drives one angle where that is possible."""
    # PennyLane's own rules for U2, U3 and CRot put a parameter into several gates of different layers, and then not
    # even the diagonal of an approximated metric is right for that parameter.
    if isinstance(op, qml.ops.Exp) and not isinstance(op, qml.ops.Evolution):
        return [_as_evolution(op)]
    if isinstance(op, qml.ops.Evolution) and hidden_weights(op):
        return _word_by_word(op)
    if isinstance(op, qml.ops.op_math.Adjoint) and isinstance(op.base, qml.ops.Exp):
        inner = op.base if isinstance(op.base, qml.ops.Evolution) else _as_evolution(op.base)
        return [qml.evolve(inner.base, -inner.data[0])]
    if isinstance(op, qml.CRot):
        base, controls, values = qml.Rot(*op.data, wires=op.wires[1]), op.wires[:1], [True]
    elif isinstance(op, qml.ops.Controlled):
        base, controls, values = op.base, op.control_wires, op.control_values
    else:
        base, controls, values = op, [], []
    wire = base.wires[0] if len(base.wires) == 1 else None
    if isinstance(base, qml.ops.Exp) and controls and not isinstance(base, qml.ops.Evolution):
        parts = [_as_evolution(base)]
    elif isinstance(base, qml.Rot):
        parts = [qml.RZ(base.data[0], wire), qml.RY(base.data[1], wire), qml.RZ(base.data[2], wire)]
    elif isinstance(base, qml.U3):  # diag(1, e^i phi) RY(theta) diag(1, e^i delta), exactly
        theta, phi, delta = base.data
        parts = [qml.PhaseShift(delta, wire), qml.RY(theta, wire), qml.PhaseShift(phi, wire)]
    elif isinstance(base, qml.U2):
        phi, delta = base.data
        parts = [qml.PhaseShift(delta, wire), qml.RY(np.pi / 2, wire), qml.PhaseShift(phi, wire)]
    else:
        return op.decomposition()
    if not controls:
        return parts
    return [qml.ctrl(part, control=controls, control_values=values) for part in parts]


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
    if real > 1e-12 or pauli_sum(op.base, positions, len(op.wires)) is None:
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
    if isinstance(op, qml.ops.Conditional | qml.ops.MidMeasure):
        raise UnsupportedCircuitError(
            f"qnode: {name} is a mid-circuit measurement or depends on one; use qml.defer_measurements(qnode) if the "
            "outcome is not post-selected"
        )


def is_trainable(op: Any) -> bool:
    """Whether one of the parameters requires a gradient."""
    return any(qml.math.requires_grad(p) for p in op.data)


def has_angle(op: Any) -> bool:
    """Whether there is one scalar parameter (per input), as opposed to matrices, state vectors and fixed gates."""
    return op.num_params == 1 and _ndims(op) == (0,) and not _is_complex(op.data[0])


def _is_complex(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    if isinstance(dtype, torch.dtype):
        return dtype.is_complex
    return isinstance(value, complex) if dtype is None else np.dtype(dtype).kind == "c"


def _ndims(op: Any) -> tuple[int, ...] | None:
    """Dimensions of the parameters without a batch, None for composite operations that do not know them."""
    try:
        return tuple(op.ndim_params)
    except (AttributeError, TypeError, NotImplementedError):
        return None


def _is_gate(op: Any) -> bool:
    if op.name in _IGNORED or isinstance(
        op, qml.operation.Channel | qml.ops.Conditional | qml.ops.MidMeasure
    ):
        return True
    if op.num_params == 0:
        return bool(op.has_matrix)
    if isinstance(op, qml.ops.Pow) and op.has_decomposition:
        return False  # RX(t)**2 is RX(2 t), which both engines know
    if hidden_weights(op):
        return not isinstance(
            op, qml.ops.Exp
        )  # _decomposition takes exponents apart, _gate refuses the others
    if has_angle(op):
        return generator_of(op) is not None
    dims = _ndims(op)
    if dims is None or any(n == 0 for n in dims):
        return False
    if is_trainable(
        op
    ):  # a matrix made of weights: _gate refuses it; a state preparation has a circuit
        return bool(op.has_matrix) and not isinstance(op, PREPARATIONS)
    return bool(op.has_matrix)


def hidden_weights(op: Any) -> bool:
    """Whether something that depends on weights is part of the operation without being one of its parameters."""
    leaves, _ = qml.pytrees.flatten(op)
    return any(qml.math.requires_grad(v) and all(v is not p for p in op.data) for v in leaves)


def generator_of(op: Any) -> Any:
    """Return G of exp(i angle G), or None."""
    if not op.has_generator:
        return None
    try:
        generator = op.generator()
    except qml.operation.GeneratorUndefinedError:
        return None
    positions = {wire: k for k, wire in enumerate(op.wires)}
    return generator if pauli_sum(generator, positions, len(op.wires)) is not None else None
