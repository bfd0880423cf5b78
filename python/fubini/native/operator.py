"""The full metric as an operator: products, diagonal, blocks and regularised solutions, formed or not."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from fubini.arrays import is_tensor, like, real_array
from fubini.native.metric import check_finite
from fubini.native.metric_form import Choice, choose
from fubini.native.pullback import Pullback
from fubini.options import Form, Index, LayerRule, Real, check_form, check_rule
from fubini.solvers.damping import Damping, as_damping
from fubini.solvers.systems import CG, Dual, SolveInfo, solve


class MetricOperator:
    """The Fubini-Study metric over P weights, averaged over the inputs, as a symmetric linear operator.

    Make one by ``fubini.metric_operator(qnode)(*args)`` or ``circuit.metric_operator(angles)``. It belongs to the
    weights and inputs it was made for. Vectors may be NumPy arrays or torch tensors; results are of their kind.

    Args:
        pullback: Circuit, angles, and how they depend on weights.
        form: ``"dense"``: the matrix, made once; ``"dual"``: a factor X (P, m) with g = X X^T, made once;
            ``"matrix-free"``: a forward and a reverse sweep per product; ``"auto"``: what ``fubini.cost`` predicts
            to solve one system fastest.
        layers: Which gates form a block, see ``fubini.circuit.gate_layers``.
        like: What ``dense()``, ``diagonal()`` and ``blocks()`` return: tensors for a tensor.

    Attributes:
        form: The form that was taken.
        choice: How it was chosen; None where the caller did.
        shape: (P, P).

    Raises:
        TypeError: If pullback is something else.
        ValueError: For an unknown form or layers, or an angle that is NaN or infinite (names its position).

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> w = torch.tensor([0.4, 0.3], dtype=torch.float64, requires_grad=True)
        >>> g = fubini.metric_operator(circuit)(w)
        >>> g.shape
        (2, 2)
        >>> (g @ torch.tensor([1.0, 0.0], dtype=torch.float64)).round(decimals=4)
        tensor([0.5000, 0.2500], dtype=torch.float64)
    """

    def __init__(
        self,
        pullback: Pullback,
        form: Form = "auto",
        *,
        layers: LayerRule = "wires",
        like: Any = None,
    ) -> None:
        if not isinstance(pullback, Pullback):
            raise TypeError(
                f"pullback: expected what the library makes, got {type(pullback).__name__}; make the operator of a QNode or "
                "layer by fubini.metric_operator(qnode)(weights), that of a matrix by MetricOperator.of_matrix(matrix)"
            )
        check_form(form)
        check_rule(layers)
        check_finite("angles", pullback.angles, pullback.batch is None)
        self._pullback: Pullback | None = pullback
        self._layers: LayerRule = layers
        self._like = like
        self.choice: Choice | None = None
        if form == "auto":
            self.choice = choose(pullback.circuit, pullback.size, inputs=len(pullback.angles))
        self.form: str = form if self.choice is None else self.choice.form
        self.shape = (pullback.size, pullback.size)

    @classmethod
    def of_matrix(cls, matrix: Real, like: Any = None) -> "MetricOperator":
        """Return the operator of a matrix that is known already.

        Args:
            matrix: (P, P), symmetric.
            like: As for the class.

        Raises:
            TypeError: If it is no array of real numbers.
            ValueError: If it is not square.
        """
        matrix = real_array("matrix", matrix.detach() if is_tensor(matrix) else matrix)
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix: expected shape (P, P), got {matrix.shape}")
        self = cls.__new__(cls)
        self._pullback, self._layers, self._like = None, "wires", like
        self.choice, self.form, self.shape = None, "dense", (len(matrix), len(matrix))
        self.__dict__["_matrix"] = matrix
        return self

    def __repr__(self) -> str:
        source = "" if self._pullback is None else f", {self._pullback.circuit!r}"
        inputs = 1 if self._pullback is None else len(self._pullback.angles)
        return (
            f"MetricOperator({self.shape[0]} weights, {inputs} inputs, form={self.form!r}{source})"
        )

    def explain(self) -> str:
        """Say in one sentence which form the metric has and why."""
        if self.choice is not None:
            return self.choice.explain()
        if self._pullback is None:
            return "The metric is dense: it was measured as a matrix."
        return f"The metric is {self.form}: the caller asked for it."

    # -- what it is -------------------------------------------------------------------------------------------------

    def __matmul__(self, vectors: Any) -> Any:
        """Return g v.

        Args:
            vectors: (P,), or (P, c) for several columns; NumPy array or torch tensor.

        Returns:
            Of the shape, kind and dtype of the vectors.

        Raises:
            ValueError: For a wrong shape, or an entry that is NaN or infinite.
        """
        values = self._vectors("vectors", vectors)
        product = self._product(np.atleast_2d(values.T)).T.reshape(values.shape)
        return _as_given(product, vectors)

    def diagonal(self) -> Any:
        """Return the diagonal, (P,), exactly."""
        return like(self._diagonal, self._like)

    def blocks(self) -> list[tuple[Index, Any]]:
        """Return the diagonal blocks that belong to layers of gates.

        Where every angle has a weight of its own they are sub-matrices of the metric, to rounding. Where angles of
        different layers share weights, the block has these weights together, without the covariance between layers.

        Returns:
            Pairs of weight indices (c,) and matrices (c, c); weights that no angle depends on are in none.
        """
        return [(columns, like(matrix, self._like)) for columns, matrix in self._blocks]

    def dense(self) -> Any:
        """Return the matrix, (P, P).

        Raises:
            MemoryError: If it is larger than the bound.
        """
        return like(self._matrix, self._like)

    def factor(self) -> Any:
        """Return X with g = X X^T, (P, m): derivative states as real rows, of all inputs side by side.

        Raises:
            MemoryError: If it is larger than the bound.
            ValueError: If only the matrix is known.
        """
        return like(self._factor, self._like)

    # -- solutions --------------------------------------------------------------------------------------------------

    def solve(
        self,
        rhs: Any,
        *,
        damping: Any = 0.0,
        rtol: float = 1e-8,
        x0: Any = None,
        max_iterations: int | None = None,
        return_info: bool = False,
    ) -> Any:
        """Solve (g + D) x = b.

        The dense form goes through Cholesky, the dual one through Woodbury's identity; matrix-free, conjugate
        gradients are preconditioned by the damped block-diagonal metric and stop at the relative residual asked for.

        Args:
            rhs: b, (P,) or (P, c); NumPy array or torch tensor.
            damping: lam for D = lam I; ``fubini.Relative`` for lam mean(diag g) I; ``fubini.Diagonal`` for
                lam diag(g).
            rtol: Conjugate gradients stop at |b - A x| <= rtol |b|.
            x0: First guess, of the shape of rhs, e.g. the last solution, scaled to its least residual; matrix-free
                only, others need none.
            max_iterations: None: 10 P, at least 100.
            return_info: Return ``(x, info)`` with a :class:`fubini.SolveInfo`: status, iterations, residual.

        Returns:
            x, of the shape, kind and dtype of rhs; with ``return_info`` a pair.

        Raises:
            NumericalError: If the system is singular, or did not converge.
            ValueError: For a wrong shape, or a number out of its range.
        """
        b = self._vectors("rhs", rhs)
        added = as_damping(damping)
        if self.form == "matrix-free":
            x, info = self._solve_by_products(b, added, rtol, x0, max_iterations)
            return (_as_given(x, rhs), info) if return_info else _as_given(x, rhs)
        matrix, method = (self._matrix, "auto") if self.form == "dense" else (self._factor, Dual())
        result = solve(matrix, b, damping=added, method=method, return_info=return_info)
        return (_as_given(result[0], rhs), result[1]) if return_info else _as_given(result, rhs)

    def preconditioner(self, damping: Any = 0.0) -> Callable[[Real], Real]:
        """Return the inverse of the damped block-diagonal metric, as a function of residuals (..., P).

        Args:
            damping: As for :meth:`solve`.
        """
        return self.block_inverse(self._added(as_damping(damping)))

    def block_inverse(self, added: Real) -> Callable[[Real], Real]:
        """Return the inverse of the block-diagonal metric with numbers added to its diagonal, for residuals (..., P).

        Args:
            added: (P,), not negative.
        """
        diagonal = self._diagonal
        mean = float(diagonal.mean()) if len(diagonal) else 0.0
        # Directions without metric and damping still need a finite scale.
        extra = np.maximum(added, 1e-8 * mean if mean > 0 else 1.0)
        groups: dict[int, tuple[list[Index], list[Real]]] = {}
        rest = np.ones(len(diagonal), dtype=bool)
        for columns, matrix in self._blocks:
            indices, matrices = groups.setdefault(len(columns), ([], []))
            indices.append(columns)
            matrices.append(matrix + np.diag(extra[columns]))
            rest[columns] = False
        inverses = []
        for size, (indices, matrices) in groups.items():
            stacked = np.stack(matrices)
            unit = np.broadcast_to(np.eye(size), stacked.shape).copy()
            inverse = solve(stacked, unit)
            inverses.append((np.stack(indices), 0.5 * (inverse + inverse.swapaxes(1, 2))))

        def apply(residual: Real) -> Real:
            result = np.where(rest, residual / extra, 0.0)
            for index, inverse in inverses:
                result[..., index] = np.einsum("sij,...sj->...si", inverse, residual[..., index])
            return result

        return apply

    def _solve_by_products(
        self, b: Real, damping: Damping, rtol: float, x0: Any, max_iterations: int | None
    ) -> tuple[Real, SolveInfo]:
        extra = self._added(damping)
        start = None
        if x0 is not None:
            given = self._vectors("x0", x0)
            if given.shape != b.shape:
                raise ValueError(f"x0: expected the shape of rhs = {b.shape}, got {given.shape}")
            start = np.ascontiguousarray(given.T)

        def apply(vectors: Real) -> Real:
            product = self._product(np.atleast_2d(vectors)).reshape(vectors.shape)
            return product + extra * vectors

        x, info = solve(
            apply,
            np.ascontiguousarray(b.T),
            method=CG(rtol, max_iterations, self.block_inverse(extra), start),
            return_info=True,
        )
        return x.T, info

    def _added(self, damping: Damping) -> Real:
        """What a damping adds to the diagonal, (P,)."""
        lam = float(damping.values(())[0])
        if damping.kind == "diagonal":
            return lam * self._diagonal
        if damping.kind == "relative" and self.shape[0]:
            lam *= float(self._diagonal.mean())
        return np.full(self.shape[0], lam)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _product(self, vectors: Real) -> Real:
        """G v for rows (c, P)."""
        if self._pullback is None or self.form == "dense":
            return vectors @ self._matrix
        if self.form == "dual":
            return (vectors @ self._factor) @ self._factor.T
        return self._pullback.product(np.ascontiguousarray(vectors))

    @cached_property
    def _matrix(self) -> Real:
        assert self._pullback is not None
        return self._pullback.metric(None, self._layers, "mean")

    @cached_property
    def _diagonal(self) -> Real:
        if "_matrix" in self.__dict__ or self._pullback is None:
            return np.diagonal(self._matrix).copy()
        return self._pullback.diagonal()

    @cached_property
    def _blocks(self) -> list[tuple[Index, Real]]:
        if self._pullback is None:
            return [(np.arange(self.shape[0]), self._matrix)]
        return self._pullback.weight_blocks(self._layers)

    @cached_property
    def _factor(self) -> Real:
        if self._pullback is None:
            raise ValueError("factor: only the matrix is known; use dense()")
        return self._pullback.factor()

    def _vectors(self, name: str, value: Any) -> Real:
        array = real_array(name, value.detach() if is_tensor(value) else value)
        if array.ndim not in (1, 2) or array.shape[0] != self.shape[0]:
            raise ValueError(
                f"{name}: expected shape (P,) or (P, c) with P = {self.shape[0]} weights, got {array.shape}"
            )
        if not np.isfinite(array).all():
            place = ", ".join(str(int(i)) for i in np.argwhere(~np.isfinite(array))[0])
            raise ValueError(
                f"{name}: expected finite numbers, got NaN or infinity at {name}[{place}]"
            )
        return array


def _as_given(values: Real, template: Any) -> Any:
    if is_tensor(template) and not template.is_floating_point():
        return like(values, template.double())
    if is_tensor(template):
        return like(np.ascontiguousarray(values), template)
    dtype = np.asarray(template).dtype
    return values.astype(dtype if dtype.kind == "f" else np.float64, copy=False)
