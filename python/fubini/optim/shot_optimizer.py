"""Quantum natural gradient for an expectation value that is estimated from shots."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml
import torch

from fubini.circuit.angles import gate_tape
from fubini.circuit.tape import GateTape
from fubini.devices.block_metric import metric_job
from fubini.devices.executor import Executor, executor_of
from fubini.devices.job import Job, together
from fubini.devices.shifts import gradient_job
from fubini.devices.signal_to_noise import (
    Direction,
    Split,
    snr_direction,
    split_shots,
    variance_ratio,
)
from fubini.devices.usage import Usage
from fubini.optim.checks import check_count, listed
from fubini.options import LayerRule, check_number, check_rule
from fubini.torch_private import uncompiled

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StepReport:
    """What a step did.

    Attributes:
        gradient: (P,), zero for weights that were left out.
        gradient_errors: Their standard errors.
        direction: What was solved for.
        split: Shots of every circuit.
        usage: What was executed.
    """

    gradient: FloatArray
    gradient_errors: FloatArray
    direction: Direction
    split: Split
    usage: Usage


class ShotQNGOptimizer(torch.optim.Optimizer):
    r"""Natural-gradient descent of :math:`\langle O\rangle(\theta)` on a device with shots or on hardware.

    Every step estimates gradient and block-diagonal metric with their errors in one execution, weighs eigen-directions
    by their signal-to-noise ratio (Schmitt and Heyl 2020, arXiv:1912.08828; ``fubini.devices.snr_direction``) and
    shares its shots between gradient and metric such that the direction's variance is smallest, judged by the step
    before. There is no ``lam``. For data, several expectation values and losses of them, use ``QuantumLayer`` and
    ``QNGOptimizer(lam=SignalToNoise())``, which weighs in the same way and takes the layer's own shots for every
    circuit.

    Args:
        params: The weights, in the order of the QNode's positional arguments.
        qnode: Returns one expectation value; its own shots are not used.
        lr: Step size.
        shots: Of all circuits of a step together.
        update_every: Steps between two estimates of the metric.
        coordinates: Number of weights, drawn at random, that a step moves; None: all.
        tolerance: Signal-to-noise ratio at which a direction counts half.
        layers: Which gates form a block, see ``fubini.circuit.gate_layers``.
        executor: Runs the circuits; default: that of the QNode's device.
        seed: For the random coordinates.

    Attributes:
        last: Report of the last step, or None.

    Raises:
        TypeError: If qnode is no QNode, params are no parameters, or a number is none.
        ValueError: For numbers out of range or unknown words.

    Example:
        >>> import fubini, torch, pennylane as qml
        >>> @qml.set_shots(500)
        ... @qml.qnode(qml.device("default.qubit", wires=1, seed=0))
        ... def circuit(w):
        ...     qml.RY(w[0], wires=0)
        ...     return qml.expval(qml.Z(0))
        >>> w = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
        >>> opt = fubini.ShotQNGOptimizer([w], circuit, lr=0.2, shots=1000, seed=0)
        >>> for _ in range(20):
        ...     report = opt.step()
        >>> bool(circuit(w) < -0.9)
        True
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        qnode: Any,
        lr: float = 0.05,
        *,
        shots: int = 10_000,
        update_every: int = 1,
        coordinates: int | None = None,
        tolerance: float = 2.0,
        layers: LayerRule = "wires",
        executor: Executor | None = None,
        seed: int | None = None,
    ) -> None:
        if not isinstance(qnode, qml.QNode):
            raise TypeError(f"qnode: expected a qml.QNode, got {type(qnode).__name__}")
        params = listed(params)
        for name, number in (("lr", lr), ("tolerance", tolerance)):
            check_number(name, number)
        check_count("shots", shots)
        check_count("update_every", update_every)
        if coordinates is not None:
            check_count("coordinates", coordinates)
        check_rule(layers)
        super().__init__(params, {"lr": lr})
        if len(self.param_groups) != 1:
            raise ValueError("params: expected one group, got several; use one optimizer for each")
        self._qnode, self._layers = qnode, layers
        self._shots, self._update_every, self._coordinates = shots, update_every, coordinates
        self._tolerance = tolerance
        self._executor = executor_of(qnode.device) if executor is None else executor
        self._random = np.random.default_rng(seed)
        self._steps = 0
        self._ratio: float | None = None
        self._metric: tuple[FloatArray, FloatArray] | None = None
        self._chosen: npt.NDArray[np.intp] | None = None
        self.last: StepReport | None = None

    def cost(self) -> Usage:
        """Say what the next step will execute, without executing anything."""
        tape = self._tape()
        job, _ = self._job(tape, self._coordinates_of(tape))
        return job.cost(self._executor)

    @uncompiled
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Estimate, solve, and move the weights; if the device fails, they stay as they are.

        Args:
            closure: Must be None: the QNode is the loss.

        Raises:
            ValueError: If there is a closure, or the QNode returns something else than one expectation value.
        """
        if closure is not None:
            raise ValueError("closure: expected None, because the QNode is the loss")
        tape = self._tape()
        chosen = self._coordinates_of(tape)
        before = self._executor.usage
        job, split = self._job(tape, chosen)
        gradient, metric = job.run(self._executor)
        self._chosen = None  # only now: a step that is repeated asks for the same circuits
        jacobian = tape.jacobian[0]
        ones = np.ones((1, 1))
        slope = jacobian.T @ gradient.jacobian[0, 0]
        covariance = jacobian.T @ gradient.covariance(ones)[0] @ jacobian
        if metric is not None:
            self._metric = metric.pulled_back(tape.jacobian)
        assert self._metric is not None
        values, errors = (m[np.ix_(chosen, chosen)] for m in self._metric)
        part = covariance[np.ix_(chosen, chosen)]
        direction = snr_direction(slope[chosen], part, values, errors, tolerance=self._tolerance)
        if metric is not None:
            self._ratio = variance_ratio(part, values, errors, direction.values, split)
        self._steps += 1
        full = np.zeros(len(slope))
        full[chosen] = direction.values
        group = self.param_groups[0]
        params = group["params"]
        pieces = torch.split(torch.from_numpy(group["lr"] * full), [p.numel() for p in params])
        for p, piece in zip(params, pieces, strict=True):
            p.sub_(piece.reshape(p.shape).to(p))
        used = self._executor.usage - before
        deviation = np.sqrt(np.maximum(np.diagonal(covariance), 0.0))
        self.last = StepReport(slope, deviation, direction, split, used)

    def _tape(self) -> GateTape:
        params = self.param_groups[0]["params"]
        tape = gate_tape(self._qnode, params, {}, list(range(len(params))), pure=False)
        measured = tape.measurements
        if len(measured) != 1 or measured[0].obs is None or tape.batch is not None:
            raise ValueError(
                "qnode: expected one expectation value without a batch, got something else; for data, several results or a "
                "loss of them, use QuantumLayer(qnode, ...) with QNGOptimizer(..., lam=SignalToNoise())"
            )
        return tape

    def _coordinates_of(self, tape: GateTape) -> npt.NDArray[np.intp]:
        size = tape.jacobian.shape[2]
        if self._chosen is None:
            count = size if self._coordinates is None else min(self._coordinates, size)
            all_of_them = np.arange(size)
            drawn = self._random.choice(size, count, replace=False) if count < size else all_of_them
            self._chosen = np.sort(drawn)
        return self._chosen

    def _job(self, tape: GateTape, chosen: npt.NDArray[np.intp]) -> tuple[Job[Any], Split]:
        moved = np.flatnonzero(tape.jacobian[0][:, chosen].any(axis=1)).tolist()
        renew = self._metric is None or self._steps % self._update_every == 0
        # A metric that serves several steps serves other coordinates as well.
        measured = moved if self._update_every == 1 else None

        def jobs(split: Split) -> tuple[Job[Any], Job[Any]]:
            gradient = gradient_job(tape, shots=split.gradient, angles=moved)
            if not renew:
                return gradient, Job((), lambda answers: None)
            metric = metric_job(tape, shots=split.metric, layers=self._layers, angles=measured)
            return gradient, metric

        counted = [sum(s.rows for s in job.sweeps) for job in jobs(Split(2, 2))]
        split = split_shots(self._shots, counted[0], counted[1], self._ratio)
        return together(*jobs(split)), split
