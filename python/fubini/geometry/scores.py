r"""What every candidate of a pool would gain a circuit.

With the tangents :math:`t_j` of the circuit, the direction h in which the state wants to move, and the candidate's tangent
t, three numbers:

* the gradient of the energy, :math:`2\,\mathrm{Re}\langle t|H|\psi\rangle` (ADAPT-VQE, Grimsley et al. 2019,
  arXiv:1812.11173, eq. 12),
* its length in the metric: :math:`\langle t|t\rangle`, so that gradients of operations of different strength compare,
* the gain: by how much McLachlan's squared residual :math:`\min_v |h - \sum_j v_j t_j|^2` falls when the candidate is added,
  :math:`(t_\perp\cdot h)^2 / |t_\perp|^2` with :math:`t_\perp` the part of t that the circuit's tangents do not span
  (adaptive variational simulation, Yao et al. 2021, arXiv:2011.00622). Candidates that the circuit can do already gain nothing.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from fubini.geometry.flow import Time
from fubini.geometry.pool import Chain, Pool
from fubini.geometry.tangents import tangents, times_minus_i
from fubini.options import Real

#: Which of them decides.
Score = Literal["gradient", "natural", "gain"]

# Directions shorter than this part of the longest are no directions: their weights would have to race.
SPANNED = 1e-5


@dataclass(frozen=True, eq=False)
class PoolScores:
    """What K candidates would gain.

    Attributes:
        operations: The candidates, at the weight 0.
        gradients: Of the energy by each candidate's weight, at 0, (K,).
        lengths: Squared lengths of their tangents, the diagonal of the metric, (K,).
        gains: Decrease of McLachlan's squared residual, (K,).
        residual: McLachlan's residual of the circuit without them.

    Example:
        >>> import fubini, pennylane as qml
        >>> pool = [qml.RY(0.0, wires=0), qml.RZ(0.0, wires=0)]
        >>> scores = fubini.pool_scores(qml.X(0), pool)
        >>> abs(scores.gradients).round(6)
        array([1., 0.])
    """

    operations: tuple[Any, ...] = field(repr=False)
    gradients: Real
    lengths: Real
    gains: Real
    residual: float

    def by(self, score: Score) -> Real:
        """Return one number for each candidate, the larger the better.

        Args:
            score: ``"gradient"``: |gradient|; ``"natural"``: |gradient| per length in the metric; ``"gain"``: the gain.
        """
        size = np.abs(self.gradients)
        if score == "gradient":
            return size
        if score == "gain":
            return self.gains
        longest = self.lengths.max(initial=0.0)
        moves = self.lengths > SPANNED**2 * longest
        found: Real = np.where(moves, size / np.sqrt(np.where(moves, self.lengths, 1.0)), 0.0)
        return found

    def best(self, score: Score = "gradient") -> int:
        """Return the number of the best candidate; of equals the first."""
        return first_best(self.by(score))


def first_best(values: Real) -> int:
    """Return the number of the largest value; of equals the first."""
    # Equal up to rounding: symmetric candidates must not be told apart by the last bit.
    return int(np.flatnonzero(values >= values.max() * (1.0 - 1e-9))[0])


def scores(chain: Chain, weights: Real, pool: Pool, time: Time, cut: float = SPANNED) -> PoolScores:
    """Return the scores of a pool behind a circuit, all from one call of the engine.

    Args:
        chain: The circuit with the candidates behind it.
        weights: Of the circuit, (P,).
        pool: The candidates.
        time: Which direction the residual is about.
        cut: Directions shorter than this part of the longest tangent count as none.

    Returns:
        The scores.
    """
    size = len(weights)
    every = np.concatenate([weights, np.zeros(len(pool.elements))])
    found = tangents(chain, every[None], (pool.terms,))
    own, new = found.weights[0, :size], found.weights[0, size:]
    wanted = found.operators[0, 0]
    downhill = times_minus_i(wanted)  # -P H|psi>
    basis, rest = missed(own, wanted if time == "real" else downhill, cut)
    free = new - (new @ basis.T) @ basis
    free -= (free @ basis.T) @ basis  # once more, for what the first time left by rounding
    lengths = (new**2).sum(axis=1)
    left = (free**2).sum(axis=1)
    moves = left > cut**2 * lengths.max(initial=0.0)
    along = free @ rest
    gains = np.where(moves, along**2 / np.where(moves, left, 1.0), 0.0)
    return PoolScores(
        tuple(one.operation for one in pool.elements),
        -2.0 * (new @ downhill),
        lengths,
        gains,
        float(np.sqrt(rest @ rest)),
    )


def missed(vectors: Real, target: Real, cut: float) -> tuple[Real, Real]:
    """Return an orthonormal basis (r, 2 N) of what vectors (P, 2 N) span, and the rest of the target (2 N,) outside.

    Args:
        vectors: Tangents.
        target: A direction.
        cut: As for :func:`scores`.

    Returns:
        Both.
    """
    if not len(vectors):
        return vectors, target
    _, values, rows = np.linalg.svd(vectors, full_matrices=False)
    basis: Real = rows[values > cut * values.max(initial=0.0)]
    return basis, target - basis.T @ (basis @ target)
