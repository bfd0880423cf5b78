"""Metrics of mixed states: what the Fubini-Study metric becomes under noise. There is more than one answer.

The quantum Fisher information by the symmetric logarithmic derivative is the smallest metric that no channel increases
(Braunstein and Caves 1994, Phys. Rev. Lett. 72, 3439): it bounds what any measurement can learn about the angles, and
falls as noise grows. The Hilbert-Schmidt metric Tr(d_i rho d_j rho)/2 is linear in the state's derivatives and needs no
eigenvalues, but noise may increase it relative to other directions. Both are scaled here to equal the Fubini-Study
metric g for pure states; the quantum Fisher information itself is 4 g. The covariances of generators, which are the
pure-state metric, are neither of them in a mixed state, and are refused for circuits with channels.

Density matrices come from default.mixed; their derivatives from parameter shifts of the density matrix itself, which is
as linear in the state as an expectation value is.
"""

from typing import Any, Literal

import numpy as np
import pennylane as qml

from fubini import _core
from fubini.arrays import to_numpy
from fubini.circuit.tape import GateTape
from fubini.devices.executor import Array
from fubini.devices.job import Job
from fubini.devices.shifts import at_settings, refuse_without_rule
from fubini.devices.sweep import Sweep
from fubini.errors import UnsupportedCircuitError
from fubini.options import Complex, Real

Kind = Literal["fisher", "hilbert-schmidt"]

# Sums of two eigenvalues of a density matrix below this are rounding of zero.
_CUTOFF = 1e-10


def mixed_metric_job(
    tape: GateTape, device: Any, *, kind: Kind = "fisher", cutoff: float = _CUTOFF
) -> Job[Real]:
    """Return the job that finds a mixed state's metric over the trainable angles.

    It runs 2R circuits for every trainable angle with R frequencies, and one more, for each input; on default.mixed they
    are settings of one broadcast tape.

    Args:
        tape: The circuit, with or without channels.
        device: default.mixed, analytic.
        kind: ``"fisher"``: a quarter of the quantum Fisher information; ``"hilbert-schmidt"``: Tr(d_i rho d_j rho)/2.
        cutoff: Pairs of eigenvalues with a smaller sum count as the kernel of rho and are left out. Where noise of less
            than this fills the kernel, the result is that of the state without it.

    Returns:
        The job; its result is (1 or batch, angles, angles).

    Raises:
        UnsupportedCircuitError: For another device, and gates without a shift rule.
        ValueError: For an unknown kind or a cutoff that is not positive.
    """
    if kind not in ("fisher", "hilbert-schmidt"):
        raise ValueError(f"kind: expected 'fisher' or 'hilbert-schmidt', got {kind!r}")
    if not cutoff > 0:
        raise ValueError(f"cutoff: expected a number > 0, got {cutoff!r}")
    if device.name != "default.mixed":
        raise UnsupportedCircuitError(
            f"device: expected default.mixed, which returns density matrices, got {device.name!r}"
        )
    found = refuse_without_rule(tape, "the derivative of a density matrix")
    count, rows = len(found), tape.rows
    plan = _core.ShiftPlan(list(range(count)), [list(f) for f in found])
    settings = np.concatenate([plan.angles(tape.at), tape.at[None]])
    measured = (qml.density_matrix(wires=list(tape.wires)),)
    sweep = Sweep(tuple(at_settings(tape, settings)), measured, len(settings) * rows)
    dim = 1 << len(tape.wires)

    def finish(answers: list[list[Array]]) -> Real:
        states = to_numpy(answers[0][0], np.complex128).reshape(len(settings), rows, dim, dim)
        flat = states[:-1].reshape(len(settings) - 1, rows, dim * dim).view(np.float64)
        index, weight = np.array(plan.index, dtype=np.int64), np.array(plan.coefficient)
        moved = _core.shift_sum(index, weight, np.ascontiguousarray(flat), count)
        derivatives = np.ascontiguousarray(np.swapaxes(moved, 1, 2)).view(np.complex128)
        derivatives = derivatives.reshape(rows, count, dim, dim)
        # Hermitian up to rounding; the formulas count on it.
        derivatives = 0.5 * (derivatives + np.conj(np.swapaxes(derivatives, 2, 3)))
        if kind == "hilbert-schmidt":
            return 0.5 * hilbert_schmidt(derivatives)
        return 0.25 * sld_fisher(states[-1], derivatives, cutoff)

    return Job((sweep,), finish)


def sld_fisher(states: Complex, derivatives: Complex, cutoff: float) -> Real:
    """Return the quantum Fisher information by the symmetric logarithmic derivative.

    F_ij = sum over a, b of 2 Re(<a|d_i rho|b><b|d_j rho|a>) / (l_a + l_b) in the eigenbasis of rho (Liu et al. 2020,
    arXiv:1907.08037, eq. 23).

    Args:
        states: Density matrices (batch, dim, dim).
        derivatives: Theirs by the angles (batch, angles, dim, dim), Hermitian.
        cutoff: Pairs with l_a + l_b up to this are left out: where they would contribute, the rank of rho changes, and
            the information is not continuous there.

    Returns:
        (batch, angles, angles), symmetric to the last bit; 4 g for pure states with metric g.
    """
    values, vectors = np.linalg.eigh(states)
    sums = values[:, :, None] + values[:, None, :]
    kept = sums > cutoff
    weights = np.sqrt(2.0 / np.where(kept, sums, 1.0)) * kept
    vectors = vectors[:, None]
    inner = np.conj(vectors.swapaxes(-1, -2)) @ derivatives @ vectors
    return hilbert_schmidt(inner * weights[:, None])


def hilbert_schmidt(derivatives: Complex) -> Real:
    """Return Tr(d_i rho d_j rho), (batch, angles, angles), for Hermitian derivatives (batch, angles, dim, dim)."""
    # The trace is the inner product of all real and imaginary parts.
    rows = np.ascontiguousarray(derivatives).view(np.float64).reshape(*derivatives.shape[:2], -1)
    product = rows @ rows.swapaxes(-1, -2)
    return 0.5 * (product + product.swapaxes(-1, -2))
