"""Ground states to the last digit: Rayleigh-Gauss-Newton with Levenberg-Marquardt damping on a flat energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fubini import _core
from fubini.energies.problem import EnergyProblem, energy_problem
from fubini.options import Real

_ACCEPT = 1e-4  # share of the predicted reduction that a step must bring
_LARGEST = 1e16  # damping in units of the curvature at which no step is left
_DENSE = 1500  # numbers up to which the curvature is a matrix
# Numbers, and these times amplitudes, from which products are cheaper far from the end.
_MANY, _DEAR = 128, 2**17
_LATE = 1e-3  # share of the energy that a step is predicted to bring, below which the end is near
_AS_PREDICTED = 0.2  # error of a predicted reduction with which the matrix is not computed anew
_LONGEST = 10  # steps without the matrix
# Below so many numbers that saves something in the last steps only, which bring less than that share.
_FEW, _LAST = 16, 1e-5
_TRUST = 3  # steps in a row that S has to predict better than nothing in its place


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

    Every step solves :math:`(A + \mu I)\,d = -\nabla E`. A is the curvature :math:`B_{ij} = 2\,\mathrm{Re}\,\langle
    \partial_i\psi|P(H - E)P|\partial_j\psi\rangle` of :meth:`EnergyProblem.curvature`. Near a ground state it is the Hessian,
    so that convergence is superlinear; far from it, where B has negative eigenvalues, :math:`\mu` keeps the matrix positive
    definite. :math:`\mu` starts at the largest entry on the diagonal of B (at the gradient's length where that is
    rounding), grows where a step does not bring what the quadratic model promises and falls where it does (Nielsen 1999,
    *Damping parameter in Marquardt's method*). Trial points cost a forward pass; A is kept while steps are refused.

    Towards the end, where steps are predicted to bring less than a thousandth of the energy, A has two more parts. Where the
    circuit does not reach the ground state, the rest of the Hessian does not vanish: it is learnt from the gradients as by
    Dennis, Gay and Welsch (1981, *An adaptive nonlinear least-squares algorithm*) and added once it has predicted the
    reductions better. And with 16 numbers or more, while steps bring what was predicted, B is not computed anew: A has BFGS
    updates from gradients, which cost less. With more than 1500 numbers, and during the first steps where there are many
    numbers and amplitudes, products with B take the place of the matrix, in conjugate gradients that stop at a direction of
    negative curvature (Steihaug 1983).

    There is no learning rate. Local minima and starts where the gradient is zero, but for rounding, are where it stays, as any
    descent method; start anew from other numbers.

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
    found = _descend(problem, x, max_steps, target, tolerance, callback)
    if not given:
        problem.write(found.x)
    return found


def _descend(
    problem: EnergyProblem,
    x: Real,
    max_steps: int,
    target: float,
    tolerance: float,
    callback: Callable[[Real, float], Any] | None,
) -> Minimum:
    before = problem.evaluations
    local = _first(problem, x)
    mu, growth, small = local.scale, 2.0, 0
    energies = [local.energy]

    def ended(message: str, success: bool = True) -> Minimum:
        steps, used = len(energies) - 1, problem.evaluations - before
        return Minimum(x, local.energy, local.gradient, steps, used, success, message, energies)

    for _ in range(max_steps):
        if local.energy <= target:
            return ended("The target is reached.")
        if (small > 1 and local.exact) or float(np.linalg.norm(local.gradient)) <= problem.noise:
            return ended("The energy falls no further.")
        while True:
            if mu > _LARGEST * local.scale:
                return ended("The energy falls no further.")
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
            if not local.exact:
                local.renew(x)
                continue
            # Reductions below the rounding of the energies say nothing, and none is left to be had.
            if predicted <= tolerance * abs(local.energy):
                return ended("The energy falls no further.")
            mu *= growth
            growth *= 2.0
        x = x + change
        mu = max(mu * max(0.2, 1.0 - (2.0 * ratio - 1.0) ** 3), 1e-16 * local.scale)
        growth = 2.0
        small = small + 1 if max(actual, predicted) <= tolerance * abs(trial) else 0
        local = local.moved(x, change, predicted, actual)
        energies.append(local.energy)
        if callback is not None:
            callback(x, local.energy)
    if local.energy <= target:
        return ended("The target is reached.")
    return ended(f"The limit of {max_steps} steps is reached.", False)


def _first(problem: EnergyProblem, x: Real) -> _Dense | _Products:
    """Products where the matrix is out of reach, and for the first steps where it is dear."""
    if problem.size > _DENSE:
        return _Products(problem, x, 2 * problem.size, last=True)
    if problem.size >= _MANY and problem.size * problem.amplitudes >= _DEAR:
        return _Products(problem, x, max(1, problem.size // 8), last=False)
    return _Dense(problem, x)


def _scale(problem: EnergyProblem, curvature: float, gradient: Real) -> float:
    """A curvature, or where that is rounding, the one with which the first step is 1 rad long."""
    if curvature > problem.noise:
        return curvature
    return max(curvature, float(np.linalg.norm(gradient))) or 1.0


class _Dense:
    """The curvature is a matrix: B, or B and what gradients say of the rest of the Hessian, or updated by gradients.

    The rest of the Hessian, S, is learnt as by Dennis, Gay and Welsch (1981), *An adaptive nonlinear least-squares
    algorithm*, and is added once it has predicted the reductions better for some steps in a row. Near the end, where a step
    does what was predicted, B is not computed anew: the matrix has BFGS updates from gradients, which are cheaper.

    Attributes:
        energy: Of the quadratic model at a point.
        gradient: Likewise.
        scale: Of the damping: a curvature.
        exact: Whether the curvature is that of this point.
    """

    def __init__(self, problem: EnergyProblem, x: Real) -> None:
        self._problem = problem
        self._rest = np.zeros((problem.size, problem.size))
        self._better = self._age = 0
        self.renew(x)

    def renew(self, x: Real) -> None:
        """Compute the curvature at x, where the model is."""
        self.energy, self.gradient, self._b = self._problem.expansion(x)
        self.scale = _scale(
            self._problem, float(np.abs(self._b.diagonal()).max(initial=0.0)), self.gradient
        )
        self._matrix = self._b + self._rest if self._better > _TRUST else self._b
        self.exact, self._age = True, 0

    def step(self, mu: float) -> tuple[Real, float] | None:
        """Return the change and its predicted reduction; None where the damped curvature is not positive definite."""
        d = solved(self._matrix, self.gradient, mu)
        if d is None:
            return None
        return -d, float(self.gradient @ d - 0.5 * d @ (self._matrix @ d))

    def moved(self, x: Real, change: Real, predicted: float, actual: float) -> _Dense:
        """Return the model at x, which a step has led to."""
        before = self.gradient
        late = predicted <= _LATE * abs(self.energy)
        as_predicted = abs(actual / predicted - 1.0) < _AS_PREDICTED
        near = late if len(x) >= _FEW else predicted <= _LAST * abs(self.energy)
        if near and as_predicted and self._age < _LONGEST:
            self.energy, self.gradient = self._problem.value_and_gradient(x)
            self._update(self.gradient - before, change)
            return self
        if self.exact and late:  # S says nothing of other points
            slope, bd = float(before @ change), self._b @ change
            plain = -slope - 0.5 * float(change @ bd)
            other = plain - 0.5 * float(change @ (self._rest @ change))
            self._better = self._better + 1 if abs(other - actual) < abs(plain - actual) else 0
        self.renew(x)
        if late:
            self._learn(self.gradient - before, change)
        return self

    def _update(self, y: Real, d: Real) -> None:
        ad = self._matrix @ d
        yd, dad = float(y @ d), float(d @ ad)
        if yd > 0.0 and dad > 0.0:
            self._matrix = self._matrix + np.outer(y, y / yd) - np.outer(ad, ad / dad)
        self.exact = False
        self._age += 1

    def _learn(self, y: Real, d: Real) -> None:
        """Let (B + S) d be y, with the least change of S."""
        wanted = y - self._b @ d
        sd = self._rest @ d
        dsd, yd = float(d @ sd), float(y @ d)
        size = min(1.0, abs(float(d @ wanted) / dsd)) if dsd else 1.0
        error = wanted - size * sd
        if abs(yd) > 1e-8 * math.sqrt(float(y @ y) * float(d @ d)):
            part = np.outer(error / yd - (0.5 * float(error @ d) / yd**2) * y, y)
            self._rest = size * self._rest + part + part.T
        if self._better > _TRUST:
            self._matrix = self._b + self._rest


class _Products:
    """The curvature is known by its products alone; otherwise as ``_Dense``."""

    exact = True

    def __init__(self, problem: EnergyProblem, x: Real, limit: int, last: bool) -> None:
        self._problem, self._limit, self._last = problem, limit, last
        self._dear = False
        self.renew(x)

    def renew(self, x: Real) -> None:
        self._x = x
        self.energy, self.gradient = self._problem.value_and_gradient(x)
        g = self.gradient
        length = float(np.linalg.norm(g)) or 1.0
        bent = abs(float(g @ self._problem.curvature_product(x, g / length))) / length
        self.scale = _scale(self._problem, bent, g)

    def moved(self, x: Real, change: Real, predicted: float, actual: float) -> _Dense | _Products:
        if self._dear:
            return _Dense(self._problem, x)
        self.renew(x)
        return self

    def step(self, mu: float) -> tuple[Real, float] | None:
        """Conjugate gradients, which stop at a direction of negative curvature."""
        gradient = self.gradient
        d, bd = np.zeros_like(gradient), np.zeros_like(gradient)
        r = -gradient
        p, rr = r, float(r @ r)
        enough = min(0.1, math.sqrt(math.sqrt(rr))) ** 2 * rr
        for _ in range(self._limit):
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
        else:
            self._dear = not self._last
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
