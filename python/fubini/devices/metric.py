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

from fubini import _core
from fubini.circuit.gate_layers import Layer
from fubini.circuit.tape import GateTape
from fubini.devices import block_metric as sampled
from fubini.devices import full_metric as full
from fubini.devices.executor import STATE_VECTORS, Array, Executor
from fubini.devices.insertion import labelled_letters, word
from fubini.devices.job import Job, together
from fubini.devices.states import (
    auxiliary_wires,
    branched_states_job,
    broadcast_states_job,
    states_job,
)
from fubini.errors import UnsupportedCircuitError
from fubini.options import Approx, Complex, LayerRule, Real

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
    sampled.refuse_channels(tape)
    order, found = tape.position, tape.layers(layers)
    groups = [tuple(order[i] for i in layer.gates) for layer in found]
    job: Job[Sequence[Real]]
    if tape.shots is not None:
        measured = sampled.metric_job(tape, shots=tape.shots, diagonal=diagonal, layers=layers)
        job = measured.then(lambda estimate: _cut(estimate.values, groups, diagonal))
    elif (states := _states_job(tape, found, executor)) is not None:
        job = states.then(
            lambda each: [_of_states(tape, *one, diagonal) for one in zip(found, each, strict=True)]
        )
    else:
        job = together(*(_layer_job(tape, layer, executor.device, diagonal) for layer in found))
    return job.then(lambda parts: [Block(*one) for one in zip(groups, parts, strict=True)])


def _states_job(
    tape: GateTape, layers: Sequence[Layer], executor: Executor
) -> Job[list[Complex]] | None:
    """The states in front of all layers, where one circuit can have several of them."""
    device = executor.device
    if device.name not in STATE_VECTORS or len(layers) < 2:
        return None
    if device.name == "default.qubit" and len(tape.wires) <= _MAX_WIRES_AT_ONCE:
        return broadcast_states_job(tape, layers, device)
    spare = [] if executor.broadcasts else auxiliary_wires(tape, device)
    return branched_states_job(tape, layers, spare, device) if spare else None


def _cut(values: Real, groups: Sequence[tuple[int, ...]], diagonal: bool) -> list[Real]:
    parts = [values[:, list(group)][:, :, list(group)] for group in groups]
    return [np.diagonal(part, axis1=1, axis2=2) for part in parts] if diagonal else parts


def _of_states(tape: GateTape, layer: Layer, states: Complex, diagonal: bool) -> Real:
    moving = any(tape.gates[i].operation.batch_size is not None for i in layer.before)
    rows = np.ascontiguousarray(states if moving else states[:1])
    return _core.blocks_from_states(rows, tape.generators(layer.gates), len(tape.wires), diagonal)


def _layer_job(tape: GateTape, layer: Layer, device: Any, diagonal: bool) -> Job[Real]:
    """The circuit in front of a layer, which ends in a basis of the generators if there is one."""
    try:
        basis = sampled.layer_basis(tape, layer)
    except UnsupportedCircuitError:
        if device.name not in STATE_VECTORS:
            raise
        before = [tape.gates[i].operation for i in layer.before]
        states = states_job([before], tape.wires, device)
        return states.then(lambda each: _of_states(tape, layer, each[0], diagonal))
    wires = len(basis.wires)

    def values(answers: list[list[Array]]) -> Real:
        ((seen,),) = answers
        seen = seen.reshape(-1, 1 << wires)
        return _core.blocks_from_probabilities(seen, basis.sums, wires, diagonal)

    return Job((sampled.layer_sweep(tape, layer, basis),), values)


def full_metric_job(tape: GateTape, executor: Executor) -> Job[list[Block]]:
    """Return the circuits of the full metric over the trainable angles: derivative states, else fidelities.

    Args:
        tape: The circuit.
        executor: Of the device; one that returns no states, or has shots, measures fidelities.

    Returns:
        The job; one block with all trainable angles.
    """
    every = tuple(range(len(tape.trainable)))
    if not _returns_states(tape, executor):
        job = full.full_metric_job(tape, "fidelity", shots=tape.shots)
        return job.then(lambda estimate: [Block(every, estimate.values)])

    def block(derivatives: Complex) -> list[Block]:
        flat = np.concatenate([derivatives.real, derivatives.imag], axis=2)
        return [Block(every, flat @ flat.transpose(0, 2, 1))]

    return _derivative_states_job(tape, executor).then(block)


def geometric_tensor_job(tape: GateTape, executor: Executor) -> Job[Complex]:
    """Return the circuits of the quantum geometric tensor over the trainable angles: derivative states.

    Args:
        tape: The circuit.
        executor: Of the device.

    Returns:
        The job; its result is (1 or batch, k, k).

    Raises:
        UnsupportedCircuitError: If the device returns no states.
    """
    if not _returns_states(tape, executor):
        raise UnsupportedCircuitError(
            f"device: expected an analytic simulator of state vectors for derivative states, got {executor.device.name!r}"
            f"{'' if tape.shots is None else f' with {tape.shots} shots'}; use default.qubit or lightning.qubit"
        )
    return _derivative_states_job(tape, executor).then(lambda d: d.conj() @ d.transpose(0, 2, 1))


def _returns_states(tape: GateTape, executor: Executor) -> bool:
    sampled.refuse_channels(tape)
    return tape.shots is None and executor.device.name in STATE_VECTORS


def _derivative_states_job(tape: GateTape, executor: Executor) -> Job[Complex]:
    """Return derivatives of the state by the trainable angles without their part along it, (1 or batch, k, N).

    d_j psi = -i V_j K_j U_j psi_0 with K_j a sum of Pauli words, so a circuit with the word inserted behind gate j
    gives each term. Costs one circuit per word instead of one per pair of angles, and no auxiliary wire.
    """
    operations = tape.operations
    circuits = [operations]
    terms: list[tuple[int, float]] = []
    for column, i in enumerate(tape.trainable):
        for x, z, coefficient in tape.generators([i])[0]:
            if x | z:
                paulis = word(labelled_letters(x, z, tape))
                circuits.append([*operations[: i + 1], *paulis, *operations[i + 1 :]])
                terms.append((column, coefficient))

    def derivatives(states: list[Complex]) -> Complex:
        rows = max(len(state) for state in states)
        psi = np.broadcast_to(states[0], (rows, states[0].shape[1]))
        found = np.zeros((rows, len(tape.trainable), psi.shape[1]), dtype=complex)
        for (column, coefficient), state in zip(terms, states[1:], strict=True):
            found[:, column] += coefficient * state
        # K_j psi with the mean removed: the factor -i and the common unitary drop out of the inner products.
        means = np.einsum("bn,bjn->bj", psi.conj(), found)
        found -= means[:, :, None] * psi[:, None, :]
        return found

    return states_job(circuits, tape.wires, executor.device).then(derivatives)
