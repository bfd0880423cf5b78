"""A compiled quantum function: a circuit, and the map from weights and inputs to its angles."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt

from fubini import _core
from fubini.circuit.jacobian import Jacobian
from fubini.native.circuit import Circuit
from fubini.native.pullback import Pullback

FloatArray = npt.NDArray[np.float64]
ComplexArray = npt.NDArray[np.complex128]


class Guard(Protocol):
    """Says whether what a function read is as it was."""

    def holds(self) -> bool:
        """Return whether it is."""


@dataclass(frozen=True)
class Traced:
    """A circuit whose angles are computed by the quantum function in every call.

    Attributes:
        reason: Why it is not compiled to the end, in words.
    """

    reason: str


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

    def holds(self, weights: FloatArray, inputs: FloatArray) -> bool:
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

    constant: FloatArray
    weights: FloatArray
    inputs: FloatArray

    def map(self) -> _core.AngleMap:
        """Return the map as the kernel takes it."""
        return _core.AffineMap(
            self.constant.tolist(),
            self.weights.shape[1],
            self.inputs.shape[1],
            _entries(self.weights),
            _entries(self.inputs),
        )


class Compiled:
    """A circuit whose angles, and the amplitudes of whose initial state, are known functions of weights and inputs.

    Args:
        circuit: The circuit.
        angle_map: From weights and inputs to angles, and to amplitudes for a circuit that takes a state.
        affine: The map's matrices, where it is affine.
        guard: What the quantum function read besides its arguments.
        weighted: Angles that depend on weights.
        state_moves: Whether the initial state depends on weights, and on inputs.
        batch: The only number of inputs for which this holds; None: any number of at least two.
        decisions: What must be found again in every call.

    Attributes:
        circuit: As above.
        map: As above.
        affine: As above.
        guard: As above.
        weighted: As above.
        state_weighted: Whether the initial state depends on weights.
        state_from_inputs: Whether it depends on inputs.
        batch: As above.
        decisions: As above.
    """

    def __init__(
        self,
        circuit: Circuit,
        angle_map: _core.AngleMap,
        affine: Affine | None,
        guard: Guard | None,
        weighted: Sequence[int],
        state_moves: Sequence[bool] = (False, False),
        batch: int | None = None,
        decisions: Sequence[Normalised] = (),
    ) -> None:
        self.circuit, self.map, self.affine = circuit, angle_map, affine
        self.guard, self.batch, self.decisions = guard, batch, tuple(decisions)
        self.weighted = list(weighted)
        self.state_weighted, self.state_from_inputs = state_moves
        self._takes_state = circuit.takes_state

    def decides(self, weights: Sequence[FloatArray], inputs: FloatArray) -> bool:
        """Return whether every decision that was taken by value is the same for these weights and inputs (B, d)."""
        if not self.decisions:
            return True
        flat = joined(weights)
        return all(decision.holds(flat, inputs) for decision in self.decisions)

    def angles(self, weights: Sequence[FloatArray], inputs: FloatArray) -> FloatArray:
        """Return the angles, (B, A).

        Args:
            weights: One array each, of any shape, in order.
            inputs: (B, d).
        """
        return self.map.angles(list(weights), inputs)

    def states(self, weights: Sequence[FloatArray], inputs: FloatArray) -> ComplexArray | None:
        """Return the initial states, (B, N), or None for a circuit that takes none; arguments as for ``angles``."""
        if not self._takes_state:
            return None
        found: ComplexArray | None = self.map.states(list(weights), inputs)
        return found

    def jacobian(self, weights: Sequence[FloatArray], inputs: FloatArray) -> Jacobian:
        """Return the derivative of the angles by the weights, for those that depend on weights.

        Args:
            weights: One array each, of any shape, in order.
            inputs: (B, d).
        """
        if self.affine is not None:
            return self._constant_jacobian
        assert isinstance(self.map, _core.Expression)
        rows = self.weighted
        found, _ = self.map.jacobian(joined(weights), inputs, rows)
        return Jacobian(rows, found)

    @cached_property
    def _constant_jacobian(self) -> Jacobian:
        assert self.affine is not None
        return Jacobian(self.weighted, self.affine.weights[self.weighted][None])

    def pullback(self, weights: Sequence[FloatArray], inputs: FloatArray) -> Pullback:
        """Return the circuit at weights and inputs; its initial state does not depend on weights.

        Args:
            weights: One array each, of any shape, in order.
            inputs: (d,) or (B, d).
        """
        x = inputs if inputs.ndim > 1 else inputs[None]
        angles = self.angles(weights, x)
        # Angles that only encode inputs have no row in the Jacobian, and must not cut layers.
        jacobian = self.jacobian(weights, x)
        batch = None if inputs.ndim == 1 else len(angles)
        trainable = frozenset(jacobian.rows.tolist())
        return Pullback(self.circuit, angles, jacobian, self.states(weights, x), batch, trainable)

    def forward(
        self, weights: list[FloatArray], inputs: FloatArray, keep: bool
    ) -> tuple[FloatArray, _core.Pass | None]:
        """Return the results (B, M) for inputs (B, d), and what ``backward`` needs, if that is to be kept.

        Args:
            weights: One array each, of any shape, in order.
            inputs: (B, d).
            keep: Whether ``backward`` will follow.
        """
        return _core.forward(self.circuit.program, self.map, weights, inputs, keep)

    def backward(
        self, passed: _core.Pass, cotangents: FloatArray
    ) -> tuple[FloatArray, list[FloatArray]]:
        """Return the gradients by inputs (B, d) and by every weight, for cotangents (B, M) of the results."""
        return _core.backward(self.circuit.program, self.map, passed, cotangents)

    def backward_rows(
        self, passed: _core.Pass, cotangents: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Return the gradients by inputs (B, d) and by all weights (B, P) of every input by itself, see ``backward``."""
        return _core.backward_rows(self.circuit.program, self.map, passed, cotangents)

    def linearise(
        self, weights: list[FloatArray], inputs: FloatArray, want_inputs: bool
    ) -> tuple[FloatArray, FloatArray, FloatArray | None]:
        """Return the results (B, M) and their derivatives by the weights, (B, M, P), and by the inputs, (B, M, d).

        Args:
            weights: One array each, of any shape, in order.
            inputs: (B, d).
            want_inputs: Whether the derivatives by the inputs are wanted; else None.
        """
        return _core.linearise(self.circuit.program, self.map, weights, inputs, want_inputs)


def joined(weights: Sequence[FloatArray]) -> FloatArray:
    """Return weights side by side, (P,)."""
    parts = [w.reshape(-1) for w in weights]
    return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.zeros(0)


def _entries(matrix: FloatArray) -> list[tuple[int, int, float]]:
    rows, columns = np.nonzero(matrix)
    return list(zip(rows.tolist(), columns.tolist(), matrix[rows, columns].tolist(), strict=True))
