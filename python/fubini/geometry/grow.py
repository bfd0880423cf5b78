"""Growing a circuit, one operation of a pool after the other: for ground states (ADAPT-VQE) and along an evolution."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.arrays import to_numpy
from fubini.circuit.arguments import check_finite_array, real_numbers
from fubini.geometry.flow import Time
from fubini.geometry.grow_evolution import Course
from fubini.geometry.grown import Grown, Growth
from fubini.geometry.minimise import minimise
from fubini.geometry.operators import spectral_bound
from fubini.geometry.pool import Chain, Element, Pool, Start, pool_of
from fubini.geometry.scores import PoolScores, Score, first_best, scores
from fubini.options import Real

#: (energy, weights) -> weights, with the energy a torch function of the weights.
Optimize = Callable[[Callable[[Any], Any], Any], Any]


def grow(
    hamiltonian: Any,
    pool: Sequence[Any],
    start: Start | Grown | None = None,
    *,
    times: Any = None,
    time: Time = "real",
    score: Score | None = None,
    tolerance: float | None = None,
    max_operations: int = 100,
    optimize: Optimize | None = None,
) -> Grown:
    r"""Grow a circuit from a pool of operations.

    Without times, for the ground state: the candidate with the largest gradient is added, all weights are optimised, and so
    on until the norm of the pool's gradients is below the tolerance (ADAPT-VQE, Grimsley, Economou, Barnes, Mayhall 2019,
    arXiv:1812.11173). With times, along the evolution of the start's state by McLachlan's principle: whenever the residual
    is above the tolerance, the candidate that lowers it most is added with the weight 0 (adaptive variational quantum
    dynamics, Yao et al. 2021, arXiv:2011.00622; in imaginary time Gomes et al. 2021, arXiv:2102.01544); steps and bound are
    those of :func:`fubini.evolve`.

    Example:
        >>> import fubini, pennylane as qml
        >>> H = qml.Z(0) @ qml.Z(1) + 0.5 * (qml.X(0) + qml.X(1))
        >>> pool = [qml.RY(0.0, 0), qml.RY(0.0, 1), qml.PauliRot(0.0, "XY", [0, 1]), qml.PauliRot(0.0, "YX", [0, 1])]
        >>> found = fubini.grow(H, pool, lambda: qml.X(0))
        >>> round(found.energy, 6), [op.name for op in found.operations]
        (-1.414214, ['RY', 'RY', 'PauliRot'])
        >>> print(qml.draw(found.qnode())(found.weights))
        0: ──X─────────RY(0.79)─╭RXY(1.57)─┤ ╭<𝓗(0.50)>
        1: ──RY(0.00)───────────╰RXY(1.57)─┤ ╰<𝓗(0.50)>

    Args:
        hamiltonian: A Hermitian operator on wires of the start and the pool.
        pool: Operations with one parameter, whose value does not matter, that are the identity where it is 0: rotations,
            ``qml.PauliRot``, ``qml.SingleExcitation``, ``qml.FermionicDoubleExcitation``, ``qml.evolve(generator, 0.0)``.
        start: A quantum function without arguments that prepares the first state; None: |0...0>; or what ``grow`` returned
            before, to go on from there.
        times: Rising times, from the start's on, for an evolution by exp(-i H t); None for the ground state.
        time: In time: ``"real"`` or ``"imaginary"``.
        score: What decides, see :mod:`fubini.geometry.scores`; None: ``"gradient"``, in time ``"gain"``, in real time
            nothing else.
        tolerance: Where to stop, default 1e-3: norm of the gradients of the pool, in units of the Hamiltonian; in time the
            McLachlan residual, likewise.
        max_operations: As many are added at most.
        optimize: Instead of Newton's method for ground states: a function of the energy, itself a torch function of the weights,
            and of first weights, that returns weights.

    Returns:
        The circuit and its history; ``print`` shows them.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If arguments do not fit together, or are NaN or infinite.
        UnsupportedCircuitError: If the engine does not know an operation.
    """
    _check(times, time, score, tolerance, max_operations)
    found, elements, weights = _begun(hamiltonian, pool, start)
    bound = 1e-3 if tolerance is None else float(tolerance)
    if times is None:
        kind = score or "gradient"
        return _ground(hamiltonian, found, elements, weights, kind, bound, max_operations, optimize)
    if optimize is not None:
        raise ValueError(
            "optimize: expected None in time, where weights follow an equation of motion"
        )
    moments = real_numbers("times", times)
    course = Course(found, elements, weights, time, score or "gain", bound, max_operations)
    course.follow(moments)
    trajectory = np.zeros((len(moments), len(course.elements)))
    for row, kept in zip(trajectory, course.kept, strict=True):
        row[: len(kept)] = kept
    return Grown(
        hamiltonian,
        trajectory[-1],
        found.chain(course.elements, True).energy(trajectory[-1]),
        tuple(course.history),
        course.failure or f"the residual stayed near or below {bound:.2g}",
        moments,
        trajectory,
        np.array(course.residuals),
        np.array(course.angles),
        _pool=found,
        _elements=tuple(course.elements),
    )


def pool_scores(
    hamiltonian: Any,
    pool: Sequence[Any],
    start: Start | Grown | None = None,
    *,
    time: Time = "imaginary",
) -> PoolScores:
    """Return what every candidate of a pool would gain a circuit, from one call of the engine (Grimsley et al. 2019).

    Example:
        >>> import fubini, pennylane as qml
        >>> pool = [qml.RX(0.0, 0), qml.RY(0.0, 0), qml.RZ(0.0, 0)]
        >>> found = fubini.pool_scores(qml.X(0), pool)
        >>> [round(float(g), 3) + 0.0 for g in found.gradients], found.best()
        ([0.0, 1.0, 0.0], 1)

    Args:
        hamiltonian: As for :func:`grow`, like pool and start.
        pool: As there.
        start: As there.
        time: The residual's: ``"imaginary"``, towards lower energy, or ``"real"``, in time.

    Returns:
        Gradients, lengths and gains.

    Raises:
        TypeError: As for :func:`grow`.
        ValueError: As there.
        UnsupportedCircuitError: As there.
    """
    _check_word("time", time, ("real", "imaginary"))
    found, elements, weights = _begun(hamiltonian, pool, start)
    return scores(found.chain([*elements, *found.elements]), weights, found, time)


def _begun(
    hamiltonian: Any, pool: Sequence[Any], start: Start | Grown | None
) -> tuple[Pool, list[Element], Real]:
    """The pool behind the start; the elements and weights of a circuit that was grown before."""
    if not isinstance(start, Grown):
        return pool_of(pool, hamiltonian, start), [], np.zeros(0)
    wires = [qml.Identity(w) for w in start.wires]
    found = pool_of(pool, hamiltonian, start._pool.start.function, wires)
    if found.start.state is not None and found.wires != start.wires:
        raise ValueError(
            f"start: expected a circuit on the wires {list(found.wires)} of the pool, because it begins with a state vector, "
            f"got one on {list(start.wires)}; prepare the state on all of them"
        )
    return found, list(start._elements), start.weights.copy()


def _ground(
    hamiltonian: Any,
    pool: Pool,
    elements: list[Element],
    weights: Real,
    score: Score,
    tolerance: float,
    most: int,
    optimize: Optimize | None,
) -> Grown:
    scale = max(1e-300, spectral_bound(pool.terms))
    history: list[Growth] = []
    chain = pool.chain(elements, True)
    if len(elements):
        weights = _optimised(chain, weights, scale, optimize)
    energy = chain.energy(weights)
    while True:
        gradients = pool.gradients(chain.state(weights))
        norm = float(np.linalg.norm(gradients))
        if norm <= tolerance:
            reason = f"the pool's gradients have the norm {norm:.2g}, below {tolerance:.2g}"
            break
        if len(history) >= most:
            reason = (
                f"{most} operations were added, and the pool's gradients have the norm {norm:.2g}"
            )
            break
        if score == "gradient":  # one sweep tells them all
            values = np.abs(gradients)
            chosen = first_best(values)
        else:
            everything = pool.chain([*elements, *pool.elements])
            every = scores(everything, weights, pool, "imaginary")
            values, chosen = every.by(score), every.best(score)
        longer = [*elements, pool.elements[chosen]]
        following = pool.chain(longer, True)
        there = _optimised(following, np.append(weights, 0.0), scale, optimize)
        lower = following.energy(there)
        if lower > energy - 1e-14 * scale:
            reason = f"the best candidate, {pool.elements[chosen].operation.name}, no longer lowers the energy"
            break
        elements, chain, weights, energy = longer, following, there, lower
        history.append(
            Growth(pool.elements[chosen].operation, chosen, float(values[chosen]), norm, energy)
        )
    return Grown(
        hamiltonian,
        weights,
        energy,
        tuple(history),
        reason,
        _pool=pool,
        _elements=tuple(elements),
    )


def _optimised(chain: Chain, weights: Real, scale: float, optimize: Optimize | None) -> Real:
    if optimize is None:
        return minimise(chain, weights, scale)
    if not callable(optimize):
        raise TypeError(
            f"optimize: expected a function of the energy and of weights, got {type(optimize).__name__}"
        )
    given = optimize(partial(_ChainEnergy.apply, chain), torch.from_numpy(weights.copy()))
    found = real_numbers("optimize", given).reshape(-1)
    if found.shape != weights.shape:
        raise ValueError(
            f"optimize: expected it to return {len(weights)} weights, got the shape {np.shape(given)}"
        )
    check_finite_array("optimize", found)
    return found


class _ChainEnergy(torch.autograd.Function):
    """The energy of a chain as a torch function of the weights (P,), differentiable once."""

    @staticmethod
    def forward(ctx: Any, chain: Chain, weights: torch.Tensor) -> torch.Tensor:
        ctx.chain, ctx.weights = chain, to_numpy(weights)
        return weights.new_tensor(chain.energy(ctx.weights))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, cotangent: torch.Tensor) -> Any:
        gradient = torch.from_numpy(ctx.chain.gradient(ctx.weights))
        return None, cotangent * gradient.to(cotangent)


def _check(times: Any, time: Any, score: Any, tolerance: Any, max_operations: Any) -> None:
    _check_word("time", time, ("real", "imaginary"))
    if score is not None:
        _check_word("score", score, ("gradient", "natural", "gain"))
    if tolerance is not None and not 0.0 < tolerance < np.inf:
        raise ValueError(f"tolerance: expected a finite number above 0, got {tolerance!r}")
    if isinstance(max_operations, bool) or not isinstance(max_operations, int | np.integer):
        raise TypeError(f"max_operations: expected an integer, got {max_operations!r}")
    if max_operations < 0:
        raise ValueError(f"max_operations: expected 0 or more, got {max_operations}")
    if times is None:
        return
    if time == "real" and score not in (None, "gain"):
        raise ValueError(
            f"score: expected 'gain' in real time, which goes along no gradient of the energy, got {score!r}"
        )
    values = real_numbers("times", times)
    check_finite_array("times", values)
    if values.ndim != 1 or len(values) < 2 or not (np.diff(values) > 0.0).all():
        raise ValueError(
            f"times: expected two or more that rise, such as numpy.linspace(0, 1, 11), got {np.asarray(values).tolist()}"
        )


def _check_word(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, known))}, got {value!r}")
