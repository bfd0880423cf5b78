"""Random quantum functions: a layer gives what TorchLayer gives in every call, or refuses.

Functions are written as text over a grammar of what people do with tensors in a quantum function: arithmetic, casts,
comparisons, tables, blocks without gradients, NumPy, in-place changes, captured objects that change between calls, counters,
iterators, branches. The text is executed twice, in name spaces of their own, once for each layer.

    python tests/compile_fuzz.py 20000 [first seed]
"""

import random
import sys
import textwrap
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pennylane as qml
import torch

import fubini

WIRES = 2
FEATURES = 3
WEIGHTS = 4

_UNARY = [
    "torch.sin({e})", "torch.cos({e})", "torch.tanh({e})", "torch.atan({e})", "({e}).arctan()", "torch.exp(-({e}) ** 2)",
    "({e}) ** 2", "({e}).abs()", "torch.sigmoid({e})", "torch.relu({e})", "-({e})", "({e}) / 3", "2 * ({e}) + 0.1",
    "torch.sqrt(({e}) ** 2 + 1)", "torch.log1p(({e}) ** 2)", "1 / (1 + ({e}) ** 2)", "torch.arcsin(torch.tanh({e}))",
    "torch.nn.functional.silu({e})", "torch.square({e})", "({e}).clone()", "torch.erf({e})", "({e}) - 0.5", "0.3 - ({e})",
    "torch.pi * ({e})", "({e}).double()", "torch.deg2rad({e})", "torch.pow({e}, 3)", "torch.asinh({e})", "+({e})",
    "({e}) * np.pi", "({e}) * np.float64(0.5)", "torch.nn.functional.softplus({e})", "torch.reciprocal(2 + torch.tanh({e}))",
]  # fmt: skip
_SUSPECT = [
    "({e}).to(torch.int64).to(torch.float64)", "({e}).long() * 0.3", "({e}).to(torch.bool) * 0.7", "({e}).bool().double()",
    "({e}).int() / 2", "torch.floor({e})", "({e}).round()", "torch.trunc({e})", "(({e}) > 0.3).double()",
    "torch.where(({e}) > 0.2, {e}, 0.5 * ({f}))", "torch.clamp({e}, -0.5, 0.5)", "({e}).clamp(min=0.1)", "torch.sign({e})",
    "torch.heaviside({e}, torch.tensor(0.5, dtype=torch.float64))", "({e}).detach()", "({e}).data * 1.0", "frozen({e})",
    "torch.remainder({e}, 1.0)", "({e}) % 0.7", "({e}) // 0.5", "TABLE[({e}).abs().long() % 4]",
    "torch.logical_xor(({e}) > 0, ({f}) > 0).double()", "torch.isin(({e}).round(), torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)).double()",
    "torch.maximum({e}, {f})", "torch.minimum({e}, 0.3 * ({f}))", "torch.atan2({e}, 2 + torch.tanh({f}))", "torch.fmod({e}, 0.9)",
    "torch.nn.functional.leaky_relu({e})", "torch.nn.functional.hardtanh({e})", "torch.special.expit({e})", "scaled({e})",
    "torch.nan_to_num({e})", "torch.hypot({e}, {f})", "torch.lerp({e}, {f}, 0.3)", "torch.copysign({e}, {f})", "inplace({e})",
    "torch.sum(torch.stack([{e}, {f}]), 0)", "torch.stack([{e}, {f}], -1).mean(-1)", "torch.cumsum(torch.stack([{e}, {f}]), 0)[1]",
    "torch.stack([{e}, {f}]).max(0).values", "torch.stack([{e}, {f}]).sort(0).values[0]", "torch.softmax(torch.stack([{e}, {f}]), 0)[0]",
    "torch.stack([{e}, {f}])[torch.tensor([1, 0])][0]", "torch.stack([{e}, {f}], -1).flip(-1)[..., 0]", "unit({e}, {f})",
    "torch.logical_not({e}).double()", "({e}).ge(0.1).double()", "(({e}) == ({e})).double() * ({e})", "torch.quantile(torch.stack([{e}, {f}]), 0.5, dim=0)",
    "torch.prod(torch.stack([{e}, {f}]), 0)", "torch.linalg.norm(torch.stack([{e}, {f}]) + 0.1, dim=0)", "torch.roll(torch.stack([{e}, {f}]), 1, 0)[0]",
]  # fmt: skip
_SCALAR = [
    "float({w})", "{w}.item()", "({w}).detach().numpy() * 1.0", "torch.tensor(float({w}))", "math.sin({w})", "np.sin(float({w}))",
    "TABLE[int(abs({w})) % 4]", "(1.0 if {w} > 0.4 else 0.2)", "round(float({w}), 1)", "(0.5 if 0.25 in weights else 0.1)",
    "len(weights) * {w}", "weights.shape[0] * {w}", "(weights @ weights)", "weights.mean()", "weights.norm()", "(weights > 0.2).sum() * 0.1",
    "weights.argmax() * 0.2", "weights[int(weights.argmax())]", "max({w}, 0.2)", "torch.tensor([{w}, 0.3])[0]", "sum(weights)", "weights.tolist()[1]",
    "str(weights).count('1') * 0.1", "hash(float({w})) % 3", "torch.as_tensor([float({w}), 0.1])[0]", "weights.unique().numel() * 0.1",
    "torch.nn.functional.embedding(({w}).abs().long() % 2, TABLE.reshape(2, 2)).sum()", "(weights.nonzero().numel()) * 0.1",
    "(0.4 if torch.equal(weights, weights.round()) else {w})", "(0.4 if torch.allclose(weights[0], weights[1]) else {w})",
    "float(np.asarray({w}.detach()))", "bool({w}) * 0.4", "bool({w} > 0) * {w}", "torch.is_nonzero({w}) * {w}", "abs({w})", "{w} ** 0.0",
]  # fmt: skip
_BATCH = [
    "inputs[..., 0] - inputs.mean()", "inputs[..., 1] / inputs.shape[-1]", "inputs.sum(-1)", "(inputs @ MATRIX)[..., 0]",
    "(inputs * VECTOR).sum(-1)", "torch.einsum('...i,i->...', inputs, VECTOR)", "inputs.prod(-1)", "inputs.flip(-1)[..., 0]",
    "torch.nn.functional.linear(inputs, MATRIX)[..., 1]", "torch.tanh(inputs @ weights[:3])", "inputs[..., [2, 0]].sum(-1)",
    "inputs[..., 0] / len(inputs)", "(inputs[..., 0] - inputs[..., 0].max())", "torch.softmax(inputs, -1)[..., 0]", "inputs.T[0]",
    "inputs.norm(dim=-1)", "torch.nn.functional.normalize(inputs + 2, dim=-1)[..., 0]", "inputs.roll(1, -1)[..., 0]", "inputs.mean(-1)",
    "inputs.to(torch.int64)[..., 0] * weights[0]", "(inputs > 0.5).double()[..., 0]", "torch.as_tensor(np.arcsin(np.tanh(inputs.detach().numpy()))[..., 0])",
    "inputs.flip(0)[..., 0]", "inputs.roll(1, 0)[..., 0]", "(inputs - inputs.sum(0))[..., 0]", "inputs.cumsum(-1)[..., 1]", "inputs.squeeze()[..., 0]",
]  # fmt: skip
_CAPTURED = [
    "CONFIG.scale * ({e})", "({e}) + SETTINGS['shift']", "({e}) * VALUES[1]", "({e}) + float(ARRAY[0])", "({e}) * BUFFER[0]",
    "({e}) + (CONFIG.extra if hasattr(CONFIG, 'extra') else 0.1)", "({e}) + SCALE", "helper({e})", "({e}) + counted()", "({e}) + following()",
    "({e}) + NESTED['a'][1]", "({e}) * Constants.FACTOR", "({e}) + CONFIG.method(0.2)", "({e}) + logged({e})", "({e}) + getattr(CONFIG, 'scale')",
    "({e}) + CONFIG.computed", "module({e})", "({e}) + encode.offset",
]  # fmt: skip

_PRELUDE = """
import itertools, math, types
import numpy as np
import pennylane as qml
import torch

TABLE = torch.tensor([0.1, 0.4, 0.9, 1.6], dtype=torch.float64)
MATRIX = torch.tensor([[0.2, -0.4, 0.1], [0.7, 0.3, -0.2], [0.1, 0.1, 0.5]], dtype=torch.float64)
VECTOR = torch.tensor([0.3, -0.8, 0.5], dtype=torch.float64)
SCALE = 0.25
VALUES = [0.3, 0.6]
SETTINGS = {"shift": 0.2}
NESTED = {"a": [0.1, 0.2]}
ARRAY = np.array([0.4, 0.5])
BUFFER = torch.tensor([0.7, 0.8], dtype=torch.float64)
STATE = {"calls": 0}
ITERATOR = itertools.cycle([0.1, 0.2, 0.3])
LOG = []

class Config:
    def __init__(self):
        self.scale = 0.5
        self.calls = 0

    def method(self, value):
        return self.scale * value

    @property
    def computed(self):
        return self.scale + 1.0

class Constants:
    FACTOR = 1.5

CONFIG = Config()

class Affine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("slope", torch.tensor(0.6, dtype=torch.float64))

    def forward(self, value):
        return self.slope * value

module = Affine()

def helper(value):
    return SCALE * value

def encode(value):
    return value

encode.offset = 0.15

def counted():
    STATE["calls"] += 1
    return 0.1 * STATE["calls"]

def following():
    return next(ITERATOR)

def logged(value):
    LOG.append(1)
    return 0.0

def frozen(value):
    with torch.no_grad():
        return torch.as_tensor(value) * 2.0

def inplace(value):
    copy = torch.as_tensor(value, dtype=torch.float64).clone()
    copy += 0.3
    copy.mul_(0.5)
    return copy

def scaled(value):
    out = torch.zeros(2, *torch.as_tensor(value).shape, dtype=torch.float64)
    out[0] = value
    out[1] = 2 * out[0]
    return out[1]

def unit(a, b):
    pair = torch.stack(torch.broadcast_tensors(torch.as_tensor(a), torch.as_tensor(b)), -1)
    return (pair / (1 + pair.norm(dim=-1, keepdim=True)))[..., 0]
"""

# What may change between two calls, in both name spaces alike.
_CHANGES = [
    "CONFIG.scale = 0.9", "SETTINGS['shift'] = -0.4", "VALUES[1] = 0.1", "ARRAY[0] = 1.1", "BUFFER[0] = -0.3", "CONFIG.extra = 0.8",
    "SCALE = 0.75", "NESTED['a'][1] = 0.9", "Constants.FACTOR = 0.4", "Config.method = lambda self, value: 3 * value", "encode.offset = 0.6",
    "module.slope.fill_(0.2)", "TABLE.mul_(0.5)", "helper = lambda value: 2 * value", "VECTOR[0] = 0.9", "MATRIX.copy_(MATRIX.T.clone())",
    "BUFFER.data[0] = 0.05", "Config.computed = property(lambda self: 0.3)", "VALUES = [0.2, 0.7]", "module.slope = torch.tensor(0.1, dtype=torch.float64)",
]  # fmt: skip


@dataclass
class Case:
    """A function as text, and what happens to it."""

    text: str
    changes: list[str]
    batches: list[int]
    scales: list[float]
    engine: str = "auto"


class Writer:
    """Writes a random function."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def pick(self, options: list[Any]) -> Any:
        return self.random.choice(options)

    def expression(self, depth: int) -> str:
        r = self.random.random()
        w = f"weights[{self.random.randrange(WEIGHTS)}]"
        if depth <= 0 or r < 0.15:
            return self.pick([f"inputs[..., {self.random.randrange(FEATURES)}]", w, w])
        e, f = self.expression(depth - 1), self.expression(depth - 1)
        if r < 0.45:
            return self.pick(["({e}) + ({f})", "({e}) * ({f})", "({e}) - 0.5 * ({f})"]).format(
                e=e, f=f
            )
        if r < 0.70:
            return self.pick(_UNARY).format(e=e)
        if r < 0.78:
            return self.pick(_SUSPECT).format(e=e, f=f)
        if r < 0.84:
            return self.pick(_SCALAR).format(w=w)
        if r < 0.92:
            return self.pick(_BATCH)
        return self.pick(_CAPTURED).format(e=e)

    def gate(self, wire: int) -> list[str]:
        angle = self.expression(self.random.randrange(4))
        r = self.random.random()
        other = (wire + 1) % WIRES
        if r < 0.5:
            return [f"qml.{self.pick(['RX', 'RY', 'RZ', 'PhaseShift'])}({angle}, {wire})"]
        if r < 0.6:
            return [
                f"qml.{self.pick(['CRX', 'IsingXX', 'CRZ', 'ControlledPhaseShift'])}({angle}, [{wire}, {other}])"
            ]
        if r < 0.66:
            return [f"qml.Rot({angle}, {self.expression(1)}, {self.expression(1)}, {wire})"]
        if r < 0.72:
            return [
                f"qml.AngleEmbedding(inputs[..., :2], wires=range(2), rotation='{self.pick('XYZ')}')"
            ]
        if r < 0.76:
            return [
                f"if {self.pick(_SCALAR).format(w='weights[1]')} > 0.3:",
                f"    qml.RX({angle}, {wire})",
            ]
        if r < 0.80:
            return [
                f"for k in range({self.random.randrange(1, 3)}):",
                f"    qml.RY(({angle}) * (k + 1), {wire})",
            ]
        if r < 0.84:
            return [f"angle = {angle}", f"qml.RX(angle, {wire})", f"qml.RY(angle + 0.1, {other})"]
        if r < 0.88:
            return ["assert inputs.abs().sum() < 1e9", f"qml.RZ({angle}, {wire})"]
        if r < 0.92:
            return [
                f"qml.adjoint(qml.RX)({angle}, {wire})",
                f"qml.ctrl(qml.RY, {other})({angle}, {wire})",
            ]
        return ["CONFIG.calls += 1", f"qml.RY({angle}, {wire})"]

    def case(self) -> Case:
        lines = ["qml.Hadamard(0)", "qml.RY(0.3, 1)"]
        for _ in range(self.random.randrange(1, 4)):
            lines += self.gate(self.random.randrange(WIRES))
        if self.random.random() < 0.5:
            lines.append("qml.CNOT([0, 1])")
        lines.append("qml.RX(inputs[..., 0] + weights[0], 1)")
        lines.append(
            "return "
            + self.pick(
                [
                    "qml.expval(qml.Z(1))",
                    "[qml.expval(qml.Z(0)), qml.expval(qml.X(1))]",
                    "qml.probs(wires=[1])",
                ]
            )
        )
        text = (
            _PRELUDE
            + "\ndef circuit(inputs, weights):\n"
            + textwrap.indent("\n".join(lines), "    ")
        )
        calls = self.pick([2, 3, 4])
        size = self.pick([1, 2, 4])
        batches = [
            size if self.random.random() < 0.7 else self.pick([1, 2, 3, 5]) for _ in range(calls)
        ]
        scales = [self.pick([1.0, 1.0, 1e-3, 30.0, 0.0, -2.0]) for _ in range(calls)]
        changes = [self.pick(_CHANGES) if self.random.random() < 0.4 else "" for _ in range(calls)]
        return Case(text, changes, batches, scales)


class Different(AssertionError):
    """A layer gave something else than TorchLayer."""


def _outcome(layer: Any, x: torch.Tensor, grad: bool) -> Any:
    x = x.clone().requires_grad_(grad)
    layer.zero_grad()
    result = layer(x)
    if result.requires_grad:
        result.backward(
            torch.linspace(0.3, 1.7, result.numel(), dtype=result.dtype).reshape(result.shape)
        )
    zero = torch.zeros_like
    weights = layer.weights
    gradient = zero(weights) if weights.grad is None else weights.grad.clone()
    return result.detach().clone(), gradient, zero(x) if x.grad is None else x.grad


def run(seed: int) -> str:
    """Run one function; returns ``"compiled"``, ``"every call"``, ``"device"``, ``"both raise"`` or ``"refused"``.

    Raises:
        Different: With the text of the function.
    """
    case = Writer(seed).case()
    generator = torch.Generator().manual_seed(seed)
    spaces: list[dict[str, Any]] = [{"__name__": f"fuzz_{seed}"}, {"__name__": f"fuzz_{seed}"}]
    layers = []
    start = torch.rand(WEIGHTS, generator=generator, dtype=torch.float64)
    for space, kind in zip(spaces, (qml.qnn.TorchLayer, fubini.QuantumLayer), strict=True):
        exec(compile(case.text, f"<fuzz {seed}>", "exec"), space)
        qnode = qml.QNode(space["circuit"], qml.device("default.qubit", wires=WIRES))
        layers.append(kind(qnode, {"weights": WEIGHTS}, {"weights": start.clone()}).double())
    grad = case.scales[0] != -2.0
    state = "both raise"
    for call, (batch, scale, change) in enumerate(
        zip(case.batches, case.scales, case.changes, strict=True)
    ):
        x = scale * torch.randn(batch, FEATURES, generator=generator, dtype=torch.float64)
        if scale == 30.0:
            x = x.round()
        found: list[Any] = []
        for layer in layers:
            try:
                found.append(_outcome(layer, x, grad))
            except Exception as error:  # noqa: BLE001 - whatever the function raises
                found.append(error)
        where = f"seed {seed}, call {call}, batch {batch}\n{case.text.split('def circuit', 1)[1]}\n{layers[1].explain()}"
        theirs, mine = found
        if isinstance(theirs, Exception):
            if not isinstance(mine, Exception):
                # TorchLayer may fail to arrange what a function makes of one input, which is no defect of ours.
                return "only TorchLayer raises"
            return state
        if isinstance(mine, Exception):
            if isinstance(mine, ValueError | fubini.UnsupportedCircuitError) and ":" in str(mine):
                return "refused"
            raise Different(f"raises {type(mine).__name__}: {mine}\n{where}") from mine
        for name, a, b in zip(
            ("values", "gradient", "inputs' gradient"), mine, theirs, strict=True
        ):
            # Angles of many turns lose digits, in PennyLane's arithmetic as in ours.
            finite = b[torch.isfinite(b)].abs()
            close = 1e-6 * (1.0 + float(finite.max()) if finite.numel() else 1.0)
            if a.shape != b.shape or not torch.allclose(a, b, rtol=0, atol=close, equal_nan=True):
                raise Different(f"{name}: {a.tolist()} instead of {b.tolist()}\n{where}")
        text = layers[1].explain()
        state = (
            "compiled" if "compiled" in text else "every call" if "every call" in text else "device"
        )
        with torch.no_grad():
            step = torch.randn(WEIGHTS, generator=generator, dtype=torch.float64)
            if call == 1:
                step = step.round()  # whole numbers and zeros among the weights
            for layer in layers:
                layer.weights.copy_(step)
        for space in spaces:
            exec(change, space)
    return state


def main(count: int, first: int) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    states: Counter[str] = Counter()
    failures = 0
    for seed in range(first, first + count):
        try:
            states[run(seed)] += 1
        except Different as error:
            failures += 1
            print(f"DIFFERENT {error}\n", flush=True)
        except Exception:  # noqa: BLE001 - a defect of this script
            failures += 1
            print(f"BROKEN seed {seed}\n{traceback.format_exc()}", flush=True)
        if (seed - first) % 500 == 499:
            print(f"{seed - first + 1} functions: {dict(states)}, {failures} different", flush=True)
    print(f"{count} functions: {dict(states)}, {failures} different", flush=True)
    return failures


if __name__ == "__main__":
    sys.exit(min(1, main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
