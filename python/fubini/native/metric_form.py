"""Which form of the full metric solves a system fastest: the matrix, a factor of it, or products alone.

The predictions are operation counts times rates measured on one core with 512-bit vectors, at 4 to 12 qubits, 36 to 3,000
weights and 1 to 32 inputs. There the matrix and the products are predicted to a factor of 1.5, the factor, whose memory
is the larger part of its time, to one of 3.
"""

from dataclasses import dataclass, field
from typing import Literal

from fubini import _core
from fubini.native.circuit import Circuit

Form = Literal["dense", "dual", "matrix-free"]

# Seconds per step and amplitude: of a tangent on its way to the others, and of a product, which sweeps forward and back;
# besides, whatever the number of amplitudes, per step.
_TANGENT, _TANGENT_STEP = 5.0e-11, 7.0e-9
_PRODUCT, _PRODUCT_STEP = 8.5e-10, 4.0e-8
# Seconds per multiply-add of a product of large matrices, per number that is written to memory, per iteration of
# conjugate gradients besides the product, also for each weight, and per call.
_FLOP = 2.5e-11
_WRITE = 3.0e-9
_ITERATION, _ITERATION_WEIGHT = 5.0e-5, 1.5e-7
_CALL = 2.5e-4


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
    iterations: int | None = None,
    bound: float | None = None,
) -> Choice:
    """Choose the form of a full metric, averaged over inputs, for one regularised solution.

    Args:
        circuit: The circuit.
        weights: Number of weights P.
        inputs: Number of inputs in the mean.
        iterations: Products that conjugate gradients are expected to take; None: as many as layered circuits took with
            damping 1e-3 to a relative residual of 1e-8, 14 times the root of P, at most 1.4 P and 300.
        bound: Bytes that may be used; None: the kernel's bound, see ``fubini.set_memory_limit``.

    Returns:
        The choice. Where no form fits into the bound it is matrix-free, which takes least.
    """
    limit = _core.memory_limit() if bound is None else float(bound)
    amplitudes = 2.0**circuit.num_wires
    angles = circuit.num_angles
    steps = float(inputs * circuit.program.num_steps)
    rows = 2.0 * amplitudes * inputs  # real rows of the stacked derivative states
    count = min(angles, weights)  # where gates share weights, a tangent is a weight's
    tangents = count * steps * (_TANGENT_STEP + amplitudes * _TANGENT)
    product = steps * (_PRODUCT_STEP + amplitudes * _PRODUCT)
    if iterations is None:
        iterations = round(min(14.0 * weights**0.5, 1.4 * weights, 300.0))
    iteration = product + _ITERATION + _ITERATION_WEIGHT * weights
    few, many = min(rows, weights), max(rows, weights)
    seconds: dict[Form, float] = {
        "dense": tangents + (rows * count**2 / 2 + weights**3 / 6) * _FLOP + _CALL,
        "dual": tangents
        + rows * weights * _WRITE
        + (few**2 * many / 2 + few**3 / 6) * _FLOP
        + _CALL,
        "matrix-free": iterations * iteration + 2 * _CALL,
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
