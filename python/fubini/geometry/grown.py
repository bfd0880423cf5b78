"""A circuit that was grown: operations with one weight each, its history, and what is redundant in it.

What is redundant is left out: the others take over what it does, along the metric's null directions.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pennylane as qml

from fubini.geometry.evolution_steps import runge_kutta
from fubini.geometry.pool import Chain, Element, Pool
from fubini.geometry.tangents import tangents
from fubini.metric.spectrum import MetricSpectrum
from fubini.options import Complex, Real

# Of a squared tangent that must be spanned by the others for its operation to be a candidate.
_REDUNDANT = 1e-9
# Radians of the weight per step of the integration.
_STEP = 0.05
# Singular values below this part of the largest are no directions to move in.
_RCOND = 1e-6


@dataclass(frozen=True)
class Growth:
    """One step of growing.

    Attributes:
        operation: What was added.
        candidate: Its number in the pool.
        score: What it was chosen for.
        before: Norm of the pool's gradients before it was added, or in time the residual.
        after: The energy after all weights were optimised, or in time the residual.
        time: When it was added; 0 for ground states.
    """

    operation: Any = field(repr=False)
    candidate: int
    score: float
    before: float
    after: float
    time: float = 0.0


@dataclass(frozen=True, eq=False, repr=False)
class Grown:
    """What :func:`fubini.grow` returns.

    Attributes:
        hamiltonian: The operator.
        operations: What was added, in the order in which it acts; the parameters are 0.
        weights: One for each operation, (P,); in time those of the last time.
        energy: The expectation value of the Hamiltonian.
        history: What was done.
        reason: Why it ended.
        times: In time: the times, (T,); else None.
        trajectory: In time: the weights at every time, (T, P); operations that were added later have the weight 0 before.
        residuals: In time: McLachlan's residual at every time, (T,).
        angle_bound: In time: a bound of the angle arccos|<exact|psi>| at every time, in radians, see :func:`fubini.evolve`.

    Example:
        >>> import fubini, pennylane as qml
        >>> found = fubini.grow(qml.Z(0) @ qml.Z(1) + qml.X(0), [qml.PauliRot(0.0, "YX", wires=[0, 1]), qml.RY(0.0, wires=0)])
        >>> print(f"{found.energy:.4f}", len(found.operations))
        -1.4142 1
    """

    hamiltonian: Any
    weights: Real
    energy: float
    history: tuple[Growth, ...]
    reason: str
    times: Real | None = None
    trajectory: Real | None = None
    residuals: Real | None = None
    angle_bound: Real | None = None
    _pool: Pool = field(repr=False, kw_only=True)
    _elements: tuple[Element, ...] = field(repr=False, kw_only=True)

    @property
    def operations(self) -> tuple[Any, ...]:
        """What was added, in the order in which it acts; the parameters are 0."""
        return tuple(one.operation for one in self._elements)

    @property
    def wires(self) -> tuple[Any, ...]:
        """Wires of the circuit, the most significant bit first."""
        return self._pool.wires

    @property
    def infidelity_bound(self) -> Real | None:
        """In time: a bound of 1 - |<exact|psi>|^2 at every time, (T,)."""
        if self.angle_bound is None:
            return None
        return np.asarray(np.sin(np.minimum(self.angle_bound, np.pi / 2)) ** 2)

    def circuit(self, weights: Any = None) -> None:
        """Queue the operations; an ordinary quantum function, for QNodes and layers of one's own.

        Args:
            weights: One for each operation, (P,): array or tensor; None: the ones that were found.

        Raises:
            ValueError: If there are more or fewer.
        """
        self._pool.start.queue()
        values = self.weights if weights is None else weights
        if len(values) != len(self._elements):
            raise ValueError(
                f"weights: expected {len(self._elements)}, one for each operation, got {len(values)}"
            )
        for one, weight in zip(self._elements, values, strict=True):
            one.with_weight(weight)

    def qnode(self, device: Any = None, **options: Any) -> Any:
        """Return a QNode of the energy with the argument ``weights``; ``qml.draw(qnode)(weights)`` prints the circuit.

        Args:
            device: A PennyLane device; None: default.qubit.
            **options: Of ``qml.QNode``.
        """

        def energy(weights: Any) -> Any:
            self.circuit(weights)
            return qml.expval(self.hamiltonian)

        chosen = qml.device("default.qubit", wires=list(self.wires)) if device is None else device
        return qml.QNode(energy, chosen, **options)

    def state(self, weights: Any = None) -> Complex:
        """Return the state over ``wires``.

        Args:
            weights: (P,), or (T, P) for several; None: the ones that were found.

        Returns:
            (N,) or (T, N).
        """
        values = self.weights if weights is None else np.asarray(weights, dtype=float)
        chain = self._pool.chain(self._elements)
        found = chain.circuit.state(chain.angles(np.atleast_2d(values)), chain.initial)
        return found if values.ndim > 1 else found[0]

    def pruned(self, infidelity: float = 1e-9) -> "Grown":
        """Return the circuit without operations whose tangents the others span.

        The weight of a redundant operation is led to 0 along the directions of the metric in which the state does not move,
        by which the others take over what it did; then it is left out. What is left out is only what leaves the state as
        it is, to the given infidelity in all.

        Args:
            infidelity: 1 - |<before|after>|^2 that is allowed in all.

        Returns:
            The circuit, of the last time, with the same history.

        Raises:
            ValueError: If infidelity is not between 0 and 1.
        """
        if not 0.0 <= infidelity < 1.0:
            raise ValueError(f"infidelity: expected a number from 0 to 1, got {infidelity!r}")
        elements, weights = _without_redundant(self._pool, self._elements, self.weights, infidelity)
        return replace(
            self,
            weights=weights,
            energy=self._pool.chain(elements, True).energy(weights),
            reason=f"{self.reason}; {len(self._elements) - len(elements)} operations pruned",
            times=None,
            trajectory=None,
            residuals=None,
            angle_bound=None,
            _elements=tuple(elements),
        )

    def __repr__(self) -> str:
        lines = [
            f"Grown: {len(self.operations)} operations, energy {self.energy:.10g}; {self.reason}"
        ]
        for number, step in enumerate(self.history):
            when = f"t = {step.time:.4g}, " if self.times is not None else ""
            what = "residual" if self.times is not None else "energy"
            lines.append(
                f"  {number + 1:3d} {step.operation.name} on [{', '.join(map(str, step.operation.wires))}]: {when}score {step.score:.3g}, "
                f"{what} {step.after:.10g}"
            )
        if self.infidelity_bound is not None and self.times is not None:
            lines.append(
                f"  times {self.times[0]:.4g} to {self.times[-1]:.4g}, infidelity at most {self.infidelity_bound[-1]:.2g}"
            )
        return "\n".join(lines)


def _without_redundant(
    pool: Pool, elements: Sequence[Element], weights: Real, infidelity: float
) -> tuple[list[Element], Real]:
    """Return the elements that are needed, and weights (P,) at which they make the same state, to a given infidelity."""
    kept, values = list(elements), weights.copy()
    target = pool.chain(kept).state(values)
    tried: set[int] = set()
    while kept:
        candidates = [k for k in _redundant(pool.chain(kept), values) if id(kept[k]) not in tried]
        if not candidates:
            break
        # The one with the least to take over first.
        number = min(candidates, key=lambda k: abs(_reduced(kept[k], float(values[k]))))
        fewer = kept[:number] + kept[number + 1 :]
        values_at = values.copy()
        values_at[number] = _reduced(kept[number], float(values[number]))
        there = _led_to_zero(pool.chain(kept), values_at, number)
        fidelity = abs(np.vdot(target, pool.chain(fewer).state(there))) ** 2
        if 1.0 - fidelity <= infidelity + 1e-14:
            kept, values = fewer, there
        else:
            tried.add(id(kept[number]))
    return kept, values


def _redundant(chain: Chain, weights: Real) -> list[int]:
    """Weights whose tangents the others span: those that a null direction of the metric moves."""
    metric = tangents(chain, weights[None]).metric()[0]
    spectrum = MetricSpectrum.of_matrix(metric, rcond=_REDUNDANT)
    null = spectrum.eigenvectors[:, spectrum.rank :]
    return np.flatnonzero((null**2).sum(axis=1) > 1e-6).tolist()


def _reduced(one: Element, weight: float) -> float:
    """A weight up to full turns."""
    if not one.periodic:
        return float(weight)
    return float((weight + 2 * np.pi) % (4 * np.pi) - 2 * np.pi)


def _led_to_zero(chain: Chain, weights: Real, number: int) -> Real:
    """The other weights, after one has gone to 0 while they made up for it, by a Runge-Kutta integration."""
    values = weights.copy()
    way = -values[number]
    others = np.arange(chain.size) != number

    def velocity(_: float, at: Real) -> Real:
        vectors = tangents(chain, at[None]).weights[0]
        found = np.zeros(chain.size)
        found[number] = way
        if others.any():
            u, s, vt = np.linalg.svd(vectors[others].T, full_matrices=False)
            keep = s > _RCOND * s.max(initial=0.0)
            found[others] = -(vt[keep].T / s[keep]) @ (u[:, keep].T @ vectors[number]) * way
        return found

    steps = max(1, int(np.ceil(abs(way) / _STEP)))
    for _ in range(steps):
        values = runge_kutta(velocity, 0.0, 1.0 / steps, values, velocity(0.0, values))
    rest: Real = values[others]
    return rest
