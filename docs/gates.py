"""The table of what runs where, from trying it: ``python docs/gates.py`` prints it as Markdown.

Every operation, template and measurement of PennyLane that can stand in a circuit of qubits is put into a ``QuantumLayer`` on
``default.qubit`` with trainable angles; the layer then says how it runs.
"""

import inspect
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pennylane as qml
import torch

import fubini

COMPILED, EVERY_CALL, DEVICE, REFUSED = "compiled", "in every call", "on the device", "refused"
WIRES = 4
Z = qml.Z
HAMILTONIAN = 0.5 * (Z(0) @ Z(1)) + 0.3 * qml.X(0)
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

TEMPLATES: dict[str, Callable[[Any], Any]] = {
    "AmplitudeEmbedding": lambda w: qml.AmplitudeEmbedding(w[:4], wires=[0, 1], normalize=True),
    "AngleEmbedding": lambda w: qml.AngleEmbedding(w[:3], wires=range(3)),
    "ApproxTimeEvolution": lambda w: qml.ApproxTimeEvolution(HAMILTONIAN, w[0], 2),
    "ArbitraryStatePreparation": lambda w: qml.ArbitraryStatePreparation(w[:6], wires=range(2)),
    "ArbitraryUnitary": lambda w: qml.ArbitraryUnitary(w[:15], wires=range(2)),
    "BasicEntanglerLayers": lambda w: qml.BasicEntanglerLayers(w[:6].reshape(2, 3), wires=range(3)),
    "BasisEmbedding": lambda w: qml.BasisEmbedding(np.array([1, 0, 1]), wires=range(3)),
    "CommutingEvolution": lambda w: qml.CommutingEvolution(Z(0) @ Z(1) + Z(0), w[0]),
    "IQPEmbedding": lambda w: qml.IQPEmbedding(w[:3], wires=range(3), n_repeats=2),
    "FermionicDoubleExcitation": lambda w: qml.FermionicDoubleExcitation(
        w[0], wires1=[0, 1], wires2=[2, 3]
    ),
    "FermionicSingleExcitation": lambda w: qml.FermionicSingleExcitation(w[0], wires=range(3)),
    "GateFabric": lambda w: qml.GateFabric(
        w[:2].reshape(1, 1, 2), wires=range(4), init_state=np.array([1, 1, 0, 0])
    ),
    "GroverOperator": lambda w: qml.GroverOperator(wires=range(3)),
    "kUpCCGSD": lambda w: qml.kUpCCGSD(
        w[:6].reshape(1, 6), wires=range(4), k=1, init_state=np.array([1, 1, 0, 0])
    ),
    "MottonenStatePreparation": lambda w: qml.MottonenStatePreparation(
        np.arange(1, 5) / np.sqrt(30), wires=[0, 1]
    ),
    "ParticleConservingU1": lambda w: qml.ParticleConservingU1(
        w[:6].reshape(1, 3, 2), wires=range(4)
    ),
    "ParticleConservingU2": lambda w: qml.ParticleConservingU2(w[:7].reshape(1, 7), wires=range(4)),
    "Permute": lambda w: qml.Permute([1, 0, 2], wires=range(3)),
    "QAOAEmbedding": lambda w: qml.QAOAEmbedding(w[:3], w[3:9].reshape(1, 6), wires=range(3)),
    "QFT": lambda w: qml.QFT(wires=range(3)),
    "QuantumPhaseEstimation": lambda w: qml.QuantumPhaseEstimation(
        qml.RX(w[0], wires=0), estimation_wires=[1, 2]
    ),
    "RandomLayers": lambda w: qml.RandomLayers(w[:6].reshape(2, 3), wires=range(3), seed=1),
    "SimplifiedTwoDesign": lambda w: qml.SimplifiedTwoDesign(
        w[:3], w[3:7].reshape(1, 2, 2), wires=range(3)
    ),
    "StronglyEntanglingLayers": lambda w: qml.StronglyEntanglingLayers(
        w[:12].reshape(2, 2, 3), wires=range(2)
    ),
    "TrotterProduct": lambda w: qml.TrotterProduct(HAMILTONIAN, w[0], n=2),
    "TTN": lambda w: qml.TTN(
        range(4),
        2,
        lambda v, wires: (qml.RY(v[0], wires[0]), qml.CNOT(wires)),
        1,
        w[:3].reshape(3, 1),
    ),
    "UCCSD": lambda w: qml.UCCSD(
        w[:3], range(4), [[0, 2], [1, 3]], [[[0, 1], [2, 3]]], np.array([1, 1, 0, 0])
    ),
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

MEASUREMENTS: dict[str, Callable[[], Any]] = {
    "expval of a Pauli word": lambda: qml.expval(Z(0) @ qml.X(1)),
    "expval of a sum": lambda: qml.expval(HAMILTONIAN),
    "expval of Hermitian": lambda: qml.expval(qml.Hermitian(np.diag([1.0, 2.0]), wires=0)),
    "expval of Projector": lambda: qml.expval(qml.Projector([1, 0], wires=[0, 1])),
    "expval of SparseHamiltonian": lambda: qml.expval(
        qml.SparseHamiltonian(HAMILTONIAN.sparse_matrix(), wires=[0, 1])
    ),
    "several expvals": lambda: [qml.expval(Z(0)), qml.expval(Z(1))],
    "var of a Pauli word": lambda: qml.var(Z(0) @ qml.X(1)),
    "var of a sum": lambda: qml.var(HAMILTONIAN),
    "probs of wires": lambda: qml.probs(wires=[0, 1]),
    "probs of all wires": lambda: qml.probs(wires=range(WIRES)),
    "probs of an observable": lambda: qml.probs(op=qml.X(0)),
    "state": qml.state,
    "density_matrix": lambda: qml.density_matrix(wires=[0]),
    "purity": lambda: qml.purity(wires=[0]),
    "vn_entropy": lambda: qml.vn_entropy(wires=[0]),
    "mutual_info": lambda: qml.mutual_info(wires0=[0], wires1=[1]),
    "expval from shots": lambda: qml.expval(Z(0)),
    "classical_shadow": lambda: qml.classical_shadow(wires=[0]),
    "sample": lambda: qml.sample(Z(0)),
    "counts": lambda: qml.counts(Z(0)),
}
for name in ("expval from shots", "classical_shadow", "sample", "counts"):
    MEASUREMENTS[name].shots = True  # type: ignore[attr-defined]


def classify(
    gate: Callable[[Any], Any], measurement: Callable[[], Any], device: str
) -> tuple[str, str]:
    """Return where a circuit with a gate and a measurement runs, and why it is not compiled."""
    shots = 100 if getattr(measurement, "shots", False) else None

    @qml.set_shots(shots)
    @qml.qnode(qml.device(device, wires=WIRES + 1))
    def circuit(w: Any) -> Any:
        first = getattr(gate, "first", False)
        for wire in () if first else range(WIRES):
            qml.RY(w[15 + wire], wires=wire)
        gate(w)
        return measurement()

    layer = fubini.QuantumLayer(circuit, {"w": 20})
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            layer()
    except Exception as error:  # the table says what came  # noqa: BLE001
        return REFUSED, str(error).split("\n")[0].split(". ")[0]
    said = layer.explain()
    reason = said.split(": ", 1)[1].split(". ")[0].rstrip(".") if ": " in said else ""
    if layer.engine == "device":
        return DEVICE, reason
    return (COMPILED, "") if "compiled circuit" in said else (EVERY_CALL, reason)


def preparation(gate: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a gate marked as one that must stand first."""

    def first(w: Any) -> Any:
        return gate(w)

    first.first = True  # type: ignore[attr-defined]
    return first


def cases() -> dict[str, dict[str, tuple[str, str]]]:
    """Try everything.

    Returns:
        By group and name: the class, and the reason where it is not compiled.
    """
    expval = MEASUREMENTS["expval of a sum"]
    nothing = partial(lambda w: None)
    first = {
        "AmplitudeEmbedding",
        "BasisEmbedding",
        "BasisState",
        "MottonenStatePreparation",
        "StatePrep",
    }

    def tried(group: dict[str, Callable[[Any], Any]], device: str) -> dict[str, tuple[str, str]]:
        return {
            name: classify(preparation(gate) if name.split()[0] in first else gate, expval, device)
            for name, gate in group.items()
        }

    return {
        "Gates": tried(
            dict(sorted({**plain_gates(), **SPECIAL}.items(), key=lambda x: x[0].lower())),
            "default.qubit",
        ),
        "Templates": tried(TEMPLATES, "default.qubit"),
        "Channels, on default.mixed": tried(CHANNELS, "default.mixed"),
        "Measurements": {n: classify(nothing, m, "default.qubit") for n, m in MEASUREMENTS.items()},
    }


def markdown() -> str:
    """Return the table, one section per group, what is compiled in one line."""
    lines = []
    for group, results in cases().items():
        lines += [f"## {group}", ""]
        names = [name for name, (kind, _) in results.items() if kind == COMPILED]
        lines += [
            f"{len(results)} were tried, {len(names)} are compiled:"
            if names
            else f"{len(results)} were tried."
        ]
        lines += (
            [", ".join(f"`{name}`" if " " not in name else name for name in names), ""]
            if names
            else [""]
        )
        rest = [(name, *found) for name, found in results.items() if found[0] != COMPILED]
        if rest:
            lines += ["| what | where it runs | why |", "| --- | --- | --- |"]
            lines += [
                f"| {name} | {kind} | {why.replace('|', chr(92) + '|')} |"
                for name, kind, why in rest
            ]
        lines += [""]
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown())
