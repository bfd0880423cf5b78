"""Whole models: recurrent cells, quanvolution, attention, generators, policies, equations, autoencoders."""

from typing import Any

import numpy as np
import pennylane as qml
import torch
from torch import nn

from structures import device, node, structure


def variational(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.BasicEntanglerLayers(weights, wires=range(2))
    return [qml.expval(qml.PauliZ(w)) for w in range(2)]


@structure(3, 2)
def lstm(layer: Any) -> nn.Module:
    """Four circuits, as gates of a cell, over a sequence of three."""

    class QLSTM(nn.Module):
        def __init__(self, input_size: int, hidden_size: int, n_qubits: int = 2) -> None:
            super().__init__()
            self.hidden_size, self.n_qubits = hidden_size, n_qubits
            self.clayer_in = nn.Linear(input_size + hidden_size, n_qubits)
            self.clayer_out = nn.Linear(n_qubits, hidden_size)
            self.wires = {
                k: [f"wire_{k}_{i}" for i in range(n_qubits)] for k in ("f", "i", "u", "o")
            }
            self.VQC = nn.ModuleDict(
                {k: layer(self._make(w), {"weights": (1, n_qubits)}) for k, w in self.wires.items()}
            )

        def _make(self, wires: Any) -> Any:
            def _circuit(inputs: Any, weights: Any) -> Any:
                qml.templates.AngleEmbedding(torch.sin(inputs), wires=wires)
                qml.templates.BasicEntanglerLayers(weights, wires=wires)
                return [qml.expval(qml.PauliZ(wires=w)) for w in wires]

            return qml.QNode(_circuit, device(wires), interface="torch")

        def forward(self, x: torch.Tensor) -> Any:
            h = x.new_zeros(len(x), self.hidden_size)
            c = torch.zeros_like(h)
            for t in range(x.shape[1]):
                y = self.clayer_in(torch.cat((h, x[:, t]), dim=1))
                f = torch.sigmoid(self.clayer_out(self.VQC["f"](y)))
                i = torch.sigmoid(self.clayer_out(self.VQC["i"](y)))
                g = torch.tanh(self.clayer_out(self.VQC["u"](y)))
                o = torch.sigmoid(self.clayer_out(self.VQC["o"](y)))
                c = f * c + i * g
                h = o * torch.tanh(c)
            return h

    return QLSTM(2, 2)


@structure(2, 2)
def gru(layer: Any) -> nn.Module:
    class QGRU(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inp = nn.Linear(4, 2)
            self.reset, self.update, self.new = (
                layer(qml.QNode(variational, device(2)), {"weights": (2, 2)}) for _ in range(3)
            )

        def forward(self, x: Any) -> Any:
            h = x.new_zeros(len(x), 2)
            for t in range(x.shape[1]):
                v = self.inp(torch.cat([h, x[:, t, :]], -1))
                r, z = self.reset(v).sigmoid(), self.update(v).sigmoid()
                h = (1 - z) * self.new(
                    torch.cat([r * h, x[:, t]], -1) @ self.inp.weight.T
                ).tanh() + z * h
            return h

    return QGRU()


@structure(4, 4)
def quanvolution(layer: Any) -> nn.Module:
    class Quanv(nn.Module):
        def __init__(self) -> None:
            super().__init__()

            @qml.qnode(device(4), interface="torch")
            def patch_circuit(inputs: Any, weights: Any) -> Any:
                for j in range(4):
                    qml.RY(np.pi * inputs[..., j], wires=j)
                qml.RandomLayers(weights, wires=list(range(4)), seed=1)
                return [qml.expval(qml.PauliZ(j)) for j in range(4)]

            self.q = layer(patch_circuit, {"weights": (1, 4)})
            self.fc = nn.Linear(16, 3)

        def forward(self, x: Any) -> Any:
            patches = []
            for j in range(0, 4, 2):
                for k in range(0, 4, 2):
                    data = torch.stack(
                        [x[:, j, k], x[:, j, k + 1], x[:, j + 1, k], x[:, j + 1, k + 1]], 1
                    )
                    patches.append(self.q(data))
            return self.fc(torch.cat(patches, 1))

    return Quanv()


@structure(4, 4)
def quanvolution_by_unfold(layer: Any) -> nn.Module:
    class Quanv(nn.Module):
        def __init__(self) -> None:
            super().__init__()

            def kernel(inputs: Any, weights: Any) -> Any:
                qml.AmplitudeEmbedding(inputs, wires=[0, 1], normalize=True)
                qml.BasicEntanglerLayers(weights, wires=[0, 1])
                return [qml.expval(qml.Z(i)) for i in range(2)]

            self.q = layer(node(kernel, 2), {"weights": (1, 2)})

        def forward(self, x: Any) -> Any:
            patches = nn.functional.unfold(x[:, None], 2, stride=2).transpose(1, 2)
            return self.q(patches).flatten(1)

    return Quanv()


@structure(3, 2)
def attention(layer: Any) -> nn.Module:
    class QAttention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query = layer(self.make("Z"), {"weights": (1, 2)})
            self.key = layer(self.make("Z"), {"weights": (1, 2)})
            self.value = layer(self.make("XYZ"), {"weights": (1, 2)})

        def make(self, paulis: str) -> Any:
            def circuit(inputs: Any, weights: Any) -> Any:
                for i in range(2):
                    qml.Hadamard(i)
                    qml.RZ(inputs[..., i], wires=i)
                qml.BasicEntanglerLayers(weights, wires=range(2), rotation=qml.RY)
                return [qml.expval(getattr(qml, p)(i)) for p in paulis for i in range(2)]

            return node(circuit, 2)

        def forward(self, x: Any) -> Any:
            q, k, v = self.query(x), self.key(x), self.value(x)
            scores = torch.exp(-((q[:, :, None] - k[:, None]) ** 2).sum(-1))
            return (torch.softmax(scores, -1) @ v).mean(1)

    return QAttention()


@structure(2)
def patch_generator(layer: Any) -> nn.Module:
    """A GAN's generator: several small circuits on the same noise, post-processed probabilities."""

    class Generator(nn.Module):
        def __init__(self, n_generators: int) -> None:
            super().__init__()
            n_qubits, depth = 3, 2
            noisy = [0, 1]

            def quantum_circuit(inputs: Any, weights: Any) -> Any:
                weights = weights.reshape(depth, n_qubits)
                for i in noisy:
                    qml.RY(inputs[..., i], wires=i)
                for i in range(depth):
                    for y in range(n_qubits):
                        qml.RY(weights[i][y], wires=y)
                    for y in range(n_qubits - 1):
                        qml.CZ(wires=[y, y + 1])
                return qml.probs(wires=list(range(n_qubits)))

            self.parts = nn.ModuleList(
                layer(node(quantum_circuit, 3), {"weights": depth * n_qubits})
                for _ in range(n_generators)
            )

        def forward(self, noise: Any) -> Any:
            images = []
            for part in self.parts:
                probs = part(noise)[:, :4]
                probs = probs / probs.sum(1, keepdim=True)
                images.append(probs / probs.max(1, keepdim=True).values)
            return torch.cat(images, 1)

    return Generator(2)


@structure(4, single=True)
def policy(layer: Any) -> nn.Module:
    """Reinforcement learning: one state at a time, trained scaling of inputs and outputs."""

    class Policy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n_qubits, self.n_layers, self.data_reupload = 4, 2, True
            self.w_input = nn.Parameter(torch.linspace(0.5, 1.5, 4))
            self.w_output = nn.Parameter(torch.ones(2))
            self.q_layers = layer(
                qml.QNode(self.circuit, device(4), diff_method="adjoint"),
                {"y_weights": (2, 4), "z_weights": (2, 4)},
            )

        def circuit(self, inputs: Any, y_weights: Any, z_weights: Any) -> Any:
            for layer_idx in range(self.n_layers):
                if (layer_idx == 0) or self.data_reupload:
                    for wire in range(self.n_qubits):
                        qml.RX(inputs[..., wire], wires=wire)
                for wire, (y, z) in enumerate(
                    zip(y_weights[layer_idx], z_weights[layer_idx], strict=True)
                ):
                    qml.RY(y, wires=wire)
                    qml.RZ(z, wires=wire)
                for i in range(self.n_qubits):
                    qml.CZ(wires=[i, (i + 1) % self.n_qubits])
            return [
                qml.expval(qml.PauliZ(0) @ qml.PauliZ(1)),
                qml.expval(qml.PauliZ(2) @ qml.PauliZ(3)),
            ]

        def forward(self, x: Any) -> Any:
            out = self.q_layers(torch.atan(x * self.w_input))
            return torch.softmax((1 + out) / 2 * self.w_output, dim=-1)

    return Policy()


@structure(3, single=True)
def actor_and_critic(layer: Any) -> nn.Module:
    class ActorCritic(nn.Module):
        def __init__(self) -> None:
            super().__init__()

            def actor(inputs: Any, w: Any) -> Any:
                qml.AngleEmbedding(inputs, wires=range(3))
                qml.StronglyEntanglingLayers(w, wires=range(3))
                return qml.probs(wires=[0])

            def critic(inputs: Any, w: Any) -> Any:
                qml.AngleEmbedding(inputs, wires=range(3))
                qml.StronglyEntanglingLayers(w, wires=range(3))
                return qml.expval(qml.prod(*[qml.Z(i) for i in range(3)]))

            shapes = {"w": qml.StronglyEntanglingLayers.shape(n_layers=2, n_wires=3)}
            self.actor, self.critic = layer(node(actor, 3), shapes), layer(node(critic, 3), shapes)

        def forward(self, x: Any) -> Any:
            value = self.critic(x)
            return torch.log(self.actor(x)) * value.reshape(*x.shape[:-1], 1)

    return ActorCritic()


@structure(1)
def equation(layer: Any) -> nn.Module:
    """A solver of u' = -u: the derivative of the output by the input is in the loss."""

    class Solver(nn.Module):
        def __init__(self) -> None:
            super().__init__()

            def circuit(inputs: Any, weights: Any) -> Any:
                for k in range(2):
                    for i in range(2):
                        qml.RY(2 * (k + 1) * torch.acos(inputs[..., 0] / 4), wires=i)
                        qml.Rot(*weights[k, i], wires=i)
                    qml.CNOT([0, 1])
                return qml.expval(qml.Z(0) + qml.Z(1))

            self.q = layer(node(circuit, 2), {"weights": (2, 2, 3)})

        def forward(self, t: Any) -> Any:
            if not t.requires_grad:
                t = t.clone().requires_grad_()
            u = self.q(t)
            (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
            return torch.stack([u.reshape(-1), (du[:, 0] + u.reshape(-1)) ** 2], -1)

    return Solver()


@structure(4)
def autoencoder_with_swap_test(layer: Any) -> nn.Module:
    latent, trash = 1, 1

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AmplitudeEmbedding(inputs, wires=range(latent + trash), normalize=True, pad_with=0.0)
        qml.StronglyEntanglingLayers(weights, wires=range(latent + trash))
        aux = latent + 2 * trash
        qml.Hadamard(wires=aux)
        for i in range(trash):
            qml.CSWAP(wires=[aux, latent + i, latent + trash + i])
        qml.Hadamard(wires=aux)
        return qml.probs(wires=[aux])

    return layer(node(circuit, 4), {"weights": (2, 2, 3)})  # type: ignore[no-any-return]


@structure(2)
def hypernetwork(layer: Any) -> nn.Module:
    """Angles that a small network inside the quantum function makes of a code and the data."""

    def circuit(inputs: Any, code: Any, w1: Any, w2: Any) -> Any:
        hidden = torch.tanh(w1 @ code)
        angles = (w2 @ hidden).reshape(2, 2)
        qml.AngleEmbedding(inputs, wires=range(2))
        for row in angles:
            for i in range(2):
                qml.RX(row[i], wires=i)
            qml.CNOT([0, 1])
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"code": 2, "w1": (3, 2), "w2": (4, 3)})  # type: ignore[no-any-return]


@structure(6)
def data_and_angles_in_the_inputs(layer: Any) -> nn.Module:
    """Weights that a network makes for every sample come in as features."""

    def circuit(inputs: Any, weights: Any) -> Any:
        x, angles = inputs[..., :2], inputs[..., 2:]
        qml.AngleEmbedding(x, wires=range(2))
        for i in range(2):
            qml.RY(angles[..., i], wires=i)
            qml.RZ(angles[..., 2 + i] * weights[i], wires=i)
        qml.CNOT([0, 1])
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return nn.Sequential(nn.Linear(6, 6), layer(node(circuit, 2), {"weights": 2}))


@structure(4)
def parallel_circuits(layer: Any) -> nn.Module:
    """Features split over two circuits, concatenated."""

    class Hybrid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clayer = nn.Linear(4, 4)
            self.q1 = layer(node(variational, 2), {"weights": (2, 2)})
            self.q2 = layer(node(variational, 2), {"weights": (2, 2)})

        def forward(self, x: Any) -> Any:
            a, b = torch.split(self.clayer(x), 2, dim=1)
            return torch.softmax(torch.cat([self.q1(a), self.q2(b)], dim=1), -1)

    return Hybrid()


@structure(4)
def convolutional_circuit(layer: Any) -> nn.Module:
    """Convolution and pooling by loops over pairs of wires, fewer wires in each layer."""

    def convolution(w: Any, wires: Any) -> None:
        for a, b in zip(wires[::2], wires[1::2], strict=False):
            qml.U3(*w[:3], wires=a)
            qml.U3(*w[3:6], wires=b)
            qml.IsingXX(w[6], wires=[a, b])
            qml.IsingYY(w[7], wires=[a, b])

    def pooling(w: Any, wires: Any) -> None:
        for a, b in zip(wires[0::2], wires[1::2], strict=True):
            qml.CRZ(w[8], wires=[a, b])
            qml.PauliX(wires=a)
            qml.CRX(w[9], wires=[a, b])

    def circuit(inputs: Any, weights: Any) -> Any:
        wires = list(range(4))
        qml.AngleEmbedding(inputs, wires=wires, rotation="Y")
        for w in weights:
            convolution(w, wires)
            pooling(w, wires)
            wires = wires[1::2]
        return qml.probs(wires=wires)

    return layer(node(circuit, 4), {"weights": (2, 10)})  # type: ignore[no-any-return]


@structure(3)
def kernel_by_overlap(layer: Any) -> nn.Module:
    """|<phi(x)|phi(w)>|^2 against trained prototypes."""

    def feature_map(x: Any) -> None:
        for i in range(3):
            qml.Hadamard(i)
            qml.RZ(x[..., i], wires=i)
        for i in range(2):
            qml.IsingZZ(x[..., i] * x[..., i + 1], wires=[i, i + 1])

    def circuit(inputs: Any, prototype: Any) -> Any:
        feature_map(inputs)
        qml.adjoint(feature_map)(prototype)
        return qml.expval(qml.Projector([0, 0, 0], wires=range(3)))

    return layer(node(circuit, 3), {"prototype": 3})  # type: ignore[no-any-return]
