"""The templates of PennyLane that the table of what runs where tries, each with trainable angles where it takes any."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml

HAMILTONIAN = 0.5 * (qml.Z(0) @ qml.Z(1)) + 0.3 * qml.X(0)
ORTHOGONAL = np.array([[0.8, -0.6], [0.6, 0.8]])

TEMPLATES: dict[str, Callable[[Any], Any]] = {
    "AmplitudeEmbedding": lambda w: qml.AmplitudeEmbedding(w[:4], wires=[0, 1], normalize=True),
    "AngleEmbedding": lambda w: qml.AngleEmbedding(w[:3], wires=range(3)),
    "ApproxTimeEvolution": lambda w: qml.ApproxTimeEvolution(HAMILTONIAN, w[0], 2),
    "ArbitraryStatePreparation": lambda w: qml.ArbitraryStatePreparation(w[:6], wires=range(2)),
    "ArbitraryUnitary": lambda w: qml.ArbitraryUnitary(w[:15], wires=range(2)),
    "BasicEntanglerLayers": lambda w: qml.BasicEntanglerLayers(w[:6].reshape(2, 3), wires=range(3)),
    "BasisEmbedding": lambda w: qml.BasisEmbedding(np.array([1, 0, 1]), wires=range(3)),
    "CommutingEvolution": lambda w: qml.CommutingEvolution(qml.Z(0) @ qml.Z(1) + qml.Z(0), w[0]),
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
    "AllSinglesDoubles": lambda w: qml.AllSinglesDoubles(
        w[:3], range(4), np.array([1, 1, 0, 0]), [[0, 2], [1, 3]], [[0, 1, 2, 3]]
    ),
    "AmplitudeAmplification": lambda w: qml.AmplitudeAmplification(
        qml.RY(w[0], wires=0), qml.FlipSign(1, wires=0), iters=2
    ),
    "AQFT": lambda w: qml.AQFT(order=1, wires=range(3)),
    "Adder": lambda w: qml.Adder(3, x_wires=range(3)),
    "BasisRotation": lambda w: qml.BasisRotation(wires=range(2), unitary_matrix=ORTHOGONAL),
    "BBQRAM": lambda w: qml.BBQRAM(["0", "1"], 0, 1, work_wires=[2, 3, 4, 5]),
    "ControlledSequence": lambda w: qml.ControlledSequence(qml.RX(w[0], wires=3), control=[0, 1]),
    "CosineWindow": lambda w: qml.CosineWindow(wires=range(3)),
    "Elbow": lambda w: qml.Elbow(wires=range(3)),
    "FABLE": lambda w: qml.FABLE(np.array([[0.1, 0.2], [0.3, -0.2]]), wires=range(3)),
    "FlipSign": lambda w: qml.FlipSign(5, wires=range(3)),
    "GQSP": lambda w: qml.GQSP(qml.RX(0.3, wires=1), w[:9].reshape(3, 3), control=0),
    "HilbertSchmidt": lambda w: qml.HilbertSchmidt(qml.RZ(w[0], wires=1), qml.Hadamard(0)),
    "HybridQRAM": lambda w: qml.HybridQRAM(["0", "1"], [0], [1], work_wires=[2, 3, 4, 5, 6], k=0),
    "IQP": lambda w: qml.IQP(w[:2], num_wires=3, pattern=[[[0]], [[1, 2]]]),
    "LocalHilbertSchmidt": lambda w: qml.LocalHilbertSchmidt(
        qml.RZ(w[0], wires=1), qml.Hadamard(0)
    ),
    "MERA": lambda w: qml.MERA(
        range(4),
        2,
        lambda v, wires: (qml.RY(v[0], wires[0]), qml.CNOT(wires)),
        1,
        w[:5].reshape(5, 1),
    ),
    "ModExp": lambda w: qml.ModExp([0], [1, 2], base=3, work_wires=[3, 4]),
    "MPS": lambda w: qml.MPS(
        range(4),
        2,
        lambda weights, wires: (qml.RY(weights[0], wires[0]), qml.CNOT(wires)),
        1,
        w[:3].reshape(3, 1),
    ),
    "MPSPrep": lambda w: qml.MPSPrep(
        [np.eye(2), np.eye(2) / np.sqrt(2)], wires=[0, 1], work_wires=[2]
    ),
    "MultiplexerStatePreparation": lambda w: qml.MultiplexerStatePreparation(
        np.arange(1, 5) / np.sqrt(30), wires=[0, 1]
    ),
    "Multiplier": lambda w: qml.Multiplier(3, x_wires=[0, 1], work_wires=[2, 3]),
    "OutAdder": lambda w: qml.OutAdder([0], [1], [2, 3]),
    "OutMultiplier": lambda w: qml.OutMultiplier([0], [1], [2, 3]),
    "OutPoly": lambda w: qml.OutPoly(lambda x, y: x + y, [[0], [1]], [2, 3]),
    "PhaseAdder": lambda w: qml.PhaseAdder(3, x_wires=range(3)),
    "PrepSelPrep": lambda w: qml.PrepSelPrep(HAMILTONIAN, control=[2]),
    "QDrift": lambda w: qml.QDrift(HAMILTONIAN, time=0.3, n=3, seed=1),
    "QROM": lambda w: qml.QROM(["0", "1"], [0], [1], [2]),
    "QROMStatePreparation": lambda w: qml.QROMStatePreparation(
        np.ones(2) / np.sqrt(2), wires=[0], precision_wires=[1, 2], work_wires=[3]
    ),
    "QSVT": lambda w: qml.QSVT(
        qml.BlockEncode(np.array([[0.1, 0.2], [0.3, 0.4]]), wires=[0, 1]),
        [qml.PCPhase(w[k], dim=2, wires=[0, 1]) for k in range(3)],
    ),
    "QuantumMonteCarlo": lambda w: qml.QuantumMonteCarlo(
        np.array([0.5, 0.5]), lambda i: i / 2, target_wires=[0, 1], estimation_wires=[2, 3]
    ),
    "Qubitization": lambda w: qml.Qubitization(HAMILTONIAN, control=[2]),
    "Reflection": lambda w: qml.Reflection(qml.Hadamard(0), w[0]),
    "Select": lambda w: qml.Select([qml.RX(w[0], wires=2), qml.Y(2)], control=[0]),
    "SelectOnlyQRAM": lambda w: qml.SelectOnlyQRAM(["0", "1"], [0], [1]),
    "SelectPauliRot": lambda w: qml.SelectPauliRot(w[:4], [0, 1], 2),
    "SemiAdder": lambda w: qml.SemiAdder([0, 1], [2, 3], [4]),
    "SumOfSlatersPrep": lambda w: qml.SumOfSlatersPrep(
        np.array([0.6, 0.8]), wires=range(3), indices=[1, 6]
    ),
    "Superposition": lambda w: qml.Superposition(
        np.array([0.6, 0.8]), [[0, 1], [1, 0]], wires=[0, 1], work_wire=2
    ),
    "TemporaryAND": lambda w: qml.TemporaryAND(wires=range(3)),
    "trotterize": lambda w: qml.trotterize(
        lambda time, v, wires: qml.RX(time * v, wires=wires), n=2
    )(0.3, w[0], wires=0),
    "TwoLocalSwapNetwork": lambda w: qml.TwoLocalSwapNetwork(
        range(3),
        lambda index, wires, param=None: qml.IsingXX(param, wires=index),
        w[:3],
        fermionic=False,
    ),
}

#: Those that prepare a state, and so stand first.
FIRST = {
    "AmplitudeEmbedding",
    "BasisEmbedding",
    "BasisState",
    "CosineWindow",
    "MottonenStatePreparation",
    "MPSPrep",
    "MultiplexerStatePreparation",
    "QROMStatePreparation",
    "StatePrep",
    "SumOfSlatersPrep",
    "Superposition",
}
