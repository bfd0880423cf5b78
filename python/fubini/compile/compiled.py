"""A compiled quantum function: a circuit, and the map from weights and inputs to its angles."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fubini import _core
from fubini.circuit.jacobian import Jacobian
from fubini.compile.watch import Watch
from fubini.native.circuit import Circuit
from fubini.native.pullback import Pullback
from fubini.options import Complex, Index, Real

# Amplitudes of all inputs together, 4 MB: more memory is not held from pass to pass.
_REMEMBERED = 1 << 18


@dataclass(frozen=True)
class Traced:
    """A circuit whose angles are computed by the quantum function in every call.

    Attributes:
        reason: Why it is not compiled to the end, in words.
    """

    reason: str

    def explain(self) -> str:
        """Say what is done with it."""
        return f"The quantum function runs in every call and its gates run natively: {self.reason}."


@dataclass(frozen=True)
class Normalised:
    """A decision that was taken by value: whether vectors have norm 1, by which PennyLane normalises them or not.

    Attributes:
        norms: Map from weights and inputs to the norms.
        tolerance: Absolute tolerance, besides the relative one of ``allclose``.
        expected: What was found when the circuit was compiled.
    """

    norms: _core.Expression
    tolerance: float
    expected: bool

    def holds(self, weights: Real, inputs: Real) -> bool:
        """Return whether the decision is the same for these weights (P,) and inputs (B, d)."""
        norms = self.norms.evaluate(weights, inputs)
        return bool(np.allclose(norms, 1.0, atol=self.tolerance)) is self.expected


@dataclass(frozen=True)
class Affine:
    """angles = constant + W weights + X inputs.

    Attributes:
        constant: (A,).
        weights: W, (A, P), over the flattened weights in order.
        inputs: X, (A, d).
    """

    constant: Real
    weights: Real
    inputs: Real


@dataclass(eq=False, repr=False)
class Compiled:
    """A circuit whose angles, and the amplitudes of whose initial state, are known functions of weights and inputs.

    ``weights`` are one array each, of any shape, in order; ``inputs`` are (B, d).

    Attributes:
        circuit: The circuit.
        map: From weights and inputs to angles, and to amplitudes for a circuit that takes a state.
        affine: The map's matrices, where it is affine.
        guard: What the quantum function read besides its arguments.
        weighted: Angles that depend on weights.
        state_weighted: Whether the initial state depends on weights.
        state_from_inputs: Whether it depends on inputs.
        batch: The only number of inputs for which this holds; None: any number of at least two.
        decisions: What must be found again in every call.
        remembers: Whether ``last`` is kept.
        last: What the last ``forward`` has left for ``backward``, if its states are small.
    """

    circuit: Circuit
    map: _core.Expression
    affine: Affine | None
    guard: Watch | None
    weighted: list[int]
    state_weighted: bool
    state_from_inputs: bool
    batch: int | None
    decisions: list[Normalised]
    remembers: bool = False
    last: _core.Pass | None = None

    def explain(self, tensors: str) -> str:
        """Say what is done with it; ``tensors``: what the angles are made of."""
        kind = "affine in" if self.affine is not None else "known functions of"
        return f"The native engine runs the compiled circuit: its angles are {kind} {tensors}."

    def decides(self, weights: Sequence[Real], inputs: Real) -> bool:
        """Return whether every decision that was taken by value is the same for these weights and inputs (B, d)."""
        if not self.decisions:
            return True
        flat = joined(weights)
        return all(decision.holds(flat, inputs) for decision in self.decisions)

    def angles(self, weights: Sequence[Real], inputs: Real) -> Real:
        """Return the angles, (B, A)."""
        return self.map.angles(list(weights), inputs)

    def states(self, weights: Sequence[Real], inputs: Real) -> Complex | None:
        """Return the initial states, (B, N), or None for a circuit that takes none."""
        if not self.circuit.takes_state:
            return None
        found: Complex | None = self.map.states(list(weights), inputs)
        return found

    def jacobian(self, weights: Sequence[Real], inputs: Real) -> Jacobian:
        """Return the derivative of the angles by the weights, for those that depend on weights."""
        if self.affine is not None:
            return self._constant_jacobian
        found, _ = self.map.jacobian(joined(weights), inputs, self.weighted)
        return Jacobian(self.weighted, found)

    @cached_property
    def _constant_jacobian(self) -> Jacobian:
        assert self.affine is not None
        return Jacobian(self.weighted, self.affine.weights[self.weighted][None])

    def pullback(
        self,
        weights: Sequence[Real],
        inputs: Real,
        columns: Index | None = None,
        *,
        fixed: bool = False,
    ) -> Pullback:
        """Return the circuit at weights and inputs; its initial state does not depend on weights.

        Args:
            weights: One array each, of any shape, in order.
            inputs: (d,) or (B, d).
            columns: Entries of the weights that are differentiated; None: all.
            fixed: Whether all others are weights too, whose angles cut layers; those that only encode inputs must not.
        """
        x = inputs if inputs.ndim > 1 else inputs[None]
        every = self.jacobian(weights, x)
        jacobian = every if columns is None else every.by(columns)
        batch = None if inputs.ndim == 1 else len(x)
        trainable = frozenset((every if fixed else jacobian).rows.tolist())
        angles, states = self.angles(weights, x), self.states(weights, x)
        return Pullback(self.circuit, angles, jacobian, states, batch, trainable)

    def forward(
        self, weights: list[Real], inputs: Real, keep: bool
    ) -> tuple[Real, _core.Pass | None]:
        """Return the results (B, M), and what ``backward`` needs, if it will follow: ``keep``."""
        found = _core.forward(self.circuit.program, self.map, weights, inputs, keep)
        if self.remembers and keep:
            small = len(inputs) << self.circuit.num_wires <= _REMEMBERED
            self.last = found[1] if small else None
        return found

    def backward(self, passed: _core.Pass, cotangents: Real) -> tuple[Real, list[Real]]:
        """Return the gradients by inputs (B, d) and by every weight, for cotangents (B, M) of the results."""
        return _core.backward(self.circuit.program, self.map, passed, cotangents)

    def backward_rows(self, passed: _core.Pass, cotangents: Real) -> tuple[Real, Real]:
        """Return the gradients by inputs (B, d) and by all weights (B, P) of every input by itself, see ``backward``."""
        return _core.backward_rows(self.circuit.program, self.map, passed, cotangents)

    def linearise(
        self, weights: list[Real], inputs: Real, want_inputs: bool
    ) -> tuple[Real, Real, Real | None]:
        """Return results (B, M), derivatives by weights (B, M, P), and, if wanted, by inputs (B, M, d)."""
        return _core.linearise(self.circuit.program, self.map, weights, inputs, want_inputs)


def joined(weights: Sequence[Real]) -> Real:
    """Return weights side by side, (P,)."""
    parts = [w.reshape(-1) for w in weights]
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0)
