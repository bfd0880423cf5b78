"""Compiles a quantum function: one run on the caller's own numbers, recorded, with what it read watched.

Three outcomes, the fastest that can be promised to be right:

* ``Compiled``: the angles are a known function of weights and inputs. The quantum function is not called again.
* ``Traced``: the function runs for every call (it may branch and compute what it likes); only gates are native.
* a reason, as text, why the circuit must run on its device.
"""

import contextlib
import copy
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini._arrays import to_numpy
from fubini.circuit import Circuit, _measured_wires, decomposed
from fubini.compile.compiled import Affine, Compiled, FloatArray, Normalised, Traced
from fubini.compile.graph import Graph, TooLargeError, depends, expression
from fubini.compile.recorder import Recording
from fubini.compile.shadow import MIXED, MIXED_ROW, Codes, Shadow, UnknownError, split
from fubini.compile.watch import Watch
from fubini.errors import UnsupportedCircuitError
from fubini.gates import angle_values
from fubini.tape import user_tape
from fubini.torch_private import is_wrapped, without_transforms

_DOUBLE = (torch.float64, torch.float32)
#: Why a call without a data argument is not compiled, where nothing else stands against it.
BATCHED = "one of its tensors is a batch"
_PLAIN = (str, bytes, bool, int, float, complex, type(None), qml.wires.Wires, np.ndarray)


@dataclass
class Run:
    """A run of a quantum function.

    Attributes:
        how: The compiled form, or why there is none.
        kind: What the function returns: ``"single"``, ``"list"`` or ``"tuple"`` of real measurements; ``"other"``:
            something else.
        tape: The decomposed tape of this run, with the graphs of its tensors, where it serves the call that led to it.
        circuit: Of the tape.
    """

    how: Compiled | Traced | str
    kind: str
    tape: Any = None
    circuit: Circuit | None = None


@dataclass
class _Arguments:
    """What the function is called with while it is recorded, and where leaves are in it."""

    values: dict[str, Any]
    weights: list[torch.Tensor] = field(default_factory=list)
    inputs: torch.Tensor | None = None
    made_up: bool = False

    @property
    def num_weights(self) -> int:
        return sum(w.numel() for w in self.weights)

    @property
    def width(self) -> int:
        return 0 if self.inputs is None else self.inputs.shape[-1]

    @property
    def batch(self) -> int | None:
        inputs = self.inputs
        return None if inputs is None or inputs.ndim < 2 else len(inputs)

    def numbers(self) -> tuple[list[FloatArray], FloatArray]:
        inputs = np.zeros((1, 0))
        if self.inputs is not None:
            inputs = to_numpy(self.inputs).reshape(self.batch or 1, self.width)
        return [to_numpy(w) for w in self.weights], inputs


@contextlib.contextmanager
def outside_transforms() -> Iterator[None]:
    """Suspend torch.func's transforms and inference mode: compilation records the tensors of the caller as they are."""
    with without_transforms(), torch.inference_mode(False), torch.enable_grad():
        yield


def compile_function(
    qnode: Any,
    input_arg: str | None,
    weights: Mapping[str, torch.Tensor],
    inputs: torch.Tensor | None,
    constants: Mapping[str, Any] | None = None,
    static: bool = False,
) -> Run:
    """Run a QNode's quantum function once and compile what it did.

    Args:
        qnode: The QNode.
        input_arg: Name of the data argument; None where every tensor is a weight, and nothing is a batch.
        weights: The weights by name.
        inputs: (features,) or (batch, features); None without a data argument.
        constants: Further arguments, which are no tensors.
        static: Whether the caller promises that the function reads nothing that changes.

    Returns:
        The compiled form, or the reason why there is none.

    Raises:
        Exception: What the quantum function raises.
        ValueError: If it mixes up the inputs of a batch.
    """
    if type(qnode) is not qml.QNode:
        return Run(f"the QNode is a {type(qnode).__name__}, whose calls may do more", "other")
    transform = _foreign_transform(qnode)
    with outside_transforms():
        arguments = _arguments(input_arg, weights, inputs, constants or {})
        recording = _recording(arguments)
        watch = Watch(qnode.func)
        returned: list[Any] = []
        with recording:
            try:
                tape = _tape(qnode, arguments, watch, returned)
            except UnsupportedCircuitError as error:  # such as one for shots
                return Run(str(error), _kind(returned))
        kind = _kind(returned)
        # Operations of users may read what they like where they are taken apart.
        known = all(_is_pennylanes(op) for op in tape.operations)
        with contextlib.nullcontext() if known else watch, recording:
            try:
                expanded = decomposed(tape)
                circuit = Circuit.from_decomposed(expanded, _measured_wires(qnode, tape))
            except UnsupportedCircuitError as error:
                return Run(str(error), kind)
        watch.gates([*tape.operations, *expanded.operations])
        # A function that is not understood may count its runs.
        _check_batch(qnode, tape, recording, arguments, again=static or watch.problem is None)
        if arguments.inputs is not None and arguments.batch is None and tape.batch_size is not None:
            return Run("the quantum function broadcasts over the features of one input", kind)
        reason = recording.problem or transform
        if reason is None and not static:
            reason = watch.problem or (None if watch.holds() else "it changes what it reads")
        if reason is None and arguments.inputs is None and tape.batch_size is not None:
            reason = BATCHED
        if reason is None and arguments.made_up:
            reason = "its numbers were hidden by torch.func in the first call"
        live = (None, None) if arguments.made_up else (expanded, circuit)
        if reason is not None:
            return Run(Traced(reason), kind, *live)
        try:
            guard = None if static else watch
            how: Compiled | Traced = _compiled(circuit, expanded, recording, arguments, guard)
        except (UnknownError, TooLargeError) as error:
            how = Traced(str(error) or "its expressions are too large")
        return Run(how, kind, *live)


def rest_of(qnode: Any) -> tuple[Any, ...]:
    """Return what a QNode is besides its function and device, by identity.

    Args:
        qnode: The QNode.

    Returns:
        Its class, shots and transforms.
    """
    return type(qnode), qnode.shots, *qnode.compile_pipeline


def same_rest(qnode: Any, rest: tuple[Any, ...]) -> bool:
    """Return whether a QNode is what it was but for its function and device.

    Args:
        qnode: The QNode.
        rest: What ``rest_of`` gave.
    """
    now = rest_of(qnode)
    return len(now) == len(rest) and all(map(operator.is_, now, rest))


# -- the run --------------------------------------------------------------------------------------------------------


def _arguments(
    input_arg: str | None,
    weights: Mapping[str, torch.Tensor],
    inputs: torch.Tensor | None,
    constants: Mapping[str, Any],
) -> _Arguments:
    """The caller's numbers, weights in memory of their own."""
    # Arguments may share memory; and memory that a function makes NumPy arrays of cannot be resized any more, as the
    # storages of sharded parameters are.
    hidden = any(is_wrapped(t) for t in (*weights.values(), *([] if inputs is None else [inputs])))
    result = _Arguments({}, made_up=hidden)
    dtype = torch.float64
    if inputs is not None and input_arg is not None:
        result.inputs = _numbers(inputs)
        # What is a part of other memory, or overlaps itself, is copied: all of a data set would be looked at.
        if result.inputs.untyped_storage().nbytes() != (
            result.inputs.numel() * result.inputs.element_size()
        ):
            result.inputs = result.inputs.clone(memory_format=torch.contiguous_format)
        if result.inputs.dtype not in _DOUBLE:
            result.inputs = result.inputs.float()
        result.values[input_arg] = result.inputs
        dtype = result.inputs.dtype
    for name, weight in weights.items():
        # Exactly what TorchLayer passes, because the function may look at it.
        value = _numbers(weight)
        value = value.to(result.inputs) if result.inputs is not None else value
        if value.dtype not in _DOUBLE:
            value = value.to(dtype)
        if value is weight:
            # With its graph: the gradients of the first call go through this run.
            value = weight.clone(memory_format=torch.contiguous_format)
        result.values[name] = value
        result.weights.append(value)
    result.values.update(constants)
    return result


def _numbers(t: torch.Tensor) -> torch.Tensor:
    """The tensor as it is; made-up numbers where a transform of torch.func hides the real ones."""
    if is_wrapped(t):
        return torch.linspace(0.1, 0.9, t.numel(), dtype=torch.float64).reshape(t.shape)
    return t.clone() if t.is_inference() else t


def _recording(arguments: _Arguments) -> Recording:
    recording = Recording(Graph())
    first = 0
    for weight in arguments.weights:
        recording.leaves("weight", weight, first)
        first += weight.numel()
    if arguments.inputs is not None:
        recording.leaves("input", arguments.inputs, 0, batch=arguments.inputs.ndim > 1)
    return recording


def _tape(qnode: Any, arguments: _Arguments, watch: Watch, returned: list[Any]) -> Any:
    """The tape after the user's transforms; what the function returns is put into a list."""
    function = qnode.func

    def run(*args: Any, **kwargs: Any) -> Any:
        with watch:
            result = function(*args, **kwargs)
        returned.append(result)
        return result

    recorded = copy.copy(qnode)
    recorded.func = run
    try:
        # The device engine has shots.
        return user_tape(recorded, (), arguments.values, pure=False, results=True)
    except UnsupportedCircuitError:
        raise
    except (ValueError, IndexError, RuntimeError) as error:
        if arguments.inputs is None:
            raise
        shapes = {
            n: list(v.shape)
            for n, v in arguments.values.items()
            if any(v is w for w in arguments.weights)
        }
        hint = ""
        if any(word in str(error) for word in ("Float", "Double", "Half", "indices")):
            hint = (
                f". Inputs reach it as {arguments.inputs.dtype}, integers and booleans too: convert them there, such as by "
                "inputs.long() or inputs.bool()"
            )
        raise ValueError(
            f"weight_shapes, inputs: weights {shapes} and inputs of {arguments.width} features do not fit the quantum "
            f"function: {error}{hint}"
        ) from error


def _is_pennylanes(op: Any) -> bool:
    """Whether an operation, and what it is made of, is of a class of PennyLane's own."""
    if not type(op).__module__.startswith("pennylane."):
        return False
    parts = [getattr(op, "base", None), *getattr(op, "operands", ())]
    parts += [v for v in op.hyperparameters.values() if not isinstance(v, _PLAIN)]
    return all(
        _is_pennylanes(part) if isinstance(part, qml.operation.Operator) else part is None
        for part in parts
    )


def _foreign_transform(qnode: Any) -> str | None:
    """Why the QNode itself is not understood: a transform that is not PennyLane's own may read anything."""
    for transform in qnode.compile_pipeline:
        function = transform.tape_transform
        if str(getattr(function, "__module__", "")).split(".")[0] != "pennylane":
            name = getattr(function, "__name__", "a transform")
            return f"the QNode has the transform {name}, which may read what changes"
    return None


def _check_batch(
    qnode: Any, tape: Any, recording: Recording, arguments: _Arguments, again: bool
) -> None:
    """Every angle belongs to one input of the batch; ``again``: whether the function may run once more to find out."""
    count, inputs = arguments.batch, arguments.inputs
    if count is None or inputs is None or (count == 1 and tape.batch_size in (None, 1)):
        return
    lost = [op.name for op in tape.operations for p in op.data if _is_lost(recording, p, count)]
    if again and not lost and recording.problem and tape.batch_size is None:
        lost = _moving(qnode, tape, arguments)
    wrong = lost or tape.batch_size not in (None, count)
    if again and not wrong and _is_mixed(recording, tape):
        # Three or five inputs, not as many as features: an axis that was summed away shows.
        count = 3 if arguments.width != 3 else 5
        rows = inputs[torch.arange(count, device=inputs.device) % len(inputs)]
        other = user_tape(qnode, (), _with_inputs(arguments, rows))
        wrong = other.batch_size != count
    if wrong:
        raise ValueError(
            f"inputs: for inputs of shape {tuple(inputs.shape)} the quantum function makes {lost or 'operations'} "
            "whose parameters do not have one value per input. Index features from the end, inputs[..., 0] "
            "instead of inputs[0], and do not sum over the batch."
        )


def _is_lost(recording: Recording, value: Any, count: int) -> bool:
    """Whether a parameter is made of inputs, but has no axis for them, or repeats one of them along it."""
    shadow = recording.shadow
    if not (isinstance(value, torch.Tensor) and shadow.tracks(value) and shadow.has_rows(value)):
        return False
    if value.is_complex():
        value = torch.view_as_real(value)
    if value.ndim == 0 or len(value) != count:
        return True
    _, rows = split(shadow.of(value))
    first = rows.reshape(-1)[0]
    return count > 1 and first != MIXED_ROW and bool((rows == first).all())


def _is_mixed(recording: Recording, tape: Any) -> bool:
    """Whether a parameter is made of several inputs at once."""
    shadow = recording.shadow
    return any(
        bool((split(shadow.of(p))[1] == MIXED_ROW).any())
        for op in tape.operations
        for p in op.data
        if isinstance(p, torch.Tensor) and not p.is_complex() and shadow.tracks(p)
    )


def _with_inputs(arguments: _Arguments, inputs: torch.Tensor) -> dict[str, Any]:
    name = next(n for n, v in arguments.values.items() if v is arguments.inputs)
    return {**arguments.values, name: inputs}


def _moving(qnode: Any, tape: Any, arguments: _Arguments) -> list[str]:
    """Operations whose parameters change with the order of the inputs, of a tape that has no batch."""
    assert arguments.inputs is not None
    other = user_tape(qnode, (), _with_inputs(arguments, arguments.inputs.flip(0)))
    pairs = zip(tape.operations, other.operations, strict=False)
    return [a.name for a, b in pairs if not qml.equal(a, b, check_interface=False)]


def _kind(returned: list[Any]) -> str:
    """What the function returned: a list and a tuple are arranged differently."""
    if not returned:
        return "other"
    result = returned[0]
    parts = result if isinstance(result, tuple | list) else [result]
    real = (
        qml.measurements.ExpectationMP,
        qml.measurements.VarianceMP,
        qml.measurements.ProbabilityMP,
    )
    if not parts or not all(isinstance(part, real) for part in parts):
        return "other"
    if isinstance(result, tuple) and len(result) > 1:
        return "tuple"
    return "list" if isinstance(result, tuple | list) else "single"


# -- what it computed -----------------------------------------------------------------------------------------------


def _compiled(
    circuit: Circuit, tape: Any, recording: Recording, arguments: _Arguments, watch: Watch | None
) -> Compiled | Traced:
    graph, shadow, batch = recording.graph, recording.shadow, arguments.batch
    values = [value for op in tape.operations for value in angle_values(op)]
    angles = [_root(shadow, value, batch) for value in values]
    amplitudes = _amplitudes(shadow, circuit, tape, batch)
    sizes = arguments.num_weights, arguments.width
    affine = _affine(graph, angles, *sizes) if amplitudes is None else None
    roots = [*angles, *(amplitudes or ())]
    angle_map = affine.map() if affine else expression(graph, roots, len(angles), *sizes)
    slots = [k for k, one in enumerate(depends(graph, angles, "weight")) if one]
    found = Compiled(
        circuit,
        angle_map,
        affine,
        watch,
        slots,
        [any(depends(graph, amplitudes or (), leaf)) for leaf in ("weight", "input")],
        batch if recording.sized or batch == 1 else None,
        [_decision(recording, p, sizes, batch) for p in recording.predicates],
    )
    if not _repeats(found, values, arguments):
        return Traced("its angles could not be computed again from what was recorded")
    return found


def _root(shadow: Shadow, value: Any, batch: int | None) -> int:
    """The node of an angle."""
    if not isinstance(value, torch.Tensor):
        array = np.asarray(qml.math.toarray(value), dtype=np.float64)
        if array.ndim == 0:
            return shadow.graph.constant(float(array))
        codes: Codes = shadow.of(torch.from_numpy(np.ascontiguousarray(array)))
    else:
        codes = shadow.of(value)
    return _one_node(codes, batch)


def _one_node(codes: Codes, batch: int | None) -> int:
    """The node of a number, or of one number for each input in order."""
    nodes, rows = split(codes.reshape(-1))
    if (rows == MIXED_ROW).any():
        raise UnknownError(MIXED)
    if len(nodes) > 1 and (batch is None or len(nodes) != batch):
        raise UnknownError("one of its tensors is a batch")
    if (nodes != nodes[0]).any():
        raise UnknownError("it treats the inputs of a batch differently")
    if rows.any() and (rows != np.arange(1, len(rows) + 1)).any():
        raise UnknownError("it rearranges the inputs of a batch")
    if rows.any() and codes.ndim == 0 and batch != 1:
        raise UnknownError("it takes one input out of a batch")
    return int(nodes[0])


def _amplitudes(shadow: Shadow, circuit: Circuit, tape: Any, batch: int | None) -> list[int] | None:
    """Nodes of the initial state's amplitudes, real and imaginary parts in turn; None for a circuit that takes none."""
    if not circuit.takes_state:
        return None
    op = tape.operations[0]
    value = op.parameters[0]
    size = 2 ** len(op.wires)
    order = _places(op, circuit)
    zero = shadow.graph.constant(0.0)
    result = [zero] * (2 * 2**circuit.num_wires)
    if isinstance(value, torch.Tensor) and shadow.tracks(value):
        codes = shadow.of(value).reshape(-1, size)
        for k, place in enumerate(order):
            result[2 * place] = _one_node(codes[:, k], batch)
        return result
    array = np.asarray(qml.math.toarray(value), dtype=np.complex128)
    if array.ndim != 1:
        raise UnknownError("its initial state is a batch")
    for amplitude, place in zip(array.tolist(), order, strict=True):
        result[2 * place] = shadow.graph.constant(amplitude.real)
        result[2 * place + 1] = shadow.graph.constant(amplitude.imag)
    return result


def _places(op: Any, circuit: Circuit) -> list[int]:
    """Where the amplitudes of a state preparation go among those of all wires."""
    size = 2 ** len(op.wires)
    numbered = qml.StatePrep(np.arange(1, size + 1), wires=op.wires, validate_norm=False)
    state = np.asarray(numbered.state_vector(wire_order=list(circuit.wires))).reshape(-1)
    at = np.flatnonzero(state)
    order = np.empty(size, dtype=int)
    order[np.rint(state[at].real).astype(int) - 1] = at
    return [int(place) for place in order]


def _affine(graph: Graph, angles: list[int], num_weights: int, width: int) -> Affine | None:
    forms = [graph.affine(angle) for angle in angles]
    if any(form is None for form in forms):
        return None
    constant = np.zeros(len(angles))
    weights, inputs = np.zeros((len(angles), num_weights)), np.zeros((len(angles), width))
    for row, form in enumerate(forms):
        assert form is not None
        constant[row] = form.constant
        for leaf, coefficient in form.leaves.items():
            node = graph.nodes[leaf]
            (weights if node.kind == "weight" else inputs)[row, node.arguments[0]] = coefficient
    return Affine(constant, weights, inputs)


def _decision(
    recording: Recording, predicate: Any, sizes: tuple[int, int], batch: int | None
) -> Normalised:
    node = _one_node(predicate.codes, batch)
    norms = expression(recording.graph, [node], 1, *sizes)
    return Normalised(norms, predicate.tolerance, predicate.holds)


def _repeats(found: Compiled, values: list[Any], arguments: _Arguments) -> bool:
    """Whether the map gives the angles of the run: a second line of defence behind the rules."""
    weights, inputs = arguments.numbers()
    angles = found.angles(weights, inputs)
    expected = np.empty_like(angles)
    for column, value in enumerate(values):
        expected[:, column] = to_numpy(value).reshape(-1)
    low = arguments.inputs is not None and arguments.inputs.dtype is torch.float32
    low = low or any(w.dtype is torch.float32 for w in arguments.weights)
    tolerance = 1e-4 if low else 1e-10  # what the function's own rounding makes of a short formula
    return np.allclose(angles, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
