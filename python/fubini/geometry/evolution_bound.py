r"""A bound of the angle between the state on a path of weights and the exact one.

In real time the exact evolution keeps angles, so that the angle grows by at most the distance r of the velocities,
projected. In imaginary time, :math:`\frac{d}{dt}|\psi\rangle = -(H - E)|\psi\rangle`, two exact states at the angle d move
apart by

.. math:: d' = -\sin d [\cos d (E_\chi - E) - 2 h \sin d] \le \sin d [\cos d (E - E_\mathrm{min}) + 2 \sigma\sin d]

with :math:`\chi` the second state's part beside the first, :math:`h = \mathrm{Re}\langle\psi|H|\chi\rangle \le \sigma`
and :math:`\sigma^2 = \mathrm{Var} H`: the second derivative of the flow's potential, the energy. The integral is taken by
Gauss' rule.
"""

import numpy as np

from fubini.geometry.evolution_steps import Path
from fubini.geometry.flow import Flow, norms
from fubini.options import Real

# Gauss' rule of order 6 on [-1, 1].
_NODES = np.array([-np.sqrt(0.6), 0.0, np.sqrt(0.6)])
_WEIGHTS = np.array([5.0, 8.0, 5.0]) / 9.0


class Bound:
    """The bound of B trajectories as they go on.

    Args:
        flow: What they follow.
        angles: Where it starts, (B,).

    Attributes:
        angles: The bound, (B,), radians; at most pi / 2.
    """

    def __init__(self, flow: Flow, angles: Real) -> None:
        self._flow, self.angles = flow, angles.copy()
        self._lowest: Real | None = None

    def add(self, path: Path, start: float, end: float) -> None:
        """Go along a part of a path from start to end."""
        half = 0.5 * (end - start)
        times = start + half * (1.0 + _NODES)
        points, velocities = path(times)
        motion = self._flow.motion(times, points)
        shape = points.shape[:2]
        distances = motion.distances(velocities.reshape(-1, velocities.shape[-1])).reshape(shape)
        missed = half * (_WEIGHTS @ distances)
        if self._flow.time == "real":
            self.angles = np.minimum(self.angles + missed, np.pi / 2)
            return
        energies = self._flow.energies(times, points)
        above = half * (_WEIGHTS @ np.maximum(energies - self._bounds(times), 0.0))
        spread = half * (_WEIGHTS @ norms(motion.states).reshape(shape))
        # With sin d <= d and cos d <= 1, and d at most L: what follows is at most L where L was large enough. At pi / 2
        # it is.
        before = self.angles + missed

        def after(largest: Real) -> Real:
            found: Real = before * np.exp(above + 2.0 * spread * largest)
            return np.minimum(found, np.pi / 2)

        largest = before
        for _ in range(3):
            largest = after(largest)
        largest = 1.01 * largest
        found = after(largest)
        self.angles = np.where(found <= largest, found, after(np.full_like(found, np.pi / 2)))

    def _bounds(self, times: Real) -> Real:
        if self._flow.hamiltonian.constant:
            if self._lowest is None:
                self._lowest = self._flow.hamiltonian.lowest(float(times[0]))
            return self._lowest
        return np.stack([self._flow.hamiltonian.lowest(float(t)) for t in times])
