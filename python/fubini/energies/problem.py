"""An energy as a function of one flat array, for optimizers that know nothing of torch."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fubini import _core
from fubini.arrays import to_numpy
from fubini.compile.calls import find
from fubini.compile.compiled import Affine, Compiled
from fubini.devices.executor import device_reason
from fubini.energies.arguments import Arguments, check_apart
from fubini.errors import UnsupportedCircuitError
from fubini.metric.compiled_qnode import CompiledQNode, compiled
from fubini.native.circuit import Circuit
from fubini.options import Complex, Real

_ONE = np.ones(1)
#: Rounding of a gradient by one number, of an observable of size 1, with a margin of 16.
NOISE = 16.0 * float(np.finfo(np.float64).eps)
_REMEDY = (
    "; minimise it with a torch optimizer, fubini.QNGOptimizer or torch.optim, which take any loss"
)


@dataclass(frozen=True)
class EnergyModel:
    """An energy and its quadratic models at a point.

    Attributes:
        energy: E.
        gradient: (P,).
        curvature: (P, P), the Gauss-Newton part of the Hessian of E, see :meth:`EnergyProblem.curvature`.
        metric: (P, P), the Fubini-Study metric.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> problem = fubini.energy_problem(circuit, torch.tensor([0.4, 0.3], dtype=torch.float64))
        >>> model = problem.model(problem.start)
        >>> model.gradient.shape, model.curvature.shape, model.metric.shape
        ((2,), (2, 2), (2, 2))
    """

    energy: float
    gradient: Real
    curvature: Real
    metric: Real


class EnergyProblem:
    """The expectation value of a compiled QNode over its P trainable numbers, as :func:`energy_problem` returns it.

    Arrays are float64. Numbers are in the order of the arguments, each flattened in C order.

    Attributes:
        start: Where the arguments were, (P,).
        evaluations: How often an energy was computed, with or without derivatives.
        size: P.
        amplitudes: Of the state, 2^wires.
        magnitude: Of the observable, the sum of the sizes of its coefficients: energies are rounded in proportion to it.
        noise: Length up to which a gradient, (P,), is nothing but rounding.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> problem = fubini.energy_problem(circuit, torch.tensor([0.4, 0.3], dtype=torch.float64))
        >>> round(float(problem.energy(problem.start)), 6)
        0.764842
    """

    def __init__(
        self,
        circuit: Circuit,
        angles: _Angles,
        start: Real,
        arguments: Arguments,
        state: Complex | None = None,
    ) -> None:
        self.start = start
        self.evaluations = 0
        self._program, self._angles, self._arguments = circuit.program, angles, arguments
        self._state = state
        [measured] = circuit.structure.measurements
        sizes = [1.0] if measured.projector else [abs(c) for _, _, c in measured.terms]
        self.size, self.amplitudes = len(start), 1 << circuit.num_wires
        self.magnitude = float(sum(sizes))
        self.noise = NOISE * self.magnitude * math.sqrt(max(1, self.size))

    def energy(self, x: Real) -> float:
        """Return the energy.

        Args:
            x: (P,).
        """
        return float(self.energies(np.asarray(x, dtype=np.float64)[None])[0])

    def energies(self, points: Real) -> Real:
        """Return the energies at several points, (k,), which cost less together than one by one.

        Args:
            points: (k, P).
        """
        self.evaluations += len(points)
        found: Real = _core.expval(self._program, self._angles.at(points), self._state)
        return found[:, 0]

    def value_and_gradient(self, x: Real) -> tuple[float, Real]:
        """Return the energy and its gradient, (P,): what ``scipy.optimize.minimize(..., jac=True)`` takes.

        Args:
            x: (P,).
        """
        self.evaluations += 1
        x = np.asarray(x, dtype=np.float64)
        values, gradient, _ = _core.vjp(
            self._program, self._angles.at(x[None]), np.ones((1, 1)), self._state
        )
        return float(values[0, 0]), self._angles.pull(x, gradient[0])

    def model(self, x: Real) -> EnergyModel:
        """Return the energy, its gradient, its curvature and the metric, which are cheap together.

        Args:
            x: (P,).
        """
        return EnergyModel(*self._expansion(x, True))

    def expansion(self, x: Real) -> tuple[float, Real, Real]:
        """Return the energy, its gradient, (P,), and its curvature, (P, P): :meth:`model` without the metric.

        Args:
            x: (P,).
        """
        energy, gradient, curvature = self._expansion(x, False)
        return energy, gradient, curvature

    def _expansion(self, x: Real, with_metric: bool) -> Any:
        self.evaluations += 1
        x = np.asarray(x, dtype=np.float64)
        value, gradient, *matrices = _core.energy_curvature(
            self._program, self._angles.at(x[None]), _ONE, self._state, with_metric
        )
        pulled = [self._angles.pull_both(x, m[0]) for m in matrices if m is not None]
        return float(value[0]), self._angles.pull(x, gradient[0]), *pulled

    def metric(self, x: Real) -> Real:
        """Return the Fubini-Study metric, (P, P).

        Args:
            x: (P,).
        """
        x = np.asarray(x, dtype=np.float64)
        found: Real = _core.metric(self._program, self._angles.at(x[None]), self._state)
        return self._angles.pull_both(x, found[0])

    def curvature(self, x: Real) -> Real:
        r"""Return the Gauss-Newton part of the Hessian of the energy, (P, P).

        It is :math:`B_{ij} = 2 Re <d_i psi| P (H - E) P |d_j psi>` with :math:`P = 1 - |psi><psi|`, the metric of
        Rayleigh-Gauss-Newton; the rest of the Hessian has second derivatives of psi and vanishes with
        ``(H - E) |psi>``. At a ground state B is the Hessian. Away from one it can have negative eigenvalues.

        Args:
            x: (P,).
        """
        return self.expansion(x)[2]

    def curvature_product(self, x: Real, vectors: Real) -> Real:
        """Return the curvature times vectors, without the matrix.

        Args:
            x: (P,).
            vectors: (P,), or (k, P) for several.

        Returns:
            The products, of the vectors' shape.
        """
        x, vectors = np.asarray(x, dtype=np.float64), np.asarray(vectors, dtype=np.float64)
        rows = np.atleast_2d(vectors)
        pushed = np.ascontiguousarray(self._angles.push(x, rows))[None]
        found = _core.energy_curvature_product(
            self._program, self._angles.at(x[None]), _ONE, pushed, self._state
        )[0]
        return np.array([self._angles.pull(x, f) for f in found]).reshape(vectors.shape)

    def arguments(self, x: Real) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the QNode's positional and keyword arguments with the numbers in their places.

        Args:
            x: (P,).
        """
        return self._arguments.at(np.asarray(x, dtype=np.float64))

    def write(self, x: Real) -> None:
        """Write the numbers into the tensors that the problem was made with.

        Args:
            x: (P,).
        """
        self._arguments.write(np.asarray(x, dtype=np.float64))


class _Angles:
    """The numbers are the circuit's angles: gates share them where they share a weight."""

    def at(self, points: Real) -> Real:
        return points

    def push(self, x: Real, rows: Real) -> Real:
        return rows

    def pull(self, x: Real, gradient: Real) -> Real:
        return gradient

    def pull_both(self, x: Real, matrix: Real) -> Real:
        return matrix


class _Mapped(_Angles):
    """The circuit's angles are other functions of the numbers."""

    def __init__(self, form: Compiled, whole: Real, columns: Any) -> None:
        self._form, self._whole, self._columns = form, whole, columns
        self._known: tuple[bytes, Real] = (b"", whole)

    def _weights(self, x: Real) -> Real:
        weights = self._whole.copy()
        weights[self._columns] = x
        return weights

    def at(self, points: Real) -> Real:
        none = np.zeros((1, 0))
        return np.concatenate([self._form.map.angles([self._weights(x)], none) for x in points])

    def _jacobian(self, x: Real) -> Real:
        key = x.tobytes()
        if key != self._known[0]:
            weights = self._weights(x)
            found = self._form.jacobian([weights], np.zeros((1, 0)))
            dense = np.zeros((self._form.circuit.num_angles, len(weights)))
            dense[found.rows] = found.values[0]
            self._known = key, dense[:, self._columns]
        return self._known[1]

    def push(self, x: Real, rows: Real) -> Real:
        return rows @ self._jacobian(x).T

    def pull(self, x: Real, gradient: Real) -> Real:
        return gradient @ self._jacobian(x)

    def pull_both(self, x: Real, matrix: Real) -> Real:
        jacobian = self._jacobian(x)
        found: Real = jacobian.T @ matrix @ jacobian
        return (found + found.T) / 2


def energy_problem(energy: Any, *args: Any, **kwargs: Any) -> EnergyProblem:
    """Return the expectation value that a QNode computes as a function of one flat NumPy array.

    Besides the energy it has the curvature of Rayleigh-Gauss-Newton steps (Webber and Lindsey 2022, arXiv:2106.10558).
    Where angles are multiples of one number each (plus constants), the gates are tied to the numbers themselves: a
    metric of QAOA with p layers then has 2 p rows, whatever the number of gates.

    Example::

        >>> import fubini, pennylane as qml, scipy.optimize, torch
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def energy(w):
        ...     qml.RY(w[0], 0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[1], 1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1) + 0.5 * qml.X(1))
        >>> problem = fubini.energy_problem(energy, torch.tensor([0.1, 0.2]))
        >>> found = scipy.optimize.minimize(problem.value_and_gradient, problem.start, jac=True)
        >>> round(found.fun, 6)
        -1.118034

    Args:
        energy: A QNode or what :func:`fubini.compiled` made of it. It returns one expectation value.
        *args: Its arguments. Tensors that require a gradient are what moves; where none does, all tensors are.
        **kwargs: Likewise.

    Returns:
        The problem; it holds for what the QNode's function reads at this moment.

    Raises:
        TypeError: If energy is no QNode.
        UnsupportedCircuitError: If the circuit does not run natively, or returns something else than one expectation
            value.
        ValueError: If nothing moves, or what moves shares its memory, as one tensor for two arguments does.
    """
    qnode = energy.qnode if isinstance(energy, CompiledQNode) else compiled(energy).qnode
    reason = device_reason(qnode)
    found = reason or find(qnode, args, kwargs)
    form = None if isinstance(found, str) else found.compiled
    if form is None or isinstance(found, str):
        why = found if isinstance(found, str) else found.reason
        # Arguments that are no tensors are none for a torch optimizer either.
        remedy = "" if "torch.as_tensor" in why else _REMEDY
        raise UnsupportedCircuitError(f"energy: expected a circuit that is compiled: {why}{remedy}")
    against = reason_against(form)
    if against or found.known.data is not None:
        against = against or "expected a circuit without inputs, got a batch"
        raise UnsupportedCircuitError(f"energy: {against}{_REMEDY}")
    tensors = list(found.tensors.values())
    moving = [v for v in tensors if v.requires_grad] or tensors
    ids = {id(v) for v in moving}
    check_apart(tensors, ids)
    whole = np.concatenate([to_numpy(v).reshape(-1) for v in tensors]).astype(float)
    mask = np.concatenate([np.full(v.numel(), id(v) in ids) for v in tensors])
    columns = np.flatnonzero(mask)
    if not len(columns):
        raise ValueError("args: expected tensors with at least one number, got none")
    return problem_of(form, whole, columns, Arguments(args, kwargs, moving))


def reason_against(form: Compiled) -> str:
    """Return why a compiled circuit is no energy; nothing where it is one.

    Args:
        form: The circuit.
    """
    measured = form.circuit.structure.measurements
    if len(measured) != 1 or measured[0].kind != "expval":
        kinds = [m.kind for m in measured]
        return f"expected a QNode that returns one expectation value, got {kinds}"
    if form.state_weighted or form.state_from_inputs:
        return (
            "expected an initial state that no argument of the QNode enters (it may be read from outside, as a NumPy array), "
            "got amplitudes from a tensor"
        )
    return ""


def problem_of(
    form: Compiled, whole: Real, columns: Any, arguments: Arguments | None = None
) -> EnergyProblem:
    """Return a compiled circuit that is an energy as a function of some of its numbers.

    Args:
        form: The circuit, see ``reason_against``.
        whole: All its numbers, in the order of compilation.
        columns: Those that move.
        arguments: Of the call that they are from, if there is one.
    """
    arguments = arguments or Arguments((), {}, [])
    start = whole[columns]
    state = form.states([whole], np.zeros((1, 0)))
    tied = _tied(form.circuit, form.affine, whole, columns)
    if tied is not None:
        return EnergyProblem(tied, _Angles(), start, arguments, state)
    return EnergyProblem(form.circuit, _Mapped(form, whole, columns), start, arguments, state)


def _tied(circuit: Circuit, affine: Affine | None, whole: Real, columns: Any) -> Circuit | None:
    """The circuit over the weights themselves, if no angle depends on several of those that move."""
    if affine is None:
        return None
    moving = affine.weights[:, columns]
    if (np.count_nonzero(moving, axis=1) > 1).any():
        return None
    fixed = whole.copy()
    fixed[columns] = 0.0
    constant = affine.constant + affine.weights @ fixed
    column = np.abs(moving).argmax(axis=1)
    factor = moving[np.arange(len(moving)), column]

    def retied(parameter: Any) -> Any:
        slot, c = parameter.slot, parameter.coefficient
        if slot < 0:
            return parameter
        offset = parameter.offset + c * float(constant[slot])
        if factor[slot] == 0.0:
            return parameter._replace(slot=-1, offset=offset)
        return parameter._replace(
            slot=int(column[slot]), coefficient=c * float(factor[slot]), offset=offset
        )

    structure = circuit.structure
    gates = tuple(g._replace(parameters=tuple(map(retied, g.parameters))) for g in structure.gates)
    return Circuit(dataclasses.replace(structure, num_angles=len(columns), gates=gates))
