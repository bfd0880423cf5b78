"""PennyLane operations taken apart by rules that never look at the value of a parameter.

PennyLane's own decompositions skip rotations by zero, merge equal angles and know multiples of pi: at such a point the
circuit would have another structure, and derivatives there would be those of another circuit. Here controls are handed
down to the parts of an operation, inverses negate angles, and powers multiply them, so that one rule holds for all
values. What no rule covers is decomposed by PennyLane under a watch: a decomposition that uses a differentiated
parameter in any other way than computing further parameters from it is refused by name.
"""

import numbers
from collections.abc import Callable, Sequence
from typing import Any

import pennylane as qml
import torch

from fubini.circuit.torch_names import ASKED, COMPUTED, SIZES, name_of, words
from fubini.errors import UnsupportedCircuitError


class Undecomposed(Exception):
    """An operation for which there is neither a rule nor a decomposition.

    Attributes:
        operation: The operation.
    """

    def __init__(self, operation: Any) -> None:
        super().__init__(f"{operation} has no decomposition")
        self.operation = operation


Parts = Callable[[Any], Sequence[Any] | None]

# Far beyond what nesting makes sense of; a gate that decomposes into itself ends here.
_MAX_DEPTH = 100


# What a decomposition may do with a differentiated tensor: compute with it, and look at its shape and type. Comparing
# it, converting it to a number or detaching it is not among these.
_HARMLESS = COMPUTED | ASKED | SIZES
_HARMLESS |= set(
    words(
        "requires_grad grad_fn is_leaf hash is_tensor promote_types result_type tensor type complex cdouble conj conj_physical"
    )
)


class Watch(torch.overrides.TorchFunctionMode):
    """Notes the first use of a differentiated tensor that is more than computing with it.

    Attributes:
        found: Name of the torch function, or None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = name_of(function)
        if name not in _HARMLESS and self.found is None and _any_requires_grad(args):
            self.found = name
        return function(*args, **(kwargs or {}))


def _any_requires_grad(values: Any) -> bool:
    return any(
        v.requires_grad
        if isinstance(v, torch.Tensor)
        else isinstance(v, tuple | list) and _any_requires_grad(v)
        for v in values
    )


def unfold(operations: Sequence[Any], known: Callable[[Any], bool], own: Parts) -> list[Any]:
    """Take operations apart until all of them are known.

    Args:
        operations: In the order in which they act.
        known: Whether an operation can stay as it is.
        own: Further rules, asked first: the parts of an operation in the order in which they act, or None.

    Returns:
        The known operations that do the same.

    Raises:
        UnsupportedCircuitError: If PennyLane's decomposition looks at the values of differentiated parameters.
        Undecomposed: For an operation without a rule or decomposition.
    """
    result = []
    waiting = [(op, 0) for op in reversed(operations)]
    with qml.QueuingManager.stop_recording():
        while waiting:
            op, depth = waiting.pop()
            if known(op):
                result.append(op)
                continue
            if depth > _MAX_DEPTH:
                raise Undecomposed(op)
            parts = own(op)
            if parts is None:
                parts = parts_of(op, own)
            waiting += [(part, depth + 1) for part in reversed(parts)]
    return result


def parts_of(op: Any, own: Parts) -> Sequence[Any]:
    """Take an operation apart by one step.

    Args:
        op: The operation.
        own: Further rules, for what is inside of controls, inverses and powers.

    Returns:
        Its parts in the order in which they act.

    Raises:
        UnsupportedCircuitError: If PennyLane's decomposition looks at the values of differentiated parameters.
        Undecomposed: For an operation without a rule or decomposition.
    """
    parts: Sequence[Any] | None = None
    if isinstance(op, qml.ops.Adjoint):
        parts = _inverse(op.base, own)
    elif isinstance(op, qml.ops.Pow):
        parts = _power(op.base, op.z, op.wires)
    elif isinstance(op, qml.ops.Prod):
        return list(reversed(op.operands))
    elif isinstance(op, qml.ops.Controlled):
        parts = _controlled(op, own)
    elif isinstance(op, qml.ControlledSequence):
        controls = list(op.control_wires)
        powers = [2**k for k in reversed(range(len(controls)))]
        parts = [
            qml.ctrl(qml.pow(op.base, z), wire) for z, wire in zip(powers, controls, strict=True)
        ]
    return _decomposition(op) if parts is None else parts


def is_rotation(op: Any) -> bool:
    """Whether an operation is exp(i t G) with t its one parameter, by PennyLane's meaning of a generator."""
    if len(op.data) != 1 or not op.has_generator or isinstance(op, qml.ops.SymbolicOp):
        return False
    return dimensions(op) == (0,)


def dimensions(op: Any) -> tuple[int, ...] | None:
    """Return the dimensions of an operation's parameters without a batch.

    Returns:
        One per parameter; None for composite operations that do not know them.
    """
    if isinstance(op, qml.ops.Exp):  # PennyLane raises an AttributeError
        return (0,) * len(op.data)
    if isinstance(op, (qml.ops.Adjoint, qml.ops.Controlled, qml.ops.Pow)):
        return dimensions(op.base)
    try:
        return tuple(op.ndim_params)
    except (AttributeError, TypeError, NotImplementedError):
        return None


def rebind(op: Any, data: Sequence[Any]) -> Any:
    """Return an operation with other parameter values, whose shapes may have gained or lost the batch.

    ``qml.ops.functions.bind_new_parameters`` keeps a stale batch size for some operations (MultiRZ), and PennyLane
    then runs the batch as if it were part of the state.
    """
    if isinstance(op, qml.ops.Evolution):  # its leaves include the operator's coefficients
        return qml.evolve(op.base, data[0])
    if isinstance(op, qml.ops.Controlled) and type(op).__name__ in ("Controlled", "ControlledOp"):
        return qml.ctrl(
            rebind(op.base, data), control=op.control_wires, control_values=op.control_values
        )
    if isinstance(op, qml.ops.op_math.Adjoint):
        return qml.adjoint(rebind(op.base, data), lazy=True)
    leaves, structure = qml.pytrees.flatten(op)
    if len(leaves) == len(op.data):
        return qml.pytrees.unflatten(list(data), structure)
    return qml.ops.functions.bind_new_parameters(op, data)


def _same_controls(part: Any, op: Any) -> Any:
    return qml.ctrl(part, control=op.control_wires, control_values=op.control_values)


def _controlled(op: Any, own: Parts) -> Sequence[Any] | None:
    base = op.base
    if isinstance(base, qml.ops.Controlled):
        # One set of controls, which more gates have a name for.
        return [
            qml.ctrl(
                base.base,
                control=op.control_wires + base.control_wires,
                control_values=[*op.control_values, *base.control_values],
            )
        ]
    if not base.data and not isinstance(base, qml.ops.Prod):
        return None  # no value to look at
    parts = own(base)
    if parts is None:
        halves = _halves(op)
        if halves is not None:
            return halves
        parts = parts_of(base, own)
    return [_same_controls(part, op) for part in parts]


def _halves(op: Any) -> list[Any] | None:
    """A controlled rotation as two halves, of which a controlled Pauli gate that anticommutes turns one around."""
    base = op.base
    if isinstance(base, (qml.PhaseShift, qml.U1)):  # a rotation about Z and half the phase
        angle, wire = base.data[0], base.wires[0]
        phase = qml.GlobalPhase(-0.5 * angle, wires=wire)
        return [_same_controls(qml.RZ(angle, wire), op), _same_controls(phase, op)]
    if isinstance(base, qml.GlobalPhase):
        *others, last = zip(op.control_wires, op.control_values, strict=True)
        shift = qml.PhaseShift(-base.data[0], last[0])
        flips = [] if last[1] else [qml.X(last[0])]
        wires, values = [w for w, _ in others], [v for _, v in others]
        controlled = qml.ctrl(shift, wires, control_values=values) if wires else shift
        return [*flips, controlled, *flips]
    if isinstance(base, (qml.RX, qml.RY)):
        turn = qml.Z(base.wires[0])
    elif isinstance(base, (qml.RZ, qml.MultiRZ)):
        turn = qml.X(base.wires[0])
    else:
        return None
    half = 0.5 * base.data[0]
    turned = _same_controls(turn, op)
    return [turned, rebind(base, [-half]), turned, rebind(base, [half])]


def _inverse(base: Any, own: Parts) -> Sequence[Any] | None:
    if isinstance(base, qml.ops.Adjoint):
        return [base.base]
    if isinstance(base, qml.ops.Controlled):
        inside = _inverse(base.base, own) if base.data else None
        return None if inside is None else [_same_controls(part, base) for part in inside]
    if isinstance(base, qml.ops.Evolution):
        return [qml.evolve(base.base, -base.data[0])]
    if isinstance(base, qml.ops.Exp):
        return [qml.exp(base.base, -base.scalar)]
    if is_rotation(base):
        return [rebind(base, [-base.data[0]])]
    if not base.data and not isinstance(base, qml.ops.Prod):
        return None
    parts = own(base)
    parts = parts_of(base, own) if parts is None else parts
    return [qml.adjoint(part) for part in reversed(parts)]


def _power(base: Any, z: Any, wires: Any) -> Sequence[Any] | None:
    if not isinstance(z, numbers.Real):
        return None
    if isinstance(base, qml.ops.Evolution):
        return [qml.evolve(base.base, z * base.data[0])]
    if isinstance(base, qml.ops.Exp):
        return [qml.exp(base.base, z * base.scalar)]
    if isinstance(base, qml.ops.Controlled) and base.data:
        return [_same_controls(qml.pow(base.base, z), base)]
    if isinstance(base, qml.ops.Adjoint) and base.data:
        return [qml.adjoint(qml.pow(base.base, z))]
    if isinstance(base, qml.ops.Pow) and base.data:
        return [qml.pow(base.base, base.z * z)]
    if is_rotation(base):
        return [rebind(base, [z * base.data[0]])]
    if float(z).is_integer() and (base.data or isinstance(base, qml.ops.Prod)):
        part = base if float(z) > 0 else qml.adjoint(base)
        return [part] * abs(int(float(z))) or [qml.Identity(wires)]
    return None


def _decomposition(op: Any) -> Sequence[Any]:
    """PennyLane's decomposition, if it does not depend on the values of differentiated parameters."""
    if not op.has_decomposition:
        raise Undecomposed(op)
    leaves, structure = qml.pytrees.flatten(op)
    moving = [k for k, v in enumerate(leaves) if qml.math.requires_grad(v)]
    if not moving:
        return list(op.decomposition())
    watched = op
    if not all(isinstance(leaves[k], torch.Tensor) for k in moving):
        # Autograd and JAX have no such watch: the same operation with torch's tensors shows what is looked at.
        for k in moving:
            value = torch.as_tensor(qml.math.toarray(qml.math.unwrap([leaves[k]])[0]))
            leaves[k] = value.to(torch.float64).requires_grad_()
        watched = qml.pytrees.unflatten(leaves, structure)
    with Watch() as watch:
        parts = list(watched.decomposition())
    if watch.found:
        raise UnsupportedCircuitError(
            f"{op.name}: its decomposition looks at the values of its parameters ({watch.found}), so that a derivative "
            "may be that of another circuit. Write it as gates with one angle each (RX, RZ, PauliRot, ...)."
        )
    return parts if watched is op else list(op.decomposition())
