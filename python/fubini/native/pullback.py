"""From angles to weights: the metric over a circuit's angles, pulled back through the function that computes them.

Angles are a function of weights and inputs; with J_b its derivative by the weights at input b, the metric over the
weights is J_b^T g_b J_b. Every face of the metric (QNodes, layers, the optimizer, products with vectors) is made here
from a :class:`Pullback`, which holds the circuit, its angles at every input, and J.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fubini import _core
from fubini.arrays import hermitian
from fubini.circuit.jacobian import AngleBlock, Directions, Jacobian, WeightBlock, merged
from fubini.native import metric as native_metric
from fubini.native.circuit import Circuit
from fubini.native.derivative import tangent_states, without_state
from fubini.options import Approx, Complex, Index, LayerRule, Real, Reduce
from fubini.runtime import MATRIX_FREE, check_fits

_REAL_PART = (
    "use reduce='mean' or fewer inputs, or fubini.metric_operator(...), which multiplies by its real part, the metric, "
    "without forming it"
)
# Temporaries per input are made for so many bytes of inputs at a time.
_CHUNK_BYTES = 1 << 26


@dataclass(frozen=True, eq=False)
class Pullback:
    """A circuit at given weights and inputs, and how its angles move with the weights.

    Attributes:
        circuit: The compiled circuit.
        angles: Of every input, (batch, A); one row for a circuit without a batch.
        jacobian: Of the angles that are differentiated.
        states: Initial states (batch or 1, N) for a circuit that takes them, else None.
        batch: Number of inputs; None for a circuit without a batch.
        trainable: Angles that depend on weights, which form the layers; those of ``jacobian`` are among them.
    """

    circuit: Circuit
    angles: Real
    jacobian: Jacobian
    states: Complex | None = None
    batch: int | None = None
    trainable: frozenset[int] = frozenset()

    @property
    def size(self) -> int:
        """Number of weights P."""
        return int(self.jacobian.size)

    def metric(
        self, approx: Approx = None, layers: LayerRule = "wires", reduce: Reduce = None
    ) -> Real:
        """Return the metric over the weights.

        Args:
            approx: Which part of the metric over angles is pulled back.
            layers: Which gates form a block.
            reduce: ``"mean"`` averages over the inputs.

        Returns:
            (batch, P, P) for a circuit with a batch and no reduction, else (P, P).

        Raises:
            MemoryError: If the metric is larger than the bound.
        """
        native_metric.check_finite("angles", self.angles, self.batch is None)
        mean = reduce == "mean"
        shape = self._shape(mean)
        rows = 1 if mean else len(self.angles)
        directions = self.jacobian.directions if approx is None else None
        if directions is not None:
            check_fits(f"{shape}: the metric", float(rows) * self.size**2, MATRIX_FREE)
            return self._along(directions, reduce).reshape(shape)
        mean = mean or rows == 1
        once = mean and self.jacobian.inputs == 1  # averaged before it is pulled back
        parts = list(self._parts(mean))
        # Besides the result, the largest piece's metric over the angles, and once more while it is scaled.
        pieces = 1 if once else max(last - first for first, last, _ in parts)
        count = float(rows) * self.size**2 + 2.0 * pieces * len(self.jacobian.rows) ** 2
        check_fits(f"{shape}: the metric", count, MATRIX_FREE)
        if once and approx is not None and not self.jacobian.shared:
            placed = self.jacobian.placed(self._angle_blocks(approx, layers, True))
            if placed is not None:
                return placed.reshape(shape)
        if len(parts) == 1:
            return self._assembled(approx, layers, mean).reshape(shape)
        total = np.zeros((rows, self.size, self.size))
        for first, last, part in parts:
            found = part._assembled(approx, layers, mean)
            if mean:
                total += found * ((last - first) / len(self.angles))
            else:
                total[first:last] = found
        return total.reshape(shape)

    def _assembled(self, approx: Approx, layers: LayerRule, mean: bool) -> Real:
        """The metric over the weights, (batch, P, P), or (P, P) for the mean, of all inputs at once."""
        once = mean and self.jacobian.inputs == 1
        blocks = self._angle_blocks(approx, layers, once)
        if once:
            return assembled([(s, v[None]) for s, v in blocks], self.jacobian, None, None)
        return assembled(blocks, self.jacobian, len(self.angles), "mean" if mean else None)

    def weighted_sum(
        self, weights: Real, approx: Approx = None, layers: LayerRule = "wires"
    ) -> Real:
        """Return the sum over the inputs of the metrics, each times a number, (P, P).

        Args:
            weights: One number for each input.
            approx: As for ``metric``.
            layers: As for ``metric``.
        """
        native_metric.check_finite("angles", self.angles, self.batch is None)
        if len(self.angles) == 1:
            weights = weights.sum(keepdims=True)
        directions = self.jacobian.directions if approx is None else None
        if directions is not None:
            return np.tensordot(weights, self._along(directions, None), 1)
        total = np.zeros((self.size, self.size))
        for first, last, part in self._parts(False):
            own = weights[first:last]
            blocks = part._angle_blocks(approx, layers, False)
            if part.jacobian.inputs == 1:  # the pull-back is linear: sum first, contract once
                columns, matrices = part.jacobian.congruence(part._summed(blocks, own))
                total[columns[:, None], columns] += matrices[0]
                continue
            for block in blocks:
                columns, matrices = part.jacobian.congruence(block)
                total[columns[:, None], columns] += np.tensordot(own, matrices, 1)
        return total

    def _summed(
        self, blocks: Sequence[tuple[Sequence[int], Real]], weights: Real
    ) -> tuple[range, Real]:
        """The weighted sum over the inputs as one matrix over all angles, or as its diagonal."""
        size = self.circuit.num_angles
        diagonal = blocks[0][1].ndim == 2 if blocks else True
        result = np.zeros((1, size) if diagonal else (1, size, size))
        if blocks:
            places = _places(tuple(tuple(slots) for slots, _ in blocks), size, diagonal)
            rows = np.concatenate([v.reshape(len(v), -1) for _, v in blocks], axis=1)
            result.reshape(-1)[places] = weights @ rows
        return range(size), result

    def geometric_tensor(self, reduce: Reduce = None) -> Complex:
        """Return the quantum geometric tensor <d_i psi|(1 - |psi><psi|)|d_j psi> over the weights.

        Args:
            reduce: ``"mean"`` averages over the inputs.

        Returns:
            (batch, P, P) or (P, P), Hermitian.

        Raises:
            MemoryError: If the tensor is larger than the bound.
        """
        native_metric.check_finite("angles", self.angles, self.batch is None)
        mean = reduce == "mean"
        shape = self._shape(mean)
        count = 2.0 * float(np.prod(shape, dtype=float))
        check_fits(f"{shape}: the geometric tensor", count, _REAL_PART)
        total = np.zeros((1 if mean else len(self.angles), self.size, self.size), dtype=complex)
        for row in range(len(self.angles)):
            _, derivatives = self.derivative_states(row)
            tensor = hermitian(derivatives.conj() @ derivatives.T)
            block = self.jacobian.rows.tolist(), tensor[None]
            found = assembled([block], self.jacobian.of(row, row + 1), None, None)
            total[0 if mean else row] += found / len(self.angles) if mean else found
        return total.reshape(shape)

    def derivative_states(self, row: int) -> tuple[Complex, Complex]:
        """Return psi (N,) of one input, and its derivatives by the angles of ``jacobian`` without their part along psi.

        Returns:
            psi and (k, N), up to one constant unitary and the global phase.
        """
        angles, states = self._rows(row, row + 1)
        rows = self.jacobian.rows
        psi, tangents = tangent_states(self.circuit, angles, states, rows)
        return psi, without_state(psi, tangents)

    def factor(self) -> Real:
        """Return X with the metric's mean over the inputs g = X X^T, (P, m), for m = 2 N inputs.

        Raises:
            MemoryError: If the factor is larger than the bound.
        """
        native_metric.check_finite("angles", self.angles, self.batch is None)
        inputs, width = len(self.angles), 2 * 2**self.circuit.num_wires
        shape = (self.size, inputs * width)
        directions = self.jacobian.sparse
        if directions is not None:
            check_fits(f"{shape}: the factor of the metric", float(np.prod(shape)), MATRIX_FREE)
            program = self.circuit.program
            return _core.metric_factor(program, self.angles, self.states, directions=directions)
        count = float(self.size + 2 * len(self.jacobian.rows)) * inputs * width
        check_fits(f"{shape}: the factor of the metric", count, MATRIX_FREE)
        slots = self.jacobian.rows.tolist()
        rows = _core.metric_factor(self.circuit.program, self.angles, self.states, slots)
        columns = rows.T.reshape(inputs, width, len(rows))
        return np.ascontiguousarray(self.jacobian.pull(columns).reshape(-1, self.size).T)

    def weight_blocks(self, layers: LayerRule = "wires") -> list[tuple[Index, Real]]:
        """Return the block-diagonal metric's mean over the inputs as blocks without a common weight.

        Returns:
            Pairs of weights (c,) and matrices (c, c); weights that no angle depends on are in none.
        """
        native_metric.check_finite("angles", self.angles, self.batch is None)
        blocks = merged(self._mean_blocks("block-diag", layers))
        return [(columns, matrices[0]) for columns, matrices in blocks]

    def product(self, vectors: Real) -> Real:
        """Return the full metric's mean over the inputs times vectors, without forming it.

        Args:
            vectors: (c, P).

        Returns:
            (c, P).
        """
        batch = len(self.angles)
        result = np.empty_like(vectors)
        width = max(1, int(_CHUNK_BYTES / (16.0 * batch * (self.circuit.num_angles + 1))))
        for first in range(0, len(vectors), width):
            some = vectors[first : first + width]
            tangents = np.zeros((batch, len(some), self.circuit.num_angles))
            tangents[:, :, self.jacobian.rows] = self.jacobian.push(some)
            products = _core.metric_vector_product(
                self.circuit.program, self.angles, tangents, self.states, False
            )
            pulled = self.jacobian.pull(products[:, :, self.jacobian.rows])
            result[first : first + width] = _core.mean_over_batch(np.ascontiguousarray(pulled))
        return result

    def diagonal(self) -> Real:
        """Return the diagonal of the full metric's mean over the inputs, (P,), exactly."""
        result = np.zeros(self.size)
        if not self.jacobian.shared:
            for columns, matrices in self._mean_blocks("diag", "wires"):
                result[columns] += np.diagonal(matrices[0])
            return result
        # Angles that share a weight are correlated: one product per weight has what is between them.
        width = 64
        for first in range(0, self.size, width):
            unit = np.eye(self.size)[first : first + width]
            result[first : first + width] = (self.product(unit) * unit).sum(axis=1)
        return result

    def _along(self, directions: Directions, reduce: Reduce) -> Real:
        """The metric from one tangent for each weight: there are fewer of them than angles."""
        return native_metric.full_metric(
            self.circuit, self.angles, self.states, reduce, directions=directions
        )

    # -- parts ------------------------------------------------------------------------------------------------------

    def _shape(self, mean: bool) -> tuple[int, ...]:
        lead = () if mean or self.batch is None else (len(self.angles),)
        return (*lead, self.size, self.size)

    def _rows(self, first: int, last: int) -> tuple[Real, Complex | None]:
        states = self.states
        return self.angles[first:last], (
            states if states is None or len(states) == 1 else states[first:last]
        )

    def _parts(self, mean: bool) -> Iterator[tuple[int, int, "Pullback"]]:
        """The batch in pieces whose metrics over the angles are small enough to keep."""
        batch = len(self.angles)
        if mean and self.jacobian.inputs == 1:
            yield 0, batch, self  # averaged before they are pulled back
            return
        per_input = 24.0 * max(1, len(self.jacobian.rows)) ** 2
        width = max(1, min(batch, int(_CHUNK_BYTES / per_input)))
        for first in range(0, batch, width):
            last = min(first + width, batch)
            angles, states = self._rows(first, last)
            jacobian = self.jacobian.of(first, last)
            yield first, last, replace(self, angles=angles, states=states, jacobian=jacobian)

    def _mean_blocks(self, approx: Approx, layers: LayerRule) -> Iterator[WeightBlock]:
        """Pulled-back blocks (1, c, c) whose sum is the mean over the inputs."""
        once = self.jacobian.inputs == 1
        for first, last, part in self._parts(True):
            for slots, values in part._angle_blocks(approx, layers, once):
                block = slots, values[None] if once else values
                columns, matrices = part.jacobian.congruence(block)
                scale = (last - first) / len(self.angles)
                yield columns, scale * (matrices if once else _mean(matrices))

    def _angle_blocks(
        self, approx: Approx, layers: LayerRule, mean: bool
    ) -> list[tuple[Sequence[int], Real]]:
        reduce: Reduce = "mean" if mean else None
        if approx is None:
            rows = self.jacobian.rows.tolist()
            full = native_metric.full_metric(self.circuit, self.angles, self.states, reduce, rows)
            return [(rows, full)]
        diagonal, trainable = approx == "diag", self.trainable
        return list(
            native_metric.metric_blocks(
                self.circuit, self.angles, self.states, reduce, layers, diagonal, trainable
            )
        )


@lru_cache(maxsize=64)
def _places(slots: tuple[tuple[int, ...], ...], size: int, diagonal: bool) -> Index:
    """Where the entries of blocks, one after the other, are in the matrix over all angles, or on its diagonal."""
    index = [np.array(one, dtype=np.intp) for one in slots]
    return np.concatenate([i if diagonal else (i[:, None] * size + i).reshape(-1) for i in index])


def assembled(
    blocks: Iterable[AngleBlock], jacobian: Jacobian, batch: int | None, reduce: Reduce
) -> npt.NDArray[Any]:
    """Return the matrix over the weights of blocks over the angles.

    Args:
        blocks: Covariances (1 or batch, m, m) or variances (1 or batch, m).
        jacobian: Of the blocks' angles.
        batch: Number of inputs, or None for a circuit without a batch.
        reduce: ``"mean"`` averages over the inputs.

    Returns:
        (batch, P, P) for a circuit with a batch and no reduction, else (P, P).
    """
    mean = reduce == "mean"
    early = mean and jacobian.inputs == 1  # the pull-back is linear: average first, contract once
    pulled = []
    for slots, values in blocks:
        columns, matrices = jacobian.congruence((slots, _mean(values) if early else values))
        pulled.append((columns, _mean(matrices) if mean else matrices))
    size = jacobian.size
    if len(pulled) == 1 and len(pulled[0][0]) == size:
        total = pulled[0][1]
    else:
        rows = max([1 if mean else jacobian.inputs, *[len(matrices) for _, matrices in pulled]])
        dtype = np.result_type(float, *[matrices.dtype for _, matrices in pulled])
        total = np.zeros((rows, size, size), dtype=dtype)
        for columns, matrices in pulled:
            total[:, columns[:, None], columns] += matrices
    rows = len(total)
    if not mean and batch is not None:
        return np.broadcast_to(total, (batch, size, size)) if rows == 1 else total
    return total.reshape(size, size)


def _mean(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if np.iscomplexobj(values):
        result: npt.NDArray[Any] = values.mean(axis=0, keepdims=True)
        return result
    mean: Real = _core.mean_over_batch(np.ascontiguousarray(values))
    return mean.reshape(1, *mean.shape)
