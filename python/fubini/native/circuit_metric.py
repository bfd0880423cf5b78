"""What a circuit says about its metric: the methods that :class:`fubini.Circuit` takes from here."""

from typing import TYPE_CHECKING, Any

import numpy as np

from fubini import _core
from fubini.circuit.gate_layers import LayerRule
from fubini.native import metric as native_metric
from fubini.options import Approx, Complex, Real, Reduce
from fubini.runtime import FEWER_WEIGHTS, check_fits

if TYPE_CHECKING:
    from fubini.native.circuit import Circuit
    from fubini.native.operator import Form, MetricOperator
    from fubini.native.pullback import Pullback

_MATRIX_FREE = "use circuit.metric_operator(angles, 'matrix-free') or circuit.metric_vector_product"


def matrix_argument(
    name: str, value: Any, symbols: str, shape: tuple[int, int], single: bool
) -> Real:
    """Returns a real matrix argument as the kernel takes it.

    Args:
        name: The argument's name.
        value: What was passed.
        symbols: The shape in words.
        shape: The shape expected.
        single: Whether the batch dimension may be left out.

    Returns:
        C-contiguous float64, of the shape expected.

    Raises:
        ValueError: For another shape.
    """
    array = np.ascontiguousarray(value, dtype=np.float64)
    if array.shape == shape or (single and array.shape == shape[1:]):
        return array.reshape(shape)
    raise ValueError(f"{name}: expected shape {symbols} = {shape}, got {np.shape(value)}")


class MetricMethods:
    """Metric, geometric tensor and products of a circuit over its angles; A angles, B inputs, N amplitudes."""

    if TYPE_CHECKING:  # the circuit has them

        @property
        def program(self) -> _core.Program: ...  # noqa: D102
        @property
        def num_angles(self) -> int: ...  # noqa: D102
        @property
        def num_wires(self) -> int: ...  # noqa: D102
        @property
        def takes_state(self) -> bool: ...  # noqa: D102

    def metric(
        self,
        angles: Any,
        approx: Approx = None,
        reduce: Reduce = None,
        layers: LayerRule = "wires",
        state: Any = None,
    ) -> Any:
        """Computes the Fubini-Study metric g = Re[<d_i psi|d_j psi> - <d_i psi|psi><psi|d_j psi>] over the angles.

        Args:
            angles: Radians, shape (B, A) or (A,).
            approx: None for the full metric, ``"block-diag"`` for one block per layer of gates, ``"diag"`` for the
                diagonal. Blocks and diagonal are exact parts of the full metric.
            reduce: ``"mean"`` averages over the batch.
            layers: Which gates form a block: ``"wires"``, ``"maximal"`` or ``"queue"``, see :mod:`fubini.circuit.gate_layers`.
            state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

        Returns:
            Full: (B, A, A); diagonal: (B, A); blocks: a list of pairs of angle indices and (B, k, k), which together
            have every angle once. There is no B for the mean or for angles of shape (A,).

        Raises:
            ValueError: For a wrong shape, an unknown name, or an angle that is NaN or infinite (names its position).
            MemoryError: If the result, or eight derivative states, do not fit into memory.
        """
        values, single = self._angles(angles)
        native_metric.check_request(values, approx, reduce, single)
        if approx is None:
            rows = 1 if reduce else len(values)
            shape = (rows, self.num_angles, self.num_angles)
            check_fits(f"{shape}: the metric", rows * self.num_angles**2, _MATRIX_FREE)
        states = self._states(state, len(values))
        first = single and reduce is None
        if approx == "block-diag":
            blocks = native_metric.metric_blocks(self._circuit, values, states, reduce, layers)
            return [(indices, block[0] if first else block) for indices, block in blocks]
        if approx == "diag":
            result = native_metric.metric_diagonal(self._circuit, values, states, reduce, layers)
        else:
            result = native_metric.full_metric(self._circuit, values, states, reduce)
        return result[0] if first else result

    def metric_vector_product(
        self,
        angles: Any,
        vectors: Any,
        reduce: Reduce = None,
        state: Any = None,
    ) -> Real:
        """Multiplies the full metric by vectors without forming it, by one forward and one reverse sweep.

        Args:
            angles: Radians, shape (B, A) or (A,).
            vectors: Shape (B, A), or (A,) for the same vector for the whole batch.
            reduce: ``"mean"`` averages the products over the batch.
            state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

        Returns:
            g v, shape (B, A); (A,) for the mean or for angles of shape (A,).

        Raises:
            ValueError: For a wrong shape, or an entry that is NaN or infinite (names its position).
        """
        values, single = self._angles(angles)
        native_metric.check_request(values, None, reduce, single)
        directions = self._directions("vectors", vectors, len(values), single)
        states = self._states(state, len(values))
        mean = reduce == "mean"
        result = _core.metric_vector_product(self.program, values, directions, states, mean)
        return result[0] if single and not mean else result

    def geometric_tensor(self, angles: Any, reduce: Reduce = None, state: Any = None) -> Complex:
        """Computes the quantum geometric tensor <d_i psi|(1 - |psi><psi|)|d_j psi> over the angles.

        Args:
            angles: Radians, shape (B, A) or (A,).
            reduce: ``"mean"`` averages over the batch.
            state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

        Returns:
            (B, A, A), Hermitian; no B for the mean or for angles of shape (A,). The real part is the metric, and -2
            times the imaginary part the Berry curvature, see ``fubini.geometric_tensor``.

        Raises:
            ValueError: For a wrong shape, or an angle that is NaN or infinite (names its position).
            MemoryError: If the tensor is larger than the bound.
        """
        values, single = self._angles(angles)
        native_metric.check_request(values, None, reduce, single)
        result = self._pullback(values, state, single).geometric_tensor(reduce)
        return result

    def metric_operator(
        self, angles: Any, form: "Form" = "auto", layers: LayerRule = "wires", state: Any = None
    ) -> "MetricOperator":
        """Returns the full metric over the angles as an operator, averaged over the batch.

        Args:
            angles: Radians, shape (B, A) or (A,).
            form: ``"dense"``, ``"dual"``, ``"matrix-free"``, or ``"auto"`` for what is predicted to be fastest.
            layers: Which gates form a block of ``blocks()`` and of the preconditioner.
            state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

        Returns:
            The operator, with products, diagonal, blocks and solutions.

        Raises:
            ValueError: For a wrong shape, or an angle that is NaN or infinite (names its position).
        """
        from fubini.native.operator import MetricOperator

        values, single = self._angles(angles)
        native_metric.check_request(values, None, "mean", single)
        return MetricOperator(self._pullback(values, state, single), form, layers=layers)

    def metric_derivative(
        self,
        angles: Any,
        direction: Any,
        reduce: Reduce = None,
        state: Any = None,
    ) -> Real:
        """Computes d/dt g(angles + t direction) at t = 0, exactly.

        Args:
            angles: Radians, shape (B, A) or (A,).
            direction: Shape (B, A), or (A,) for the same direction for the whole batch.
            reduce: ``"mean"`` averages over the batch.
            state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

        Returns:
            (B, A, A); no B for the mean or for angles of shape (A,).

        Raises:
            ValueError: For a wrong shape, or an entry that is NaN or infinite (names its position).
            MemoryError: If the result, or the derivative states of one input, do not fit into memory.
        """
        from fubini.native.derivative import along

        values, single = self._angles(angles)
        native_metric.check_request(values, None, reduce, single)
        directions = self._directions("direction", direction, len(values), single)
        states = self._states(state, len(values))
        every = np.arange(self.num_angles)
        mean = reduce == "mean"
        shape = (1 if mean else len(values), self.num_angles, self.num_angles)
        check_fits(f"{shape}: the derivative of the metric", float(np.prod(shape)), FEWER_WEIGHTS)
        result = np.zeros(shape)
        for b, (row, velocity) in enumerate(zip(values, directions, strict=True)):
            if not velocity.any():
                continue
            own = states if states is None or len(states) == 1 else states[b : b + 1]
            result[0 if mean else b] += along(self._circuit, row[None], own, every, velocity)
        if mean:
            result /= len(values)
        return result[0] if single or mean else result

    def _directions(self, name: str, vectors: Any, batch: int, single: bool) -> Real:
        shape = (batch, self.num_angles)
        given = np.asarray(vectors, dtype=np.float64)
        if given.shape == shape[1:]:
            given = np.broadcast_to(given, shape)
        result = matrix_argument(name, given, "(B, A)", shape, single)
        native_metric.check_finite(name, result, np.ndim(vectors) == 1)
        return result

    def _pullback(self, values: Real, state: Any, single: bool) -> "Pullback":
        from fubini.circuit.jacobian import Jacobian
        from fubini.native.pullback import Pullback

        jacobian = Jacobian.identity(self.num_angles)
        states = self._states(state, len(values))
        batch = None if single else len(values)
        every = frozenset(range(self.num_angles))
        return Pullback(self._circuit, values, jacobian, states, batch, every)

    @property
    def _circuit(self) -> "Circuit":
        circuit: Any = self
        return circuit  # type: ignore[no-any-return]

    def _angles(self, angles: Any) -> tuple[Real, bool]:
        values = np.ascontiguousarray(angles, dtype=np.float64)
        single = np.ndim(angles) == 1
        if single:
            values = values.reshape(1, -1)
        if values.ndim != 2 or values.shape[1] != self.num_angles:
            raise ValueError(
                f"angles: expected shape (B, A) = (B, {self.num_angles}) or ({self.num_angles},), "
                f"got {np.shape(angles)}"
            )
        return values, single

    def _states(self, state: Any, batch: int) -> Complex | None:
        if not self.takes_state:
            if state is not None:
                raise ValueError("state: this circuit starts from |0...0>; expected None")
            return None
        if state is None:
            raise ValueError(
                "state: this circuit prepares its initial state from data; expected amplitudes of shape "
                f"(B, {2**self.num_wires}), got None. circuit.state_of(tape) collects them."
            )
        values = np.ascontiguousarray(state, dtype=np.complex128)
        if values.ndim == 1:
            values = values.reshape(1, -1)
        if values.shape not in {(batch, 2**self.num_wires), (1, 2**self.num_wires)}:
            raise ValueError(
                f"state: expected shape (B, N) = ({batch}, {2**self.num_wires}), got {np.shape(state)}"
            )
        return values
