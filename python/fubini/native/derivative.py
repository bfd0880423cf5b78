r"""Derivatives of the metric over a circuit's angles, exact, from second derivatives of the state.

With tangents T_i = d_i psi and the projector Pi = 1 - |psi><psi|, the geometric tensor is Q_ij = <T_i|Pi|T_j>, and

    dQ_ij = <dT_i|Pi T_j> + <Pi T_i|dT_j> - <T_i|d psi><psi|T_j> - <T_i|psi><d psi|T_j>.

The kernel has Re <d_a d_v psi|phi> for given v and phi by one forward and one reverse sweep. A gradient of L(g) and a
derivative along one direction take k of these for k angles.
"""

import numpy as np

from fubini import _core
from fubini.native.circuit import Circuit
from fubini.options import Complex, Index, Real
from fubini.runtime import MATRIX_FREE, check_fits


def tangent_states(
    circuit: Circuit, angles: Real, states: Complex | None, rows: Index
) -> tuple[Complex, Complex]:
    """Return the state and its derivatives for one input, up to one constant unitary and the global phase.

    Args:
        circuit: The circuit.
        angles: (1, A).
        states: Initial state (1, N) or None.
        rows: Angles to differentiate by, (k,).

    Returns:
        psi (N,) and d psi / d angle (k, N).

    Raises:
        MemoryError: If they are larger than the bound.
    """
    # Once as they are, once without their part along psi.
    check_fits(
        f"{len(rows)} derivative states of {circuit.num_wires} qubits",
        4.0 * len(rows) * 2.0**circuit.num_wires,
        MATRIX_FREE,
    )
    psi: Complex = _core.derivative_states(circuit.program, angles, None, states)[0]
    if not len(rows):
        return psi, np.zeros((0, len(psi)), dtype=complex)
    unit = _unit(rows, circuit.num_angles)
    return psi, _core.derivative_states(circuit.program, angles, unit, states, len(rows))


def without_state(psi: Complex, tangents: Complex) -> Complex:
    """Return Pi T, (k, N): tangents without their part along psi."""
    result: Complex = tangents - (tangents @ psi.conj())[:, None] * psi
    return result


def gradient(
    circuit: Circuit, angles: Real, states: Complex | None, rows: Index, weights: Complex
) -> Real:
    """Return d/d angles of Re sum_ij W_ij Q_ij for one input, (A,).

    Args:
        circuit: The circuit.
        angles: (1, A).
        states: Initial state (1, N) or None.
        rows: Angles of Q, (k,).
        weights: W, (k, k); for the metric, the real part of Q, a real matrix that is made symmetric here.
    """
    if not len(rows):
        return np.zeros(circuit.num_angles)
    psi, tangents = tangent_states(circuit, angles, states, rows)
    hermitian = weights + weights.conj().T  # Q is Hermitian: L = sum_ij H_ij Q_ij / 2
    moved = hermitian @ tangents
    covectors = np.ascontiguousarray(without_state(psi, moved))
    unit = _unit(rows, circuit.num_angles)
    second = _core.overlap_gradient(circuit.program, angles, covectors, unit, states, len(rows))
    overlaps = tangents.conj() @ psi
    first = _core.overlap_gradient(
        circuit.program, angles, np.ascontiguousarray(-(overlaps @ moved))[None], None, states
    )
    result: Real = second.sum(axis=0) + first[0]
    return result


def along(
    circuit: Circuit, angles: Real, states: Complex | None, rows: Index, direction: Real
) -> Real:
    """Return d/dt g(angles + t direction) at t = 0 for one input, (k, k).

    Args:
        circuit: The circuit.
        angles: (1, A).
        states: Initial state (1, N) or None.
        rows: Angles of g, (k,).
        direction: (A,).
    """
    if not len(rows):
        return np.zeros((0, 0))
    psi, tangents = tangent_states(circuit, angles, states, rows)
    moving = np.ascontiguousarray(np.broadcast_to(direction, (len(rows), len(direction))))
    covectors = np.ascontiguousarray(without_state(psi, tangents))
    second = _core.overlap_gradient(circuit.program, angles, covectors, moving, states, len(rows))
    half = second[:, rows]  # Re <d_j d_v psi|Pi T_i>
    change: Complex = _core.derivative_states(circuit.program, angles, moving[:1], states)[0]
    projector = np.outer(tangents.conj() @ change, psi.conj() @ tangents.T).real
    half = half - projector
    result: Real = half + half.T
    return result


def _unit(rows: Index, size: int) -> Real:
    unit = np.zeros((len(rows), size))
    unit[np.arange(len(rows)), rows] = 1.0
    return unit
