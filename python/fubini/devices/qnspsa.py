"""The metric from a few fidelities, for any number of weights: simultaneous perturbations and their running mean.

Gacon, Zoufal, Carleo and Woerner (2021), arXiv:2103.09232: with random signs h1, h2 and
dF = F(e h1 + e h2) - F(e h1) - F(-e h1 + e h2) + F(-e h1) of fidelities F with the circuit at shifted weights,
-dF / (8 e^2) (h1 h2^T + h2 h1^T) has the metric as its mean, up to O(e^2).
"""

import numpy as np

from fubini.circuit.tape import GateTape
from fubini.devices.block_metric import refuse_channels
from fubini.devices.full_metric import fidelities_job
from fubini.devices.job import Job
from fubini.devices.shifts import check_shots
from fubini.errors import NumericalError
from fubini.options import Real, check_number


class QNSPSA:
    """Estimates of the metric over the weights, averaged over the steps of a training.

    Args:
        resamplings: Pairs of random directions of every estimate.
        step: e, in the units of the weights. Smaller is less biased; with shots, larger is less noisy.
        regularisation: beta, see :meth:`metric`.
        seed: Of the directions.

    Attributes:
        mean: Running mean of all estimates, (P, P); None before the first.
        count: How many there were.

    Raises:
        ValueError: For numbers out of range.
    """

    def __init__(
        self,
        *,
        resamplings: int = 1,
        step: float = 0.01,
        regularisation: float = 1e-3,
        seed: int | None = None,
    ) -> None:
        if resamplings < 1 or int(resamplings) != resamplings:
            raise ValueError(f"resamplings: expected an integer >= 1, got {resamplings!r}")
        if not 0 < step < np.inf:
            raise ValueError(f"step: expected a finite number > 0, got {step!r}")
        check_number("regularisation", regularisation)
        self._resamplings, self._step, self._beta = resamplings, step, regularisation
        self._random = np.random.default_rng(seed)
        self.mean: Real | None = None
        self.count = 0
        self._squares: Real | None = None  # sums of squared deviations from the mean (Welford)

    def job(self, tape: GateTape, *, shots: int | None = None) -> Job[Real]:
        """Return the job that makes one estimate, averaged over the inputs; :meth:`update` takes it.

        It runs 4 circuits, twice as deep, for every resampling and input, whatever the number of weights.

        Args:
            tape: The circuit, without channels.
            shots: Of every circuit; None for exact fidelities.

        Returns:
            The job; its result is (P, P). The directions are drawn now, so that a repeated run has the same circuits.
        """
        check_shots(shots)
        refuse_channels(tape)
        count, e = self._resamplings, self._step
        size = tape.jacobian.shape[2]
        first, second = self._random.choice([-1.0, 1.0], size=(2, count, size))
        moves = np.stack([first + second, first, second - first, -first])  # (4, count, weights)
        # Near a fidelity's maximum only the first order of angles(weights) enters its second derivatives.
        angles = e * np.einsum("baw,scw->scba", tape.jacobian, moves)
        rows = tape.rows
        settings = (tape.at + angles).reshape(4 * count, rows, -1)

        def estimate(fidelities: Real) -> Real:
            f = fidelities.reshape(4, count, rows).mean(axis=2)
            difference = f[0] - f[1] - f[2] + f[3]
            outer = first[:, :, None] * second[:, None, :]
            outer = outer + np.swapaxes(outer, 1, 2)
            result: Real = np.tensordot(-difference / (8.0 * e * e), outer, axes=1)
            return result / count

        return fidelities_job(tape, settings, shots).then(estimate)

    def update(self, estimate: Real) -> None:
        """Take an estimate into the running mean.

        Args:
            estimate: (P, P).

        Raises:
            NumericalError: If it is not finite.
        """
        if not np.isfinite(estimate).all():
            raise NumericalError("estimate: expected finite numbers, got NaN or infinity")
        self.count += 1
        if self.mean is None or self._squares is None:
            self.mean, self._squares = np.array(estimate), np.zeros_like(estimate)
            return
        before = estimate - self.mean
        self.mean = self.mean + before / self.count
        self._squares = self._squares + before * (estimate - self.mean)

    @property
    def errors(self) -> Real:
        """Standard errors of ``mean``, from the spread of the estimates; infinite before the second."""
        if self._squares is None or self.count < 2:
            return np.full((1, 1) if self.mean is None else self.mean.shape, np.inf)
        result: Real = np.sqrt(self._squares / (self.count * (self.count - 1)))
        return result

    def metric(self) -> Real:
        """Return a positive metric, (|mean| + beta I) / (1 + beta), with the absolute values of the eigenvalues.

        Returns:
            (P, P).

        Raises:
            ValueError: If there was no estimate yet.
        """
        if self.mean is None:
            raise ValueError(
                "metric: expected at least one estimate, got none; run a job and update() first"
            )
        eigenvalues, vectors = np.linalg.eigh(self.mean)
        values = (np.abs(eigenvalues) + self._beta) / (1.0 + self._beta)
        result: Real = (vectors * values) @ vectors.T
        return 0.5 * (result + result.T)
