"""Derivatives that a simulator computes itself: the adjoint method, one run of the circuit instead of two per angle.

PennyLane's adjoint devices (Jones and Gacon 2020, arXiv:2009.02823) take a tape through their own decomposition first,
after which its parameters need not be the circuit's angles any more. The angles go through that decomposition as
tensors, so that the chain rule leads back to them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.arrays import to_numpy
from fubini.circuit.any_angle import Undecomposed, Watch, rebind, unfold
from fubini.circuit.decompose import own_parts
from fubini.errors import UnsupportedCircuitError
from fubini.options import Real

Tensor = torch.Tensor

#: What devices and their decompositions raise for a circuit that they cannot take, now or later.
REFUSALS = (
    TypeError,
    AttributeError,
    NotImplementedError,
    qml.exceptions.DeviceError,
    qml.exceptions.WireError,
    qml.exceptions.QuantumFunctionError,
    qml.exceptions.DecompositionUndefinedError,
)
# A dense matrix on more wires costs more than the shifted circuits that it saves.
_MAX_MATRIX_WIRES = 8


def differentiates(device: Any, tape: Any) -> bool:
    """Say whether a device differentiates a tape by the adjoint method.

    Args:
        device: PennyLane device.
        tape: Analytic, without a batch; its trainable parameters are those of gates.

    Returns:
        Whether it does.
    """
    try:
        config = _config(device, tape)
        return bool(device.supports_derivatives(config, tape)) and bool(
            _prepared(device, tape, config)
        )
    except Exception:  # noqa: BLE001 - decompositions fail on tensors in many ways; there are other rules
        return False


def differentiated(device: Any, tapes: Sequence[Any]) -> list[list[Real]]:
    """Run tapes and their derivatives on a device.

    Args:
        device: PennyLane device.
        tapes: Those that it :func:`differentiates`, with expectation values only.

    Returns:
        For every tape its expectation values, (measurements,), and their derivatives by its trainable parameters,
        (measurements, parameters).

    Raises:
        UnsupportedCircuitError: If the device's decomposition changes what is measured.
    """
    config = _config(device, tapes[0])
    ready = [_prepared(device, tape, config) for tape in tapes]
    results, jacobians = device.execute_and_compute_derivatives(
        tuple(tape for tape, _ in ready), config
    )
    answers = []
    for tape, (own, chain), result, jacobian in zip(tapes, ready, results, jacobians, strict=True):
        count = len(tape.measurements)
        values = to_numpy(np.asarray(result, dtype=float)).reshape(count)
        inner = np.asarray(jacobian, dtype=float).reshape(count, len(own.trainable_params))
        answers.append([values, inner if chain is None else inner @ chain])
    return answers


def _config(device: Any, tape: Any) -> Any:
    wanted = qml.devices.ExecutionConfig(
        gradient_method="adjoint", use_device_gradient=True, grad_on_execution=True
    )
    return device.setup_execution_config(wanted, tape)


def _same(measurements: Sequence[Any], others: Sequence[Any]) -> bool:
    return len(measurements) == len(others) and all(
        a is b or qml.equal(a, b) for a, b in zip(measurements, others, strict=True)
    )


def _declared(device: Any, operations: Sequence[Any]) -> list[Any]:
    """Return operations that the device says it differentiates, the fixed ones among the others as matrices.

    lightning.qubit counts the parameters of operations that it has no kernel for, or fails on them: its derivatives
    are then by other angles than those asked for. A matrix counts as what it is.

    Raises:
        UnsupportedCircuitError: For others that depend on an angle, or are large.
    """
    takes = _takes(device)
    result = []
    for op in operations:
        plain = not op.data and not isinstance(op, qml.ops.Controlled)
        if plain or takes(op):
            result.append(op)
        elif _moving(op) or len(op.wires) > _MAX_MATRIX_WIRES:
            raise UnsupportedCircuitError(f"device: {device.name} does not differentiate {op.name}")
        elif isinstance(op, qml.operation.StatePrepBase) or type(op) is qml.QubitUnitary:
            result.append(op)
        else:
            matrix = qml.matrix(op, wire_order=op.wires)
            result.append(qml.QubitUnitary(matrix, wires=op.wires, unitary_check=False))
    return result


def _takes(device: Any) -> Callable[[Any], bool]:
    """What tells whether a device says that it differentiates an operation by its only parameter."""
    if device.capabilities is None:
        return lambda op: True
    declared = device.capabilities.gate_set(differentiable=True)
    return lambda op: op.name in declared and len(op.data) < 2


def _unfolded(device: Any, operations: Sequence[Any]) -> list[Any]:
    """Operations whose angles are differentiated, by fubini's rules as far as the device does not take them."""
    takes = _takes(device)
    try:
        return unfold(operations, lambda op: not _moving(op) or takes(op), _rules)
    except Undecomposed as error:
        raise UnsupportedCircuitError(
            f"device: {device.name} does not differentiate {error.operation.name}"
        ) from error


def _rules(op: Any) -> list[Any] | None:
    """exp(-i t sum_k c_k P_k) with commuting words as rotations; else the rules of the gates with one angle each."""
    sentence = (op.base.pauli_rep if isinstance(op, qml.ops.Evolution) else None) or {}
    words = [word for word in sentence if len(word)]
    if not words or any(not a.commutes_with(b) for a in words for b in words):
        return own_parts(op)
    return [
        qml.PauliRot(
            2.0 * float(np.real(to_numpy(sentence[word], None))) * op.data[0],
            "".join(word.values()),
            wires=list(word),
        )
        for word in words
    ]


def _moving(op: Any) -> bool:
    return any(map(_depends, op.data))


def _prepared(device: Any, tape: Any, config: Any) -> tuple[Any, Real | None]:
    """The tape as the device takes it, and d its parameters / d the angles; None: they are the angles."""
    operations = list(tape.operations)
    leaves: list[Tensor] = []
    with torch.enable_grad():  # also inside a forward or backward pass, where torch has it off
        for k in tape.trainable_params:
            place, op = tape.par_info[k]["op_idx"], tape.par_info[k]["op"]
            angle = float(op.data[0])
            leaves.append(torch.tensor(angle, dtype=torch.float64, requires_grad=True))
            operations[place] = rebind(op, [leaves[-1]])
        script = qml.tape.QuantumScript(_unfolded(device, operations), tape.measurements)
        with Watch() as watch:
            batch, _ = device.preprocess_transforms(config)((script,))
        if watch.found:
            raise UnsupportedCircuitError(
                f"device: {device.name} looks at the values of angles ({watch.found}), so that its derivatives may be "
                "those of another circuit"
            )
        if len(batch) != 1 or not _same(batch[0].measurements, tape.measurements):
            raise UnsupportedCircuitError(
                f"device: {device.name} measures something else than the circuit, so that its derivatives are others"
            )
        own = batch[0].copy(operations=_declared(device, batch[0].operations))
        parameters = own.get_parameters(trainable_only=False, operations_only=True)
        depend = [k for k, p in enumerate(parameters) if _depends(p)]
        moving = [parameters[k] for k in depend]
        chain = None
        if list(map(id, moving)) != list(map(id, leaves)):
            rows = [
                torch.autograd.grad(p, leaves, retain_graph=True, allow_unused=True) for p in moving
            ]
            chain = np.array([[0.0 if g is None else float(g) for g in row] for row in rows])
            chain = chain.reshape(len(moving), len(leaves))
    (plain,), _ = qml.transforms.convert_to_numpy_parameters(own)
    plain.trainable_params = depend
    return plain, chain


def _depends(parameter: Any) -> bool:
    return isinstance(parameter, torch.Tensor) and parameter.requires_grad
