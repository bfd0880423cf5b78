"""Circuits on devices that return estimates instead of states, as functions of one flat vector of weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.circuit.angles import gate_tape
from fubini.circuit.gate_layers import GateShape
from fubini.circuit.pauli import word_masks
from fubini.circuit.tape import Gate, GateTape
from fubini.devices.executor import Executor, device_reason, executor_of
from fubini.errors import UnsupportedCircuitError
from fubini.geometry.ansatz import Ansatz
from fubini.geometry.ansatz_arguments import ONE_INPUT, layer_arguments, qnode_arguments
from fubini.geometry.operators import Terms, measured_terms
from fubini.nn.qnode_function import plain_qnode
from fubini.options import Real


class DeviceAnsatz(Ansatz):
    """A circuit on a device, whose gates are known at given weights; it has no states and tangents.

    Args:
        qnode: The QNode.
        names: Of the arguments that are weights.
        templates: The weights.
        others: Its other arguments.
        executor: Runs the circuits.

    Attributes:
        executor: Runs the circuits.

    Raises:
        UnsupportedCircuitError: For gates without a generator, mid-circuit measurements and the like.
        ValueError: For several inputs.
    """

    def __init__(
        self,
        qnode: Any,
        names: Sequence[str],
        templates: Sequence[Any],
        others: Mapping[str, Any],
        executor: Executor,
    ) -> None:
        super().__init__(names, templates, False)
        self._qnode, self._others, self.executor = qnode, dict(others), executor
        tape = self.tape(self.weights[0])
        if tape.batch is not None:
            raise ValueError(ONE_INPUT.format(f"a batch of {tape.batch}"))
        # What operators need of a circuit, where there is no native one.
        wires = tuple(tape.wires)
        self.circuit = SimpleNamespace(wires=wires, num_wires=len(wires))  # type: ignore[assignment]
        self._measured = tape.measurements
        #: Shots of every circuit, None for exact results.
        self.shots = tape.shots

    def tape(self, weights: Real) -> GateTape:
        """Return the gates at weights (P,)."""
        arguments = {**self.leaves(weights), **self._others}
        tape = gate_tape(self._qnode, (), arguments, self.names, pure=False)
        for gate in tape.gates:
            if isinstance(gate.operation, qml.operation.Channel):
                raise UnsupportedCircuitError(
                    f"circuit: {gate.operation.name} is a channel, and McLachlan's principle here is that of pure states; remove "
                    "it, and evolve the circuit without noise"
                )
        return tape

    def observable(self, remedy: str) -> Terms:
        """See Ansatz."""
        return measured_terms(self._measured, self.circuit, remedy)


def device_of(source: Any) -> str:
    """Return why a QNode or a layer must run on its device; empty where it need not, or is neither."""
    qnode = source.qnode if _is_layer(source) else plain_qnode(source)
    return device_reason(qnode) if isinstance(qnode, qml.QNode) else ""


def device_ansatz(source: Any, weights: Any, inputs: Any) -> DeviceAnsatz:
    """Return a circuit on a device as a function of one flat vector of weights.

    Args:
        source: A QNode or a quantum layer, on its device.
        weights: As of :func:`fubini.evolve`.
        inputs: Likewise.

    Returns:
        The ansatz.

    Raises:
        TypeError: If the inputs of a QNode are no dictionary.
        ValueError: For weights and inputs that do not fit.
    """
    if _is_layer(source):
        names, given, x = layer_arguments(source, weights, inputs, False)
        data = {} if x is None else {source.input_arg: x}
        executor = getattr(source, "executor", None) or executor_of(source.qnode.device)
        return DeviceAnsatz(source.qnode, names, given, data, executor)
    qnode = plain_qnode(source)
    names, given, data = qnode_arguments(qnode, weights, inputs)
    return DeviceAnsatz(qnode, names, given, data, executor_of(qnode.device))


def _is_layer(source: Any) -> bool:
    return isinstance(source, torch.nn.Module) and hasattr(source, "qnode_weights")


def with_word(tape: GateTape, word: str, wires: Sequence[int]) -> GateTape:
    r"""Return a circuit followed by :math:`\exp(-i s P)` at s = 0, with s as one more weight.

    Its tangent is :math:`-iP|\psi\rangle`, so that the metric's entry with a weight w is :math:`\mathrm{Im}\langle\partial_w
    \psi|(1 - |\psi\rangle\langle\psi|)P|\psi\rangle`.

    Args:
        tape: The circuit, for one input.
        word: Letters of P.
        wires: Positions of their wires.

    Returns:
        The circuit; s is its last weight.
    """
    generator = ((*word_masks(word, wires, len(tape.wires)), 0.5),)
    support = generator[0][0] | generator[0][1]
    operation = qml.PauliRot(np.array(0.0), word, wires=[tape.wires[k] for k in wires])
    gate = Gate(operation, generator, True, GateShape(support, True, generator))
    _, rows, columns = tape.jacobian.shape
    jacobian = np.zeros((1, rows + 1, columns + 1))
    jacobian[0, :rows, :columns] = tape.jacobian[0]
    jacobian[0, rows, columns] = 2.0  # PauliRot(2 s) = exp(-i s P)
    return dataclasses.replace(
        tape, gates=(*tape.gates, gate), weight_shapes=(*tape.weight_shapes, ()), jacobian=jacobian
    )


def operator_of(terms: Terms, wires: Sequence[Any]) -> Any:
    """Return words as a PennyLane operator on the wires with these labels."""
    words = {
        qml.pauli.PauliWord(dict(zip((wires[k] for k in on), word, strict=True))): c
        for word, on, c in terms
    }
    return qml.pauli.PauliSentence(words).operation(wire_order=list(wires))
