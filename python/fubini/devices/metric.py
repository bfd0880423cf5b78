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

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pennylane as qml

from fubini import _core
from fubini.arrays import to_numpy
from fubini.circuit.gate_layers import Layer
from fubini.circuit.pauli import PauliSum, product_basis, restrict
from fubini.circuit.tape import GateTape
from fubini.devices import block_metric as sampled
from fubini.devices import full_metric as full
from fubini.devices.basis import to_z_basis
from fubini.devices.branches import Branched, auxiliary_wires, branched
from fubini.devices.executor import STATE_VECTORS, Executor, executor_of
from fubini.devices.insertion import labelled_letters, prepared
from fubini.devices.job import Job
from fubini.devices.prefixes import prefix_operations
from fubini.devices.sweep import Sweep
from fubini.errors import UnsupportedCircuitError
from fubini.options import Approx, Complex, LayerRule, Real

T = TypeVar("T")

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
    values: Real


@dataclass(frozen=True)
class _Request:
    """A circuit to run and how its answer becomes a block."""

    tape: Any
    angles: tuple[int, ...]
    generators: list[PauliSum]
    wires: int
    probabilities: bool

    def block(self, answer: Any, tape: GateTape, device: Any, diagonal: bool) -> Block:
        """Return the block that the circuit's answer gives."""
        if self.probabilities:
            values = to_numpy(answer).reshape(-1, 1 << self.wires)
            values = _core.blocks_from_probabilities(values, self.generators, self.wires, diagonal)
        else:
            states = _placed_state(answer, tape, device)
            values = _core.blocks_from_states(states, self.generators, self.wires, diagonal)
        return Block(self.angles, values)


def metric_job(
    tape: GateTape, executor: Executor, approx: Approx, layers: LayerRule = "wires"
) -> Job[list[Block]]:
    """Return the circuits of the metric over the trainable angles.

    Args:
        tape: The circuit.
        executor: Of the device; what it can do decides which circuits these are.
        approx: Which part of the metric.
        layers: Which gates form a block, see ``fubini.circuit.gate_layers``.

    Returns:
        The job: one block for the full metric, else one per layer.
    """
    if approx is None:
        return full_metric_job(tape, executor)
    return blocks_job(tape, executor, diagonal=approx == "diag", layers=layers)


def blocks_job(
    tape: GateTape, executor: Executor, *, diagonal: bool, layers: LayerRule = "wires"
) -> Job[list[Block]]:
    """Return the circuits of the blocks over the trainable angles: one per layer, or fewer where the device allows it.

    Returns:
        The job; one block per layer.
    """
    device = executor.device
    order, found = tape.position, tape.layers(layers)
    if not _returns_states(tape, device):
        groups = [tuple(order[i] for i in layer.gates) for layer in found]
        job = sampled.metric_job(tape, shots=tape.shots, diagonal=diagonal, layers=layers)
        return job.then(lambda estimate: _blocks_of_matrix(estimate.values, groups, diagonal))
    if device.name == "default.qubit" and len(found) > 1 and len(tape.wires) <= _MAX_WIRES_AT_ONCE:
        return _job_at_once(tape, found, order, device, diagonal)
    spare = [] if executor.broadcasts else auxiliary_wires(tape, device)
    if len(found) > 1 and spare:
        return _job_of_branches(branched(tape, found, spare), tape, order, device, diagonal)
    requests = [_layer_request(tape, layer, order, device) for layer in found]

    def blocks(answers: list[Any]) -> list[Block]:
        return [
            request.block(answer, tape, device, diagonal)
            for request, answer in zip(requests, answers, strict=True)
        ]

    return _job([request.tape for request in requests], blocks)


def _blocks_of_matrix(
    values: Real, groups: Sequence[tuple[int, ...]], diagonal: bool
) -> list[Block]:
    parts = [values[:, list(group)][:, :, list(group)] for group in groups]
    if diagonal:
        parts = [np.diagonal(part, axis1=1, axis2=2) for part in parts]
    return [Block(group, part) for group, part in zip(groups, parts, strict=True)]


def _job_at_once(
    tape: GateTape, layers: Sequence[Layer], order: dict[int, int], device: Any, diagonal: bool
) -> Job[list[Block]]:
    script = _state_script(prefix_operations(tape, layers), tape, device)

    def blocks(answers: list[Any]) -> list[Block]:
        states = _placed_state(answers[0], tape, device)
        states = states.reshape(len(layers), -1, states.shape[1])
        return _blocks_of_states(tape, layers, states, order, diagonal)

    return _job([script], blocks)


def _job_of_branches(
    circuits: Sequence[Branched], tape: GateTape, order: dict[int, int], device: Any, diagonal: bool
) -> Job[list[Block]]:
    def blocks(answers: list[Any]) -> list[Block]:
        found = []
        for circuit, answer in zip(circuits, answers, strict=True):
            states = circuit.states(_placed_state(answer, circuit.tape, device))
            found += _blocks_of_states(tape, circuit.layers, states, order, diagonal)
        return found

    return _job([_state_script(c.operations, c.tape, device) for c in circuits], blocks)


def _blocks_of_states(
    tape: GateTape, layers: Sequence[Layer], states: Complex, order: dict[int, int], diagonal: bool
) -> list[Block]:
    blocks = []
    for layer, own in zip(layers, states, strict=True):
        moving = any(tape.gates[i].operation.batch_size is not None for i in layer.before)
        generators = tape.generators(layer.gates)
        rows = np.ascontiguousarray(own if moving else own[:1])
        values = _core.blocks_from_states(rows, generators, len(tape.wires), diagonal)
        blocks.append(Block(tuple(order[i] for i in layer.gates), values))
    return blocks


def _layer_request(tape: GateTape, layer: Layer, order: dict[int, int], device: Any) -> _Request:
    num_wires = len(tape.wires)
    operations = [tape.gates[i].operation for i in layer.before]
    generators = tape.generators(layer.gates)
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


def full_metric_job(tape: GateTape, executor: Executor) -> Job[list[Block]]:
    """Return the circuits of the full metric over the trainable angles: derivative states, else fidelities.

    Args:
        tape: The circuit.
        executor: Of the device; one that returns no states, or has shots, measures fidelities.

    Returns:
        The job; one block with all trainable angles.
    """
    every = tuple(range(len(tape.trainable)))
    if not _returns_states(tape, executor.device):
        job = full.full_metric_job(tape, "fidelity", shots=tape.shots)
        return job.then(lambda estimate: [Block(every, estimate.values)])

    def block(derivatives: Complex) -> list[Block]:
        flat = np.concatenate([derivatives.real, derivatives.imag], axis=2)
        return [Block(every, flat @ flat.transpose(0, 2, 1))]

    return _derivative_states_job(tape, executor.device).then(block)


def geometric_tensor(tape: GateTape, device: Any, executor: Executor | None = None) -> Complex:
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
    executor = executor_of(device) if executor is None else executor
    derivatives = _derivative_states_job(tape, executor.device).run(executor)
    result: Complex = derivatives.conj() @ derivatives.transpose(0, 2, 1)
    return result


def _derivative_states_job(tape: GateTape, device: Any) -> Job[Complex]:
    """Return derivatives of the state by the trainable angles without their part along it, (1 or batch, k, N).

    d_j psi = -i V_j K_j U_j psi_0 with K_j a sum of Pauli words, so a circuit with the word inserted behind gate j
    gives each term. Costs one circuit per word instead of one per pair of angles, and no auxiliary wire.

    Raises:
        UnsupportedCircuitError: If the device returns no states, or has shots.
    """
    if not _returns_states(tape, device):
        raise UnsupportedCircuitError(
            f"device: expected an analytic simulator of state vectors for derivative states, got {device.name!r}"
            f"{'' if tape.shots is None else f' with {tape.shots} shots'}; use default.qubit or lightning.qubit"
        )
    operations = tape.operations
    scripts = [_state_script(operations, tape, device)]
    terms: list[tuple[int, float]] = []
    for column, i in enumerate(tape.trainable):
        for x, z, coefficient in tape.generators([i])[0]:
            if x | z:
                inserted = [*operations[: i + 1], *_word(x, z, tape), *operations[i + 1 :]]
                scripts.append(_state_script(inserted, tape, device))
                terms.append((column, coefficient))

    def derivatives(answers: list[Any]) -> Complex:
        states = [_placed_state(answer, tape, device) for answer in answers]
        rows = max(len(state) for state in states)
        psi = np.broadcast_to(states[0], (rows, states[0].shape[1]))
        found = np.zeros((rows, len(tape.trainable), psi.shape[1]), dtype=complex)
        for (column, coefficient), state in zip(terms, states[1:], strict=True):
            found[:, column] += coefficient * state
        # K_j psi with the mean removed: the factor -i and the common unitary drop out of the inner products.
        means = np.einsum("bn,bjn->bj", psi.conj(), found)
        found -= means[:, :, None] * psi[:, None, :]
        return found

    return _job(scripts, derivatives)


def _word(x: int, z: int, tape: GateTape) -> list[Any]:
    paulis = {"X": qml.X, "Y": qml.Y, "Z": qml.Z}
    return [paulis[letter](wire) for wire, letter in labelled_letters(x, z, tape).items()]


def _state_script(operations: Sequence[Any], tape: GateTape, device: Any) -> Any:
    # Identities name every wire, in order, so that a device without wires of its own returns all of them; a state
    # preparation must stay the first operation.
    if device.wires is None:
        operations = prepared(operations, *(qml.Identity(wire) for wire in tape.wires))
        first = operations[0]
        own = list(first.wires) if isinstance(first, qml.operation.StatePrepBase) else []
        if own != list(tape.wires[: len(own)]):
            raise UnsupportedCircuitError(
                f"qnode: {first.name} acts on wires {own}, which are not the first of {tape.wires.tolist()}; give the "
                f"device its wires, e.g. qml.device(name, wires={len(tape.wires)})"
            )
    return qml.tape.QuantumScript(operations, [qml.state()])


def _placed_state(answer: Any, tape: GateTape, device: Any) -> Complex:
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


def _job(scripts: Sequence[Any], finish: Callable[[list[Any]], T]) -> Job[T]:
    """Circuits with one measurement each, to run together without derivatives; their parameters are NumPy values."""
    sweeps = [Sweep(tuple(s.operations), tuple(s.measurements), s.batch_size) for s in scripts]
    return Job(tuple(sweeps), lambda answers: finish([parts[0] for parts in answers]))
