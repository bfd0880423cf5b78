"""Operations with angles, what can be made of them, and their matrices by definition, differentiable by torch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import torch

WIRES = [0, 1, 2, 3, "c", "d"]
HAMILTONIAN = qml.Hamiltonian([0.5, -0.7], [qml.X(0) @ qml.X(1), qml.Y(0)])


class OwnRotation(qml.operation.Operation):
    """A user's gate: a matrix, a decomposition, and no generator."""

    num_wires = 1
    num_params = 1
    ndim_params = (0,)

    @staticmethod
    def compute_matrix(t: Any) -> Any:
        return qml.RX.compute_matrix(t)

    @staticmethod
    def compute_decomposition(t: Any, wires: Any) -> Any:
        return [qml.RX(t, wires)]


#: Name -> (number of angles, operation).
GATES: dict[str, tuple[int, Callable[..., Any]]] = {
    "RX": (1, lambda t: qml.RX(t, 0)),
    "RZ": (1, lambda t: qml.RZ(t, 0)),
    "PhaseShift": (1, lambda t: qml.PhaseShift(t, 0)),
    "U1": (1, lambda t: qml.U1(t, 0)),
    "U2": (2, lambda a, b: qml.U2(a, b, 0)),
    "U3": (3, lambda a, b, c: qml.U3(a, b, c, 0)),
    "Rot": (3, lambda a, b, c: qml.Rot(a, b, c, 0)),
    "CRot": (3, lambda a, b, c: qml.CRot(a, b, c, [1, 0])),
    "CRY": (1, lambda t: qml.CRY(t, [1, 0])),
    "CPhaseShift01": (1, lambda t: qml.CPhaseShift01(t, [0, 1])),
    "IsingXY": (1, lambda t: qml.IsingXY(t, [0, 1])),
    "PSWAP": (1, lambda t: qml.PSWAP(t, [0, 1])),
    "FermionicSWAP": (1, lambda t: qml.FermionicSWAP(t, [0, 1])),
    "SingleExcitationPlus": (1, lambda t: qml.SingleExcitationPlus(t, [0, 1])),
    "PauliRot": (1, lambda t: qml.PauliRot(t, "XY", [0, 1])),
    "MultiRZ": (1, lambda t: qml.MultiRZ(t, [0, 1])),
    "PCPhase": (1, lambda t: qml.PCPhase(t, 3, wires=[0, 1])),
    "evolve": (1, lambda t: qml.evolve(HAMILTONIAN, t)),
    "exp": (1, lambda t: qml.exp(HAMILTONIAN, -1j * t)),
    "Trotter": (1, lambda t: qml.TrotterProduct(HAMILTONIAN, t, n=2, order=2)),
    "Reflection": (1, lambda t: qml.Reflection(qml.RY(0.4, 0), t)),
    "Select": (2, lambda a, b: qml.Select([qml.RX(a, 0), qml.Rot(a, b, a, 0)], control=[1])),
    "product": (2, lambda a, b: qml.prod(qml.RZ(a, 0), qml.S(1), qml.RX(b, 0))),
    "own gate": (1, lambda t: OwnRotation(t, 0)),
    "layers": (
        3,
        lambda a, b, c: qml.StronglyEntanglingLayers(
            torch.stack([a, b, c, a, c, b]).reshape(1, 2, 3), wires=[0, 1]
        ),
    ),
}

FORMS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda op: op,
    "adjoint": qml.adjoint,
    "controlled": lambda op: qml.ctrl(op, ["c", "d"], control_values=[0, 1]),
    "power": lambda op: qml.pow(op, 3),
    "controlled power": lambda op: qml.ctrl(qml.pow(op, 3), "c"),
    "controlled adjoint": lambda op: qml.ctrl(qml.adjoint(op), "c"),
    "adjoint of a controlled power": lambda op: qml.adjoint(qml.ctrl(qml.pow(op, 2), "c")),
    "power of controlled": lambda op: qml.pow(qml.ctrl(op, "c"), 2),
    "controlled product": lambda op: qml.ctrl(qml.prod(op, qml.Y(0)), "c"),
    "sequence": lambda op: qml.ControlledSequence(op, ["c", "d"]),
    "phase estimation": lambda op: qml.QuantumPhaseEstimation(op, estimation_wires=["c", "d"]),
}

#: Angles at which PennyLane's decompositions have another structure than elsewhere.
ANGLES: dict[str, tuple[float, float, float]] = {
    "zero": (0.0, 0.0, 0.0),
    "pi": (np.pi, np.pi, np.pi),
    "two pi": (2 * np.pi, 2 * np.pi, 2 * np.pi),
    "equal": (0.7, 0.7, 0.7),
    "mixed": (np.pi / 2, 0.0, 1.3),
}


def matrix_of(op: Any, wires: list[Any]) -> torch.Tensor:
    """The matrix, from the definition of what an inverse, a power, a product and a control are."""
    size = 2 ** len(wires)
    identity = torch.eye(size, dtype=torch.complex128)
    if isinstance(op, qml.ops.Adjoint):
        return matrix_of(op.base, wires).conj().T
    if isinstance(op, qml.ops.Exp):  # torch.matrix_exp has errors of 1e-10 for small matrices
        scalar = -1j * op.data[0] if isinstance(op, qml.ops.Evolution) else op.data[0]
        values, vectors = np.linalg.eigh(qml.matrix(op.base, wire_order=wires))
        basis = torch.as_tensor(vectors).to(identity)
        return (basis * torch.exp(scalar * torch.as_tensor(values))) @ basis.conj().T
    if isinstance(op, qml.ops.Pow):
        return torch.linalg.matrix_power(matrix_of(op.base, wires), int(op.z))
    if isinstance(op, qml.ops.Prod):
        result = identity
        for operand in op.operands:
            result = result @ matrix_of(operand, wires)
        return result
    if isinstance(op, qml.ops.Controlled) and type(op).__name__ in ("Controlled", "ControlledOp"):
        projector = qml.Projector([int(v) for v in op.control_values], op.control_wires)
        chosen = torch.as_tensor(qml.matrix(projector, wire_order=wires)).to(identity)
        return identity - chosen + chosen @ matrix_of(op.base, wires)
    if isinstance(op, qml.ControlledSequence):
        parts = [
            qml.ctrl(qml.pow(op.base, 2**k), wire)
            for k, wire in zip(range(len(op.control))[::-1], op.control, strict=True)
        ]
    elif op.name == "GlobalPhase":
        return torch.exp(-1j * torch.as_tensor(op.data[0], dtype=torch.float64)) * identity
    elif op.has_matrix:
        return torch.as_tensor(op.matrix(wire_order=wires)).to(identity)
    else:
        parts = op.decomposition()
    result = identity
    for part in parts:
        result = matrix_of(part, wires) @ result
    return result
