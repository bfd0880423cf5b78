"""Habits of writing: classes, registries, generators, operators as gates, templates that are seldom used."""

import abc
import itertools
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import pennylane as qml
import pennylane.numpy as pnp
import torch
from pennylane.templates.embeddings import AngleEmbedding
from pennylane.templates.layers import StronglyEntanglingLayers
from torch import nn

from structures import device, node, structure

T = TypeVar("T")


class BaseCircuit(abc.ABC):
    """What subclasses fill in."""

    n_qubits = 2

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.dev = device(self.n_qubits)

    @abc.abstractmethod
    def ansatz(self, weights: Any) -> None: ...

    def encode(self, inputs: Any) -> None:
        for i in self.dev.wires:
            qml.RX(inputs[..., i], wires=i)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weights": (self.depth, self.n_qubits)}

    def run(self, inputs: Any, weights: Any) -> Any:
        self.encode(inputs)
        self.ansatz(weights)
        return [qml.expval(qml.PauliZ(i)) for i in range(self.n_qubits)]


class Mixin:
    def entangle(self) -> None:
        qml.CNOT(wires=[0, 1])


class Derived(Mixin, BaseCircuit, Generic[T]):
    def encode(self, inputs: Any) -> None:
        super().encode(inputs)
        qml.Hadamard(wires=0)

    def ansatz(self, weights: Any) -> None:
        for w in weights:
            for i in range(self.n_qubits):
                qml.RY(w[i], wires=i)
            self.entangle()


@structure(2, single=True)
def abstract_base_class(layer: Any) -> nn.Module:
    model: Derived[int] = Derived(2)
    return layer(qml.QNode(model.run, model.dev), model.shapes)  # type: ignore[no-any-return]


ANSATZE: dict[str, Callable[..., None]] = {}


def register(name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> None:
            return function(*args, **kwargs)

        ANSATZE[name] = wrapped
        return wrapped

    return decorate


@register("ring")
def ring(weights: Any, wires: Any, *, gate: Any = qml.CNOT) -> None:
    n = len(wires)
    for i, w in enumerate(wires):
        qml.RY(weights[i], wires=w)
    for i in range(n):
        gate(wires=[wires[i], wires[(i + 1) % n]])


@register("none")
def nothing(weights: Any, wires: Any) -> None:
    pass


@structure(3)
def registry_of_ansatze(layer: Any) -> nn.Module:
    names = ["ring", "none", "ring"]

    def circuit(inputs: Any, **weights: Any) -> Any:
        AngleEmbedding(features=inputs, wires=range(3))
        for k, name in enumerate(names):
            ANSATZE[name](weights[f"w_{k}"], list(range(3)))
        return [qml.expval(qml.PauliZ(i)) for i in range(3)]

    return layer(node(circuit, 3), {f"w_{k}": 3 for k in range(3)})  # type: ignore[no-any-return]


class Settings(NamedTuple):
    n: int = 3
    axes: tuple[str, ...] = ("X", "Z")


@structure(3)
def named_tuple_and_match(layer: Any) -> nn.Module:
    settings = Settings()

    def rotate(axis: str, angle: Any, wire: int) -> None:
        match axis:
            case "X":
                qml.RX(angle, wires=wire)
            case "Y":
                qml.RY(angle, wires=wire)
            case _:
                qml.RZ(angle, wires=wire)

    def circuit(inputs: Any, weights: Any) -> Any:
        n, axes = settings
        for a, (i, j) in zip(axes, itertools.combinations(range(n), 2), strict=False):
            rotate(a, inputs[..., i], i)
            rotate("Y", inputs[..., j], j)
            rotate(a, weights[i, j], j)
            qml.CNOT(wires=(i, j))
        return [qml.expval(qml.PauliZ(i)) for i in range(settings.n)]

    return layer(node(circuit, 3), {"weights": (3, 3)})  # type: ignore[no-any-return]


def pairs(n: int) -> Iterator[tuple[int, int]]:
    i = 0
    while i < n - 1:
        yield i, i + 1
        i += 1


@structure(4)
def generators_and_recursion(layer: Any) -> nn.Module:
    def tree(weights: Any, wires: Any) -> None:
        if len(wires) < 2:
            return
        half = len(wires) // 2
        tree(weights, wires[:half])
        tree(weights, wires[half:])
        qml.CRY(weights[half], wires=[wires[0], wires[half]])

    def circuit(inputs: Any, weights: Any) -> Any:
        wires = [int(w) for w in np.arange(4)]
        for i in wires:
            qml.RY(inputs[..., i], wires=i)
        for a, b in pairs(4):
            qml.IsingXX(weights[a], wires=[a, b])
        tree(weights, wires)
        return qml.expval(qml.PauliZ(0))

    return layer(node(circuit, 4), {"weights": 4})  # type: ignore[no-any-return]


class Config:
    N_QUBITS = 2
    N_LAYERS = 1
    SCALING = pnp.pi


@structure(2)
def plain_class_of_constants(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        AngleEmbedding(Config.SCALING * inputs, wires=range(Config.N_QUBITS), rotation="Y")
        StronglyEntanglingLayers(weights, wires=range(Config.N_QUBITS))
        return tuple(qml.expval(qml.PauliZ(w)) for w in range(Config.N_QUBITS))

    return layer(node(circuit, 2), {"weights": (Config.N_LAYERS, 2, 3)})  # type: ignore[no-any-return]


@structure(2, way="traced")
def parameters_that_the_function_reads(layer: Any) -> nn.Module:
    """A trained scale that is no argument: its gradient must not be lost."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([0.5, 1.5]))
            self.q = layer(qml.QNode(self.circuit, device(2)), {"weights": (1, 2, 3)})

        def circuit(self, inputs: Any, weights: Any) -> Any:
            qml.AngleEmbedding(inputs * self.scale, wires=range(2))
            qml.StronglyEntanglingLayers(weights, wires=range(2))
            return qml.expval(qml.Z(0))

        def forward(self, x: Any) -> Any:
            return self.q(x)

    return Net()


@structure(2)
def buffers_that_the_function_reads(layer: Any) -> nn.Module:
    class Net(nn.Module):
        shift: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("shift", torch.tensor([0.3, 0.7]))
            self.q = layer(qml.QNode(self.circuit, device(2)), {"weights": (1, 2, 3)})

        def circuit(self, inputs: Any, weights: Any) -> Any:
            qml.AngleEmbedding(inputs + self.shift, wires=range(2))
            qml.StronglyEntanglingLayers(weights, wires=range(2))
            return qml.expval(qml.Z(0))

        def forward(self, x: Any) -> Any:
            return self.q(x)

    return Net()


@structure(2)
def operators_as_gates(layer: Any) -> nn.Module:
    unitary = np.array([[1, 1], [1, -1]]) / np.sqrt(2)

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.QubitUnitary(unitary, wires=0)
        qml.prod(qml.RX(inputs[..., 0], 0), qml.RY(inputs[..., 1], 1))
        qml.pow(qml.RX(weights[0], wires=0), 2)
        qml.RZ(weights[1], 0) @ qml.RZ(weights[1], 1)
        qml.ControlledQubitUnitary(unitary, wires=[0, 1])
        qml.MultiControlledX(wires=[0, 1, 2], control_values=[1, 0])
        qml.DiagonalQubitUnitary(np.exp(1j * np.array([0.1, 0.2])), wires=1)
        qml.Toffoli(wires=[0, 1, 2])
        qml.SWAP(wires=[0, 2])
        qml.QFT(wires=range(2))
        return [qml.expval(qml.Z(i)) for i in range(3)]

    return layer(node(circuit, 3), {"weights": 2})  # type: ignore[no-any-return]


@structure(2)
def layers_by_pennylane(layer: Any) -> nn.Module:
    def block(w: Any, x: Any) -> None:
        qml.AngleEmbedding(x, wires=range(2))
        qml.BasicEntanglerLayers(w[None], wires=range(2))

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.layer(partial(block, x=inputs), 3, weights)
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": (3, 2)})  # type: ignore[no-any-return]


@structure(4)
def seldom_used_templates(layer: Any) -> nn.Module:
    def circuit(inputs: Any, gates: Any, unitary: Any, evolved: Any) -> Any:
        qml.BasisState(np.array([1, 1, 0, 0]), wires=range(4))
        qml.AngleEmbedding(inputs, wires=range(4), rotation="Z")
        qml.GateFabric(gates, wires=range(4), init_state=np.array([0, 0, 0, 0]))
        qml.ArbitraryUnitary(unitary, wires=[0])
        h = qml.Hamiltonian([1.0, 0.5], [qml.X(0) @ qml.X(1), qml.Z(2)])
        qml.ApproxTimeEvolution(h, evolved, 2)
        qml.GroverOperator(wires=range(2))
        return [qml.expval(qml.Z(i)) for i in range(4)]

    shapes = {"gates": (1, 1, 2), "unitary": 3, "evolved": ()}
    return layer(node(circuit, 4), shapes)  # type: ignore[no-any-return]


@structure(2)
def particle_conserving_and_trotter(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any, time: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.SingleExcitation(weights[0], wires=[0, 1])
        qml.FermionicSWAP(weights[1], wires=[0, 1])
        h = qml.dot([0.5, -0.3], [qml.X(0), qml.Z(0) @ qml.Z(1)])
        qml.TrotterProduct(h, time, n=1, order=2)
        return qml.expval(h)

    return layer(node(circuit, 2), {"weights": 2, "time": ()})  # type: ignore[no-any-return]


@structure(2)
def casts_and_copies(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        x = torch.as_tensor(inputs).to(weights.device).clone()
        if isinstance(x, torch.Tensor) and x.dim() > 1:
            x = x.contiguous()
        x = qml.math.arctan(x)
        for i in range(qml.math.shape(weights)[-1]):
            qml.RY(x[..., i], wires=i)
            qml.RX(qml.math.sin(weights[..., i]), wires=i)
        qml.CNOT([0, 1])
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": 2})  # type: ignore[no-any-return]


@structure(2)
def decorated_with_transforms(layer: Any) -> nn.Module:
    @qml.transforms.merge_rotations
    @partial(qml.transforms.cancel_inverses)
    @qml.qnode(device(2))
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(2))
        qml.RX(weights[0], 0)
        qml.Hadamard(1)
        qml.Hadamard(1)
        qml.CNOT([0, 1])
        return qml.expval(qml.Z(1))

    return layer(circuit, {"weights": 2})  # type: ignore[no-any-return]


@structure(4)
def amplitudes_normalised_by_hand(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        state = inputs / torch.linalg.norm(inputs, dim=-1, keepdim=True)
        qml.AmplitudeEmbedding(state, wires=range(2))
        qml.StronglyEntanglingLayers(weights, wires=range(2))
        return qml.probs(wires=[0, 1])

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(4)
def chunks_of_features(layer: Any) -> nn.Module:
    def circuit(inputs: Any, weights: Any) -> Any:
        for part in torch.chunk(inputs, 2, dim=-1):
            qml.AngleEmbedding(part, wires=[0, 1], rotation="Y")
            qml.StronglyEntanglingLayers(weights, wires=[0, 1])
        return [qml.expval(getattr(qml, "Pauli" + p)(0)) for p in "XYZ"]

    return layer(node(circuit, 2), {"weights": (1, 2, 3)})  # type: ignore[no-any-return]


@structure(3)
def trained_observable_and_wires(layer: Any) -> nn.Module:
    registers = qml.registers({"data": 3, "aux": 1})

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=registers["data"])
        for w, wire in zip(weights, registers["data"], strict=True):
            qml.ctrl(qml.RY, control=wire)(w, wires=registers["aux"])
        h = sum(qml.PauliZ(i) for i in registers["data"])
        return qml.expval(h), qml.expval(qml.PauliZ(registers["aux"][0]))

    return layer(node(circuit, 4), {"weights": 3})  # type: ignore[no-any-return]


@structure(2)
def network_inside_the_function(layer: Any) -> nn.Module:
    """A frozen network is called in the quantum function."""
    frozen = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).requires_grad_(False)

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(frozen(inputs), wires=range(2))
        qml.BasicEntanglerLayers(weights, wires=range(2))
        return [qml.expval(qml.Z(i)) for i in range(2)]

    result = layer(node(circuit, 2), {"weights": (1, 2)})
    result.frozen = frozen  # moves with the layer
    return result  # type: ignore[no-any-return]


@structure(2)
def try_and_keyword_only(layer: Any) -> nn.Module:
    def circuit(inputs: Any, *, weights: Any) -> Any:
        try:
            n = inputs.shape[1]
        except IndexError:
            n = inputs.shape[0]
        with torch.enable_grad():
            x = torch.sin(inputs)
        for i in range(n):
            qml.RY(x[..., i], wires=i)
            qml.RX(weights[i].squeeze(), wires=[i])
        qml.CNOT(wires=np.array([0, 1]))
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": (2, 1)})  # type: ignore[no-any-return]


@structure(2)
def sequence_of_gates_as_data(layer: Any) -> nn.Module:
    """A description of the circuit in a list of dictionaries."""
    description = [
        {"gate": "RX", "wires": [0], "source": ("x", 0)},
        {"gate": "RY", "wires": [1], "source": ("x", 1)},
        {"gate": "CNOT", "wires": [0, 1], "source": None},
        {"gate": "Rot", "wires": [0], "source": ("w", slice(0, 3))},
        {"gate": "CRZ", "wires": [1, 0], "source": ("w", 3)},
    ]

    def circuit(inputs: Any, weights: Any) -> Any:
        sources = {"x": inputs, "w": weights}
        for entry in description:
            gate: Any = getattr(qml, str(entry["gate"]))
            source: Any = entry["source"]
            if source is None:
                gate(wires=entry["wires"])
                continue
            name, index = source
            value = sources[name][..., index]
            arguments = value.unbind(-1) if isinstance(index, slice) else [value]
            gate(*arguments, wires=entry["wires"])
        return [qml.expval(qml.Z(i)) for i in range(2)]

    return layer(node(circuit, 2), {"weights": 4})  # type: ignore[no-any-return]
