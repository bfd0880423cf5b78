"""Variational time evolution: the weights of a circuit move so that its state follows a Hamiltonian."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from fubini.geometry.ansatz import Ansatz, ansatz
from fubini.geometry.device_ansatz import device_ansatz, device_of
from fubini.geometry.evolution_result import Evolution, times_of
from fubini.geometry.evolution_steps import METHODS, Bound, steps
from fubini.geometry.flow import Flow
from fubini.geometry.flow_shots import SampledFlow, evolve_sampled
from fubini.geometry.hamiltonians import hamiltonian_of
from fubini.geometry.operators import Terms, terms_of
from fubini.options import Real

# At most so many weight vectors are evaluated in one call of the kernel, and tangents of so many numbers.
_CHUNK, _NUMBERS = 64, 1 << 24
_TOLERANCE = 1e-6


def evolve(
    circuit: Any,
    weights: Any = None,
    times: Any = 1.0,
    *,
    hamiltonian: Any = None,
    coefficients: Any = None,
    time: Literal["real", "imaginary"] = "real",
    inputs: Any = None,
    batched: bool = False,
    observables: Any = None,
    method: str = "metric",
    tolerance: float = _TOLERANCE,
    step: float | None = None,
) -> Evolution:
    r"""Evolve the state of a circuit in real or imaginary time, by moving its weights.

    McLachlan's variational principle (Mol. Phys. 8, 39 (1964); for circuits Yuan et al., Quantum 3, 191 (2019),
    arXiv:1812.08767) makes :math:`\|\frac{d}{dt}|\psi(w)\rangle + iH|\psi\rangle\|` as small as the weights can, up to the
    global phase: :math:`g\dot w = b` with the Fubini-Study metric g and :math:`b_j =
    \mathrm{Im}\langle\partial_j\psi|P H|\psi\rangle`, :math:`P = 1 - |\psi\rangle\langle\psi|`. In imaginary time it is the
    natural-gradient flow :math:`g\dot w = -\nabla E / 2`. The time-dependent variational principle (TDVP, of
    Dirac and Frenkel or of the Lagrangian) agrees with it where :math:`i|\partial_j\psi\rangle` is itself a combination of
    tangents with real coefficients, as for complex parameters on which the state depends analytically; circuits have real
    angles and few of them do. Otherwise TDVP inverts the Berry curvature in the place of the metric, conserves the energy
    exactly, and has no residual as small as this.

    In every step the residual :math:`r^2 = \mathrm{Var} H - b^\top\dot w` says what the ansatz misses. What bounds
    the error is more: the distance of the path that was taken, with the integration's errors and those of the cut-off of
    singular metrics in it. The residual of the principle at the steps' points does not see these; a Runge-Kutta method
    with a fixed step exceeds the bound that is made of it alone. For the path
    :math:`w(t)`, :math:`\arccos|\langle\text{exact}|\psi\rangle| \le \int \|P(\frac{d}{dt} + iH)|\psi(w(t))\rangle\| dt`
    (as Martinazzo and Burghardt, Phys. Rev. Lett. 124, 150601 (2020), and Zoufal et al., arXiv:2108.00022, who have
    it for the exact solution of the principle), here by Gauss' rule with three points in every step: a bound up to the
    error of this rule, and nothing that is wrong by more than rounding is in it below about 1e-14. In imaginary time the
    exact evolution itself stretches distances, by at most :math:`\exp\int(E - E_\mathrm{min} + \ldots)dt`, which is in the
    bound.

    A circuit with shots, or on a device that returns no states, takes ``method="RK4"`` and a step. Metric and velocity are then
    estimated from fidelities, in imaginary time with shift rules, every circuit with the QNode's shots, and directions without a
    signal are left out, as :class:`fubini.SignalToNoise` does. The result has standard errors of its energies, observables and
    squared residuals, in ``energy_errors`` and so on, and ``usage``; it has no bound, for noise moves the weights as well. Each
    step is four velocities of, for P two-term angles and S words of H, 2 P (P - 1) + P + 4 P S circuits in real time; a device that
    fails loses the run, so that long ones are made of pieces, by ``extend``.

    Example::

        >>> import fubini, pennylane as qml, numpy as np
        >>> @qml.qnode(qml.device("default.qubit", wires=2))
        ... def energy(w):
        ...     qml.StronglyEntanglingLayers(w, wires=[0, 1])
        ...     return qml.expval(-qml.Z(0) @ qml.Z(1) - 0.9 * qml.X(0) - 0.9 * qml.X(1))
        >>> w = np.full((3, 2, 3), 0.2)
        >>> quench = fubini.evolve(energy, w, 1.0, observables={"Z": qml.Z(0)})
        >>> bool(quench.infidelity_bound[-1] < 1e-10), quench.observables["Z"][[0, -1]].round(4).tolist()
        (True, [0.8527, -0.0373])
        >>> ground = fubini.evolve(energy, w, 10.0, time="imaginary")
        >>> round(float(ground.energies[-1]), 6), round(-float(np.sqrt(1 + 4 * 0.9**2)), 6)
        (-2.059126, -2.059126)
        >>> noisy = qml.QNode(energy.func, qml.device("default.qubit", seed=0), shots=100)
        >>> cooled = fubini.evolve(noisy, w[:1], 0.5, time="imaginary", method="RK4", step=0.25)
        >>> bool(cooled.energies[-1] < cooled.energies[0]), cooled.shots, bool(np.isnan(cooled.angle_bound).all())
        (True, 100, True)

    Args:
        circuit: A QNode, ``fubini.compiled(qnode)``, a ``QuantumLayer`` or a ``fubini.Circuit``, without noise channels.
        weights: Where the evolution starts. Of a QNode its positional arguments: one array, or a tuple of several; of a layer
            None for its own; of a circuit its angles.
        times: When to stop; then the result has the time 0 and all steps. Or increasing times, the first of which the
            weights belong to; then the result has these, whatever the steps are. In units of 1 / energy.
        hamiltonian: Hermitian operator on the circuit's wires; a function from the time to one; or a list of operators with
            ``coefficients``. None: the circuit's own observable, of the one expectation value that it returns. A function of
            time is seen at the points of the steps alone: what it does between them, such as a pulse that is short beside the
            steps, is missed, in the bound as well. Evolve such a pulse by itself, or take ``"RK4"`` with a shorter step.
        coefficients: For a list of M operators: numbers (M,), or a function from the time to them. Rows of them, (B, M), are B
            trajectories.
        time: ``"real"`` or ``"imaginary"``, in which the state is normalised.
        inputs: What else the circuit needs: of a QNode a dictionary of its other arguments; of a layer with data one
            input (features,); of a circuit that takes an initial state its amplitudes.
        batched: Whether ``weights`` (each of them) have an axis of B trajectories in front. They share steps.
        observables: Hermitian operators whose expectation values are wanted: a dictionary, or a list, whose names are then
            "0", "1", ...
        method: ``"metric"``: adaptive, with the error measured by the metric, see :mod:`fubini.geometry.evolution_steps`;
            ``"RK4"`` with fixed steps; or one of SciPy's: ``"RK23"``, ``"RK45"``, ``"DOP853"``, ``"Radau"``, ``"BDF"``,
            ``"LSODA"``.
        tolerance: What the integration by ``"metric"`` may add to the state's error, as an angle in radians, and, once more,
            the cut-off of singular metrics, over the whole time. Where the circuit misses a residual r, the cut-off may add r / 100
            in quadrature to it, whatever the tolerance: along directions that hardly move the state, dw/dt is then some per cent
            smaller than the solution of the linear equations, which the bound includes. SciPy's methods take it for ``rtol`` and ``atol`` of
            the weights.
        step: Length of the steps of ``"RK4"``, which needs one; rounded so that they divide the time, with shots every
            interval between two times.

    Returns:
        The trajectory, with its bound of the error; ``extend`` goes on from there. With shots a
        :class:`fubini.geometry.evolution_result.SampledEvolution`, which has errors of its estimates instead.

    Raises:
        TypeError: For a circuit, operator or option of another kind.
        ValueError: For times that do not increase, weights that are NaN or infinite, data that are missing, an unknown name;
            for a Hamiltonian that is not Hermitian, or acts on other wires; with shots, for several trajectories, a
            ``tolerance``, or a method with adaptive steps.
        UnsupportedCircuitError: If the circuit can run neither natively nor by shifted gates: noise channels, mid-circuit
            measurements, gates without a generator.
        NumericalError: If no step is short enough.
    """
    if time not in ("real", "imaginary"):
        raise ValueError(f"time: expected 'real' or 'imaginary', got {time!r}")
    if method not in METHODS:
        raise ValueError(f"method: expected one of {', '.join(map(repr, METHODS))}, got {method!r}")
    _check_positive("tolerance", tolerance)
    if (method == "RK4") != (step is not None):
        needs = (
            "a length of the steps for" if method == "RK4" else "None, as only 'RK4' has one, for"
        )
        raise ValueError(f"step: expected {needs} method={method!r}, got {step!r}")
    if step is not None:
        _check_positive("step", step)
    moments, every = times_of(times)
    reason = device_of(circuit)
    if reason:
        _check_sampled(reason, batched, method)
        there = device_ansatz(circuit, weights, inputs)
        if there.shots is not None and tolerance != _TOLERANCE:
            raise ValueError(
                f"tolerance: expected none, as {reason}, and noise adds to the error what no tolerance bounds; got "
                f"{tolerance!r}; choose the shots and the step"
            )
        energy = hamiltonian_of(there, hamiltonian, coefficients, float(moments[0]))
        if energy.batch is not None:
            raise ValueError(f"coefficients: expected a row of numbers, {_ONE_BY_ONE}, as {reason}")
        assert step is not None
        sampled = SampledFlow(there, energy, time, tolerance)
        named = _observables(there, observables)
        return evolve_sampled(sampled, named, step, tolerance, there.weights[0], moments, every)
    start = ansatz(circuit, weights, inputs, batched)
    whole = moments[-1] - moments[0]
    given = hamiltonian_of(start, hamiltonian, coefficients, float(moments[0]))
    first = start.weights
    if given.batch is not None:
        if batched and given.batch != len(first):
            raise ValueError(
                f"coefficients: expected rows for the {len(first)} trajectories of weights, got {given.batch}"
            )
        first = np.repeat(first, given.batch, axis=0) if len(first) == 1 else first
    flow = Flow(start, given, time, tolerance / whole)
    watched = _observables(start, observables)
    single = not batched and given.batch is None
    bound = np.zeros(len(first))
    return _evolved(flow, watched, method, tolerance, step, single, first, bound, moments, every)


_ONE_BY_ONE = "for one trajectory; call evolve for each of them"


def _check_sampled(reason: str, batched: bool, method: str) -> None:
    """Raise a ValueError for options that make no sense where results are estimates."""
    if method != "RK4":
        raise ValueError(
            f"method: expected 'RK4' for a circuit on its device, as {reason}: adaptive steps need states, and would take noise for "
            f"their own error; got {method!r}; pass method='RK4', step=... in units of 1 / energy, such as 0.1"
        )
    if batched:
        raise ValueError(f"batched: expected False, {_ONE_BY_ONE}, as {reason}")


def _check_positive(name: str, value: Any) -> None:
    """Raise an error unless a value is a positive, finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise TypeError(f"{name}: expected a positive number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a positive number, got {value}")


def _observables(start: Ansatz, given: Any) -> dict[str, Terms]:
    """Return named observables as words on the circuit's wires."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        if not isinstance(given, list | tuple):
            raise TypeError(
                f"observables: expected a dictionary or a list of operators, got {type(given).__name__}"
            )
        given = {str(k): one for k, one in enumerate(given)}
    if len({str(name) for name in given}) < len(given):
        raise ValueError(f"observables: expected names that differ as text, got {list(given)}")
    return {
        str(name): terms_of(f"observables[{name!r}]", one, start.circuit)
        for name, one in given.items()
    }


def _evolved(
    flow: Flow,
    observables: dict[str, Terms],
    method: str,
    tolerance: float,
    step: float | None,
    single: bool,
    weights: Real,
    bound: Real,
    times: Real,
    every: bool,
) -> Evolution:
    """Return the evolution from weights (B, P) and a bound (B,) over the times; ``every``: at every step."""
    before, count = flow.evaluations, 0
    flow.allowed = tolerance / (times[-1] - times[0])
    error = Bound(flow, bound)
    kept = [(float(times[0]), weights, bound)]
    for one in steps(flow, weights, times[0], times[-1], method, tolerance, step):
        count += 1
        # Times that were asked for are as many as what is kept.
        stops = [one.end] if every else times[len(kept) : np.searchsorted(times, one.end, "right")]
        kept += [(t, at, error.angles) for t, at in error.along(one, stops)]
    moments, points, bounds = (np.array(rows) for rows in zip(*kept, strict=True))
    evaluations = flow.evaluations - before
    found: list[tuple[Real, ...]] = []
    numbers = (2 << flow.ansatz.circuit.num_wires) * flow.ansatz.size
    size = max(1, min(_CHUNK, _NUMBERS // numbers) // points.shape[1])
    for first in range(0, len(moments), size):
        some, at = points[first : first + size], moments[first : first + size]
        principle = flow.velocities(at, some)
        found.append(
            (
                flow.energies(at, some),
                principle.variances.reshape(some.shape[:2]),
                principle.residuals.reshape(some.shape[:2]),
                flow.expectations(some, list(observables.values())),
            )
        )
    columns = [*(np.concatenate(rows) for rows in zip(*found, strict=True)), points, bounds]
    if single:
        columns = [rows[:, 0] for rows in columns]
    energies, variances, residuals, values, flat, bounds = columns
    return Evolution(
        times=moments,
        weights=flow.ansatz.shaped(flat),
        energies=energies,
        variances=variances,
        residuals=residuals,
        angle_bound=bounds,
        observables={n: values[..., k] for k, n in enumerate(observables)},
        time=flow.time,
        method=method,
        evaluations=evaluations,
        steps=count,
        _flat=flat,
        _ansatz=flow.ansatz,
        _continue=partial(
            _evolved, flow, observables, method, tolerance, step, single, points[-1], error.angles
        ),
    )
