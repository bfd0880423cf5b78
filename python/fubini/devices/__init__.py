"""Circuits on PennyLane devices that cost time or money: shots, noise, hardware.

Every task is a :class:`Job`: the circuits to run and what becomes of their results. ``job.cost(executor)`` says how many
calls, circuits and shots it will take, ``job.run(executor)`` executes it, and ``together(...)`` makes one execution of
several::

    tape = gate_tape(qnode, (weights,), {}, weights=[0], pure=False)
    executor = Executor(qnode.device, retries=5, progress=True)
    job = together(gradient_job(tape, shots=1000), metric_job(tape, shots=200))
    print(job.cost(executor))
    gradient, metric = job.run(executor)

Jacobians and metrics are over the circuit's trainable angles; ``tape.jacobian`` leads from there to the weights.
"""

from fubini.circuit.angles import gate_tape
from fubini.devices.block_metric import metric_job
from fubini.devices.executor import DeviceExecutionError, Executor, executor_of
from fubini.devices.fisher import fisher_job, random_basis_metric_job
from fubini.devices.full_metric import free_wire, full_metric_job
from fubini.devices.hessian import hessian_job
from fubini.devices.job import Job, together
from fubini.devices.mixed import mixed_metric_job
from fubini.devices.qnspsa import QNSPSA
from fubini.devices.shifts import gradient_job, values_job
from fubini.devices.signal_to_noise import SignalToNoise, snr_direction, split_shots
from fubini.devices.usage import Usage

__all__ = [
    "QNSPSA",
    "DeviceExecutionError",
    "Executor",
    "Job",
    "SignalToNoise",
    "Usage",
    "executor_of",
    "fisher_job",
    "free_wire",
    "full_metric_job",
    "gate_tape",
    "gradient_job",
    "hessian_job",
    "metric_job",
    "mixed_metric_job",
    "random_basis_metric_job",
    "snr_direction",
    "split_shots",
    "together",
    "values_job",
]
