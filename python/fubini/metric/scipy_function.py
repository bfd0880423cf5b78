"""A circuit's expectation value as a function of one flat NumPy array, for SciPy's optimizers and the like."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from fubini import _core
from fubini.arrays import to_numpy
from fubini.circuit.arguments import argument_name, check_finite_array
from fubini.compile.calls import Known, find
from fubini.metric.functions import metric_tensor
from fubini.nn.qnode_function import QNodeFunction
from fubini.options import Approx, LayerRule, Real

_NONE = np.zeros((1, 0))
_ONE = np.ones((1, 1))
_DOUBLE = np.dtype(np.float64)


class SciPyFunction:
    """What :func:`scipy_function` returns.

    Attributes:
        x0: The starting point, (P,).

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> energy = fubini.scipy_function(circuit, torch.tensor([0.4, 0.3], dtype=torch.float64))
        >>> value, gradient = energy(energy.x0)
        >>> round(value, 6), gradient.round(6), energy.metric(energy.x0).round(6)
        (0.764842, array([-0.644218, -0.644218]), array([[0.5 , 0.25],
               [0.25, 0.25]]))
    """

    def __init__(
        self, function: QNodeFunction, weights: Sequence[Any], constants: Mapping[str, Any]
    ):
        self._function, self._constants = function, {n: _constant(v) for n, v in constants.items()}
        names = [argument_name(function.qnode.func, k) for k in range(len(weights))]
        if not weights:
            raise TypeError(
                "weights: expected at least one array with the values to start from, got none; call "
                "scipy_function(qnode, w0)"
            )
        arrays = [_weight(n, w) for n, w in zip(names, weights, strict=True)]
        self._shapes = [a.shape for a in arrays]
        self.x0: Real = np.concatenate([a.reshape(-1) for a in arrays])
        self._shape = self.x0.shape
        ends = np.cumsum([0, *(a.size for a in arrays)]).tolist()
        self._places = [slice(*pair) for pair in itertools.pairwise(ends)]
        self._known: Known | None = None
        self._engine: tuple[Any, Any] | None = None
        self._rest: list[Real] = []
        self._find(self.x0)  # an error in the circuit is seen here
        if self._engine is None:
            _number(self._values(self._tensors(self.x0)))

    def __call__(self, x: Any) -> tuple[float, Real]:
        """Return the value and the gradient, as ``scipy.optimize.minimize(..., jac=True)`` takes them.

        Args:
            x: All weights side by side, (P,).

        Returns:
            The value, and a new array (P,) of float64.

        Raises:
            ValueError: If x has another shape.
        """
        if type(x) is not np.ndarray or x.dtype is not _DOUBLE or x.shape != self._shape:
            x = self._checked(x)
        engine = self._at(x)
        if engine is None:
            tensors = [w.requires_grad_() for w in self._tensors(x)]
            value = _number(self._values(tensors))
            if not value.requires_grad:
                return float(value), np.zeros(len(x))
            found = torch.autograd.grad(value, tensors, materialize_grads=True)
            gradient = np.concatenate([to_numpy(g).reshape(-1) for g in found])
            return float(value.detach()), gradient
        program, angles = engine
        values, passed = _core.forward(program, angles, [x, *self._rest], _NONE, True)
        assert passed is not None
        return values.item(), _core.backward(program, angles, passed, _ONE)[1][0]

    def value(self, x: Any) -> float:
        """Return the value alone.

        Args:
            x: (P,).

        Raises:
            ValueError: If x has another shape.
        """
        x = self._checked(x)
        engine = self._at(x)
        if engine is None:
            with torch.no_grad():
                return float(_number(self._values(self._tensors(x))))
        return float(_core.forward(*engine, [x, *self._rest], _NONE, False)[0].item())

    def gradient(self, x: Any) -> Real:
        """Return the gradient alone, (P,); it costs what both cost.

        Args:
            x: (P,).

        Raises:
            ValueError: If x has another shape.
        """
        return self(x)[1]

    def metric(self, x: Any, approx: Approx = None, *, layers: LayerRule = "wires") -> Real:
        """Return the Fubini-Study metric over all weights, (P, P).

        Args:
            x: (P,).
            approx: As for :func:`fubini.metric_tensor`.
            layers: As there.

        Raises:
            ValueError: If x has another shape or is not finite, or a word is unknown.
        """
        tensors = self._tensors(self._checked(x))
        every = tuple(range(len(tensors)))
        at = metric_tensor(self._function.qnode, approx, argnums=every, layers=layers, joint=True)
        with torch.no_grad():
            return to_numpy(at(*tensors, **self._constants), np.float64)

    def arguments(self, x: Any) -> Any:
        """Return the weights in their own shapes.

        Args:
            x: (P,).

        Returns:
            An array for one weight, a tuple of them for several.

        Raises:
            ValueError: If x has another shape.
        """
        parts = self._parts(self._checked(x).copy())
        return parts[0] if len(parts) == 1 else tuple(parts)

    def explain(self) -> str:
        """Say in one sentence what evaluates the function, and why."""
        if self._engine is not None:
            return "The native engine runs the compiled circuit on NumPy arrays."
        self._values(self._tensors(self.x0))
        return self._function.explain()

    def __repr__(self) -> str:
        return f"fubini.scipy_function({self._function!r}, shapes={self._shapes})"

    def __reduce__(self) -> Any:
        """Start anew, in another process too."""
        return SciPyFunction, (self._function, self._parts(self.x0), self._constants)

    def _at(self, x: Real) -> tuple[Any, Any] | None:
        """The program and the map of angles; None where the circuit is not compiled for these numbers."""
        known = self._known
        if known is None or not known.holds(self._function.qnode):
            self._find(x)
        elif self._decisions and not self._form.decides([x, *self._rest], _NONE):
            return None
        return self._engine

    def _find(self, x: Real) -> None:
        self._known = self._engine = None
        if self._function.native_reason():
            return
        found = find(self._function.qnode, self._tensors(x), dict(self._constants))
        form = None if isinstance(found, str) else found.compiled
        if isinstance(found, str) or form is None or found.known.data is not None:
            return
        if found.known.run.kind != "single" or form.circuit.num_outputs != 1:
            raise _not_one(f"{form.circuit.num_outputs} numbers")
        # The weights are the first arguments.
        self._rest = found.arrays()[len(self._shapes) :]
        self._known, self._form, self._decisions = found.known, form, form.decisions
        self._engine = form.circuit.program, form.map

    def _checked(self, x: Any) -> Real:
        given: Real = to_numpy(x)
        if given.shape != self.x0.shape:
            raise ValueError(
                f"x: expected all weights side by side, {self.x0.shape}, for the shapes {self._shapes}, got {given.shape}"
            )
        return given

    def _parts(self, x: Real) -> list[Real]:
        places = zip(self._places, self._shapes, strict=True)
        return [x[place].reshape(shape) for place, shape in places]

    def _tensors(self, x: Real) -> list[torch.Tensor]:
        return [torch.from_numpy(part.copy()) for part in self._parts(x)]

    def _values(self, tensors: Sequence[torch.Tensor]) -> Any:
        return self._function(*tensors, **self._constants)


def scipy_function(qnode: Any, *weights: Any, **constants: Any) -> SciPyFunction:
    """Return a circuit's expectation value as a function of one flat NumPy array, with gradient and metric.

    Where the native engine can compile the circuit, a call is one forward and one backward pass of the kernel, without
    torch; everything else goes through ``fubini.compiled(qnode)``. What the quantum function reads besides its arguments
    is compared in every call.

    Example::

        >>> import fubini, numpy as np, pennylane as qml, scipy.optimize
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.BasicEntanglerLayers(w, wires=range(2), rotation=qml.RY)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1) + 0.5 * qml.X(0) + 0.5 * qml.X(1))
        >>> energy = fubini.scipy_function(circuit, np.full((2, 2), 0.3))
        >>> found = scipy.optimize.minimize(energy, energy.x0, jac=True, method="BFGS")
        >>> round(found.fun, 6), energy.arguments(found.x).shape, energy.metric(found.x).shape
        (-1.414214, (2, 2), (4, 4))

    Args:
        qnode: A QNode, or what ``fubini.compiled`` returned; it returns one expectation value.
        *weights: The values to start from, an array for each of its first arguments.
        **constants: Its other arguments, which stay as they are: numbers, or arrays.

    Returns:
        A function of all weights side by side, (P,), that returns value and gradient. ``x0`` has the starting
        point; ``value(x)``, ``gradient(x)`` and ``metric(x, approx)`` return one of the three, ``arguments(x)`` the weights
        in their shapes, ``explain()`` says what evaluates the function.

    Raises:
        TypeError: If qnode is no QNode, or returns something else than one number; if a weight is no array of real
            numbers, or there is none.
        ValueError: If a weight is not finite.
    """
    function = qnode if isinstance(qnode, QNodeFunction) else QNodeFunction(qnode)
    return SciPyFunction(function, weights, constants)


def _weight(name: str, value: Any) -> Real:
    array = to_numpy(value, None)
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
        got = getattr(array, "dtype", type(value).__name__)
        raise TypeError(f"{name}: expected an array of real numbers to start from, got {got}")
    check_finite_array(name, array)
    return np.ascontiguousarray(array, dtype=np.float64)


def _constant(value: Any) -> Any:
    is_array = isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    return torch.from_numpy(np.array(value, dtype=np.float64)) if is_array else value


def _number(result: Any) -> torch.Tensor:
    """One number, as a tensor."""
    if not isinstance(result, torch.Tensor):
        raise _not_one(f"a {type(result).__name__}")
    if result.numel() != 1 or result.is_complex():
        raise _not_one(
            f"shape {tuple(result.shape)}" if not result.is_complex() else "a complex one"
        )
    return result.reshape(())


def _not_one(got: str) -> TypeError:
    return TypeError(
        f"qnode: expected a QNode that returns one expectation value, such as qml.expval(hamiltonian), got {got}; for several "
        "results write their function with fubini.compiled(qnode) and torch"
    )
