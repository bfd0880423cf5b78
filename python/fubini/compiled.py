"""Compiles what a quantum function does with weights and inputs into a circuit and a map to its angles.

Three outcomes, the fastest that can be promised to be right:

* ``Affine``: angles = constant + W weights + X inputs. The quantum function is not called again.
* ``Traced``: the function runs for every call (it may branch and compute what it likes); only gates are native.
* a reason, as text, why the circuit must run on its device.

"Affine" is promised only if the function, run at several points with tensors that record what is asked of them,
never turns a tensor into a Python number, gives the same circuit at all of them and angles on an affine function, and
if everything else that it reads can be guarded against change.
"""

import contextlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.overrides import TorchFunctionMode

from fubini import _core
from fubini._arrays import to_numpy
from fubini.circuit import Circuit, _measured_wires, decomposed
from fubini.errors import UnsupportedCircuitError
from fubini.guards import Guard
from fubini.jacobian import Jacobian
from fubini.tape import user_tape
from fubini.torch_private import without_transforms

FloatArray = npt.NDArray[np.float64]

_PROBES = 3
# Angles are sums of a few products of numbers of order ten.
_TOLERANCE = 1e-11


class Affine:
    """A circuit whose angles are affine in weights and inputs.

    Args:
        circuit: The compiled circuit.
        constant: (A,).
        weights: W, (A, P), over the flattened weights in order.
        inputs: X, (A, d).
        guard: What the quantum function captured.
        batch: The only number of inputs for which this holds, where the function asked for it; None: any number.

    Attributes:
        circuit: As above.
        guard: As above.
        batch: As above.
        constant: As above.
        weights: As above.
        inputs: As above.
    """

    def __init__(
        self,
        circuit: Circuit,
        constant: FloatArray,
        weights: FloatArray,
        inputs: FloatArray,
        guard: Guard,
        batch: int | None = None,
    ) -> None:
        self.circuit, self.guard, self.batch = circuit, guard, batch
        self.constant, self.weights, self.inputs = constant, weights, inputs
        self._map = _core.AffineMap(
            constant.tolist(),
            weights.shape[1],
            inputs.shape[1],
            _entries(weights),
            _entries(inputs),
        )

    @cached_property
    def jacobian(self) -> Jacobian:
        """Derivative of the angles by the weights, for those that depend on weights."""
        rows = np.flatnonzero(self.weights.any(axis=1))
        return Jacobian(rows, self.weights[rows][None])

    def angles(self, weights: FloatArray, inputs: FloatArray) -> FloatArray:
        """Return the angles, (B, A), for weights (P,) and inputs (B, d)."""
        return self._map.angles([weights], inputs)

    def forward(
        self, weights: list[FloatArray], inputs: FloatArray, keep: bool
    ) -> tuple[FloatArray, _core.Pass | None]:
        """Return the results (B, M) for inputs (B, d), and what ``backward`` needs, if that is to be kept.

        Args:
            weights: One array each, of any shape, in order.
            inputs: (B, d).
            keep: Whether ``backward`` will follow.
        """
        return _core.forward(self.circuit.program, self._map, weights, inputs, keep)

    def backward(
        self, passed: _core.Pass, cotangents: FloatArray
    ) -> tuple[FloatArray, list[FloatArray]]:
        """Return the gradients by inputs (B, d) and by every weight, for cotangents (B, M) of the results."""
        return _core.backward(self.circuit.program, self._map, passed, cotangents)

    def linearise(
        self, weights: list[FloatArray], inputs: FloatArray, want_inputs: bool
    ) -> tuple[FloatArray, FloatArray, FloatArray | None]:
        """Return the results (B, M) and their derivatives by the weights, (B, M, P), and by the inputs, (B, M, d).

        Args:
            weights: One array each, of any shape, in order.
            inputs: (B, d).
            want_inputs: Whether the derivatives by the inputs are wanted; else None.
        """
        return _core.linearise(self.circuit.program, self._map, weights, inputs, want_inputs)


def _entries(matrix: FloatArray) -> list[tuple[int, int, float]]:
    rows, columns = np.nonzero(matrix)
    return list(zip(rows.tolist(), columns.tolist(), matrix[rows, columns].tolist(), strict=True))


@dataclass(frozen=True)
class Traced:
    """A circuit whose angles are computed by the quantum function in every call.

    Attributes:
        reason: Why it is not compiled to the end, in words.
    """

    reason: str


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


class _Asked(TorchFunctionMode):
    """Notes where user code asks a tensor for something that a fixed circuit cannot follow."""

    # Values that leave the reach of derivatives, and properties that can differ from call to call.
    _VALUES = _words(
        "bool item float int index complex tolist numpy array gt lt ge le eq ne greater less greater_equal less_equal "
        "not_equal isnan isinf isfinite isclose allclose equal sign sgn signbit floor ceil round trunc fix frac "
        "floor_divide floordiv remainder fmod mod argmax argmin argsort sort topk max min nonzero bucketize any all "
        "searchsorted unique where logical_and logical_or logical_not long short byte dtype requires_grad is_leaf grad "
        "grad_fn data detach is_floating_point is_complex is_inference count_nonzero"
    )
    _SIZES = frozenset({"shape", "size", "len", "numel", "nelement"})

    def __init__(self) -> None:
        super().__init__()
        self.found: str | None = None
        self.size = False

    def __torch_function__(
        self,
        function: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        name = getattr(function, "__name__", "").strip("_")
        if name == "get":  # the getter of a property
            name = getattr(getattr(function, "__self__", None), "__name__", "")
        if (name in self._VALUES or name in self._SIZES) and _called_by_user():
            if name in self._SIZES:
                self.size = True
            else:
                self.found = self.found or name
        return function(*args, **(kwargs or {}))


# Frames between user code and the tensor method: who calls through them is the one who asks.
_CARRIERS = ("torch", "fubini.compiled", "autoray", "pennylane.math", "pennylane.numpy")


def _called_by_user() -> bool:
    """Whether the tensor method was called outside PennyLane, which asks only to validate."""
    frame: Any = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_CARRIERS):
        frame = frame.f_back
    name = frame.f_globals.get("__name__", "") if frame is not None else ""
    return not name.startswith(("pennylane", "numpy"))


# Nodes of torch's graph that are linear in each argument. Anything else, a clamp or a where, may be affine at the
# points that were tried and not elsewhere.
_LINEAR_NODES = _words(
    "AccumulateGrad Add Addmm Alias AsStrided Bmm Cat Clone Diagonal Div Dot Expand Flatten Index IndexSelect Mm Mul Mv "
    "Narrow Neg Permute Repeat Reshape ReshapeAlias Rsub Select Slice Split SplitWithSizes Squeeze Stack Sub Sum T Tile "
    "ToCopy Transpose Unbind Unsqueeze UnsafeView UnsafeSplit View ViewAsReal Movedim Contiguous Flip Roll Unfold"
)


def _nonlinear_node(row: torch.Tensor) -> str | None:
    """Name of an operation between the leaves and the angles that is not linear, or None."""
    waiting, seen = [row.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        name = node.name().split("::")[-1]
        kind = name.rstrip("0123456789").removesuffix("Backward")
        if kind not in _LINEAR_NODES:
            return kind
        waiting += [following for following, _ in node.next_functions]
    return None


@contextlib.contextmanager
def outside_transforms() -> Iterator[None]:
    """Suspend torch.func's transforms and inference mode: compilation differentiates tensors of its own."""
    with without_transforms(), torch.inference_mode(False), torch.enable_grad():
        yield


def compile_function(
    qnode: Any,
    input_arg: str | None,
    weights: Mapping[str, torch.Tensor],
    shape: Sequence[int],
    constants: Mapping[str, Any] | None = None,
) -> Affine | Traced | str:
    """Compile a QNode for inputs of a given width.

    Args:
        qnode: The QNode.
        input_arg: Name of the data argument; None where every tensor is a weight, and nothing is a batch.
        weights: The weights by name; only shapes matter.
        shape: Of the inputs, (features,) or (batch, features); (0,) without a data argument.
        constants: Further arguments, which are no tensors.

    Returns:
        The compiled form, or the reason why the QNode must run on its device.

    Raises:
        ValueError: What the quantum function raises for these shapes.
    """
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    with outside_transforms():
        try:
            probes = [
                _probe(qnode, input_arg, shapes, tuple(shape), seed, constants or {})
                for seed in range(_PROBES)
            ]
        except UnsupportedCircuitError as error:
            return str(error)
        except (
            AttributeError,
            ImportError,
            IndexError,
            NotImplementedError,
            RuntimeError,
            TypeError,
        ) as error:
            return f"the circuit could not be compiled ({type(error).__name__}: {error})"
        if input_arg is None and any(p.batched for p in probes):
            return Traced("one of its tensors is a batch")
        return _form(probes, Guard(qnode.func), shape[-1])


def _form(probes: list["_Probe"], guard: Guard, width: int) -> Affine | Traced:
    first = probes[0]
    asked = next((p.asked for p in probes if p.asked), None)
    if asked:
        return Traced(
            f"the quantum function asks a tensor for {asked}, so the circuit may depend on values"
        )
    if any(p.circuit != first.circuit for p in probes):
        return Traced("the circuit differs between weights or inputs")
    if first.circuit.takes_state:
        return Traced("the initial state is computed from the inputs")
    if guard.problem:
        return Traced(guard.problem)
    return _affine(probes, guard, width) or Traced(
        "the angles are not affine in weights and inputs"
    )


@dataclass(frozen=True)
class _Probe:
    """One run of the function: where, and the circuit and angles that came out."""

    circuit: Circuit
    asked: str | None
    asked_size: bool
    leaves: list[torch.Tensor]  # weights, then inputs
    point: FloatArray  # weights, then the features of the first input
    row: torch.Tensor  # (A,) of the first input, with its graph
    batched: bool  # whether the circuit has a batch of angles


def _probe(
    qnode: Any,
    input_arg: str | None,
    shapes: Mapping[str, tuple[int, ...]],
    shape: tuple[int, ...],
    seed: int,
    constants: Mapping[str, Any],
) -> _Probe:
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> torch.Tensor:
        return torch.from_numpy(np.asarray(rng.uniform(-4, 4, shape))).requires_grad_()

    weights = {name: draw(shape) for name, shape in shapes.items()}
    inputs = draw(shape)
    with torch.enable_grad():
        with _Asked() as asked:
            data = {} if input_arg is None else {input_arg: inputs}
            tape = user_tape(qnode, (), {**data, **weights, **constants})
        expanded = decomposed(tape)
        circuit = Circuit.from_tape(expanded, _measured_wires(qnode, tape))
        angles = torch.as_tensor(circuit.angles_of(expanded), dtype=torch.float64)
    row = (angles if angles.ndim == 1 else angles[0]).reshape(-1)
    x = inputs if inputs.ndim == 1 else inputs[0]
    point = np.concatenate([to_numpy(w).reshape(-1) for w in [*weights.values(), x]])
    leaves = [*weights.values(), inputs]
    batched = tape.batch_size is not None
    return _Probe(circuit, asked.found, asked.size, leaves, point, row, batched)


def _jacobian(probe: _Probe, width: int) -> FloatArray:
    """Derivatives of the first input's angles by weights and features, (A, P + d)."""
    values = to_numpy(probe.row)
    jacobian = np.zeros((len(values), len(probe.point)))
    # Nearly every angle is a weight or a feature as it stands, and a random number occurs only once: a derivative by
    # backward passes would take a hundred times longer. Whatever this assumes is checked at the other points.
    where = {value: column for column, value in enumerate(probe.point.tolist())}
    found = np.array([where.get(value, -1) for value in values.tolist()], dtype=int)
    plain = np.flatnonzero(found >= 0)
    jacobian[plain, found[plain]] = 1.0
    others = np.flatnonzero(found < 0)
    if len(others) and probe.row.requires_grad:
        parts = torch.autograd.grad(
            probe.row[others],
            probe.leaves,
            torch.eye(len(others), dtype=probe.row.dtype),
            is_grads_batched=True,
            retain_graph=True,
            allow_unused=True,
        )
        columns = [
            np.zeros((len(others), leaf.numel()))
            if part is None
            else to_numpy(part).reshape(len(others), -1)
            for part, leaf in zip(parts, probe.leaves, strict=True)
        ]
        # Of the inputs the first one: others do not reach the first row, the layer checks that.
        columns[-1] = columns[-1][:, :width]
        jacobian[others] = np.concatenate(columns, axis=1)
    return jacobian


def _same_derivative(probe: _Probe, jacobian: FloatArray, width: int) -> bool:
    """Whether torch agrees along one random cotangent: w.detach() has the value of w, but no derivative."""
    if not probe.row.requires_grad:
        return not jacobian.any()
    cotangent = torch.linspace(0.5, 1.5, len(probe.row), dtype=probe.row.dtype)
    parts = torch.autograd.grad(probe.row, probe.leaves, cotangent, allow_unused=True)
    flat = [
        np.zeros(leaf.numel()) if part is None else to_numpy(part).reshape(-1)
        for part, leaf in zip(parts, probe.leaves, strict=True)
    ]
    flat[-1] = flat[-1][:width]
    return np.allclose(
        np.concatenate(flat), to_numpy(cotangent) @ jacobian, rtol=1e-9, atol=_TOLERANCE
    )


def _affine(probes: list[_Probe], guard: Guard, width: int) -> Affine | None:
    if any(_nonlinear_node(p.row) for p in probes):
        return None
    jacobian = _jacobian(probes[0], width)
    # Rounding of the derivatives must not couple an angle to weights it does not depend on.
    jacobian[np.abs(jacobian) < _TOLERANCE] = 0.0
    constant = to_numpy(probes[0].row) - jacobian @ probes[0].point
    constant[np.abs(constant) < _TOLERANCE] = 0.0
    if not _same_derivative(probes[0], jacobian, width):
        return None
    for p in probes[1:]:
        if not np.allclose(constant + jacobian @ p.point, to_numpy(p.row), rtol=0, atol=_TOLERANCE):
            return None
    count = jacobian.shape[1] - width
    inputs = probes[0].leaves[-1]
    batch = len(inputs) if inputs.ndim > 1 and any(p.asked_size for p in probes) else None
    return Affine(
        probes[0].circuit, constant, jacobian[:, :count], jacobian[:, count:], guard, batch
    )
