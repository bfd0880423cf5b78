"""A circuit that was grown: operations with one weight each, its history, and what is redundant in it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pennylane as qml

from fubini.geometry.operators import Terms
from fubini.geometry.pool import Chain, Element, StartGates
from fubini.geometry.prune import without_redundant
from fubini.options import Complex, Real


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
    operations: tuple[Any, ...]
    weights: Real
    energy: float
    history: tuple[Growth, ...]
    reason: str
    times: Real | None = None
    trajectory: Real | None = None
    residuals: Real | None = None
    angle_bound: Real | None = None
    _start: StartGates = field(repr=False, kw_only=True)
    _elements: tuple[Element, ...] = field(repr=False, kw_only=True)
    _wires: tuple[Any, ...] = field(repr=False, kw_only=True)
    _terms: Terms = field(repr=False, kw_only=True)

    @property
    def wires(self) -> tuple[Any, ...]:
        """Wires of the circuit, the most significant bit first."""
        return self._wires

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
        self._start.queue()
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

        chosen = qml.device("default.qubit", wires=list(self._wires)) if device is None else device
        return qml.QNode(energy, chosen, **options)

    def state(self, weights: Any = None) -> Complex:
        """Return the state over ``wires``.

        Args:
            weights: (P,), or (T, P) for several; None: the ones that were found.

        Returns:
            (N,) or (T, N).
        """
        values = self.weights if weights is None else np.asarray(weights, dtype=float)
        chain = self._chain()
        found = chain.circuit.state(chain.angles(np.atleast_2d(values)), chain.initial)
        return found if values.ndim > 1 else found[0]

    def _chain(self) -> Chain:
        return Chain(self._start, self._elements, self._wires, self._terms)

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
        elements, weights = without_redundant(
            self._start, self._elements, self.weights, self._wires, infidelity
        )
        chain = Chain(self._start, elements, self._wires, self._terms)
        return replace(
            self,
            operations=tuple(one.operation for one in elements),
            weights=weights,
            energy=chain.energy(weights),
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
                f"  {number + 1:3d} {step.operation.name} on {_wires(step.operation.wires)}: {when}score {step.score:.3g}, "
                f"{what} {step.after:.10g}"
            )
        if self.infidelity_bound is not None and self.times is not None:
            lines.append(
                f"  times {self.times[0]:.4g} to {self.times[-1]:.4g}, infidelity at most {self.infidelity_bound[-1]:.2g}"
            )
        return "\n".join(lines)


def _wires(wires: Sequence[Any]) -> str:
    return "[" + ", ".join(map(str, wires)) + "]"
