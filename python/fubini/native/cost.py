"""Which form of the full metric solves a system fastest: the matrix, a factor of it, or products alone.

The predictions are operation counts times rates measured on one core with 256-bit vectors or wider; they are right to a
factor of two or so, which is enough to tell forms apart that differ by tens. What counts is the memory bound, and who
wins at a thousand weights.
"""

from dataclasses import dataclass, field
from typing import Literal

from fubini import _core
from fubini.native.circuit import Circuit

Form = Literal["dense", "dual", "matrix-free"]

# Seconds per amplitude and step of a sweep, per multiply-add of a product of large matrices, and per iteration of
# conjugate gradients besides the product.
_SWEEP = 1.0e-9
_FLOP = 1.0e-10
_ITERATION = 1.0e-4


@dataclass(frozen=True)
class Choice:
    """A form, and what every form was predicted to take.

    Attributes:
        form: ``"dense"``, ``"dual"`` or ``"matrix-free"``.
        seconds: Predicted time of metric and solution, on one core.
        bytes: Predicted memory.
        bound: Bytes that may be used.
        reason: Why this form, as the end of a sentence.
    """

    form: Form
    seconds: dict[Form, float] = field(repr=False)
    bytes: dict[Form, float] = field(repr=False)
    bound: float = field(repr=False)
    reason: str = field(repr=False)

    def explain(self) -> str:
        """Say in one sentence which form was taken and why."""
        return f"The metric is {self.form}: {self.reason}."


def choose(
    circuit: Circuit,
    weights: int,
    *,
    inputs: int = 1,
    iterations: int = 80,
    bound: float | None = None,
) -> Choice:
    """Choose the form of a full metric, averaged over inputs, for one regularised solution.

    Args:
        circuit: The circuit.
        weights: Number of weights P.
        inputs: Number of inputs in the mean.
        iterations: Products that conjugate gradients are expected to take.
        bound: Bytes that may be used; None: the kernel's bound, see ``fubini.set_memory_limit``.

    Returns:
        The choice. Where no form fits into the bound it is matrix-free, which takes least.
    """
    limit = _core.memory_limit() if bound is None else float(bound)
    amplitudes = 2.0**circuit.num_wires
    angles = circuit.num_angles
    sweep = inputs * amplitudes * circuit.program.num_steps * _SWEEP
    rows = 2.0 * amplitudes * inputs  # real rows of the stacked derivative states
    tangents = (
        0.5 * angles * sweep
    )  # every tangent passes a quarter of the gates, and costs two states' work
    seconds: dict[Form, float] = {
        "dense": tangents + (rows * angles**2 / 2 + weights**3 / 6) * _FLOP,
        "dual": 2 * tangents + (rows**2 * weights / 2 + rows**3 / 6) * _FLOP,
        "matrix-free": iterations * (3 * sweep + _ITERATION),
    }
    states = 16.0 * amplitudes
    held: dict[Form, float] = {
        "dense": 8.0 * (angles**2 + 2.0 * weights**2) + 8 * states,
        "dual": 8.0 * rows * (weights + rows) + angles * states,
        "matrix-free": 24.0 * inputs * angles + 8 * states,
    }
    fitting: list[Form] = [name for name in seconds if held[name] <= limit]
    if not fitting:
        return Choice("matrix-free", seconds, held, limit, "no other form fits into the bound")
    best = min(fitting, key=lambda name: seconds[name])
    others = ", ".join(
        f"{name} {_time(seconds[name])}" + ("" if name in fitting else f" but {_size(held[name])}")
        for name in seconds
        if name != best
    )
    reason = (
        f"for {weights} weights, {circuit.num_wires} qubits and {inputs} input{'s' * (inputs != 1)} it is predicted to "
        f"take {_time(seconds[best])} and {_size(held[best])} of {_size(limit)} ({others})"
    )
    return Choice(best, seconds, held, limit, reason)


def _time(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds >= 0.1 else f"{1e3 * seconds:.2g} ms"


def _size(count: float) -> str:
    return f"{count / 1e9:.2g} GB" if count >= 1e8 else f"{count / 1e6:.2g} MB"
