"""The table of what runs where, from trying it: ``python docs/gates.py`` prints it as Markdown.

Every operation, template and measurement of PennyLane that can stand in a circuit of qubits is put into a ``QuantumLayer`` on
``default.qubit`` with trainable angles; the layer then says how it runs. Gates come in four forms besides their own: adjoint,
controlled, squared, and their square root.
"""

import inspect
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pennylane as qml
import torch

import fubini
from gates_measurements import MEASUREMENTS, SHOTS
from gates_templates import FIRST, HAMILTONIAN, TEMPLATES

COMPILED, EVERY_CALL, DEVICE, REFUSED = "compiled", "in every call", "on the device", "refused"
NOWHERE = "not in PennyLane either"
WIRES = 4
Z = qml.Z
UNITARY = qml.matrix(qml.CNOT([0, 1]))


#: Controlled gates, which PennyLane lists elsewhere.
CONTROLLED = [
    "CCZ",
    "CH",
    "CNOT",
    "CRX",
    "CRY",
    "CRZ",
    "CRot",
    "CSWAP",
    "CY",
    "CZ",
    "ControlledPhaseShift",
    "Toffoli",
]


def on_first_wires(w: Any, gate: Any, angles: int, wires: int) -> Any:
    """Queue a gate with the first angles on the first wires."""
    return gate(*w[:angles], wires=list(range(wires)))


def plain_gates() -> dict[str, Callable[[Any], Any]]:
    """Return the gates that angles and wires alone make, by name."""
    result: dict[str, Callable[[Any], Any]] = {}
    for name in sorted({*qml.ops.qubit.__all__, *CONTROLLED}):
        gate = getattr(qml, name)
        if (
            name in SPECIAL
            or not inspect.isclass(gate)
            or not issubclass(gate, qml.operation.Operation)
        ):
            continue
        angles, wires = gate.num_params, gate.num_wires
        if isinstance(angles, int) and isinstance(wires, int):
            result[gate.__name__] = partial(on_first_wires, gate=gate, angles=angles, wires=wires)
    return result


def forms() -> dict[str, dict[str, Callable[[Any], Any]]]:
    """Return the adjoint, controlled, squared and halved gates, by form and name of the gate."""

    def form(change: Callable[[Any], Any]) -> dict[str, Callable[[Any], Any]]:
        return {
            name: partial(lambda w, gate: change(gate)(w), gate=gate)
            for name, gate in plain_gates().items()
        }

    return {
        "Adjoint gates": form(qml.adjoint),
        "Controlled gates": form(lambda gate: qml.ctrl(gate, control=WIRES)),
        "Squares of gates": form(lambda gate: lambda w: qml.pow(gate(w), 2)),
        "Square roots of gates": form(lambda gate: lambda w: qml.pow(gate(w), 0.5)),
    }


#: Gates that need more than angles and wires.
SPECIAL: dict[str, Callable[[Any], Any]] = {
    "Barrier": lambda w: qml.Barrier(wires=range(2)),
    "BasisState": lambda w: qml.BasisState(np.array([1, 0, 1, 0]), wires=range(4)),
    "BlockEncode": lambda w: qml.BlockEncode(np.array([[0.1, 0.2], [0.3, 0.4]]), wires=[0, 1]),
    "ControlledQubitUnitary": lambda w: qml.ControlledQubitUnitary(UNITARY, wires=[2, 0, 1]),
    "DiagonalQubitUnitary": lambda w: qml.DiagonalQubitUnitary(
        np.exp(1j * np.arange(4)), wires=[0, 1]
    ),
    "DiagonalQubitUnitary of weights": lambda w: qml.DiagonalQubitUnitary(
        torch.exp(1j * w[:4]), wires=[0, 1]
    ),
    "GlobalPhase": lambda w: qml.GlobalPhase(w[0]),
    "Identity": lambda w: qml.Identity(0),
    "IntegerComparator": lambda w: qml.IntegerComparator(2, geq=True, wires=[0, 1, 2]),
    "MultiControlledX": lambda w: qml.MultiControlledX(wires=[0, 1, 2], control_values=[0, 1]),
    "MultiRZ": lambda w: qml.MultiRZ(w[0], wires=range(3)),
    "PauliRot": lambda w: qml.PauliRot(w[0], "XYZ", wires=range(3)),
    "PCPhase": lambda w: qml.PCPhase(w[0], dim=3, wires=[0, 1]),
    "QubitUnitary": lambda w: qml.QubitUnitary(UNITARY, wires=[0, 1]),
    "Snapshot": lambda w: qml.Snapshot(),
    "SpecialUnitary": lambda w: qml.SpecialUnitary(w[:3], wires=0),
    "StatePrep": lambda w: qml.StatePrep(np.arange(1, 5) / np.sqrt(30), wires=[0, 1]),
    "StatePrep of weights": lambda w: qml.StatePrep(w[:4], wires=[0, 1], normalize=True),
    "qml.adjoint": lambda w: qml.adjoint(qml.Rot)(*w[:3], wires=0),
    "qml.cond": lambda w: qml.cond(qml.measure(0), qml.RX)(w[0], wires=1),
    "qml.ctrl": lambda w: qml.ctrl(qml.RX, control=[1, 2])(w[0], wires=0),
    "qml.evolve": lambda w: qml.evolve(HAMILTONIAN, w[0]),
    "qml.exp": lambda w: qml.exp(Z(0) @ Z(1), 1j * w[0]),
    "qml.measure": lambda w: qml.measure(0),
    "qml.pow": lambda w: qml.pow(qml.RX(w[0], wires=0), 2),
    "qml.prod": lambda w: qml.prod(qml.RX(w[0], wires=0), qml.CNOT([0, 1])),
    "a gate whose angle is float(w)": lambda w: qml.RX(float(w[0].detach()), wires=0),
    "if w > 0": lambda w: qml.RX(w[0] if w[0] > 0 else w[1], wires=0),
}

CHANNELS: dict[str, Callable[[Any], Any]] = {
    name: partial(
        lambda w, gate, angles: gate(*[0.1] * angles, wires=0),
        gate=getattr(qml, name),
        angles=angles,
    )
    for name, angles in (
        ("AmplitudeDamping", 1),
        ("BitFlip", 1),
        ("DepolarizingChannel", 1),
        ("GeneralizedAmplitudeDamping", 2),
        ("PhaseDamping", 1),
        ("PhaseFlip", 1),
    )
}


@dataclass(frozen=True)
class Try:
    """A circuit to be tried.

    Attributes:
        gate: Queues it with angles out of a tensor of 20.
        measurement: Returns it.
        device: Name of PennyLane's device.
        first: Whether the gate prepares a state, so that nothing stands before it.
        shots: Of the device.
    """

    gate: Callable[[Any], Any]
    measurement: Callable[[], Any] = MEASUREMENTS["expval of a sum"]
    device: str = "default.qubit"
    first: bool = False
    shots: int | None = None

    def qnode(self) -> Any:
        """Return the circuit as a QNode of a tensor of 20."""

        @qml.set_shots(self.shots)
        @qml.qnode(qml.device(self.device, wires=WIRES + 3))
        def circuit(w: Any) -> Any:
            for wire in () if self.first else range(WIRES):
                qml.RY(w[15 + wire], wires=wire)
            self.gate(w)
            return self.measurement()

        return circuit

    def classify(self, layer: fubini.QuantumLayer) -> tuple[str, str]:
        """Return where the circuit runs, and why it is not compiled.

        Args:
            layer: Of the QNode, not yet called.
        """
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                layer()
            except Exception as error:  # the table says what came  # noqa: BLE001
                reason = re.sub(r"tensor\(.*?\)", "...", str(error).split("\n")[0])
                reason = reason.split(". ")[0].rstrip(".")
                try:
                    layer.qnode(torch.rand(20, dtype=torch.float64, requires_grad=True))
                except Exception:  # noqa: BLE001
                    return NOWHERE, reason
                return REFUSED, reason
        said = layer.explain()
        reason = said.split(": ", 1)[1].split(". ")[0].rstrip(".") if ": " in said else ""
        if layer.engine == "device":
            return DEVICE, reason
        return (COMPILED, "") if "compiled circuit" in said else (EVERY_CALL, reason)


def cases() -> dict[str, dict[str, Try]]:
    """Return what is tried, by group and name."""

    def group(gates: dict[str, Callable[[Any], Any]], device: str = "default.qubit") -> Any:
        return {
            name: Try(gate, device=device, first=name.split()[0] in FIRST)
            for name, gate in sorted(gates.items(), key=lambda item: item[0].lower())
        }

    return {
        "Gates": group({**plain_gates(), **SPECIAL}),
        **{name: group(gates) for name, gates in forms().items()},
        "Templates": group(TEMPLATES),
        "Channels, on default.mixed": group(CHANNELS, "default.mixed"),
        "Measurements": {
            name: Try(lambda w: None, measurement, shots=100 if name in SHOTS else None)
            for name, measurement in MEASUREMENTS.items()
        },
    }


def tried() -> dict[str, dict[str, tuple[str, str]]]:
    """Try everything.

    Returns:
        By group and name: the class, and the reason where it is not compiled.
    """
    torch.manual_seed(0)
    return {
        group: {
            name: case.classify(fubini.QuantumLayer(case.qnode(), {"w": 20}))
            for name, case in members.items()
        }
        for group, members in cases().items()
    }


def counted(results: dict[str, dict[str, tuple[str, str]]]) -> dict[str, int]:
    """Return how many cases there are of each class.

    Args:
        results: As :func:`tried`.
    """
    kinds = [kind for group in results.values() for kind, _ in group.values()]
    return {kind: kinds.count(kind) for kind in (COMPILED, EVERY_CALL, DEVICE, REFUSED, NOWHERE)}


def markdown() -> str:
    """Return the table, one section per group, what is compiled in one line."""
    results = tried()
    total = counted(results)
    lines = [
        f"Of {sum(total.values())} cases "
        + ", ".join(f"{number} {kind}" for kind, number in total.items() if number)
        + ".",
        "",
    ]
    for group, found in results.items():
        lines += section(group, found)
    return "\n".join(lines)


def section(group: str, results: dict[str, tuple[str, str]]) -> list[str]:
    """Return the lines of a group: what is compiled, then a table of the rest."""
    names = [name for name, (kind, _) in results.items() if kind == COMPILED]
    said = f", {len(names)} are compiled:" if names else "."
    listed = ", ".join(f"`{name}`" if " " not in name else name for name in names)
    lines = [f"## {group}", "", f"{len(results)} were tried{said}", listed, ""]
    rest = [(name, *found) for name, found in results.items() if found[0] != COMPILED]
    if rest:
        lines += ["| what | where it runs | why |", "| --- | --- | --- |"]
        for name, kind, why in rest:
            lines += [f"| {name} | {kind} | {why.replace('|', chr(92) + '|')} |"]
        lines += [""]
    return lines


if __name__ == "__main__":
    print(markdown())
