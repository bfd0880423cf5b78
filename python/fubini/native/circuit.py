"""The native engine's circuit: compiled once, evaluated and differentiated for whole batches of angles.

An angle is one real gate parameter; a circuit has A of them, in the order of its gates. Results are float64. The
arrays that methods take may be NumPy arrays or anything that ``numpy.asarray`` accepts without a gradient; tensors
with a gradient go through :mod:`fubini.nn.expval`.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pennylane as qml

from fubini import _core
from fubini.circuit.arguments import matrix_argument
from fubini.circuit.measured import all_wires, measures_all_wires
from fubini.errors import UnsupportedCircuitError
from fubini.native.program import program_of
from fubini.native.reading import Reading, Structure, read
from fubini.options import Complex, Real

MAX_WIRES = 24
# Methods of earlier versions.
_MOVED = {
    "metric": "fubini.metric_tensor(circuit, ...)(angles)",
    "geometric_tensor": "fubini.geometric_tensor(circuit, ...)(angles)",
    "metric_operator": "fubini.metric_operator(circuit, ...)(angles)",
    "metric_derivative": "fubini.metric_derivative(circuit, direction, ...)(angles)",
    "metric_vector_product": "fubini.metric_operator(circuit)(angles) @ vector",
}


class Circuit:
    """A circuit compiled for the native engine; immutable, picklable, equal when the structure is equal.

    Use :meth:`from_tape` or :meth:`from_qnode`. B is the batch size, A the number of angles, M the number of real
    results, N = 2^n the number of amplitudes. Angles of shape (A,) stand for a batch of one, and the batch dimension
    is then left out of the result.

    Args:
        structure: The circuit's structure.

    Attributes:
        structure: As above.
        program: The compiled program, for the extension module's functions.
        wires: Wire labels, most significant bit first.
        num_wires: Number of wires n.
        num_angles: Number of angles A.
        takes_state: Whether each call brings the initial state.
        measures_state: Whether the circuit returns ``qml.state()``.
        num_outputs: Number of real results M of one batch element.
        output_shapes: Shape of each measurement's result for one batch element, in the columns' order: () or (2^k,).

    Raises:
        UnsupportedCircuitError: For more than 24 wires.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     qml.CNOT([0, 1])
        ...     qml.RY(w[0] + w[1], wires=1)
        ...     return qml.expval(qml.Z(0) @ qml.Z(1))
        >>> native = fubini.Circuit.from_qnode(circuit, torch.tensor([0.4, 0.3]))
        >>> native.expval(torch.tensor([[0.0, 0.0], [0.0, torch.pi]])).round(decimals=6)  # angles (batch, A)
        array([[ 1.],
               [-1.]])
    """

    def __init__(self, structure: Structure) -> None:
        if len(structure.wires) > MAX_WIRES:
            raise UnsupportedCircuitError(
                f"wires: the native engine takes up to {MAX_WIRES}, got {len(structure.wires)}. "
                "Run the QNode on its device (engine='device')."
            )
        self.structure = structure
        self.program = program_of(structure)
        self.wires, self.num_wires = structure.wires, len(structure.wires)
        self.num_angles, self.takes_state = structure.num_angles, structure.takes_state
        self.measures_state = any(m.kind == "state" for m in structure.measurements)
        self.num_outputs = sum(m.columns for m in structure.measurements)
        #: Layers of the circuit's gates that have been found, see ``native_metric.layer_plan``.
        self.plans: dict[Any, Any] = {}
        self._hash = hash(structure)
        self.output_shapes = tuple(m.shape for m in structure.measurements if m.kind != "state")

    @classmethod
    def from_tape(cls, tape: Any, wires: Any = None) -> "Circuit":
        """Compiles a PennyLane tape.

        Every real gate parameter becomes an angle, whether it is trainable or not; matrices, observables and basis
        states are constants of the circuit. A state preparation at the start (StatePrep, AmplitudeEmbedding) makes
        the initial state an argument of each call.

        Args:
            tape: ``qml.tape.QuantumScript``; broadcast parameters of shape (B,) count as one angle each.
            wires: Wire order; default: the wires of the tape, as PennyLane's default.qubit orders them.

        Returns:
            The circuit.

        Raises:
            UnsupportedCircuitError: Names the operation or measurement that the engine does not know.
        """
        return cls(read(tape, wires=all_wires(tape, None) if wires is None else wires).structure)

    @classmethod
    def from_qnode(cls, qnode: Any, *args: Any, **kwargs: Any) -> "Circuit":
        """Compiles what a QNode does for the given arguments.

        Args:
            qnode: ``qml.QNode`` (or a transformed one).
            *args: Arguments of the QNode; only the structure they lead to is kept.
            **kwargs: Keyword arguments of the QNode.

        Returns:
            The circuit.
        """
        tape = qml.workflow.construct_tape(qnode, level="user")(*args, **kwargs)
        return cls.from_tape(
            tape, all_wires(tape, qnode.device) if measures_all_wires(tape) else None
        )

    # --- angles of a tape --------------------------------------------------------------------------------------

    def angles_of(self, tape: Any) -> Any:
        """Collects the angles of a tape of this circuit's structure.

        Args:
            tape: A tape that :meth:`from_tape` compiles to this circuit.

        Returns:
            Angles, shape (A,), or (B, A) when a parameter is broadcast; a torch tensor with its graph when any
            parameter is one, else a NumPy array.

        Raises:
            ValueError: If the tape has another structure.
        """
        return self._read(tape).angles

    def state_of(self, tape: Any) -> Any:
        """Collects the initial state of a tape of this circuit's structure.

        Args:
            tape: A tape that :meth:`from_tape` compiles to this circuit.

        Returns:
            Amplitudes, shape (N,) or (B, N), or None when the circuit starts from |0...0>.
        """
        return self._read(tape).state if self.takes_state else None

    def _read(self, tape: Any) -> Reading:
        found = read(tape, wires=self.wires)
        if found.structure != self.structure:
            raise ValueError(
                "tape: expected the structure that this circuit was compiled from, got another one (gates, wires, "
                "constants or measurements differ). Compile it: Circuit.from_tape(tape)."
            )
        return found

    # --- sweeps ------------------------------------------------------------------------------------------------

    def expval(self, angles: Any, state: Any = None) -> Real:
        """Evaluates the measurements.

        Args:
            angles: Radians, shape (B, A) or (A,).
            state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

        Returns:
            Results, shape (B, M) or (M,); probabilities take 2^k columns.

        Raises:
            ValueError: For a wrong shape, or a circuit that measures nothing but the state.
        """
        values, states, single = self._given(angles, state)
        result = _core.expval(self.program, values, states)
        return result[0] if single else result

    def state(self, angles: Any, state: Any = None) -> Complex:
        """Computes the final states.

        Args:
            angles: Radians, shape (B, A) or (A,).
            state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

        Returns:
            Amplitudes, shape (B, N) or (N,).
        """
        values, states, single = self._given(angles, state, measured=False)
        result = _core.state(self.program, values, states)
        return result[0] if single else result

    def vjp(self, angles: Any, cotangents: Any, state: Any = None) -> Real:
        """Pulls cotangents of the results back to the angles, by one reverse sweep.

        Args:
            angles: Radians, shape (B, A) or (A,).
            cotangents: Shape (B, M) or (M,).
            state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

        Returns:
            Gradient, shape (B, A) or (A,).

        Raises:
            ValueError: For a wrong shape, or a circuit that measures nothing but the state.
        """
        values, states, single = self._given(angles, state)
        shape = len(values), self.num_outputs
        weights = matrix_argument("cotangents", cotangents, "(B, M)", shape, single)
        _, gradient, _ = _core.vjp(self.program, values, weights, states)
        return gradient[0] if single else gradient

    def jvp(self, angles: Any, tangents: Any, state: Any = None) -> Real:
        """Pushes tangents of the angles forward to the results, by one forward sweep.

        Args:
            angles: Radians, shape (B, A) or (A,).
            tangents: Shape (B, A) or (A,).
            state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

        Returns:
            Derivative along the tangents, shape (B, M) or (M,).

        Raises:
            ValueError: For a wrong shape, or a circuit that measures nothing but the state.
        """
        values, states, single = self._given(angles, state)
        directions = matrix_argument("tangents", tangents, "(B, A)", values.shape, single)
        result = _core.jvp(self.program, values, directions, states)
        return result[0] if single else result

    def jacobian(self, angles: Any, state: Any = None) -> Real:
        """Computes the Jacobian of the results.

        Args:
            angles: Radians, shape (B, A) or (A,).
            state: Initial states, shape (B, N) or (N,), for a circuit that takes them.

        Returns:
            Jacobian, shape (B, M, A) or (M, A).

        Raises:
            ValueError: For a wrong shape, or a circuit that measures nothing but the state.
        """
        values, states, single = self._given(angles, state)
        result = _core.jacobian(self.program, values, states)
        return result[0] if single else result

    def _given(
        self, angles: Any, state: Any, measured: bool = True
    ) -> tuple[Real, Complex | None, bool]:
        """Angles and initial states as the kernel takes them, and whether they were a single row."""
        values, single = self.batch_of(angles)
        if measured and self.num_outputs == 0:
            raise ValueError(
                "circuit: it measures no real quantity (expval, var, probs). Use circuit.state(angles)."
            )
        return values, self.states_of(state, len(values)), single

    def batch_of(self, angles: Any) -> tuple[Real, bool]:
        """Return angles as the kernel takes them, (B, A), and whether they were a single row.

        Args:
            angles: Radians, shape (B, A) or (A,).

        Raises:
            ValueError: For another shape.
        """
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

    def states_of(self, state: Any, batch: int) -> Complex | None:
        """Return initial states as the kernel takes them, None for a circuit that starts from zeros.

        Args:
            state: Amplitudes, (B, N) or (N,), or None.
            batch: B.

        Raises:
            ValueError: For another shape, or states where the circuit takes none.
        """
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

    # --- identity ----------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        """Name the way to what circuits had in earlier versions."""
        if name in _MOVED:
            raise AttributeError(f"circuit.{name}(angles, ...): write {_MOVED[name]}")
        raise AttributeError(f"'Circuit' object has no attribute {name!r}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Circuit):
            return NotImplemented
        return self.structure == other.structure

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self) -> tuple[Callable[..., "Circuit"], tuple[Structure]]:
        return Circuit, (self.structure,)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Circuit":
        return self

    def __repr__(self) -> str:
        return (
            f"Circuit(wires={list(self.wires)}, gates={len(self.structure.gates)}, angles={self.num_angles}, "
            f"outputs={self.num_outputs})"
        )


@lru_cache(maxsize=128)
def circuit_of(structure: Structure) -> Circuit:
    """Return the circuit of a structure; those that were asked for last are kept, with all that was derived from them.

    Raises:
        UnsupportedCircuitError: For more than 24 wires.
    """
    return Circuit(structure)
