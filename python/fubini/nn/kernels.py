"""What the kernel computes for torch: results of rows of numbers, and their derivatives of first and second order."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fubini import _core
from fubini.native.circuit import Circuit
from fubini.options import Real

Amplitudes = npt.NDArray[np.complex128] | None


@dataclass(frozen=True)
class Sweeps:
    """The measurements of a circuit, as functions of rows of angles (B, A) and of initial states (B, N) where it takes them."""

    circuit: Circuit

    @property
    def num_outputs(self) -> int:
        """Number of results M of a row."""
        return self.circuit.num_outputs

    def values(self, rows: Real, state: Amplitudes) -> Real:
        """The results, (B, M)."""
        return _core.expval(self.circuit.program, rows, state)

    def vjp(self, rows: Real, state: Amplitudes, cotangents: Real) -> Real:
        """The gradient by rows of the results weighted by cotangents (B, M)."""
        return _core.vjp(self.circuit.program, rows, cotangents, state)[1]

    def vjp_with_state(
        self, rows: Real, state: Amplitudes, cotangents: Real
    ) -> tuple[Real, Amplitudes]:
        """The gradients by angles and by initial states, whose derivatives by real and imaginary parts are its own."""
        _, gradient, by_state = _core.vjp(self.circuit.program, rows, cotangents, state, True)
        return gradient, by_state

    def jvp(self, rows: Real, state: Amplitudes, tangents: Real, moves: Amplitudes) -> Real:
        """The derivative of the results, (B, M), along tangents of rows and moves of states."""
        return _core.jvp(self.circuit.program, rows, tangents, state, moves)

    def hessian_product(
        self, rows: Real, state: Amplitudes, cotangents: Real, vectors: Real
    ) -> Real:
        """The second derivative by rows of the weighted results, times vectors like the rows."""
        return _core.hessian_product(self.circuit.program, rows, cotangents, vectors, state)


@dataclass(frozen=True)
class Outputs:
    """The outputs of a compiled expression, which has no state, as functions of weights (B, P) and features (B, d) side by side."""

    expression: _core.Expression

    @property
    def num_outputs(self) -> int:
        """Number of results M of a row."""
        return self.expression.num_outputs

    def _parts(self, rows: Real) -> tuple[Real, Real]:
        """Weights, which may differ between inputs, and features."""
        size = self.expression.num_weights
        return np.ascontiguousarray(rows[:, :size]), np.ascontiguousarray(rows[:, size:])

    def values(self, rows: Real, state: Amplitudes) -> Real:
        """The results, (B, M)."""
        return self.expression.evaluate(*self._parts(rows))

    def vjp(self, rows: Real, state: Amplitudes, cotangents: Real) -> Real:
        """The gradient by rows of the results weighted by cotangents (B, M)."""
        return np.concatenate(self.expression.vjp(*self._parts(rows), cotangents), axis=1)

    def jvp(self, rows: Real, state: Amplitudes, tangents: Real, moves: Amplitudes) -> Real:
        """The derivative of the results, (B, M), along tangents of rows and moves of states."""
        return self.expression.jvp(*self._parts(rows), *self._parts(tangents))

    def hessian_product(
        self, rows: Real, state: Amplitudes, cotangents: Real, vectors: Real
    ) -> Real:
        """The second derivative by rows of the weighted results, times vectors like the rows."""
        parts = (*self._parts(rows), cotangents, *self._parts(vectors))
        return np.concatenate(self.expression.hessian_product(*parts), axis=1)


Kernel = Sweeps | Outputs
