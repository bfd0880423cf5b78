r"""Capacity from Fisher information: what the results of a circuit are read as, and the effective dimension.

A circuit gives numbers; a Fisher information needs a distribution. :func:`reading` says which distribution the results
stand for and returns, for every input, factors S with the Fisher information :math:`F = S^T S` over the weights:

| reading | distribution | F |
|---|---|---|
| outcomes, probabilities | the measured outcomes y | sum_y dp_y dp_y^T / p_y |
| outcomes, an observable with two eigenvalues a < b | those two | df df^T / ((f - a) (b - f)) |
| a likelihood of :mod:`fubini.fisher.likelihoods` | -log p is the loss of one datum | J^T (Hessian of the loss) J |

Expectation values may have any sign: nothing is taken for a probability that is none. Results that are measured side by
side count as measured in runs of their own, so that their information adds up.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fubini.circuit.arguments import check_finite_array, real_numbers
from fubini.fisher.losses import as_likelihood
from fubini.native.measurements import Measurement
from fubini.options import Real

#: Results (X, M) and their derivatives (X, M, P) -> factors (X, K, P).
Reading = Callable[[Real, Real], Real]

# Outcomes that are less likely are impossible up to rounding: amplitudes have an error of 1e-16.
_IMPOSSIBLE = 1e-30
# Expectation values have an error of a few 1e-16, and so has their distance from an eigenvalue.
_CERTAIN = 1e-15
# Derivatives have an error of some 1e-16, and weights are angles.
_ZERO = 1e-28
# What float32 may leave of the symmetry and the sign of Fisher matrices, in units of the largest entry.
_ROUNDING = 1e-4


def reading(measurements: Sequence[Measurement], likelihood: Any) -> tuple[Reading, str]:
    """Return how results are read as a distribution.

    Args:
        measurements: Of the circuit.
        likelihood: ``"auto"``: the measured outcomes where the measurements say them, else Gaussian; ``"outcomes"``; or
            what :func:`fubini.fisher.losses.as_likelihood` takes.

    Returns:
        A function from results and derivatives to factors of the Fisher information, and what it assumes, in words.

    Raises:
        ValueError: For an unknown likelihood, one that depends on labels, or ``"outcomes"`` where outcomes are not said.
        TypeError: For a loss that has no likelihood.
    """
    if isinstance(likelihood, str) and likelihood in ("auto", "outcomes"):
        unknown = [m for m in measurements if m.kind != "probs" and _eigenvalues(m) is None]
        if not unknown:
            return _outcomes(measurements)
        if likelihood == "outcomes":
            raise ValueError(
                "likelihood: 'outcomes' needs probabilities, or expectation values of observables with two eigenvalues "
                f"(Pauli words, projectors), got {_words(unknown[0])}; measure qml.probs, or pass likelihood='gaussian' "
                "for numbers with noise"
            )
        likelihood = "gaussian"
    try:
        model = as_likelihood(likelihood)
    except ValueError as error:
        raise ValueError(f"{error}; or 'auto' or 'outcomes'") from None
    if getattr(model, "weight", None) is not None or getattr(model, "pos_weight", None) is not None:
        raise ValueError(
            "likelihood: expected one whose Fisher information does not depend on labels, got one with weights; leave the "
            "weights out"
        )
    datum = replace(model, reduction="sum")  # of one datum
    if measurements and all(m.kind == "probs" for m in measurements):
        seen = "the probabilities as outputs"
    else:
        seen = "the results as outputs"

    def read(results: Real, jacobian: Real) -> Real:
        columns = datum.columns(torch.from_numpy(np.ascontiguousarray(results))).numpy()
        found: Real = np.einsum("kxm,xmp->xkp", columns, jacobian, optimize=True)
        return found

    return (
        read,
        f"{seen} of a {model.name} likelihood, {_MEANINGS.get(model.name, 'as in its loss')}",
    )


_MEANINGS = {
    "gaussian": "numbers with noise of variance 1/2, as in MSELoss",
    "categorical": "classes with the probabilities softmax(f), as in CrossEntropyLoss",
    "bernoulli": "events with the probabilities sigmoid(f), as in BCEWithLogitsLoss",
    "poisson": "counts, as in PoissonNLLLoss",
}


def _eigenvalues(m: Measurement) -> tuple[float, float] | None:
    """The two eigenvalues of an observable that has no others."""
    if m.kind != "expval":
        return None
    if m.projector is not None:
        return 0.0, 1.0
    words = [(word, c) for word, _, c in m.terms if word.strip("I")]
    if len(words) != 1:
        return None
    shift = sum(c for word, _, c in m.terms if not word.strip("I"))
    size = abs(words[0][1])
    return shift - size, shift + size


def _words(m: Measurement) -> str:
    if m.kind != "expval":
        return f"a {m.kind} measurement"
    return f"an observable of {len(m.terms)} Pauli words" if m.terms else "a constant observable"


def _outcomes(measurements: Sequence[Measurement]) -> tuple[Reading, str]:
    columns: list[tuple[int, int, tuple[float, float] | None]] = []
    start = 0
    for m in measurements:
        columns.append((start, start + m.columns, _eigenvalues(m)))
        start += m.columns

    def read(results: Real, jacobian: Real) -> Real:
        scale = np.zeros_like(results)
        for first, last, ends in columns:
            f = results[:, first:last]
            if ends is None:
                information, least = f, _IMPOSSIBLE
            else:
                low, high = ends
                information, least = (f - low) * (high - f), _CERTAIN * (high - low) ** 2
            possible = information > least
            scale[:, first:last][possible] = information[possible] ** -0.5
        return jacobian * scale[:, :, None]

    kinds = {"probs" if ends is None else "two" for _, _, ends in columns}
    if kinds == {"probs"}:
        text = "the measured outcomes, with the probabilities that the circuit gives"
    elif kinds == {"two"}:
        text = (
            "outcomes of observables with two eigenvalues, whose means the expectation values are"
        )
    else:
        text = "the measured outcomes, with probabilities or the means of two eigenvalues"
    return read, text + (", each measurement in runs of its own" if len(columns) > 1 else "")


def fisher(results: Real, jacobian: Real, read: Reading) -> Real:
    """Return the Fisher information over the weights, averaged over the inputs, (T, P, P).

    Args:
        results: (T, X, M) of T weights and X inputs.
        jacobian: Their derivatives by the weights, (T, X, M, P).
        read: From :func:`reading`.
    """
    draws, inputs = results.shape[:2]
    flat = results.reshape(draws * inputs, -1)
    factors = read(flat, jacobian.reshape(draws * inputs, flat.shape[1], -1))
    rows = factors.reshape(draws, -1, factors.shape[-1])
    found: Real = rows.transpose(0, 2, 1) @ rows / inputs
    return (found + found.transpose(0, 2, 1)) / 2


def vanishes(fishers: Real) -> bool:
    """Return whether Fisher matrices (T, P, P) are zero up to rounding."""
    return not float(np.trace(fishers, axis1=1, axis2=2).mean()) > _ZERO


def normalised(eigenvalues: npt.NDArray[np.floating[Any]]) -> Real:
    """Return eigenvalues of Fisher matrices, scaled so that their mean trace is their number (Abbas et al. 2021, eq. 3).

    Args:
        eigenvalues: (T, P).

    Raises:
        ValueError: If all are zero: the results do not depend on the weights.
    """
    trace = float(eigenvalues.sum(axis=1).mean())
    if not trace > _ZERO:
        raise ValueError(
            "fishers: expected Fisher information that is not zero everywhere; the results do not depend on the weights"
        )
    return np.asarray(eigenvalues * (eigenvalues.shape[1] / trace), dtype=np.float64)


def effective_dimension(
    fishers: npt.ArrayLike, data: float | npt.ArrayLike, gamma: float = 1.0
) -> Any:
    r"""Return the effective dimension of a model from Fisher matrices at random weights.

    .. math::

        d = \frac{2}{\log \kappa} \log\Big(\frac1T \sum_t \sqrt{\det(1 + \kappa \hat F_t)}\Big), \quad
        \kappa = \frac{\gamma n}{2\pi \log n}, \quad \hat F_t = \frac{P}{\frac1T \sum_s \mathrm{tr} F_s} F_t.

    With weights drawn from the whole space it is the global effective dimension of Abbas et al. (2021, The power of
    quantum neural networks, arXiv:2011.00027, eq. 2), with weights from a ball around trained ones the local one (Abbas
    et al. 2021, arXiv:2112.04807). Divided by P it is normalised.

    Example:
        >>> import numpy as np, fubini
        >>> round(fubini.effective_dimension(np.eye(3)[None], data=1000), 3)
        3.041

    Args:
        fishers: (T, P, P), one for every draw of the weights, averaged over inputs.
        data: Number of data n, or several; more than 18 for gamma = 1, because kappa must be above 1.
        gamma: In (0, 1].

    Returns:
        A number, or an array of the shape of data.

    Raises:
        ValueError: If fishers have another shape, are not finite or are all zero, or kappa is not above 1.
    """
    matrices = real_numbers("fishers", fishers)
    if matrices.ndim != 3 or matrices.shape[1] != matrices.shape[2] or not matrices.size:
        raise ValueError(
            f"fishers: expected shape (draws, P, P), got {matrices.shape}; for one matrix F pass F[None]"
        )
    check_finite_array("fishers", matrices)
    asymmetry = float(np.abs(matrices - matrices.swapaxes(1, 2)).max())
    if asymmetry > _ROUNDING * float(np.abs(matrices).max()):
        raise ValueError(
            f"fishers: expected symmetric matrices, got a difference of {asymmetry:.3g} from the transpose"
        )
    lowest = np.linalg.eigvalsh(matrices)
    if lowest.min() < -_ROUNDING * np.abs(lowest).max():
        raise ValueError(
            f"fishers: expected no negative eigenvalues, got {lowest.min():.3g}; Fisher matrices have none"
        )
    values = np.maximum(normalised(lowest), 0.0)  # they are not negative but for rounding
    numbers = real_numbers("data", data)
    found = [_of_eigenvalues(values, float(n), gamma) for n in numbers.reshape(-1)]
    return found[0] if not numbers.ndim else np.array(found).reshape(numbers.shape)


def check_data(data: float, gamma: float) -> float:
    """Return kappa for a number of data.

    Args:
        data: n.
        gamma: As for :func:`effective_dimension`.

    Raises:
        ValueError: If it is not above 1.
    """
    if not isinstance(gamma, int | float | np.number) or not 0.0 < gamma <= 1.0:
        raise ValueError(f"gamma: expected a number in (0, 1], got {gamma!r}")
    kappa = gamma * data / (2 * math.pi * math.log(data)) if 1.0 < data < math.inf else 0.0
    if not (kappa > 1.0 and data > math.e):
        raise ValueError(
            f"data: expected so many that gamma n / (2 pi log n) is above 1 (19 or more for gamma = 1), got {data!r} "
            f"with gamma {gamma!r}"
        )
    return kappa


def _of_eigenvalues(values: Real, data: float, gamma: float) -> float:
    kappa = check_data(data, gamma)
    logs = np.log1p(kappa * values).sum(axis=1) / 2
    top = logs.max()
    mean = top + math.log(float(np.exp(logs - top).mean()))
    return float(2.0 * mean / math.log(kappa))
