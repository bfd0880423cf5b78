"""The device engine: which circuits a PennyLane device must run, and their answers as metric blocks.

Block-diagonal and diagonal metric: one circuit per layer, all of them in one batched execution; a device that supports
parameter broadcasting runs all inputs of the batch at once, and default.qubit all layers as well, as settings of one
circuit. Exact simulators that do not broadcast get one circuit for several layers where they have wires to spare
(``fubini.devices.branches``). Otherwise it is one circuit per layer: where the generators of a layer share a product basis the
circuit ends in that basis and returns probabilities of the layer's wires, otherwise it returns the state. Full
metric: one circuit per Pauli word of each trainable gate, which returns the (unitarily rotated) derivative state.
Devices that return no states, and shots, are served by ``fubini.devices``: probabilities in common eigenbases of the
generators, and fidelities for the full metric.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml

from fubini import _core
from fubini.arrays import to_numpy
from fubini.circuit.gate_layers import Layer, LayerRule, find_layers
from fubini.circuit.pauli import PauliSum, product_basis, restrict
from fubini.circuit.tape import GateTape
from fubini.devices import block_metric as sampled
from fubini.devices import full_metric as full
from fubini.devices.basis import to_z_basis
from fubini.devices.branches import Branched, auxiliary_wires, branched
from fubini.devices.executor import STATE_VECTORS, Executor, executor_of
from fubini.devices.prefixes import prefix_operations
from fubini.devices.sweep import Sweep
from fubini.errors import UnsupportedCircuitError

FloatArray = npt.NDArray[np.float64]
ComplexArray = npt.NDArray[np.complex128]

# Beyond, running every gate in every setting costs more than the circuits that it saves.
_MAX_WIRES_AT_ONCE = 12


@dataclass(frozen=True)
class Block:
    """One block of the metric over trainable angles.

    Attributes:
        angles: Positions among the trainable angles, ascending.
        values: (1 or batch, k, k), or (1 or batch, k) for the diagonal only.
    """

    angles: tuple[int, ...]
    values: FloatArray


@dataclass(frozen=True)
class _Request:
    """A circuit to run and how its answer becomes a block."""

    tape: Any
    angles: tuple[int, ...]
    generators: list[PauliSum]
    wires: int
    probabilities: bool


def metric_blocks(
    tape: GateTape,
    device: Any,
    *,
    diagonal: bool,
    layers: LayerRule = "wires",
    executor: Executor | None = None,
) -> list[Block]:
    """Return the blocks of the Fubini-Study metric over the trainable angles, one circuit per layer.

    Args:
        tape: The circuit.
        device: PennyLane device that returns probabilities, and states where a layer needs them.
        diagonal: Only variances.
        layers: Which gates form a block, see ``fubini.circuit.gate_layers``.
        executor: Runs the circuits; None: the device's shared one.

    Returns:
        One block per layer.
    """
    executor = executor_of(device) if executor is None else executor
    order = {gate: position for position, gate in enumerate(tape.trainable)}
    shapes = tuple(gate.shape for gate in tape.gates)
    if not _returns_states(tape, device):
        job = sampled.metric_job(tape, shots=tape.shots, diagonal=diagonal, layers=layers)
        values = job.run(executor).values
        groups = [tuple(order[i] for i in layer.gates) for layer in find_layers(shapes, layers)]
        parts = [values[:, list(group)][:, :, list(group)] for group in groups]
        if diagonal:
            parts = [np.diagonal(part, axis1=1, axis2=2) for part in parts]
        return [Block(group, part) for group, part in zip(groups, parts, strict=True)]
    found = find_layers(shapes, layers)
    if device.name == "default.qubit" and len(found) > 1 and len(tape.wires) <= _MAX_WIRES_AT_ONCE:
        return _blocks_at_once(tape, found, order, executor, diagonal)
    spare = [] if executor.broadcasts else auxiliary_wires(tape, device)
    if len(found) > 1 and spare:
        return _blocks_of_branches(branched(tape, found, spare), tape, order, executor, diagonal)
    requests = [_layer_request(tape, layer, order, device) for layer in found]
    answers = execute([request.tape for request in requests], executor)
    blocks = []
    for request, answer in zip(requests, answers, strict=True):
        if request.probabilities:
            values = to_numpy(answer).reshape(-1, 1 << request.wires)
            block = _core.blocks_from_probabilities(
                values, request.generators, request.wires, diagonal
            )
        else:
            states = _placed_state(answer, tape, device)
            block = _core.blocks_from_states(states, request.generators, request.wires, diagonal)
        blocks.append(Block(request.angles, block))
    return blocks


def _blocks_at_once(
    tape: GateTape,
    layers: Sequence[Layer],
    order: dict[int, int],
    executor: Executor,
    diagonal: bool,
) -> list[Block]:
    script = _state_script(prefix_operations(tape, layers), tape, executor.device)
    states = _placed_state(execute([script], executor)[0], tape, executor.device)
    states = states.reshape(len(layers), -1, states.shape[1])
    return _blocks_of_states(tape, layers, states, order, diagonal)


def _blocks_of_branches(
    circuits: Sequence[Branched],
    tape: GateTape,
    order: dict[int, int],
    executor: Executor,
    diagonal: bool,
) -> list[Block]:
    device = executor.device
    scripts = [_state_script(c.operations, c.tape, device) for c in circuits]
    blocks = []
    for circuit, answer in zip(circuits, execute(scripts, executor), strict=True):
        states = circuit.states(_placed_state(answer, circuit.tape, device))
        blocks += _blocks_of_states(tape, circuit.layers, states, order, diagonal)
    return blocks


def _blocks_of_states(
    tape: GateTape,
    layers: Sequence[Layer],
    states: ComplexArray,
    order: dict[int, int],
    diagonal: bool,
) -> list[Block]:
    blocks = []
    for layer, own in zip(layers, states, strict=True):
        moving = any(tape.gates[i].operation.batch_size is not None for i in layer.before)
        generators = [tape.gates[i].generator or () for i in layer.gates]
        rows = np.ascontiguousarray(own if moving else own[:1])
        values = _core.blocks_from_states(rows, generators, len(tape.wires), diagonal)
        blocks.append(Block(tuple(order[i] for i in layer.gates), values))
    return blocks


def _layer_request(tape: GateTape, layer: Layer, order: dict[int, int], device: Any) -> _Request:
    num_wires = len(tape.wires)
    operations = [tape.gates[i].operation for i in layer.before]
    generators = [tape.gates[i].generator or () for i in layer.gates]
    angles = tuple(order[i] for i in layer.gates)
    basis = product_basis(generators, num_wires)
    if basis:
        wires = sorted(basis)
        labels = [tape.wires[w] for w in wires]
        for wire, label in zip(wires, labels, strict=True):
            operations += to_z_basis(basis[wire], label)
        script = qml.tape.QuantumScript(operations, [qml.probs(wires=labels)])
        measured = [restrict(generator, wires, num_wires) for generator in generators]
        return _Request(script, angles, measured, len(wires), True)
    return _Request(_state_script(operations, tape, device), angles, generators, num_wires, False)


def _returns_states(tape: GateTape, device: Any) -> bool:
    sampled.refuse_channels(tape)
    return tape.shots is None and device.name in STATE_VECTORS


def full_metric(tape: GateTape, device: Any, executor: Executor | None = None) -> Block:
    """Return the full metric over the trainable angles: from derivative states, else from fidelities.

    Args:
        tape: The circuit.
        device: PennyLane device; one that returns no states, or has shots, measures fidelities.
        executor: Runs the circuits; None: the device's shared one.

    Returns:
        One block with all trainable angles.
    """
    executor = executor_of(device) if executor is None else executor
    if not _returns_states(tape, device):
        job = full.full_metric_job(tape, "fidelity", shots=tape.shots)
        return Block(tuple(range(len(tape.trainable))), job.run(executor).values)
    derivatives = _derivative_states(tape, executor)
    flat = np.concatenate([derivatives.real, derivatives.imag], axis=2)
    return Block(tuple(range(len(tape.trainable))), flat @ flat.transpose(0, 2, 1))


def geometric_tensor(tape: GateTape, device: Any, executor: Executor | None = None) -> ComplexArray:
    """Return the quantum geometric tensor over the trainable angles, from derivative states of a simulator.

    Args:
        tape: The circuit.
        device: PennyLane device that returns states.
        executor: Runs the circuits; None: the device's shared one.

    Returns:
        (1 or batch, k, k).

    Raises:
        UnsupportedCircuitError: If the device returns no states.
    """
    derivatives = _derivative_states(tape, executor_of(device) if executor is None else executor)
    result: ComplexArray = derivatives.conj() @ derivatives.transpose(0, 2, 1)
    return result


def _derivative_states(tape: GateTape, executor: Executor) -> ComplexArray:
    """Derivatives of the state by the trainable angles without their part along the state, (1 or batch, k, N).

    d_j psi = -i V_j K_j U_j psi_0 with K_j a sum of Pauli words, so a circuit with the word inserted behind gate j
    gives each term. Costs one circuit per word instead of one per pair of angles, and no auxiliary wire.

    Args:
        tape: The circuit.
        executor: Of a device that returns states.

    Returns:
        As above.

    Raises:
        UnsupportedCircuitError: If the device returns no states, or has shots.
    """
    device = executor.device
    if not _returns_states(tape, device):
        raise UnsupportedCircuitError(
            f"device: expected an analytic simulator of state vectors for derivative states, got {device.name!r}"
            f"{'' if tape.shots is None else f' with {tape.shots} shots'}; use default.qubit or lightning.qubit"
        )
    operations = [gate.operation for gate in tape.gates]
    scripts = [_state_script(operations, tape, device)]
    terms: list[tuple[int, float]] = []
    for column, i in enumerate(tape.trainable):
        for x, z, coefficient in tape.gates[i].generator or ():
            if x | z:
                inserted = [*operations[: i + 1], *_word(x, z, tape), *operations[i + 1 :]]
                scripts.append(_state_script(inserted, tape, device))
                terms.append((column, coefficient))
    states = [_placed_state(answer, tape, device) for answer in execute(scripts, executor)]
    rows = max(len(state) for state in states)
    psi = np.broadcast_to(states[0], (rows, states[0].shape[1]))
    derivatives = np.zeros((rows, len(tape.trainable), psi.shape[1]), dtype=complex)
    for (column, coefficient), state in zip(terms, states[1:], strict=True):
        derivatives[:, column] += coefficient * state
    # K_j psi with the mean removed: the factor -i and the common unitary drop out of the inner products.
    means = np.einsum("bn,bjn->bj", psi.conj(), derivatives)
    derivatives -= means[:, :, None] * psi[:, None, :]
    return derivatives


def _word(x: int, z: int, tape: GateTape) -> list[Any]:
    letters = []
    for position, wire in enumerate(tape.wires):
        bit = 1 << (len(tape.wires) - 1 - position)
        if x & z & bit:
            letters.append(qml.PauliY(wire))
        elif x & bit:
            letters.append(qml.PauliX(wire))
        elif z & bit:
            letters.append(qml.PauliZ(wire))
    return letters


def _state_script(operations: Sequence[Any], tape: GateTape, device: Any) -> Any:
    # Identities name every wire, in order, so that a device without wires of its own returns all of them; a state
    # preparation must stay the first operation.
    if device.wires is None:
        identities = [qml.Identity(wire) for wire in tape.wires]
        first = 1 if operations and isinstance(operations[0], qml.operation.StatePrepBase) else 0
        operations = [*operations[:first], *identities, *operations[first:]]
        if first and list(operations[0].wires) != list(tape.wires[: len(operations[0].wires)]):
            raise UnsupportedCircuitError(
                f"qnode: {operations[0].name} acts on wires {operations[0].wires.tolist()}, which are not the first "
                f"of {tape.wires.tolist()}; give the device its wires, e.g. qml.device(name, wires={len(tape.wires)})"
            )
    return qml.tape.QuantumScript(operations, [qml.state()])


def _placed_state(answer: Any, tape: GateTape, device: Any) -> ComplexArray:
    # Wires of the device beyond the circuit's are in state 0.
    state = to_numpy(answer, np.complex128)
    num_wires = len(tape.wires)
    if device.wires is None or list(device.wires) == list(tape.wires):
        return state.reshape(-1, 1 << num_wires)
    labels = list(device.wires)
    tensor = state.reshape(-1, *(2,) * len(labels))
    index = tuple(slice(None) if label in tape.wires else 0 for label in labels)
    kept = [label for label in labels if label in tape.wires]
    tensor = tensor[(slice(None), *index)]
    tensor = tensor.transpose(0, *(1 + kept.index(label) for label in tape.wires))
    return np.ascontiguousarray(tensor.reshape(-1, 1 << num_wires))


def execute(scripts: Sequence[Any], executor: Executor) -> list[Any]:
    """Run circuits on a device in one batch, without derivatives.

    Args:
        scripts: Quantum scripts with one measurement each; parameters are NumPy values.
        executor: Of the device.

    Returns:
        One answer per script, (1 or batch, ...).
    """
    sweeps = [Sweep(tuple(s.operations), tuple(s.measurements), s.batch_size) for s in scripts]
    return [parts[0] for parts in executor.run(sweeps)]
