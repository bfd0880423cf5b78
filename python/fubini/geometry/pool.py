r"""Pools of candidate operations, and circuits that are made of them: one weight for every operation.

An operation U(w) with U(0) = 1 that is appended to a circuit with the weight 0 leaves the state as it is and adds the
tangent :math:`\partial_w U(0)|\psi\rangle`. The tangents of a whole pool come from one call of the engine with all of its
operations behind the circuit at once, and so do their gradients, from one reverse sweep.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pennylane as qml

from fubini.arrays import to_numpy
from fubini.circuit.any_angle import rebind
from fubini.circuit.jacobian import Jacobian
from fubini.circuit.measured import all_wires
from fubini.errors import UnsupportedCircuitError
from fubini.geometry.ansatz import Ansatz
from fubini.geometry.operators import Terms, terms_of
from fubini.native.circuit import Circuit
from fubini.native.gates import NativeGate
from fubini.native.measurements import Measurement
from fubini.native.reading import Gates, Structure, read
from fubini.options import Complex, Real

#: A quantum function without arguments.
Start = Callable[[], Any]

# Of U(0) from the identity: a product of a hundred gates in float64.
_IDENTITY = 1e-10


@dataclass(frozen=True, eq=False)
class Element:
    """An operation with one weight, in the engine's gates.

    Attributes:
        operation: The operation at the weight 0.
        gates: Its gates; their slots count from 0.
        offsets: Their angles at the weight 0, (k,).
        slopes: Derivatives of the angles by the weight, (k,).
        periodic: Whether it is the identity at 4 pi, as every rotation is.
    """

    operation: Any
    gates: tuple[NativeGate, ...]
    offsets: Real
    slopes: Real
    periodic: bool = False

    def with_weight(self, weight: Any) -> Any:
        """Return the operation at a weight, queued where a quantum function runs."""
        with qml.QueuingManager.stop_recording():
            operation = rebind(self.operation, [weight])
        return qml.apply(operation)


def element(operation: Any, name: str) -> Element:
    """Return an operation of a pool in the engine's gates.

    Args:
        operation: A PennyLane operation with one parameter, whose value does not matter.
        name: What the caller calls it, for messages.

    Returns:
        The element.

    Raises:
        TypeError: If it is no operation.
        ValueError: If it has not one scalar parameter, or is not the identity where that is 0.
        UnsupportedCircuitError: If the engine does not know it.
    """
    if not isinstance(operation, qml.operation.Operator):
        raise TypeError(
            f"{name}: expected an operation of PennyLane, such as qml.SingleExcitation(0.0, wires=[0, 2]), got "
            f"{type(operation).__name__}"
        )
    if len(operation.data) != 1 or np.ndim(qml.math.toarray(operation.data[0])):
        raise ValueError(
            f"{name}: expected an operation with one parameter, got {operation.name} with "
            f"{[np.shape(d) for d in operation.data]}; take it apart, or use qml.PauliRot"
        )
    try:
        zero, offsets = _read(rebind(operation, [0.0]))
        one, there = _read(rebind(operation, [1.0]))
        between, middle = _read(rebind(operation, [0.7]))
    except UnsupportedCircuitError as error:
        raise UnsupportedCircuitError(
            f"{name}: {operation.name} at a real parameter has no gates that the engine knows; use qml.PauliRot, or for an "
            "exponential qml.evolve(generator, 0.0)"
        ) from error
    alike = zero.gates == one.gates == between.gates
    if not alike or not np.allclose(middle, offsets + 0.7 * (there - offsets), atol=1e-12):
        raise UnsupportedCircuitError(
            f"{name}: {operation.name} has gates whose angles are no multiples of its parameter; use qml.PauliRot"
        )
    slopes = there - offsets
    slopes[np.abs(slopes) < 1e-14] = 0.0
    if not slopes.any():
        raise ValueError(
            f"{name}: expected an operation that depends on its parameter, got {operation.name}, which does not"
        )
    found = Element(rebind(operation, [0.0]), tuple(zero.gates), offsets, slopes)
    if not _is_identity(found, 0.0):
        raise ValueError(
            f"{name}: expected an operation that is the identity where its parameter is 0, got {operation.name}"
        )
    return replace(found, periodic=_is_identity(found, 4 * np.pi))


def _read(operation: Any) -> tuple[Gates, Real]:
    parts = Gates()
    parts.decompose([operation])
    return parts, np.array([float(to_numpy(v)) for v in parts.values])


def _is_identity(one: Element, weight: float) -> bool:
    """Whether an element does nothing to a random state, but for the phase."""
    wires = tuple(one.operation.wires)
    circuit = Circuit(Structure(wires, len(one.offsets), one.gates, (), True))
    psi = np.random.default_rng(0).normal(size=2 * 2 ** len(wires)).view(complex)
    psi /= np.linalg.norm(psi)
    there = circuit.state(one.offsets + weight * one.slopes, psi)
    return bool(abs(abs(np.vdot(psi, there)) - 1.0) <= _IDENTITY)


def shifted(gates: Sequence[NativeGate], by: int) -> tuple[NativeGate, ...]:
    """Return gates whose slots count from another number."""
    return tuple(
        gate._replace(
            parameters=tuple(
                p._replace(slot=p.slot + by) if p.slot >= 0 else p for p in gate.parameters
            ),
        )
        for gate in gates
    )


class Chain(Ansatz):
    """A circuit of a fixed start and of elements with one weight each.

    Args:
        start: The start's gates and angles.
        elements: In the order in which they act.
        wires: Of the circuit.
        measured: An observable whose expectation value the circuit measures; None for none.
    """

    def __init__(
        self,
        start: "StartGates",
        elements: Sequence[Element],
        wires: tuple[Any, ...],
        measured: Terms | None = None,
    ) -> None:
        self.size = len(elements)
        self.initial = start.state
        counts = [len(start.angles), *(len(one.offsets) for one in elements)]
        gates = list(start.gates)
        for one, slot in zip(elements, np.cumsum(counts).tolist(), strict=False):
            gates += shifted(one.gates, slot)
        self._offsets = np.concatenate([start.angles, *(one.offsets for one in elements)])
        slopes = np.concatenate([np.zeros(counts[0]), *(one.slopes for one in elements)])
        owners = np.repeat(np.arange(-1, self.size), counts)
        rows = np.flatnonzero(slopes)
        self._jacobian = Jacobian.gather(rows, owners[rows], slopes[rows][None], self.size)
        measurements = () if measured is None else (Measurement("expval", terms=measured),)
        takes = start.state is not None
        self.circuit = Circuit(Structure(wires, sum(counts), tuple(gates), measurements, takes))

    def angles(self, weights: Real) -> Real:
        """Return the angles (B, A) at weights (B, P)."""
        return self._offsets + self.push(weights)

    def jacobian(self, weights: Real) -> Jacobian:
        """Return the angles' derivative by the weights, the same for all weights."""
        return self._jacobian

    def state(self, weights: Real) -> Complex:
        """Return the state (N,) at weights (P,)."""
        found: Complex = self.circuit.state(self.angles(weights[None]), self.initial)[0]
        return found

    def energy(self, weights: Real) -> float:
        """Return the measured expectation value at weights (P,)."""
        return float(self.circuit.expval(self.angles(weights[None]), self.initial)[0, 0])

    def gradient(self, weights: Real) -> Real:
        """Return its gradient by the weights, (P,)."""
        angles = self.angles(weights[None])
        by_angles = self.circuit.vjp(angles, np.ones((1, 1)), self.initial)
        found: Real = self.pull(by_angles)[0]
        return found

    def push(self, vectors: Real) -> Real:
        """Return directions of the angles (c, A) for directions of the weights (c, P)."""
        found = np.zeros((len(vectors), self.circuit.num_angles))
        found[:, self._jacobian.rows] = self._jacobian.push(vectors)[0]
        return found

    def pull(self, by_angles: Real) -> Real:
        """Return derivatives by the weights (c, P) of what has derivatives (c, A) by the angles."""
        found: Real = self._jacobian.pull(by_angles[None, :, self._jacobian.rows])[0]
        return found


@dataclass(frozen=True, eq=False)
class StartGates:
    """What stands in front of everything that has a weight.

    Attributes:
        function: The quantum function without arguments; None for |0...0>.
        gates: In the engine's gates.
        angles: Their angles.
        state: The initial state (1, N), where the function begins with one; else None.
    """

    function: Start | None
    gates: tuple[NativeGate, ...]
    angles: Real
    state: Complex | None

    def queue(self) -> None:
        """Queue its operations where a quantum function runs."""
        if self.function is not None:
            self.function()


def started(function: Any, others: Sequence[Any]) -> tuple[StartGates, tuple[Any, ...]]:
    """Return the start in the engine's gates, and the wires of the whole circuit in order.

    Args:
        function: A quantum function without arguments, or None.
        others: Operations whose wires count too.

    Returns:
        Both.

    Raises:
        TypeError: If function is no function without arguments.
    """
    if function is not None and not callable(function):
        raise TypeError(
            f"start: expected a function without arguments that queues operations, such as lambda: qml.X(0), got "
            f"{type(function).__name__}"
        )
    operations: list[Any] = []
    if function is not None:
        with qml.queuing.AnnotatedQueue() as queue:
            try:
                function()
            except TypeError as error:
                raise TypeError(
                    f"start: expected a function without arguments that queues operations, got {error}"
                ) from error
        tape = qml.tape.QuantumScript.from_queue(queue)
        if tape.measurements:
            raise TypeError(
                "start: expected operations only, got a function that measures; leave its measurements out"
            )
        operations = tape.operations
    every = qml.wires.Wires.all_wires([op.wires for op in [*operations, *others]])
    wires = tuple(all_wires(qml.tape.QuantumScript([qml.Identity(every)]), None))
    found = read(qml.tape.QuantumScript(operations), wires=wires)
    angles = np.asarray(to_numpy(found.angles)).reshape(-1)
    state = found.state
    prepared = None if state is None else to_numpy(state, np.complex128).reshape(1, -1)
    return StartGates(function, found.structure.gates, angles, prepared), wires


@dataclass(frozen=True, eq=False)
class Pool:
    """Candidates for the next operation of a circuit.

    Attributes:
        start: Of the circuit.
        elements: The candidates.
        wires: Of the circuit.
        terms: Words of the Hamiltonian.
    """

    start: StartGates
    elements: tuple[Element, ...]
    wires: tuple[Any, ...]
    terms: Terms

    def chain(self, elements: Sequence[Element], measured: bool = False) -> Chain:
        """Return the circuit of elements behind the start; ``measured``: it measures the Hamiltonian."""
        return Chain(self.start, elements, self.wires, self.terms if measured else None)

    @cached_property
    def _alone(self) -> Chain:
        """All candidates behind a state that each call brings, measuring the Hamiltonian."""
        placeholder = np.zeros((1, 2 ** len(self.wires)), dtype=complex)
        nothing = StartGates(None, (), np.zeros(0), placeholder)
        return Chain(nothing, self.elements, self.wires, self.terms)

    def gradients(self, state: Complex) -> Real:
        r"""Return d<H>/dw_k at w_k = 0 of every candidate, 2 Re <psi|H d_k U|psi>, (K,), by one reverse sweep.

        Args:
            state: psi, (N,).
        """
        chain = self._alone
        angles = chain.angles(np.zeros((1, chain.size)))
        found: Real = chain.pull(chain.circuit.vjp(angles, np.ones((1, 1)), state[None]))[0]
        return found


def pool_of(operations: Any, hamiltonian: Any, start: Any, others: Sequence[Any] = ()) -> Pool:
    """Return a pool of candidates for a Hamiltonian, behind the start of a circuit.

    Args:
        operations: Operations with one parameter each.
        hamiltonian: A Hermitian operator.
        start: As for :func:`started`.
        others: More operations, whose wires count.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If the pool is empty, or an operation does not fit.
    """
    if isinstance(operations, qml.operation.Operator) or not isinstance(operations, Sequence):
        raise TypeError(f"pool: expected a list of operations, got {type(operations).__name__}")
    if not operations:
        raise ValueError("pool: expected at least one operation, got none")
    elements = tuple(element(op, f"pool[{k}]") for k, op in enumerate(operations))
    gates, wires = started(start, [*operations, *others])
    empty = Circuit(Structure(wires, 0, (), ()))
    return Pool(gates, elements, wires, terms_of("hamiltonian", hamiltonian, empty))
