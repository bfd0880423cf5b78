"""Circuits as functions of one flat vector of weights, evaluated for many such vectors at once."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.arrays import like, to_numpy
from fubini.circuit.arguments import check_finite_array, real_numbers
from fubini.circuit.jacobian import Jacobian
from fubini.circuit.tape import user_tape
from fubini.compile.calls import find
from fubini.compile.compiled import Compiled
from fubini.devices.executor import device_reason
from fubini.errors import UnsupportedCircuitError
from fubini.geometry.ansatz_arguments import ONE_INPUT, layer_arguments, qnode_arguments
from fubini.geometry.operators import Terms, measured_terms, own_terms
from fubini.metric.engines import Point
from fubini.metric.points import at_inputs, points
from fubini.native.circuit import Circuit
from fubini.native.pullback import Pullback
from fubini.nn.qnode_function import plain_qnode
from fubini.options import Complex, Index, Real


def _arrays(names: Sequence[str], templates: Sequence[Any], batched: bool) -> list[Real]:
    """Return weights as arrays, checked."""
    if not templates:
        raise ValueError("weights: expected at least one, got none")
    arrays = [real_numbers(name, one) for name, one in zip(names, templates, strict=True)]
    for name, array in zip(names, arrays, strict=True):
        check_finite_array(name, array)
        if batched and (not array.ndim or len(array) != len(arrays[0]) or not len(array)):
            raise ValueError(
                f"{name}: expected an axis of trajectories in front, for batched=True, got the shape {array.shape}"
            )
    return arrays


class Ansatz:
    """A circuit, its P weights as one vector, and how its A angles move with them; make one by :func:`ansatz`.

    Attributes:
        circuit: The circuit, over its angles.
        size: Number of weights P.
        names: Of the arguments that are weights.
        templates: What the caller passed for each, whose kind and shape results have.
        initial: Initial states (1, N) for a circuit that takes them, else None.
    """

    circuit: Circuit
    initial: Complex | None = None

    def __init__(self, names: Sequence[str], templates: Sequence[Any], batched: bool) -> None:
        self.names, self.templates = list(names), list(templates)
        arrays = _arrays(names, templates, batched)
        self._shapes = [a.shape[1:] if batched else a.shape for a in arrays]
        lead = len(arrays[0]) if batched else 1
        #: The weights that were passed, (B, P).
        self.weights: Real = np.concatenate([a.reshape(lead, -1) for a in arrays], axis=1)
        self.size: int = self.weights.shape[1]
        if not self.size:
            raise ValueError("weights: expected at least one, got none")

    def angles(self, weights: Real) -> Real:
        """Return the angles (B, A) at weights (B, P)."""
        raise NotImplementedError

    def jacobian(self, weights: Real) -> Jacobian:
        """Return the angles' derivative by the weights at weights (B, P), for one or for B inputs."""
        raise NotImplementedError

    def observable(self, remedy: str) -> Terms:
        """Return the observable of the one expectation value that the circuit returns.

        Args:
            remedy: What to do if it returns something else.

        Raises:
            ValueError: If it does.
        """
        return own_terms(self.circuit, remedy)

    def shaped(self, weights: Real) -> Any:
        """Return flat weights (..., P) as the caller's arguments are: one array, or a tuple of several.

        Args:
            weights: Of any leading shape, which each argument gets.
        """
        found = [like(p, t) for p, t in zip(self._parts(weights), self.templates, strict=True)]
        return found[0] if len(found) == 1 else tuple(found)

    def leaves(self, weights: Real) -> dict[str, torch.Tensor]:
        """Return flat weights (P,) as new tensors by name, which require grad."""
        parts = [torch.tensor(p, requires_grad=True) for p in self._parts(weights)]
        return dict(zip(self.names, parts, strict=True))

    def _parts(self, weights: Real) -> list[Real]:
        ends = np.cumsum([int(np.prod(s, dtype=int)) for s in self._shapes])
        return [
            np.ascontiguousarray(p).reshape((*p.shape[:-1], *s))
            for p, s in zip(np.split(weights, ends[:-1], axis=-1), self._shapes, strict=True)
        ]


class _Angles(Ansatz):
    """A ``fubini.Circuit``, whose weights are its angles."""

    def __init__(self, circuit: Circuit, weights: Any, state: Any, batched: bool) -> None:
        super().__init__(["weights"], [weights], batched)
        if self._shapes[0] != (circuit.num_angles,):
            raise ValueError(
                f"weights: expected the circuit's {circuit.num_angles} angles, got the shape {np.shape(weights)}"
            )
        self.circuit = circuit
        if circuit.takes_state and state is None:
            raise ValueError(
                "inputs: the circuit prepares its initial state from data, and none was given; pass inputs=amplitudes, "
                f"of shape ({2**circuit.num_wires},), as circuit.state_of(tape) returns them"
            )
        self.initial = circuit.states_of(state, 1)
        self._jacobian = Jacobian.identity(circuit.num_angles)

    def angles(self, weights: Real) -> Real:
        return weights

    def jacobian(self, weights: Real) -> Jacobian:
        return self._jacobian


class _Form(Ansatz):
    """A compiled quantum function."""

    def __init__(
        self,
        form: Compiled,
        tensors: Mapping[str, Any],
        inputs: Real,
        names: Sequence[str],
        templates: Sequence[Any],
        batched: bool,
    ) -> None:
        super().__init__(names, templates, batched)
        arrays = {n: to_numpy(t) for n, t in tensors.items()}
        self.circuit, self._form, self._inputs = form.circuit, form, inputs
        self._every = np.concatenate([a.reshape(-1) for a in arrays.values()])
        ends = dict(zip(arrays, np.cumsum([a.size for a in arrays.values()]).tolist(), strict=True))
        self._columns: Index = np.concatenate(
            [np.arange(ends[n] - arrays[n].size, ends[n]) for n in names]
        )
        self.initial = form.states(list(arrays.values()), inputs)
        affine = form.affine
        self._linear: tuple[Real, Real] | None = None
        if affine is not None:
            if affine.inputs.shape[1] != inputs.shape[1]:
                raise ValueError(
                    f"inputs: expected {affine.inputs.shape[1]} features, got {inputs.shape[1]}"
                )
            others = self._every.copy()
            others[self._columns] = 0.0
            offset = affine.constant + affine.weights @ others + affine.inputs @ inputs[0]
            self._linear = offset, np.ascontiguousarray(affine.weights[:, self._columns].T)
            self._constant = form.jacobian([], inputs).by(self._columns)

    def _full(self, weights: Real) -> tuple[Real, Real]:
        """All that the map is a function of."""
        full = np.repeat(self._every[None], len(weights), axis=0)
        full[:, self._columns] = weights
        return full, np.repeat(self._inputs, len(weights), axis=0)

    def angles(self, weights: Real) -> Real:
        if self._linear is not None:
            offset, matrix = self._linear
            return offset + weights @ matrix
        found = self._form.map.evaluate(*self._full(weights))
        return np.ascontiguousarray(found[:, : self.circuit.num_angles])

    def jacobian(self, weights: Real) -> Jacobian:
        if self._linear is not None:
            return self._constant
        found, _ = self._form.map.jacobian(*self._full(weights), self._form.weighted)
        return Jacobian(self._form.weighted, found).by(self._columns)


class _Called(Ansatz):
    """A quantum function that runs for its angles in every evaluation."""

    def __init__(
        self,
        at: Callable[[dict[str, torch.Tensor]], Point],
        tape: Callable[[dict[str, torch.Tensor]], Any],
        names: Sequence[str],
        templates: Sequence[Any],
        batched: bool,
    ) -> None:
        super().__init__(names, templates, batched)
        self._at, self._tape = at, tape
        first = self._pullback(self.weights[0])
        self.circuit, self.initial = first.circuit, first.states

    def observable(self, remedy: str) -> Terms:
        measured = self._tape(self.leaves(self.weights[0])).measurements
        return measured_terms(measured, self.circuit, remedy)

    def _pullback(self, weights: Real) -> Pullback:
        found = self._at(self.leaves(weights)).pullback
        assert found is not None
        if found.batch is not None:
            raise ValueError(ONE_INPUT.format(f"a batch of {found.batch}"))
        if hasattr(self, "circuit") and found.circuit != self.circuit:
            raise UnsupportedCircuitError(
                "circuit: expected the same gates for all weights, and its gates change with the weights' values"
            )
        return found

    def angles(self, weights: Real) -> Real:
        return np.concatenate([self._pullback(w).angles for w in weights])

    def jacobian(self, weights: Real) -> Jacobian:
        found = [self._pullback(w).jacobian for w in weights]
        rows = found[0].rows
        if any(len(j.rows) != len(rows) or (j.rows != rows).any() for j in found):
            raise UnsupportedCircuitError(
                "circuit: expected the same angles to depend on weights for all weights"
            )
        return Jacobian(rows, np.concatenate([j.values for j in found]))


def ansatz(source: Any, weights: Any = None, inputs: Any = None, batched: bool = False) -> Ansatz:
    """Return a circuit as a function of one flat vector of weights.

    Args:
        source: A QNode, ``fubini.compiled(qnode)``, a ``QuantumLayer`` or ``TorchLayer``, or a ``fubini.Circuit``.
        weights: Of a QNode its positional arguments: one array, or a tuple of several; of a circuit its angles, (A,); of a
            layer None for its own, or a tuple in their order.
        inputs: What else the circuit needs: of a QNode a dictionary of its other arguments; of a layer with data one input
            (features,); of a circuit that takes an initial state its amplitudes (N,).
        batched: Whether every weight has an axis of B vectors in front.

    Returns:
        The ansatz; ``weights`` of it are (B, P), with B = 1 without ``batched``.

    Raises:
        TypeError: If source is nothing of that kind.
        ValueError: For weights that do not fit, are NaN or infinite, and for data that are missing.
        UnsupportedCircuitError: If the circuit cannot run natively, or has shots.
    """
    if isinstance(source, Circuit):
        return _Angles(source, weights, inputs, batched)
    if isinstance(source, torch.nn.Module):
        return _of_layer(source, weights, inputs, batched)
    qnode = plain_qnode(source)
    if not isinstance(qnode, qml.QNode):
        raise TypeError(
            "circuit: expected a QNode, fubini.compiled(qnode), a QuantumLayer or a fubini.Circuit, got "
            f"{type(source).__name__}; for a function of operations, qml.QNode(function, device)"
        )
    return _of_qnode(qnode, weights, inputs, batched)


def _of_qnode(qnode: Any, weights: Any, inputs: Any, batched: bool) -> Ansatz:
    reason = device_reason(qnode)
    if reason:
        raise UnsupportedCircuitError(
            f"circuit: expected a QNode on a noiseless simulator, whose states are known, got one for which {reason}; use "
            "qml.QNode(qnode.func, qml.device('default.qubit'))"
        )
    names, given, fixed = qnode_arguments(qnode, weights, inputs)
    leaves = [
        torch.tensor(v[0] if batched else v, dtype=torch.float64, requires_grad=True)
        for v in _arrays(names, given, batched)
    ]
    named = dict(zip(names, leaves, strict=True))
    found = find(qnode, (), {**named, **fixed})
    form = None if isinstance(found, str) else found.compiled
    if form is None or isinstance(found, str) or form.state_weighted or form.decisions:
        at = points(qnode, None, None, "native")
        return _Called(
            lambda own: at((), {**own, **fixed}),
            lambda own: user_tape(qnode, (), {**own, **fixed}, results=True),
            names,
            given,
            batched,
        )
    rows = to_numpy(found.inputs)
    if len(rows) != 1:
        raise ValueError(ONE_INPUT.format(f"a batch of {len(rows)}"))
    tensors = {n: t for n, t in found.tensors.items() if n != found.known.data}
    return _Form(form, tensors, rows, names, given, batched)


def _of_layer(layer: Any, weights: Any, inputs: Any, batched: bool) -> Ansatz:
    if not (hasattr(layer, "qnode") and hasattr(layer, "qnode_weights")):
        raise TypeError(
            f"circuit: expected a QNode, a quantum layer or a fubini.Circuit, got {type(layer).__name__}; for a model, pass one "
            "of its quantum layers"
        )
    if getattr(layer, "engine", "native") == "device" or device_reason(layer.qnode):
        why = layer.explain() if hasattr(layer, "explain") else device_reason(layer.qnode)
        raise UnsupportedCircuitError(
            f"circuit: expected a layer on the native engine, whose states are known. {why.rstrip('.')}. "
            "fubini.QuantumLayer(qml.QNode(layer.qnode.func, qml.device('default.qubit')), layer.weight_shapes, "
            "dict(layer.qnode_weights)) is one without noise"
        )
    names, given, row = layer_arguments(layer, weights, inputs, batched)
    x = torch.empty(0, dtype=torch.float64) if row is None else row
    data = {} if row is None else {layer.input_arg: row}
    form = layer.compiled(row) if hasattr(layer, "compiled") else None
    if form is None or form.decisions:
        return _Called(
            lambda own: at_inputs(layer, x, "native", None, own),
            lambda own: user_tape(layer.qnode, (), {**data, **own}, results=True),
            names,
            given,
            batched,
        )
    own = dict(layer.qnode_weights)
    return _Form(form, own, to_numpy(x).reshape(1, -1), names, given, batched)
