r"""McLachlan's variational principle: the velocity of the weights that moves the state as a Hamiltonian does.

With the projected tangents :math:`T` and :math:`h` of :mod:`fubini.geometry.tangents`, the velocity minimises
:math:`|T^\top\dot w - h|`, the distance between the states' velocities without the global phase (McLachlan, Mol. Phys. 8, 39
(1964); Yuan et al., Quantum 3, 191 (2019), arXiv:1812.08767): :math:`g\dot w = Th`. In imaginary time :math:`h =
-P(H - E)|\psi\rangle`, and :math:`g\dot w = -\nabla E / 2` is the natural-gradient flow.

The metric is singular where weights are redundant, and often at symmetric points, such as weights of zero. The velocity is
then a Tikhonov solution, :math:`(g + \lambda)\dot w = Th`, an analytic function of :math:`T` and :math:`h`, with the
largest :math:`\lambda` that the residual :math:`r = |T^\top\dot w - h|` allows (after Morozov's discrepancy principle). With
the eigenvalues :math:`s_i^2` of g, what :math:`\lambda` adds to the residual is, in quadrature,

.. math:: e^2 = \sum_i \Big(\frac{\lambda}{s_i^2 + \lambda}\Big)^2 c_i^2 \frac{s_i^2}{s_i^2 + \lambda_0} = \epsilon^2 +
   (r / 100)^2

where :math:`c_i` is h along the direction i, and :math:`\epsilon` follows from the tolerance. A direction is left out as far
as it does not pay: where the ansatz misses r anyway, a hundredth of it more, in quadrature, is not noticed. The last
factor, with a :math:`\lambda_0` of :math:`10^{-10}` of the trace, leaves out of the account what no velocity that can be
integrated would reach; it is added to :math:`\lambda`. Everything is monotone and smooth in :math:`\lambda`, and nothing
in it cancels.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fubini import _core
from fubini.geometry.ansatz import Ansatz
from fubini.geometry.hamiltonians import Hamiltonian
from fubini.geometry.operators import Terms
from fubini.geometry.tangents import expectations, tangents, times_minus_i
from fubini.options import Real

Time = Literal["real", "imaginary"]

# lambda in units of the metric's trace: below which directions count as unreachable, and where lambda ends smoothly, because
# well-conditioned directions would feel it.
_LEAST, _LARGEST = 1e-10, 1e-4
_SHARE = 0.01


def norms(vectors: Real) -> Real:
    """Return the norms (...) of vectors (..., d)."""
    found: Real = np.sqrt((vectors * vectors).sum(axis=-1))
    return found


@dataclass(frozen=True, eq=False)
class Motion:
    """The tangents T (B, P, 2 N), and what the Hamiltonian does to the states, h (B, 2 N)."""

    tangents: Real
    states: Real

    def distances(self, velocities: Real) -> Real:
        """Return |T^T dw/dt - h|, (B,), for dw/dt (B, P)."""
        rest = (velocities[:, None] @ self.tangents)[:, 0] - self.states
        return norms(rest)

    def lengths(self, steps: Real) -> Real:
        """Return the length of steps (B, P) in the metric, (B,): how far they move the states, to first order."""
        moved = (steps[:, None] @ self.tangents)[:, 0]
        return norms(moved)


@dataclass(frozen=True, eq=False)
class Velocity:
    """The velocity of the weights at B weight vectors.

    Attributes:
        weights: dw/dt, (B, P).
        residuals: Distance |T^T dw/dt - h| to the velocity of the state, (B,).
        variances: |h|^2, the variance of the Hamiltonian, (B,).
        dampings: lambda, (B,).
    """

    weights: Real
    residuals: Real
    variances: Real
    dampings: Real


def velocity(tangents: Real, states: Real, allowed: float) -> Velocity:
    """Return the velocity of the weights by McLachlan's principle.

    Args:
        tangents: T, (B, P, 2 N).
        states: h, (B, 2 N).
        allowed: epsilon, what the cut-off may add to the residual, in quadrature.
    """
    weights, residuals, dampings = _core.variational_velocities(
        np.ascontiguousarray(tangents),
        np.ascontiguousarray(states),
        allowed,
        _SHARE,
        _LEAST,
        _LARGEST,
    )
    return Velocity(weights, residuals, np.einsum("bi,bi->b", states, states), dampings)


class Flow:
    """McLachlan's principle for B trajectories of a circuit.

    Args:
        ansatz: The circuit.
        hamiltonian: Of the trajectories.
        time: ``"real"`` or ``"imaginary"``.
        allowed: What the cut-off may add to the residual, see above.

    Attributes:
        evaluations: How many velocities of all trajectories were computed.
    """

    def __init__(self, ansatz: Ansatz, hamiltonian: Hamiltonian, time: Time, allowed: float):
        self.ansatz, self.hamiltonian, self.time, self.allowed = ansatz, hamiltonian, time, allowed
        self.evaluations = 0

    def motion(self, times: Real, weights: Real) -> Motion:
        """Return the tangents at weights (S, B, P) of times (S,), those of one time after the other."""
        coefficients = self.hamiltonian.at(times)  # first: it may find new operators
        # A circuit that grows may have no weight yet.
        flat = np.ascontiguousarray(
            weights.reshape(len(times) * weights.shape[1], weights.shape[2])
        )
        found = tangents(self.ansatz, flat, self.hamiltonian.operators)
        shape = (*weights.shape[:2], coefficients.shape[-1])
        rows = np.broadcast_to(coefficients, shape).reshape(len(flat), 1, -1)
        states = (rows @ found.operators)[:, 0]
        return Motion(found.weights, states if self.time == "real" else times_minus_i(states))

    def __call__(self, t: float, weights: Real) -> tuple[Velocity, Motion]:
        """Return the velocities at weights (B, P) of one time, and their tangents."""
        self.evaluations += 1
        motion = self.motion(np.array([t]), weights[None])
        return velocity(motion.tangents, motion.states, self.allowed), motion

    def velocities(self, times: Real, weights: Real) -> Velocity:
        """Return the velocities at weights (S, B, P) of times (S,), those of one time after the other."""
        motion = self.motion(times, weights)
        return velocity(motion.tangents, motion.states, self.allowed)

    def expectations(self, weights: Real, operators: list[Terms]) -> Real:
        """Return expectation values (S, B, M) of operators at weights (S, B, P)."""
        flat = np.ascontiguousarray(weights.reshape(-1, weights.shape[-1]))
        return expectations(self.ansatz, flat, operators).reshape(*weights.shape[:2], -1)

    def energies(self, times: Real, weights: Real) -> Real:
        """Return the energies (S, B) at weights (S, B, P) of times (S,)."""
        coefficients = self.hamiltonian.at(times)
        values = self.expectations(weights, self.hamiltonian.operators)
        found: Real = (values * coefficients).sum(axis=-1)
        return found
