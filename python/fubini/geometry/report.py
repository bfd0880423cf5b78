"""Is a circuit trainable, and what can it represent? A report before training.

Trainability: the variance of gradients over random weights and how it falls with the number of qubits (McClean et al. 2018,
Barren plateaus in quantum neural network training landscapes, arXiv:1803.11173; Cerezo et al. 2021, arXiv:2001.00550, for
global and local cost functions). Capacity: rank of the metric (Haug, Bharti, Kim 2021, arXiv:2102.01659), the spectrum of
the Fisher information, and the effective dimension (Abbas et al. 2021, arXiv:2011.00027 and arXiv:2112.04807).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.circuit.arguments import real_numbers
from fubini.geometry.capacity import Reading, check_data, fisher, reading
from fubini.geometry.report_model import Model, Weights, model_of, of_family
from fubini.geometry.report_result import Report
from fubini.geometry.trend import GradientMoments, GradientVariance, trend
from fubini.metric.compiled_qnode import CompiledQNode
from fubini.options import Real
from fubini.runtime import check_fits

# The rank of the metric is the same almost everywhere, so that some of the draws tell it.
METRIC_DRAWS = 10


def report(
    model: Any,
    inputs: Any = None,
    *,
    weights: Weights | None = None,
    sizes: Sequence[int] | None = None,
    likelihood: Any = "auto",
    data: int = 1000,
    gamma: float = 1.0,
    radius: float | None = None,
    draws: int = 100,
    seed: int = 0,
    init_method: Any = None,
) -> Report:
    """Report on the trainability and the capacity of a circuit, over random weights.

    Variance of gradients by McClean et al. (2018, arXiv:1803.11173), effective dimension by Abbas et al. (2021,
    arXiv:2011.00027).

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def circuit(inputs, w):
        ...     qml.AngleEmbedding(inputs, wires=range(2))
        ...     qml.StronglyEntanglingLayers(w, wires=range(2))
        ...     return qml.probs(wires=0)
        >>> x = torch.linspace(-1, 1, 20).reshape(10, 2)
        >>> found = fubini.report(circuit, x, weights={"w": (2, 2, 3)})
        >>> found.rank, found.size, len(found.redundant)
        (10, 12, 2)
        >>> print(f"{found.effective_dimension(1000):.1f} of {found.size}")
        3.7 of 12
        >>> figure = found.plot()  # needs matplotlib

    Args:
        model: A QuantumLayer, TorchLayer or QNode (in one argument the data, in the others weights), on an exact simulator;
            or a family: a function of the number of qubits that returns a layer or a pair ``(qnode, weights)``.
        inputs: Data, (features,) or (..., features); for a family, a function of the number of qubits may give it. None for
            circuits without data.
        weights: For a QNode, the shape of every weight by name, as for ``QuantumLayer``, or its values, around which
            the local effective dimension is taken; for a layer, values instead of its own.
        sizes: For a family: numbers of qubits, for the trend of the gradients. Everything else is about the largest.
        likelihood: What the results are read as: ``"outcomes"``, ``"categorical"``, ``"bernoulli"``, ``"gaussian"``, a
            loss of torch or a likelihood. ``"auto"``: outcomes for probabilities, Pauli words and projectors, else Gaussian.
        data: Number of data n at which the page states effective dimensions; the object has every other.
        gamma: Of the effective dimension, in (0, 1].
        radius: Of the ball of the local effective dimension, in radians; None: 1 / sqrt(data), the least that its theory
            allows.
        draws: Number of random weights, at least 2; the metric is evaluated at the first 10.
        seed: Of the draws; torch's generator is left as it is.
        init_method: As for ``QuantumLayer``: how weights are drawn; None: uniform in [0, 2 pi).

    Returns:
        The report; ``print`` shows a page, ``plot()`` a picture.

    Raises:
        TypeError: If an argument is of another kind.
        ValueError: If arguments do not fit together, or are not finite.
        UnsupportedCircuitError: For shots and noise.
        MemoryError: If the Fisher matrices do not fit.
    """
    _check_count("draws", draws, 2)
    _check_count("seed", seed, 0)
    check_data(float(real_numbers("data", data)), gamma)
    if radius is not None and not 0.0 < float(real_numbers("radius", radius)) < math.inf:
        raise ValueError(f"radius: expected a finite number above 0, got {radius!r}")
    smaller: list[tuple[int, GradientVariance]] = []
    one = isinstance(model, qml.QNode | CompiledQNode | torch.nn.Module)
    if callable(model) and not one:
        found, smaller = _family(model, inputs, weights, sizes, draws, seed, init_method)
    else:
        if sizes is not None:
            raise ValueError(
                f"sizes: expected None for one circuit, got {sizes!r}; pass a function of the number of qubits as model"
            )
        found = model_of(model, inputs, weights)
    read, text = reading(found.measurements, likelihood)
    drawn = found.draws(draws, seed, init_method)
    at_once = 4.0 * len(found.inputs) * found.outputs * found.size
    check_fits(
        f"{draws} Fisher matrices of {found.size} weights, and {len(found.inputs)} Jacobians",
        2.0 * draws * found.size**2 + at_once,
        "take fewer draws or inputs",
    )
    moments = GradientMoments()
    fishers = _fishers(found, drawn, read, moments)
    gradients = moments.variance()
    course = None
    if sizes is not None:
        every = [*smaller, (max(int(n) for n in sizes), gradients)]
        course = trend([n for n, _ in every], [v for _, v in every])
    reach = 1.0 / math.sqrt(data) if radius is None else float(radius)
    local = None
    if found.known:
        local = _fishers(found, found.ball(draws, reach, seed), read)
    return Report(
        name=getattr(found.layer.qnode.func, "__name__", "circuit"),
        wires=found.wires,
        labels=found.labels,
        inputs=len(found.inputs) if found.layer.input_arg is not None else 0,
        results=found.outputs,
        likelihood=text,
        metrics=np.array([found.metric(row) for row in drawn[:METRIC_DRAWS]]),
        gradients=gradients,
        trend=course,
        fisher=fishers,
        local_fisher=local,
        data=data,
        gamma=gamma,
        radius=reach,
    )


def _fishers(
    model: Model, weights: Real, read: Reading, moments: GradientMoments | None = None
) -> Real:
    found = []
    for results, jacobian in model.linearised(weights):
        found.append(fisher(results, jacobian, read))
        if moments is not None:
            moments.add(jacobian)
    return np.concatenate(found)


def _family(
    family: Callable[[int], Any],
    inputs: Any,
    weights: Any,
    sizes: Sequence[int] | None,
    draws: int,
    seed: int,
    init_method: Any,
) -> tuple[Model, list[tuple[int, GradientVariance]]]:
    """The largest circuit, and the gradients of the others."""
    if weights is not None:
        raise ValueError(
            "weights: expected None for a family, whose function returns (qnode, weights) or a layer"
        )
    if sizes is None or not len(sizes):
        raise ValueError(
            "sizes: expected numbers of qubits for a family, such as sizes=(2, 4, 6), got none; for a plain quantum function "
            "pass qml.QNode(function, device)"
        )
    for n in sizes:
        _check_count("sizes", n, 1)
    every = sorted({int(n) for n in sizes})
    smaller = []
    for n in every[:-1]:
        one = of_family(family, n, inputs)
        moments = GradientMoments()
        for _, jacobian in one.linearised(one.draws(draws, seed, init_method)):
            moments.add(jacobian)
        smaller.append((n, moments.variance()))
    return of_family(family, every[-1], inputs), smaller


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}: expected an integer of at least {least}, got {value!r}")
