"""Encodings of data, ansätze and measurements."""

from itertools import combinations
from typing import Any

import numpy as np
import pennylane as qml
import torch
from torch import nn

from structures import node, structure


@structure(2, single=True)
def reuploading_with_scaling(layer: Any) -> nn.Module:
    def circuit(inputs: Any, w: Any, b: Any) -> Any:
        for k in range(w.shape[0]):
            for i in range(2):
                qml.RY(w[k, i] * inputs[..., i] + b[k, i], wires=i)
            qml.CZ(wires=[0, 1])
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"w": (3, 2), "b": (3, 2)})  # type: ignore[no-any-return]


@structure(3)
def reuploading_of_whole_vectors(layer: Any) -> nn.Module:
    """One qubit: Rot(theta + w * x), the universal classifier."""

    def circuit(inputs: Any, theta: Any, w: Any) -> Any:
        for t, s in zip(theta, w, strict=True):
            angles = t + s * inputs
            qml.Rot(angles[..., 0], angles[..., 1], angles[..., 2], wires=0)
        return qml.expval(qml.Hermitian([[1, 0], [0, 0]], wires=0))

    return layer(node(circuit, 1), {"theta": (2, 3), "w": (2, 3)})  # type: ignore[no-any-return]


@structure(3)
def arctan_encoding(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        ry = torch.arctan(inputs)
        rz = torch.arctan(inputs**2)
        for i in range(3):
            qml.Hadamard(wires=i)
            qml.RY(ry[..., i], wires=i)
            qml.RZ(rz[..., i], wires=i)
        for row in weights:
            for i in range(3):
                qml.CNOT(wires=[i, (i + 1) % 3])
            for i, (a, b, c) in enumerate(row):
                qml.Rot(a, b, c, wires=i)
        return [qml.expval(qml.PauliZ(i)) for i in range(3)]

    return layer(node(circuit, 3), {"weights": (1, 3, 3)})  # type: ignore[no-any-return]


@structure(2, positive=True)
def arcsin_encoding(layer: Any) -> nn.Module:
    """Circuit learning: RY(asin x), RZ(acos x^2)."""

    def circuit(inputs: Any, weights: Any) -> Any:
        for i in range(2):
            qml.RY(torch.asin(inputs[..., i]), wires=i)
            qml.RZ(torch.acos(inputs[..., i] ** 2), wires=i)
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return qml.expval(2.0 * qml.Z(0))

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(3)
def iqp_embedding(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.IQPEmbedding(inputs, wires=range(3), n_repeats=2)
        qml.BasicEntanglerLayers(weights, wires=range(3))
        return [qml.expval(qml.Z(i)) for i in range(3)]

    return layer(node(circuit, 3), {"weights": (1, 3)})  # type: ignore[no-any-return]


@structure(3)
def zz_feature_map(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        for _ in range(2):
            for i in range(3):
                qml.Hadamard(i)
                qml.PhaseShift(2.0 * inputs[..., i], wires=i)
            for i, j in combinations(range(3), 2):
                qml.CNOT([i, j])
                qml.PhaseShift(2.0 * (np.pi - inputs[..., i]) * (np.pi - inputs[..., j]), wires=j)
                qml.CNOT([i, j])
        qml.BasicEntanglerLayers(weights, wires=range(3), rotation=qml.RY)
        return qml.probs(wires=range(3))

    return layer(node(circuit, 3), {"weights": (2, 3)})  # type: ignore[no-any-return]


@structure(3)
def amplitudes_behind_linear(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AmplitudeEmbedding(features=inputs, wires=range(2), normalize=True)
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return nn.Sequential(nn.Linear(3, 4), layer(node(circuit, 2), {"weights": (2, 2, 3)}))


@structure(5)
def amplitudes_padded(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AmplitudeEmbedding(inputs, wires=range(3), pad_with=0.3, normalize=True)
        qml.StronglyEntanglingLayers(weights, wires=range(3))
        return qml.expval(qml.Z(0))

    return layer(node(circuit, 3), {"weights": (1, 3, 3)})  # type: ignore[no-any-return]


@structure(4)
def rotations_from_a_list(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        for rotation in ["X", "Y", "Z"]:
            qml.AngleEmbedding(inputs[..., :2], wires=range(2), rotation=rotation)
            qml.AngleEmbedding(inputs[..., 2:], wires=range(2), rotation=rotation)
        qml.StronglyEntanglingLayers(weights, wires=range(2), ranges=[1], imprimitive=qml.CZ)
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(2)
def basis_embedding(layer: Any) -> nn.Module:
    """Basis states by PennyLane's embedding, as a number or as bits, begin the circuit."""

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.BasisEmbedding(1, wires=range(2))
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(2)
def state_of_bits(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.BasisEmbedding(features=[1, 0, 1], wires=["a", "b", "c"])
        for x, wire in zip(inputs.unbind(-1), "ab", strict=True):
            qml.RX(torch.acos(torch.clamp(x, -1 + 1e-6, 1 - 1e-6)), wires=wire)
        qml.RZ(weights[0], wires="c")
        qml.CRY(weights[1], wires=["c", "a"])
        return qml.expval(qml.Z("a") @ qml.Z("c")), qml.var(qml.X("b"))

    return layer(node(circuit, list("abc")), {"weights": 2})  # type: ignore[no-any-return]


@structure(4)
def written_in_place(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        x = torch.zeros_like(inputs)
        for i in range(4):
            x[..., i] = inputs[..., 3 - i] * (i + 1)
        qml.MottonenStatePreparation(np.array([0.5, 0.5, 0.5, 0.5]), wires=range(2))
        qml.AngleEmbedding(x[..., ::2], wires=range(2))
        qml.AngleEmbedding(x[..., 1::2], wires=range(2), rotation="Z")
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return [qml.probs(wires=i) for i in range(2)]

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(3)
def random_layers(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(3))
        qml.RandomLayers(weights, wires=range(3), seed=42)
        return [qml.expval(qml.Z(i)) for i in range(3)]

    return layer(node(circuit, 3), {"weights": (2, 4)})  # type: ignore[no-any-return]


@structure(3)
def two_design(layer: Any) -> nn.Module:
    def circuit(inputs: Any, initial: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(3))
        qml.SimplifiedTwoDesign(initial, weights, wires=range(3))
        return [qml.expval(qml.Z(i)) for i in range(3)]

    return layer(node(circuit, 3), {"initial": 3, "weights": (2, 2, 2)})  # type: ignore[no-any-return]


@structure(3)
def qaoa_embedding(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.QAOAEmbedding(features=inputs, weights=weights, wires=range(3))
        return [qml.expval(qml.Z(i)) for i in range(3)]

    return layer(node(circuit, 3), {"weights": qml.QAOAEmbedding.shape(2, 3)})  # type: ignore[no-any-return]


@structure(4)
def ansatz_loops(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        for i, x in enumerate(inputs.T):
            qml.RY(torch.pi * x, wires=i)
        k = 0
        for step in (1, 2):
            for i in range(0, 4 - step, step):
                qml.CNOT(wires=[i, i + step])
            for i in reversed(range(4)):
                qml.U3(weights[k], weights[k + 1], 0.1 * weights[k + 2], wires=i)
                k += 3
        return [qml.expval(qml.Z(i)) for i in range(0, 4, 2)]

    return layer(node(circuit, 4), {"weights": 24})  # type: ignore[no-any-return]


@structure(2)
def observables_of_all_kinds(layer: Any) -> nn.Module:
    matrix = np.array([[1.0, 0.5 - 0.5j], [0.5 + 0.5j, -1.0]])
    hamiltonian = qml.Hamiltonian([0.5, -1.2], [qml.X(0) @ qml.Z(1), qml.Y(1)])

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return (
            qml.expval(qml.Hermitian(matrix, wires=0)),
            qml.expval(qml.Projector([0, 1], wires=[0, 1])),
            qml.expval(hamiltonian),
            qml.expval(0.3 * qml.Z(0) + 0.2 * (qml.X(0) @ qml.X(1))),
            qml.expval(qml.sum(*(c * qml.Z(i) for i, c in enumerate([0.1, 0.9])))),
        )

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(2)
def variances(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return [qml.var(qml.Z(0)), qml.var(qml.X(0) @ qml.Y(1))]

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(2, single=True)
def probabilities_of_some_wires(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(3)[:2])
        qml.StronglyEntanglingLayers(weights, wires=range(3))
        return qml.probs(wires=[2, 0])

    return layer(node(circuit, 3), {"weights": (1, 3, 3)})  # type: ignore[no-any-return]


@structure(2)
def encoding_by_torch(layer: Any) -> nn.Module:
    low, high = torch.tensor([-2.0, -2.0]), torch.tensor([2.0, 2.5])

    def circuit(inputs: Any, weights: Any) -> Any:
        scaled = (inputs - low) / (high - low) * np.pi
        for i in range(2):
            qml.RX(torch.sigmoid(inputs[..., i]) * 2 * np.pi, wires=i)
            qml.RY(torch.tanh(inputs[..., i]) * np.pi, wires=i)
            qml.RZ(scaled[..., i], wires=i)
        both = torch.stack(
            [inputs[..., 0] * inputs[..., 1], inputs.sum(-1), inputs.mean(dim=-1)], dim=-1
        )
        for i in range(3):
            qml.RY(both[..., i], wires=i % 2)
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(2)
def activations(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.RX(nn.functional.leaky_relu(inputs[..., 0], 0.1), wires=0)
        qml.RX(nn.functional.relu(inputs[..., 1]), wires=1)
        qml.RY(nn.functional.elu(inputs[..., 0]), wires=0)
        qml.RY(nn.functional.gelu(inputs[..., 1]), wires=1)
        qml.RZ(nn.functional.softplus(inputs[..., 0]), wires=0)
        qml.RZ(nn.functional.silu(inputs[..., 1]), wires=1)
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(2)
def clamped(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        x = torch.clamp(inputs, -0.8, 0.8)
        for i in range(2):
            qml.RY(torch.arcsin(x[..., i]), wires=i)
            qml.RZ(torch.arccos(inputs[..., i].clip(min=-0.5, max=0.5)), wires=i)
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(2)
def constant_masks(layer: Any) -> nn.Module:
    mask = torch.tensor([[True, False], [False, True]])

    def circuit(inputs: Any, weights: Any) -> Any:
        w = torch.where(mask, weights, torch.zeros_like(weights))
        v = weights.masked_fill(mask, 0.3)
        for k in range(2):
            for i in range(2):
                qml.RY(inputs[..., i], wires=i)
                qml.RX(w[k, i], wires=i)
                qml.RZ(v[k, i], wires=i)
            qml.CNOT([0, 1])
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": (2, 2)})  # type: ignore[no-any-return]


@structure(2)
def reshaped_and_chunked(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        w = weights.reshape(2, 2, 3)
        first, second = torch.chunk(weights, 2)
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.StronglyEntanglingLayers(w, wires=range(2))
        qml.RX(first[0] + second[-1], wires=0)
        for angle, wire in zip(second.view(3, 2).flatten()[::2], [0, 1, 0], strict=True):
            qml.RY(angle, wires=wire)
        qml.RZ(weights[torch.tensor([1, 3])].sum(), wires=1)
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": 12})  # type: ignore[no-any-return]


@structure(2)
def shared_weights(layer: Any) -> nn.Module:
    def block(w: Any) -> None:
        qml.RX(w[0], wires=0)
        qml.RX(w[0], wires=1)
        qml.IsingZZ(w[1], wires=[0, 1])

    def circuit(inputs: Any, weights: Any) -> Any:
        for _ in range(2):
            qml.AngleEmbedding(inputs, wires=range(2), rotation="Z")
            block(weights)
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": 2})  # type: ignore[no-any-return]


@structure(2)
def loops_and_conditions_of_pennylane(layer: Any) -> nn.Module:
    entangle = True

    def circuit(inputs: Any, weights: Any) -> Any:
        @qml.for_loop(0, 2, 1)
        def encode(i: Any) -> None:
            qml.RY(inputs[..., i], wires=i)

        @qml.for_loop(2)
        def rotate(i: Any, w: Any) -> Any:
            qml.RX(w[i], wires=i)
            return w

        encode()
        rotate(weights)
        qml.cond(entangle, qml.CNOT)(wires=[0, 1])
        qml.cond(len(weights) > 5, lambda: qml.Hadamard(0), lambda: qml.S(0))()
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": 2})  # type: ignore[no-any-return]


@structure(2)
def adjoint_and_controlled(layer: Any) -> nn.Module:
    def feature_map(x: Any) -> None:
        qml.AngleEmbedding(x, wires=range(2))
        qml.CNOT([0, 1])

    def circuit(inputs: Any, weights: Any) -> Any:
        feature_map(inputs)
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        qml.adjoint(feature_map)(inputs)
        qml.ctrl(qml.RX, control=0)(weights[0, 0, 0], wires=2)
        qml.adjoint(qml.RY(weights[0, 1, 1], wires=1))
        qml.ctrl(qml.RZ(weights[0, 1, 2], wires=2), control=[0, 1], control_values=[0, 1])
        return qml.expval(qml.Z(0) @ qml.X(2))

    return layer(node(circuit, 3), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(2)
def within_conjugation(layer: Any) -> nn.Module:
    """qml.exp of generators, PauliRot of words, a layer by qml.layer and qml.broadcast-like loops."""

    def ansatz(w: Any, x: Any) -> None:
        for i in range(2):
            qml.RY(x[..., i], wires=i)
        for word, angle in zip(("XX", "YZ"), w, strict=True):
            qml.PauliRot(angle, word, wires=[0, 1])

    def circuit(inputs: Any, weights: Any) -> Any:
        for w in weights:
            ansatz(w, inputs)
        qml.Barrier(wires=range(2))
        qml.evolve(qml.X(0) @ qml.Z(1), weights[0, 0])
        return qml.expval(qml.Z(0)), qml.expval(qml.Z(1))

    return layer(node(circuit, 2), {"weights": (2, 2)})  # type: ignore[no-any-return]


@structure(2)
def measured_qubit_is_traced_out(layer: Any) -> nn.Module:
    """Templates with entangling blocks: a tree tensor network."""

    def block(weights: Any, wires: Any) -> None:
        qml.RY(weights[0], wires=wires[0])
        qml.RY(weights[1], wires=wires[1])
        qml.CNOT(wires=wires)

    def circuit(inputs: Any, template_weights: Any) -> Any:
        qml.AngleEmbedding(inputs.repeat(*[1] * (inputs.ndim - 1), 2), wires=range(4))
        qml.TTN(range(4), 2, block, 2, template_weights)
        return qml.expval(qml.Z(3))

    return layer(node(circuit, 4), {"template_weights": (3, 2)})  # type: ignore[no-any-return]


@structure(3)
def weights_of_several_kinds(layer: Any) -> nn.Module:
    def circuit(inputs: Any, entangling: Any, rotations: Any, bias: Any) -> Any:
        for i in range(3):
            qml.RX(inputs[..., i] + bias, wires=i)
        qml.StronglyEntanglingLayers(entangling, wires=range(3))
        for angles, wire in zip(rotations, range(3), strict=True):
            qml.U3(*angles, wires=wire)
        return [qml.expval(qml.PauliZ(i)) for i in range(3)]

    shapes = {"entangling": (1, 3, 3), "rotations": (3, 3), "bias": ()}
    return layer(node(circuit, 3), shapes)  # type: ignore[no-any-return]


@structure(2)
def feature_crosses_by_einsum(layer: Any) -> nn.Module:
    mixing = torch.tensor([[0.5, -0.3], [0.8, 0.1], [0.2, 0.7]])

    def circuit(inputs: Any, weights: Any) -> Any:
        x = inputs @ mixing.T.to(inputs)
        y = torch.einsum("...i,ij->...j", inputs, weights[:2])
        z = nn.functional.linear(inputs, weights[1:], weights[0])
        for i in range(2):
            qml.RY(x[..., i] + x[..., 2], wires=i)
            qml.RZ(y[..., i], wires=i)
            qml.RX(z[..., i], wires=i)
        qml.CNOT([0, 1])
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": (3, 2)})  # type: ignore[no-any-return]
