"""A circuit of gates with one angle each, and their Jacobian, on the native engine."""

from collections.abc import Sequence

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.circuit.any_angle import rebind
from fubini.circuit.decompose import PREPARATIONS
from fubini.circuit.jacobian import Jacobian
from fubini.circuit.tape import Gate, GateTape
from fubini.errors import UnsupportedCircuitError
from fubini.native.circuit import circuit_of
from fubini.native.pullback import Pullback
from fubini.native.reading import Gates


def of_tape(tape: GateTape, argnum: Sequence[int] | None = None) -> Pullback:
    """Return the pullback of a tape on the native engine.

    Args:
        tape: The circuit at given weights and inputs, with its Jacobian.
        argnum: Gate parameters that are differentiated, see ``GateTape.parameter_numbers``; None for all.

    Returns:
        The pullback.

    Raises:
        UnsupportedCircuitError: Names the operation that the engine does not know.
    """
    parts = Gates()
    # Slots of the engine, and the angle of the tape and the factor that each one has.
    trainable: list[int] = []
    source: list[int] = []
    factors: list[float] = []
    number = 0
    for position, gate in enumerate(tape.gates):
        if position == 0 and isinstance(gate.operation, PREPARATIONS):
            parts.prepare(gate.operation)
            continue
        first = len(parts.values)
        slopes = _added(parts, gate)
        if gate.trainable:
            moving = [k for k, slope in enumerate(slopes) if slope]
            trainable += [first + k for k in moving]
            source += [number] * len(moving)
            factors += [slopes[k] for k in moving]
            number += 1
    angles = np.empty((tape.batch or 1, len(parts.values)))
    for k, value in enumerate(parts.values):
        angles[:, k] = to_numpy(value)
    circuit = circuit_of(parts.structure(tape.wires))
    states = None
    if circuit.takes_state:
        prepared = parts.state(circuit.wires)
        states = to_numpy(prepared, np.complex128).reshape(-1, 2**circuit.num_wires)
    jacobian = Jacobian(trainable, tape.jacobian[:, source] * np.array(factors)[:, None])
    if argnum is not None:
        numbers = [tape.parameter_numbers[k] for k in source]
        chosen = zip(trainable, numbers, strict=True)
        jacobian = jacobian.restricted(slot for slot, n in chosen if n in argnum)
    return Pullback(circuit, angles, jacobian, states, tape.batch, frozenset(trainable))


def _added(parts: Gates, gate: Gate) -> list[float]:
    """Translate a gate, or its parts; the derivatives of the angles of the engine by the gate's own."""
    first, op = len(parts.values), gate.operation
    if parts.take(op):
        return [1.0] * (len(parts.values) - first)
    if not gate.trainable:
        parts.decompose([op])
        return [0.0] * (len(parts.values) - first)
    leaf = torch.as_tensor(to_numpy(op.data[0])).clone().requires_grad_()
    slopes = []
    with torch.enable_grad():
        parts.decompose([rebind(op, [leaf])])
        for value in parts.values[first:]:
            slope = np.zeros(1)
            if isinstance(value, torch.Tensor) and value.requires_grad:
                (found,) = torch.autograd.grad(value.sum(), leaf, retain_graph=True)
                slope = to_numpy(found).reshape(-1)
            if np.ptp(slope) > 0:
                raise UnsupportedCircuitError(
                    f"{op.name}: its gates have angles that are not multiples of its own"
                )
            slopes.append(float(slope[0]))
    return slopes
