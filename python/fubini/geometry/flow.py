"""Velocities of weights along a path, and how far a path is from what the Hamiltonian does."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fubini.geometry.ansatz import Ansatz
from fubini.geometry.hamiltonians import Hamiltonian
from fubini.geometry.operators import Terms
from fubini.geometry.principle import Velocity, velocity
from fubini.geometry.tangents import expectations, tangents, times_minus_i
from fubini.options import Real

Time = Literal["real", "imaginary"]


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


class Flow:
    """McLachlan's principle for B trajectories of a circuit.

    Args:
        ansatz: The circuit.
        hamiltonian: Of the trajectories.
        time: ``"real"`` or ``"imaginary"``.
        allowed: What the cut-off may add to the residual, see :mod:`fubini.geometry.principle`.

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
