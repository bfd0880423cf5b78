"""What a metric says about a circuit's weights: how many directions they move the state in, and which are redundant."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fubini.arrays import real_array
from fubini.circuit.arguments import Argnums, argument_name, check_finite_array
from fubini.metric.engines import Point
from fubini.metric.points import over_calls, points
from fubini.native.operator import MetricOperator
from fubini.options import Approx, Engine, Index, LayerRule, Real, check_approx, check_rule

#: Weights that a text names before it counts.
_NAMED = 8


@dataclass(frozen=True, eq=False)
class MetricSpectrum:
    """Eigenvalues of a metric, and what follows from them (Haug, Bharti and Kim 2021, arXiv:2102.01659).

    Attributes:
        matrix: The metric, (P, P).
        labels: Names of the weights, e.g. ``"w[0, 2]"``.
        eigenvalues: In falling order, (P,).
        eigenvectors: Columns in the same order, (P, P).
        cutoff: Eigenvalues up to here count as zero.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> w = torch.tensor([0.0, 0.3], dtype=torch.float64, requires_grad=True)
        >>> found = fubini.metric_spectrum(circuit)(w)
        >>> found.rank, found.eigenvalues.round(4)
        (2, array([0.6545, 0.0955]))
    """

    matrix: Real = field(repr=False)
    labels: tuple[str, ...]
    eigenvalues: Real
    eigenvectors: Real
    cutoff: float

    @classmethod
    def of_matrix(
        cls, matrix: Any, labels: Sequence[str] | None = None, rcond: float | None = None
    ) -> "MetricSpectrum":
        """Return the spectrum of a matrix.

        Args:
            matrix: (P, P), symmetric; array, tensor or MetricOperator.
            labels: Names of the weights; None: their numbers.
            rcond: Cut-off relative to the largest eigenvalue; None: P times the rounding of the matrix's dtype.

        Returns:
            The spectrum.

        Raises:
            TypeError: If it is no matrix of real numbers.
            ValueError: If the matrix is not square, symmetric and finite, or labels do not fit.
        """
        if callable(matrix):
            raise TypeError(
                f"matrix: expected an array, a tensor or a MetricOperator, got {type(matrix).__name__}; for a QNode or layer use "
                "fubini.metric_spectrum(qnode)(weights)"
            )
        if isinstance(matrix, MetricOperator):
            matrix = matrix.dense()
        single = str(getattr(matrix, "dtype", "")).endswith("float32")
        values = real_array("matrix", matrix.detach() if hasattr(matrix, "detach") else matrix)
        if values.ndim != 2 or values.shape[0] != values.shape[1]:
            raise ValueError(
                f"matrix: expected shape (P, P), got {values.shape}; for a metric of several arguments pass "
                "joint=True, for a batch of inputs reduce='mean'"
            )
        check_finite_array("matrix", values)
        largest = float(np.abs(values).max(initial=0.0))
        if not np.allclose(values, values.T, rtol=0, atol=1e-5 * largest):
            raise ValueError(
                "matrix: expected a symmetric one, got one that differs from its transpose"
            )
        names = tuple(labels) if labels is not None else tuple(map(str, range(len(values))))
        if len(names) != len(values):
            raise ValueError(
                f"labels: expected {len(values)}, one for each weight, got {len(names)}"
            )
        found, vectors = np.linalg.eigh(values)
        precision = float(np.finfo(np.float32 if single else np.float64).eps)
        relative = max(1, len(values)) * precision if rcond is None else float(rcond)
        cutoff = relative * float(np.abs(found).max(initial=0.0))
        return cls(values, names, found[::-1].copy(), vectors[:, ::-1].copy(), cutoff)

    @property
    def rank(self) -> int:
        """Number of eigenvalues above the cut-off."""
        return int((self.eigenvalues > self.cutoff).sum())

    @property
    def condition(self) -> float:
        """Largest eigenvalue divided by the smallest one above the cut-off; infinite if the metric is zero."""
        return float(self.eigenvalues[0] / self.eigenvalues[self.rank - 1]) if self.rank else np.inf

    def effective_dimension(self, lam: float = 0.0) -> float:
        """Return the number of directions in which the weights move the state noticeably, sum v / (v + lam).

        With ``lam = 0`` it is the rank, which Haug, Bharti and Kim (2021, arXiv:2102.01659) call the effective quantum
        dimension. With the damping of an optimizer it counts the directions in which the metric outweighs the
        damping, the well-determined parameters of MacKay (1992, Neural Computation 4, 415).

        Args:
            lam: Damping, in the metric's units.

        Returns:
            A number between 0 and the rank.

        Raises:
            ValueError: If lam is negative or not finite.
        """
        if not 0 <= lam < np.inf:
            raise ValueError(f"lam: expected a finite number >= 0, got {lam!r}")
        kept = self.eigenvalues[: self.rank]
        return float((kept / (kept + lam)).sum())

    @property
    def redundant(self) -> Index:
        """Weights that can be fixed without losing a direction: the others span the same tangent space.

        The others are chosen by pivoted Cholesky, each the one that adds most to what is spanned so far; which of
        several equivalent weights are kept is a matter of that order.
        """
        residual = self.matrix.copy()
        kept: list[int] = []
        for _ in range(self.rank):
            diagonal = residual.diagonal().copy()
            diagonal[kept] = -np.inf
            pivot = int(diagonal.argmax())
            if diagonal[pivot] <= 0:
                break
            column = residual[:, pivot] / np.sqrt(diagonal[pivot])
            residual -= np.outer(column, column)
            kept.append(pivot)
        return np.setdiff1d(np.arange(len(self.labels)), kept)

    @property
    def idle(self) -> Index:
        """Weights that do not move the state at all."""
        return np.flatnonzero(self.matrix.diagonal() <= self.cutoff)

    def __repr__(self) -> str:
        size = len(self.labels)
        if not size:
            return "MetricSpectrum(no weights)"
        lines = [
            f"MetricSpectrum({size} weights, rank {self.rank})",
            f"  eigenvalues       {self.eigenvalues[0]:.3g} to {self.eigenvalues[-1]:.3g}, cut-off {self.cutoff:.1g}",
            f"  condition number  {self.condition:.3g}",
            f"  effective dim.    {self.effective_dimension():.0f}; with damping 1e-3: {self.effective_dimension(1e-3):.3g}",
            f"  redundant         {counted(self.labels, self.redundant)}",
            f"  idle              {counted(self.labels, self.idle)}",
        ]
        return "\n".join(lines)


def metric_spectrum(
    qnode: Any,
    approx: Approx = None,
    *,
    argnums: Argnums = None,
    layers: LayerRule = "wires",
    engine: Engine = "auto",
    rcond: float | None = None,
) -> Callable[..., MetricSpectrum]:
    """Return a function that computes the spectrum of a QNode's or layer's metric, averaged over the inputs.

    The rank counts the directions in which the state moves (Haug, Bharti and Kim 2021, arXiv:2102.01659).

    Args:
        qnode: As for ``fubini.metric_tensor``, like approx, argnums, layers and engine.
        approx: As there.
        argnums: As there.
        layers: As there.
        engine: As there.
        rcond: Cut-off relative to the largest eigenvalue; None: the number of weights times 2.2e-16.

    Returns:
        A function with the QNode's arguments (a layer's: its inputs) that returns a :class:`MetricSpectrum` over all
        weights.

    Raises:
        TypeError: If qnode is no QNode or quantum layer.
        ValueError: For an unknown approx, layers or engine.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> w = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
        >>> found = fubini.metric_spectrum(circuit)(w)
        >>> print(f"rank {found.rank}, condition number {found.condition:.3f}")
        rank 2, condition number 6.854
    """
    check_approx(approx)
    check_rule(layers)

    def value(point: Point) -> MetricSpectrum:
        function = point.call.qnode.func
        names = [argument_name(function, weight) for weight in point.call.weights]
        labels = labels_of(zip(names, map(np.shape, point.weights), strict=True))
        return MetricSpectrum.of_matrix(point.metric(approx, layers, "mean"), labels, rcond)

    return over_calls(qnode, points(qnode, None, argnums, engine), value)


def labels_of(weights: Iterable[tuple[str, Sequence[int]]]) -> tuple[str, ...]:
    """Return names of the entries of weights with given names and shapes, e.g. ``"w[0, 2]"``."""
    return tuple(
        f"{name}[{', '.join(map(str, index))}]" if shape else name
        for name, shape in weights
        for index in np.ndindex(*shape)
    )


def counted(labels: Sequence[str], which: Index) -> str:
    """Return how many weights were found, and the names of the first of them."""
    names = [labels[i] for i in which[:_NAMED]]
    more = f" and {len(which) - _NAMED} more" if len(which) > _NAMED else ""
    return f"{len(which)}: {', '.join(names)}{more}" if names else "0"
