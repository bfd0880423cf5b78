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
from dataclasses import dataclass
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.circuit.observables import REAL
from fubini.circuit.tape import user_tape
from fubini.compile.batches import check_batch
from fubini.compile.call import Arguments, arguments_of
from fubini.compile.compiled import Compiled, Traced
from fubini.compile.graph import TooLargeError
from fubini.compile.roots import compiled_of, why_batched
from fubini.compile.shadow import UnknownError
from fubini.compile.watch import Watch
from fubini.errors import UnsupportedCircuitError
from fubini.native.circuit import circuit_of
from fubini.native.reading import Reading, read
from fubini.torch_private import without_transforms

_MADE_OF_OTHERS = (qml.ops.op_math.SymbolicOp, qml.ops.op_math.CompositeOp)
_PLAIN = (str, bytes, bool, int, float, complex, type(None), qml.wires.Wires, np.ndarray)


@dataclass
class Run:
    """A run of a quantum function.

    Attributes:
        how: The compiled form, or why there is none.
        kind: What the function returns: ``"single"``, ``"list"`` or ``"tuple"`` of real measurements; ``"other"``:
            something else.
        reading: Of the tape of this run, with the graphs of its tensors, where it serves the call that led to it.
    """

    how: Compiled | Traced | str
    kind: str
    reading: Reading | None = None


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
    numbers_alone: bool = False,
) -> Run:
    """Run a QNode's quantum function once and compile what it did.

    Args:
        qnode: The QNode.
        input_arg: Name of the data argument; None where every tensor is a weight, and nothing is a batch.
        weights: The weights by name.
        inputs: (features,) or (batch, features); None without a data argument.
        constants: Further arguments, which are no tensors.
        static: Whether the caller promises that the function reads nothing that changes.
        numbers_alone: Whether the inputs are (batch,), one number each.

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
        arguments = arguments_of(input_arg, weights, inputs, constants or {}, numbers_alone)
        recording = arguments.recording()
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
                reading = read(tape, qnode.device)
                circuit = circuit_of(reading.structure)
            except UnsupportedCircuitError as error:
                return Run(str(error), kind)
        watch.gates([*tape.operations, *reading.parts.operations])
        # A function that is not understood may count its runs.
        again = static or watch.problem is None
        check_batch(qnode, tape, reading.batch, recording, arguments, again)
        if arguments.inputs is not None and arguments.batch is None and reading.batch is not None:
            return Run("the quantum function broadcasts over the features of one input", kind)
        reason = recording.problem or transform
        if reason is None and not static:
            reason = watch.problem or (None if watch.holds() else "it changes what it reads")
        if reason is None and arguments.inputs is None and reading.batch is not None:
            reason = why_batched(recording, reading, arguments)
        if reason is None and arguments.made_up:
            reason = "its numbers were hidden by torch.func in the first call"
        live = None if arguments.made_up else reading
        if reason is not None:
            return Run(Traced(reason), kind, live)
        try:
            guard = None if static else watch
            how: Compiled | Traced = compiled_of(circuit, reading, recording, arguments, guard)
        except (UnknownError, TooLargeError) as error:
            how = Traced(str(error) or "its expressions are too large")
        return Run(how, kind, live)


def rest_of(qnode: Any) -> tuple[Any, ...]:
    """Return what a QNode is, by identity: its class, device, function, shots and transforms."""
    return type(qnode), qnode.device, qnode.func, qnode.shots, *qnode.compile_pipeline


def same_rest(qnode: Any, rest: tuple[Any, ...]) -> bool:
    """Return whether a QNode is what it was when ``rest_of`` was asked."""
    now = rest_of(qnode)
    return len(now) == len(rest) and all(map(operator.is_, now, rest))


def _tape(qnode: Any, arguments: Arguments, watch: Watch, returned: list[Any]) -> Any:
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
    if not (op.hyperparameters or isinstance(op, _MADE_OF_OTHERS)):
        return True
    parts = [getattr(op, "base", None), *getattr(op, "operands", ()), *op.hyperparameters.values()]
    return all(map(_is_known_part, parts))


def _is_known_part(part: Any) -> bool:
    if isinstance(part, _PLAIN):
        return True
    if type(part) in (list, tuple):
        return all(map(_is_known_part, part))
    if isinstance(part, type):
        return part.__module__.startswith("pennylane.")
    return isinstance(part, qml.operation.Operator) and _is_pennylanes(part)


def _foreign_transform(qnode: Any) -> str | None:
    """Why the QNode itself is not understood: a transform that is not PennyLane's own may read anything."""
    for transform in qnode.compile_pipeline:
        function = transform.tape_transform
        if str(getattr(function, "__module__", "")).split(".")[0] != "pennylane":
            name = getattr(function, "__name__", "a transform")
            return f"the QNode has the transform {name}, which may read what changes"
    return None


def _kind(returned: list[Any]) -> str:
    """What the function returned: a list and a tuple are arranged differently."""
    if not returned:
        return "other"
    result = returned[0]
    parts = result if isinstance(result, tuple | list) else [result]
    if not parts or not all(isinstance(part, REAL) for part in parts):
        return "other"
    if isinstance(result, tuple) and len(result) > 1:
        return "tuple"
    return "list" if isinstance(result, tuple | list) else "single"
