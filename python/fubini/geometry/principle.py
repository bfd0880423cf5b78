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

import numpy as np

from fubini import _core
from fubini.options import Real

# lambda in units of the metric's trace: below which directions count as unreachable, and where lambda ends smoothly, because
# well-conditioned directions would feel it.
_LEAST, _LARGEST = 1e-10, 1e-4
_SHARE = 0.01


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
