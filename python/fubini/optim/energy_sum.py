"""The energies of a step: what they are at other weights, and of which multiple of their sum the loss is."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.energies.problem import EnergyProblem
from fubini.errors import NumericalError, UnsupportedCircuitError
from fubini.optim.affine import is_affine
from fubini.optim.proposal import Proposal
from fubini.options import Real

Tensor = torch.Tensor

_CAST = 8.0 * float(np.finfo(np.float32).eps)  # error of gradients by a cast to float32
#: What a circuit that is no energy is told.
REMEDY = "; take metric='quantum', which fits any loss, or metric='fisher' with loss="


@dataclass(eq=False)
class Term:
    """An energy that is a part of the loss, at the weights of a step.

    Attributes:
        problem: The energy over its weights.
        x: The weights that move, (W,).
        jacobian: Their derivative by the parameters, (W, P); None where they are the parameters.
        count: How many passes evaluated it.
        now: Returns the weights as they are now, (W,), or None where that takes another forward pass.
    """

    problem: EnergyProblem
    x: Real
    jacobian: Real | None
    count: int
    now: Callable[[], Real | None]

    def pulled(self, gradient: Real) -> Real:
        """A gradient by the weights as one by the parameters."""
        return self.count * (gradient if self.jacobian is None else gradient @ self.jacobian)

    def pulled_both(self, matrix: Real) -> Real:
        """A matrix over the weights as one over the parameters."""
        jacobian = self.jacobian
        return self.count * (matrix if jacobian is None else jacobian.T @ matrix @ jacobian)

    def product(self, v: Real) -> Real:
        """The curvature times a vector over the parameters."""
        pushed = v if self.jacobian is None else self.jacobian @ v
        return self.pulled(self.problem.curvature_product(self.x, pushed))

    @property
    def rounding(self) -> float:
        """Of its gradient, in units of the precision."""
        length = 1.0 if self.jacobian is None else max(1.0, float(np.linalg.norm(self.jacobian)))
        return self.count * self.problem.magnitude * length * math.sqrt(len(self.x))


@dataclass(eq=False)
class EnergySum:
    """What the energies of all units have together.

    Attributes:
        energy: Their sum.
        gradients: Theirs by each parameter, flat.
        terms: They themselves.
    """

    energy: float = 0.0
    gradients: dict[Tensor, Real] = field(default_factory=dict)
    terms: list[Term] = field(default_factory=list)

    def factor(
        self, moving: Sequence[Tensor], loss: float | None, result: Any, before: float
    ) -> float:
        """Return the number c with loss = c times the energy, plus a number.

        Args:
            moving: The parameters whose gradients say so.
            loss: As a number, if it is known.
            result: The same as the closure returned it.
            before: c in the step before.

        Raises:
            NumericalError: If the energy is not finite.
            UnsupportedCircuitError: If gradients or loss say that there is none.
        """
        known = [p for p in moving if p.grad is not None and p in self.gradients]
        eps = max((torch.finfo(p.dtype).eps for p in known), default=0.0)
        g = np.concatenate([np.zeros(0), *(self.gradients[p] for p in known)])
        given = np.concatenate([np.zeros(0), *(to_numpy(p.grad).reshape(-1) for p in known)])
        rounding = sum(term.rounding for term in self.terms)
        share, floor = math.sqrt(eps), 64.0 * eps * rounding
        # By a cast to float32, of the weights as well.
        if np.array_equal(given, given.astype(np.float32)):
            share, floor = max(share, _CAST), max(floor, _CAST * rounding)
        if not np.isfinite(g).all() or not math.isfinite(self.energy):
            raise NumericalError(
                "metric: expected a finite energy and gradient, got NaN or infinity"
            )
        length, size = float(np.linalg.norm(g)), float(np.linalg.norm(given))
        energy = self.energy
        ratio = None if loss is None or energy == 0.0 else loss / energy
        if length <= floor:  # nothing but rounding
            doubt = math.inf
            factor = -1.0 if float(g @ given) < 0.0 else 1.0
            likely = [c for c in (before, ratio) if c is not None]
            factor = next((c for c in likely if floor < size <= abs(c) * floor), factor)
        else:
            doubt = share + floor / length  # near a minimum the gradients say little
            factor = float(g @ given) / length**2
            if abs(abs(factor) - 1.0) <= doubt:
                factor = math.copysign(1.0, factor)
            elif ratio is not None and abs(ratio - factor) <= doubt * abs(factor):
                factor = ratio
        floor *= max(1.0, abs(factor))
        error = float(np.linalg.norm(given - factor * g))
        if error > share * size + 2.0 * floor:
            raise UnsupportedCircuitError(
                "metric: expected gradients that are a multiple of the energy's with 'energy', got others "
                f"(relative difference {error / max(size, 1e-300):.1e}), as from a loss with further terms, "
                "from several energies with different factors, changed by hand, or rounded where weights are cast to a "
                "narrower dtype; sum all terms in one observable, keep the weights' dtype" + REMEDY
            )
        whole, near = factor * energy, min(doubt, 0.1)
        multiple = loss is not None and (
            abs(loss - whole) <= near * (abs(loss) + abs(whole)) + floor
        )
        if abs(factor) != 1.0 and not multiple and not is_affine(result):
            got = "unknown without a closure" if loss is None else f"{loss:g}"
            raise UnsupportedCircuitError(
                f"metric: expected a loss that is the energy, {self.energy:g}, or a number times it, plus a number, with "
                f"'energy', got {got} with gradients {factor:g} times the energy's, as from another function of it; call "
                "backward on the energy itself, with factors in the observable; for others than 1 and -1 the loss has to be seen: "
                "step(closure), with a closure that returns it" + REMEDY
            )
        return factor


class EnergyJudge:
    """Evaluates an energy at changed parameters by the kernel alone, instead of the closure; see ``Judge``.

    Args:
        terms: What it is the sum of.
        energy: Before the step.
        factor: Of the function that is to fall.
    """

    forward_only = True

    def __init__(self, terms: Sequence[Term], energy: float, factor: float) -> None:
        self._terms, self._energy, self._factor = terms, energy, factor

    def objective(self, loss: float) -> float:
        """Return what is to fall, before the step.

        Args:
            loss: Not needed.
        """
        return self._factor * self._energy

    def at(self, proposal: Proposal, factor: float) -> float:
        """Return what is to fall after a multiple of a change; the parameters stay there.

        Args:
            proposal: Whose parameters are saved.
            factor: Multiplies its change.
        """
        proposal.apply(factor)
        energy = 0.0
        for term in self._terms:
            x = term.now()
            assert x is not None
            energy += term.count * term.problem.energy(x)
        return self._factor * energy
