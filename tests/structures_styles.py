"""Where quantum functions are written, and how they get at what they need."""

import argparse
import enum
import functools
import logging
import math
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pennylane as qml
import torch
from torch import nn

from structures import device, node, structure

N_QUBITS = 3
N_LAYERS = 2
DEV = device(N_QUBITS)
SCALE = np.pi / 2
logger = logging.getLogger(__name__)


@structure(5)
def dressed_circuit(layer: Any) -> nn.Module:
    """Transfer learning: features of a frozen network, a bottleneck of tanh, the circuit, a classifier."""

    class DressedNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n_qubits, self.q_depth = 3, 2
            self.pre_net = nn.Linear(5, self.n_qubits)
            self.post_net = nn.Linear(self.n_qubits, 2)

            @qml.qnode(device(self.n_qubits), interface="torch")
            def q_net(inputs: Any, q_params: Any) -> Any:
                for idx in range(self.n_qubits):
                    qml.Hadamard(wires=idx)
                for idx in range(self.n_qubits):
                    qml.RY(inputs[..., idx], wires=idx)
                for k in range(self.q_depth):
                    for i in range(0, self.n_qubits - 1, 2):
                        qml.CNOT(wires=[i, i + 1])
                    for i in range(1, self.n_qubits - 1, 2):
                        qml.CNOT(wires=[i, i + 1])
                    for idx in range(self.n_qubits):
                        qml.RY(q_params[k, idx], wires=idx)
                return [qml.expval(qml.PauliZ(position)) for position in range(self.n_qubits)]

            self.quantum = layer(q_net, {"q_params": (self.q_depth, self.n_qubits)})

        def forward(self, x: torch.Tensor) -> Any:
            q_in = torch.tanh(self.pre_net(x)) * np.pi / 2.0
            return self.post_net(self.quantum(q_in))

    return DressedNet()


@structure(3, single=True)
def method_as_function(layer: Any) -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wires = list(range(3))
            self.layer = layer(qml.QNode(self.circuit, device(3)), {"weights": (2, 3, 3)})

        def circuit(self, inputs: Any, weights: Any) -> Any:
            self.encode(inputs)
            qml.StronglyEntanglingLayers(weights, wires=self.wires)
            return self.measure()

        def encode(self, inputs: Any) -> None:
            qml.AngleEmbedding(inputs, wires=self.wires, rotation="Y")

        def measure(self) -> Any:
            return [qml.expval(qml.PauliZ(w)) for w in self.wires]

        def forward(self, x: Any) -> Any:
            return self.layer(x)

    return Net()


@qml.qnode(DEV, interface="torch", diff_method="backprop")
def module_level_circuit(inputs: Any, weights: Any) -> Any:
    qml.AngleEmbedding(inputs * SCALE, wires=range(N_QUBITS))
    for layer_number in range(N_LAYERS):
        for i in range(N_QUBITS):
            qml.Rot(*weights[layer_number, i], wires=i)
        for i in range(N_QUBITS):
            qml.CNOT(wires=[i, (i + 1) % N_QUBITS])
    return [qml.expval(qml.PauliZ(i)) for i in range(N_QUBITS)]


@structure(3, single=True)
def at_module_level(layer: Any) -> nn.Module:
    return nn.Sequential(layer(module_level_circuit, {"weights": (N_LAYERS, N_QUBITS, 3)}))


def build_circuit(n_wires: int, ansatz: str = "strong", observable: Any = qml.PauliZ) -> Any:
    """A factory, as in libraries of models."""
    layers = {"strong": qml.StronglyEntanglingLayers, "basic": qml.BasicEntanglerLayers}

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.templates.AngleEmbedding(inputs, wires=range(n_wires))
        layers[ansatz](weights, wires=range(n_wires))
        return [qml.expval(observable(w)) for w in range(n_wires)]

    return node(circuit, n_wires)


@structure(4)
def factory(layer: Any) -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 2),
        layer(build_circuit(2), {"weights": (1, 2, 3)}),
        nn.Linear(2, 2),
        layer(build_circuit(2, "basic", qml.PauliX), {"weights": (2, 2)}),
    )


@structure(3)
def argparse_namespace(layer: Any) -> nn.Module:
    parser = argparse.ArgumentParser()
    parser.add_argument("--n-qubits", type=int, default=3)
    parser.add_argument("--rotation", default="Y")
    args = parser.parse_args([])

    @qml.qnode(device(args.n_qubits))
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(args.n_qubits), rotation=args.rotation)
        qml.BasicEntanglerLayers(weights, wires=range(args.n_qubits), rotation=qml.RZ)
        return [qml.expval(qml.PauliX(i)) for i in range(args.n_qubits)]

    return layer(circuit, {"weights": (2, args.n_qubits)})  # type: ignore[no-any-return]


class Entangler(enum.Enum):
    RING = "ring"
    CHAIN = "chain"


@dataclass
class Config:
    n_qubits: int = 3
    n_layers: int = 2
    entangler: Entangler = Entangler.RING
    measured: list[int] = field(default_factory=lambda: [0, 2])

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.n_layers, self.n_qubits, 2


@structure(3)
def dataclass_with_enum(layer: Any) -> nn.Module:
    class Net(nn.Module):
        def __init__(self, config: Config) -> None:
            super().__init__()
            self.config = config
            self.q = layer(qml.QNode(self._circuit, device(config.n_qubits)), {"w": config.shape})

        def _circuit(self, inputs: Any, w: Any) -> Any:
            cfg = self.config
            for depth in range(cfg.n_layers):
                for i in range(cfg.n_qubits):
                    qml.RX(inputs[..., i], wires=i)
                    qml.RY(w[depth, i, 0], wires=i)
                    qml.RZ(w[depth, i, 1], wires=i)
                last = cfg.n_qubits if cfg.entangler is Entangler.RING else cfg.n_qubits - 1
                for i in range(last):
                    qml.CZ(wires=[i, (i + 1) % cfg.n_qubits])
            return [qml.expval(qml.PauliZ(i)) for i in cfg.measured]

        def forward(self, x: Any) -> Any:
            return self.q(x)

    return Net(Config())


@structure(2)
def dictionary(layer: Any) -> nn.Module:
    config = {"circuit": {"n_qubits": 2, "gates": ["RX", "RZ"]}, "readout": "YZ"}

    def circuit(inputs: Any, weights: Any) -> Any:
        n = config["circuit"]["n_qubits"]  # type: ignore[index]
        qml.AngleEmbedding(inputs, wires=range(n))
        for k, name in enumerate(config["circuit"].get("gates", [])):  # type: ignore[attr-defined]
            for i in range(n):
                getattr(qml, name)(weights[k][i], wires=i)
        qml.CNOT([0, 1])
        return [qml.expval(getattr(qml, f"Pauli{p}")(i)) for i, p in enumerate(config["readout"])]

    return layer(node(circuit, 2), {"weights": (2, 2)})  # type: ignore[no-any-return]


@structure(2)
def namespaces(layer: Any) -> nn.Module:
    cfg = SimpleNamespace(model=SimpleNamespace(qubits=2, depth=3), data=SimpleNamespace(scale=0.5))

    def circuit(inputs: Any, theta: Any) -> Any:
        for d in range(cfg.model.depth):
            for q in range(cfg.model.qubits):
                qml.RY(cfg.data.scale * inputs[..., q], wires=q)
                qml.RZ(theta[d, q], wires=q)
            qml.CNOT(wires=[0, 1])
        return qml.expval(qml.PauliZ(0) @ qml.PauliZ(1))

    return layer(node(circuit, 2), {"theta": (3, 2)})  # type: ignore[no-any-return]


class AttributeDict(dict[str, Any]):
    """The class that many projects have somewhere for their configuration."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


@structure(2)
def attribute_dictionary(layer: Any) -> nn.Module:
    cfg = AttributeDict(n_qubits=2, n_layers=2, embedding=AttributeDict(rotation="Z"))

    def circuit(inputs: Any, weights: Any) -> Any:
        for i in range(cfg.n_qubits):
            qml.Hadamard(i)
        qml.AngleEmbedding(inputs, range(cfg.n_qubits), rotation=cfg.embedding.rotation)
        qml.StronglyEntanglingLayers(weights, range(cfg.n_qubits))
        return [qml.expval(qml.PauliZ(i)) for i in range(cfg.n_qubits)]

    return layer(node(circuit, 2), {"weights": (cfg.n_layers, 2, 3)})  # type: ignore[no-any-return]


@structure(2)
def lambdas(layer: Any) -> nn.Module:
    rotate = lambda x, w: qml.RY(x, wires=w)
    block = lambda p: [qml.RX(p[i], wires=i) for i in range(2)]

    def circuit(inputs: Any, weights: Any) -> Any:
        rotate(inputs[..., 0], 0)
        rotate(inputs[..., 1], 1)
        list(map(block, weights))
        qml.CNOT([0, 1])
        return qml.expval(qml.PauliZ(1))

    return layer(node(circuit, 2), {"weights": (2, 2)})  # type: ignore[no-any-return]


@structure(2, single=True)
def partial_function(layer: Any) -> nn.Module:
    def circuit(n_layers: int, gate: Any, inputs: Any, weights: Any) -> Any:
        for k in range(n_layers):
            for i in range(2):
                gate(inputs[..., i], wires=i)
                qml.RZ(weights[k, i], wires=i)
            qml.CNOT([0, 1])
        return [qml.expval(qml.X(i)) for i in range(2)]

    made = functools.partial(circuit, 2, qml.RY)
    made.__name__ = "circuit"  # type: ignore[attr-defined]
    return layer(node(made, 2), {"weights": (2, 2)})  # type: ignore[no-any-return]


class Ansatz:
    """A circuit as an object that can be called."""

    shapes: ClassVar[dict[str, tuple[int, ...]]] = {"weights": (2, 3)}

    def __init__(self, wires: Any, observables: Any) -> None:
        self.wires = tuple(wires)
        self.observables = observables

    def __call__(self, inputs: Any, weights: Any) -> Any:
        for row in weights:
            for wire, angle in zip(self.wires, row, strict=True):
                qml.RY(inputs[..., wire], wires=wire)
                qml.RX(angle, wires=wire)
            self.entangle(self.wires)
        return tuple(qml.expval(o) for o in self.observables)

    @staticmethod
    def entangle(wires: Any) -> None:
        for a, b in zip(wires[:-1], wires[1:], strict=True):  # noqa: RUF007 - as users write
            qml.CNOT(wires=[a, b])


@structure(3)
def callable_object(layer: Any) -> nn.Module:
    ansatz = Ansatz(range(3), [qml.PauliZ(0), qml.PauliX(1) @ qml.PauliX(2)])
    ansatz.__name__ = "ansatz"  # type: ignore[attr-defined]
    return layer(node(ansatz, 3), Ansatz.shapes)  # type: ignore[no-any-return]


@structure(2)
def static_and_class_methods(layer: Any) -> nn.Module:
    class Quantum(nn.Module):
        N: ClassVar[int] = 2

        def __init__(self) -> None:
            super().__init__()
            self.q = layer(qml.QNode(Quantum.circuit, device(2)), {"weights": (1, 2, 3)})

        @staticmethod
        def circuit(inputs: Any, weights: Any) -> Any:
            qml.AngleEmbedding(inputs, wires=range(Quantum.N))
            qml.StronglyEntanglingLayers(weights, wires=range(Quantum.N))
            return Quantum.readout()

        @classmethod
        def readout(cls) -> Any:
            return [qml.expval(qml.PauliZ(wires=i)) for i in range(cls.N)]

        def forward(self, x: Any) -> Any:
            return self.q(x)

    return Quantum()


@structure(2)
def logged_and_asserted(layer: Any) -> nn.Module:
    verbose = False

    def circuit(inputs: Any, weights: Any) -> Any:
        """Docstring."""
        assert inputs.shape[-1] == 2, f"expected 2 features, got {inputs.shape[-1]}"
        assert weights.ndim == 2
        if verbose:
            print("called")
        depth = weights.shape[0]
        for d in range(depth):
            qml.RY(inputs[..., 0], wires=0)
            qml.RY(inputs[..., 1], wires=1)
            for i in range(weights.size(1)):
                qml.RX(weights[d][i], wires=i)
            qml.CNOT(wires=[0, 1])
        return qml.expval(qml.PauliZ(0))

    return layer(node(circuit, 2), {"weights": (2, 2)})  # type: ignore[no-any-return]


@structure(2)
def logging_at_debug_level(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        logger.debug("building the circuit")
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.BasicEntanglerLayers(weights, wires=range(2))
        return qml.expval(qml.PauliZ(0))

    return layer(node(circuit, 2), {"weights": (2, 2)})  # type: ignore[no-any-return]


@structure(2, single=True)
def branches_on_dimensions(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        if inputs.ndim == 1:
            a, b = inputs[0], inputs[1]
        elif len(inputs.shape) == 2:
            a, b = inputs[:, 0], inputs[:, 1]
        else:
            raise ValueError("inputs must be 1D or 2D")
        qml.RX(a, wires=0)
        qml.RX(b, wires=1)
        qml.BasicEntanglerLayers(weights, wires=range(2))
        return [qml.expval(qml.PauliZ(0)), qml.expval(qml.PauliZ(1))]

    return layer(node(circuit, 2), {"weights": (1, 2)})  # type: ignore[no-any-return]


@structure(2)
def wires_as_strings(layer: Any) -> nn.Module:
    wires = ["a", "b", "aux"]

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=wires[:2])
        qml.CRY(weights[0], wires=["a", "aux"])
        qml.CRX(weights[1], wires=["b", "aux"])
        return qml.probs(wires=["aux", "a"])

    return layer(node(circuit, wires), {"weights": 2})  # type: ignore[no-any-return]


@structure(2)
def captured_numbers(layer: Any) -> nn.Module:
    scales = np.linspace(0.5, 1.5, 2)
    offset = torch.tensor([0.1, -0.2])
    phases = [math.pi / (k + 1) for k in range(2)]

    def circuit(inputs: Any, weights: Any) -> Any:
        for i in range(2):
            qml.RY(inputs[..., i] * scales[i] + offset[i], wires=i)
            qml.RZ(phases[i], wires=i)
            qml.RX(weights[i] + math.sqrt(2 * i + 1) * torch.pi, wires=i)
            qml.PhaseShift(weights[i] * np.exp(-i), wires=i)
        qml.CNOT([0, 1])
        return qml.expval(qml.PauliY(0) @ qml.PauliZ(1))

    return layer(node(circuit, 2), {"weights": (2,)})  # type: ignore[no-any-return]


@structure(2)
def f_strings_and_words(layer: Any) -> nn.Module:
    words = ["ZI", "IZ", "XX", "ZY"]

    def circuit(inputs: Any, weights: Any) -> Any:
        for axis, x in zip("XY", inputs.unbind(-1), strict=True):
            getattr(qml, f"R{axis}")(x, wires=0)
            getattr(qml, f"R{axis}")(x, wires=1)
        qml.StronglyEntanglingLayers(weights, wires=[0, 1])
        return [qml.expval(qml.pauli.string_to_pauli_word(w)) for w in words]

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(2)
def initialised_in_three_ways(layer: Any) -> nn.Module:
    def circuit(inputs: Any, w0: Any, w1: Any, w2: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.RX(w0, wires=0)
        qml.Rot(*w1, wires=1)
        qml.StronglyEntanglingLayers(w2, wires=range(2))
        return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]

    shapes = {"w0": 1, "w1": 3, "w2": (1, 2, 3)}
    methods = {
        "w0": functools.partial(nn.init.normal_, std=0.3),
        "w1": nn.init.zeros_,
        "w2": torch.rand(1, 2, 3),
    }
    return layer(node(circuit, 2), shapes, init_method=methods)  # type: ignore[no-any-return]


@structure(2)
def shots_taken_away(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.BasicEntanglerLayers(weights, wires=range(2))
        return qml.expval(qml.Z(0))

    return layer(qml.set_shots(node(circuit, 2), None), {"weights": (1, 2)})  # type: ignore[no-any-return]
