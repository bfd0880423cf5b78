"""Circuits on devices that return estimates instead of states, as functions of one flat vector of weights."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.arrays import to_numpy
from fubini.circuit.angles import gate_tape
from fubini.circuit.gate_layers import GateShape
from fubini.circuit.pauli import word_masks
from fubini.circuit.tape import Gate, GateTape
from fubini.devices.executor import Executor, device_reason, executor_of
from fubini.errors import UnsupportedCircuitError
from fubini.geometry.ansatz import Ansatz
from fubini.geometry.ansatz_arguments import (
    ONE_INPUT,
    argument_names,
    layer_arguments,
    plain,
)
from fubini.geometry.operators import Terms, one_value, terms_of
from fubini.nn.qnode_function import plain_qnode
from fubini.options import Real


@dataclasses.dataclass(frozen=True)
class _Wires:
    """What operators need of a circuit, where there is no native one."""

    wires: tuple[Any, ...]

    @property
    def num_wires(self) -> int:
        return len(self.wires)


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
        self.circuit = _Wires(tuple(tape.wires))  # type: ignore[assignment]
        self._measured = tape.measurements
        #: Shots of every circuit, None for exact results.
        self.shots = tape.shots

    def tape(self, weights: Real) -> GateTape:
        """Return the gates at weights (P,)."""
        ends = np.cumsum([int(np.prod(s, dtype=int)) for s in self._shapes])
        parts = np.split(weights, ends[:-1])
        leaves = {
            n: torch.tensor(p.reshape(s), dtype=torch.float64)
            for n, p, s in zip(self.names, parts, self._shapes, strict=True)
        }
        return gate_tape(self._qnode, (), {**leaves, **self._others}, self.names, pure=False)

    def observable(self, remedy: str) -> Terms:
        """See Ansatz."""
        found = self._measured
        expected = len(found) == 1 and isinstance(found[0], qml.measurements.ExpectationMP)
        if not expected or found[0].obs is None:
            raise ValueError(one_value([type(m).__name__ for m in found], remedy))
        return terms_of("hamiltonian", found[0].obs, self.circuit)


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
        return _of_layer(source, weights, inputs)
    qnode = plain_qnode(source)
    if weights is None:
        raise ValueError("weights: expected the QNode's arguments, got None")
    given = weights if isinstance(weights, tuple) else (weights,)
    others = {} if inputs is None else inputs
    if not isinstance(others, Mapping):
        raise TypeError(
            f"inputs: expected a dictionary of the QNode's other arguments, got {type(inputs).__name__}; "
            "inputs={'x': x}"
        )
    names = argument_names(qnode, given, others)
    fixed = {n: plain(n, v) for n, v in others.items()}
    return DeviceAnsatz(qnode, names, list(given), fixed, executor_of(qnode.device))


def _is_layer(source: Any) -> bool:
    return isinstance(source, torch.nn.Module) and hasattr(source, "qnode_weights")


def _of_layer(layer: Any, weights: Any, inputs: Any) -> DeviceAnsatz:
    names, given, x = layer_arguments(layer, weights, inputs)
    for name, value in zip(names, given, strict=True):
        expected, got = tuple(layer.qnode_weights[name].shape), np.shape(to_numpy(value))
        if got != expected:
            raise ValueError(f"{name}: expected the layer's shape {expected}, got {got}")
    data = {} if x is None else {layer.input_arg: x}
    executor = getattr(layer, "executor", None) or executor_of(layer.qnode.device)
    return DeviceAnsatz(layer.qnode, names, given, data, executor)


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


def refuse_noise(tape: GateTape) -> None:
    """Raise an error for circuits with channels."""
    for gate in tape.gates:
        if isinstance(gate.operation, qml.operation.Channel):
            raise UnsupportedCircuitError(
                f"circuit: {gate.operation.name} is a channel, and McLachlan's principle here is that of pure states; remove "
                "it, and evolve the circuit without noise"
            )
