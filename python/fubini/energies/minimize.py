"""Ground states to the last digit: Rayleigh-Gauss-Newton with Levenberg-Marquardt damping on a flat energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fubini import _core
from fubini.energies.problem import EnergyModel, EnergyProblem, energy_problem
from fubini.options import Real

_ACCEPT = 1e-4  # share of the predicted reduction that a step must bring
_LARGEST = 1e16  # damping in units of the curvature at which no step is left
_DENSE = 1500  # numbers up to which the curvature is a matrix


@dataclass(frozen=True)
class Minimum:
    """What :func:`minimize` found.

    Attributes:
        x: The numbers, (P,), in the order of the problem.
        energy: The energy there.
        gradient: Its gradient, (P,).
        steps: Number of steps taken.
        evaluations: How often an energy was computed, with or without derivatives.
        success: Whether the steps came to an end by themselves: at the target, or where the energy falls no further.
        message: Why they ended.
        energies: The energy at the start and after every step.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> found = fubini.minimize(circuit, torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True))
        >>> round(found.energy, 6), found.success, len(found.energies) == found.steps + 1
        (-1.0, True, True)
    """

    x: Real
    energy: float
    gradient: Real
    steps: int
    evaluations: int
    success: bool
    message: str
    energies: list[float] = field(repr=False)


def minimize(
    energy: Any,
    *args: Any,
    max_steps: int = 1000,
    target: float = -math.inf,
    tolerance: float = 1e-15,
    callback: Callable[[Real, float], Any] | None = None,
) -> Minimum:
    r"""Minimise the expectation value that a QNode computes, by Rayleigh-Gauss-Newton.

    Every step solves :math:`(B + \mu I)\,d = -\nabla E` with the curvature :math:`B_{ij} = 2\,\mathrm{Re}\,\langle
    \partial_i\psi|P(H - E)P|\partial_j\psi\rangle` of :meth:`EnergyProblem.curvature`. Near a ground state it is the
    Hessian, so that convergence is superlinear; far from it, where B has negative eigenvalues, :math:`\mu` keeps the
    matrix positive definite. :math:`\mu` starts at the largest entry on the diagonal of B, grows where a step does not
    bring what the quadratic model promises and falls where it does (Nielsen 1999, *Damping parameter in Marquardt's
    method*). Trial points cost a forward pass; B is kept while steps are refused. With more than 1500 numbers, products
    with B take the place of the matrix, in conjugate gradients that stop at a direction of negative curvature (Steihaug
    1983).

    The metric and the solve need no learning rate. Local minima and starts where the gradient is zero are where it
    stays, as any descent method; start anew from other numbers.

    Example::

        >>> import fubini, pennylane as qml, torch
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def energy(w):
        ...     qml.RY(w[0], 0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[1], 1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1) + 0.5 * qml.X(1))
        >>> weights = torch.tensor([0.1, 0.2], requires_grad=True)
        >>> found = fubini.minimize(energy, weights)
        >>> round(found.energy, 6), bool(torch.equal(energy(weights) < -1.118, torch.tensor(True)))
        (-1.118034, True)

    Args:
        energy: A QNode, what :func:`fubini.compiled` made of it, or what :func:`fubini.energy_problem` returned.
        *args: The QNode's arguments, see :func:`fubini.energy_problem`. Those tensors that move are written to when it
            ends. With a problem, at most one: where to start, (P,).
        max_steps: Limit.
        target: Stop at this energy or below.
        tolerance: Stop where the energy falls by less than this times its absolute value, and is predicted to.
        callback: Called after every step with the numbers, (P,), and the energy.

    Returns:
        What was found.

    Raises:
        UnsupportedCircuitError: If the circuit does not run natively, or returns something else than one expectation
            value.
        ValueError: If the start has another shape, or is not finite; or for a limit out of range.
        TypeError: If energy is no QNode.
    """
    if max_steps < 0 or tolerance < 0:
        raise ValueError(
            f"max_steps, tolerance: expected numbers >= 0, got {max_steps!r} and {tolerance!r}"
        )
    given = isinstance(energy, EnergyProblem)
    problem = energy if given else energy_problem(energy, *args)
    x = problem.start
    if given and args:
        x = np.array(args[0], dtype=np.float64)
        if len(args) > 1 or x.shape != problem.start.shape:
            raise ValueError(
                f"args: expected one start of shape {problem.start.shape}, got {len(args)} of shape {x.shape}"
            )
    if not np.isfinite(x).all():
        raise ValueError("args: expected finite numbers to start from, got NaN or infinity")
    before = problem.evaluations
    found = _descend(problem, x, max_steps, target, tolerance, callback)
    if not given:
        problem.write(found[0])
    x, model, energies, success, message = found
    return Minimum(
        x,
        model.energy,
        model.gradient,
        len(energies) - 1,
        problem.evaluations - before,
        success,
        message,
        energies,
    )


def _descend(
    problem: EnergyProblem,
    x: Real,
    max_steps: int,
    target: float,
    tolerance: float,
    callback: Callable[[Real, float], Any] | None,
) -> tuple[Real, EnergyModel, list[float], bool, str]:
    dense = problem.size <= _DENSE
    local: _Dense | _Products = (_Dense if dense else _Products)(problem, x)
    mu, growth, small = local.scale, 2.0, 0
    energies = [local.energy]
    for _ in range(max_steps):
        if local.energy <= target:
            return x, local.model, energies, True, "The target is reached."
        if small > 1 or not local.model.gradient.any():
            return x, local.model, energies, True, "The energy falls no further."
        while True:
            if mu > _LARGEST * local.scale:
                return x, local.model, energies, True, "The energy falls no further."
            found = local.step(mu)
            if found is None:
                mu *= 2.0
                continue
            change, predicted = found
            if not predicted > 0.0:
                mu *= growth
                growth *= 2.0
                continue
            trial = problem.energy(x + change)
            actual = local.energy - trial
            ratio = actual / predicted
            if ratio > _ACCEPT:
                break
            # Reductions below the rounding of the energies say nothing, and none is left to be had.
            if predicted <= tolerance * abs(local.energy):
                return x, local.model, energies, True, "The energy falls no further."
            mu *= growth
            growth *= 2.0
        x = x + change
        mu = max(mu * max(0.2, 1.0 - (2.0 * ratio - 1.0) ** 3), 1e-16 * local.scale)
        growth = 2.0
        small = small + 1 if max(actual, predicted) <= tolerance * abs(trial) else 0
        local = type(local)(problem, x)
        energies.append(local.energy)
        if callback is not None:
            callback(x, local.energy)
    if local.energy <= target:
        return x, local.model, energies, True, "The target is reached."
    return x, local.model, energies, False, f"The limit of {max_steps} steps is reached."


class _Dense:
    """The quadratic model at a point, with B as a matrix."""

    def __init__(self, problem: EnergyProblem, x: Real) -> None:
        self.model = problem.model(x)
        self.energy = self.model.energy

    @property
    def scale(self) -> float:
        """Of the damping: the largest curvature along an axis."""
        return float(np.abs(self.model.curvature.diagonal()).max(initial=0.0)) or 1.0

    def step(self, mu: float) -> tuple[Real, float] | None:
        """Return the change and its predicted reduction; None where the matrix is not positive definite.

        Args:
            mu: Damping.
        """
        model = self.model
        d = solved(model.curvature, model.gradient, mu)
        if d is None:
            return None
        return -d, float(model.gradient @ d - 0.5 * d @ (model.curvature @ d))


class _Products:
    """The same with products alone."""

    def __init__(self, problem: EnergyProblem, x: Real) -> None:
        self._problem, self._x = problem, x
        energy, gradient = problem.value_and_gradient(x)
        none = np.zeros((0, 0))
        self.model = EnergyModel(energy, gradient, none, none)
        self.energy = energy

    @property
    def scale(self) -> float:
        """Of the damping: the curvature along the gradient."""
        g = self.model.gradient
        length = float(np.linalg.norm(g)) or 1.0
        return abs(float(g @ self._problem.curvature_product(self._x, g / length))) / length or 1.0

    def step(self, mu: float) -> tuple[Real, float] | None:
        """Return the change and its predicted reduction, by conjugate gradients.

        Args:
            mu: Damping.
        """
        gradient = self.model.gradient
        d, bd = np.zeros_like(gradient), np.zeros_like(gradient)
        r = -gradient
        p, rr = r, float(r @ r)
        enough = min(0.1, math.sqrt(math.sqrt(rr))) ** 2 * rr
        for _ in range(2 * len(gradient)):
            bp = self._problem.curvature_product(self._x, p)
            bent = float(p @ bp) + mu * float(p @ p)
            if not bent > 0.0:
                if not d.any():
                    return None
                break
            alpha = rr / bent
            d, bd, r = d + alpha * p, bd + alpha * bp, r - alpha * (bp + mu * p)
            rr, last = float(r @ r), rr
            if rr <= enough:
                break
            p = r + (rr / last) * p
        return d, float(-gradient @ d - 0.5 * d @ bd)


def solved(matrix: Real, rhs: Real, mu: float) -> Real | None:
    """Return the solution of (matrix + mu I) d = rhs by Cholesky; None where that is not positive definite.

    Args:
        matrix: (P, P), symmetric.
        rhs: (P,).
        mu: Damping.
    """
    found: Real | None = _core.solve_fast(matrix, rhs, mu, "absolute", "cholesky")
    if found is None:  # large, or not positive definite
        x, status, _ = _core.solve_batch(
            np.ascontiguousarray(matrix[None]),
            rhs[None, :, None].copy(),
            np.array([mu]),
            "cholesky",
        )
        found = None if status[0] else x[0, :, 0]
    return found
