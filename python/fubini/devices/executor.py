"""Running circuits on a device that costs time or money: chunks, retries, accounts, and nothing paid for twice."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pennylane as qml

from fubini.arrays import to_numpy
from fubini.devices.adjoint import REFUSALS, differentiated, differentiates
from fubini.devices.sweep import Sweep, is_derived, tape_key
from fubini.devices.usage import Progress, Usage, progress_of, usage_of
from fubini.errors import NumericalError, UnsupportedCircuitError
from fubini.options import check_number

Array = npt.NDArray[Any]
_Answers = list[list[Array]]  # for every tape its measurements' results

# Devices that run a tape whose parameters have a leading axis, and the bytes that one row of n wires takes there: some
# copies of the state or of the density matrix.
_BROADCASTING = {
    "default.qubit": lambda wires: 64 << wires,
    "default.mixed": lambda wires: 64 << 2 * wires,
}
#: Devices whose exact results come from pure states.
STATE_VECTORS = frozenset(
    {"default.qubit", "lightning.qubit", "lightning.kokkos", "lightning.gpu", "reference.qubit"}
)
#: PennyLane's simulators run in this process: a failing call has cost nothing, so that all tapes go in one call.
SIMULATORS = STATE_VECTORS | {"default.mixed"}
_TAPES_PER_CALL = 64
# Runs after which results of a failed one are dropped if none of them was asked for.
_FORGET_AFTER = 10
# Kinds of circuits of which is known whether the device differentiates them.
_FORGET_STRUCTURES = 256


class DeviceExecutionError(RuntimeError):
    """A device failed more often than the executor retries; what had succeeded is kept for the next attempt."""


@dataclass(eq=False)
class Executor:
    """Runs sweeps on one PennyLane device.

    A call of the device succeeds or fails as a whole. After a failure the same tapes are tried again, with pauses of
    ``backoff``, 2 ``backoff``, 4 ``backoff``, ... seconds; results that are NaN or infinite count as failures of their
    tapes alone. When all attempts have failed, the results of the calls that succeeded are kept, and the next ``run``
    of the same circuits (same gates, numbers, measurements and shots) takes them instead of executing again.

    Args:
        device: The device.
        retries: Further attempts after a failing call.
        backoff: Seconds before the first further attempt.
        timeout: Seconds after which a call counts as failed; None waits for ever. The call goes on in its thread, and
            its results are taken if they arrive before the next attempt, or after the last one before the next run.
        memory: Bytes that the rows of one broadcast tape may take on the device; more rows are cut into chunks.
        tapes_per_call: Tapes handed over at once, which is what a failing call can lose; None: all for PennyLane's
            simulators, 64 for other devices.
        progress: Called with (tapes done, tapes in all) after every call; True shows a progress bar (needs tqdm).

    Attributes:
        usage: Everything executed so far, including calls that failed.

    Raises:
        UnsupportedCircuitError: For a device that cannot run parametrised circuits.
        ValueError: For a negative or non-positive number.
    """

    device: Any
    retries: int = 3
    backoff: float = 0.5
    timeout: float | None = None
    memory: int = 1 << 28
    tapes_per_call: int | None = None
    progress: bool | Progress = False
    usage: Usage = field(default_factory=Usage, init=False)
    _paid: dict[Any, list[list[Array]]] = field(default_factory=dict, init=False, repr=False)
    _late: list[tuple[list[Any], Future[_Answers]]] = field(
        default_factory=list, init=False, repr=False
    )
    _unused_runs: int = field(default=0, init=False, repr=False)
    _differentiable: dict[Any, bool] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        check_device(self.device)
        check_number("retries", self.retries)
        check_number("backoff", self.backoff)
        if not 1 <= self.memory < np.inf:
            raise ValueError(f"memory: expected a finite number >= 1, got {self.memory!r}")
        for name in ("timeout", "tapes_per_call"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}: expected None or a number > 0, got {value!r}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_paid": {}, "_late": [], "_differentiable": {}}

    @property
    def broadcasts(self) -> bool:
        """Whether the device runs many settings of a circuit as one tape."""
        return self.device.name in _BROADCASTING

    def cost(self, sweeps: Sequence[Sweep]) -> Usage:
        """Say what ``run`` will execute, without executing it; retries not counted.

        Args:
            sweeps: The circuits.

        Returns:
            Calls, tapes, circuits and shots.
        """
        tapes = [tape for sweep in sweeps for tape in self._order(sweep)[0]]
        calls = self._calls(tapes, range(len(tapes)))
        return sum((usage_of([tapes[k] for k in call]) for call in calls), Usage())

    def run(self, sweeps: Sequence[Sweep]) -> list[list[Array]]:
        """Execute circuits.

        Args:
            sweeps: The circuits.

        Returns:
            For every sweep one array per measurement, (rows, ...); rows is 1 for a sweep without rows. For a sweep that
            the device differentiates, two arrays: (rows, measurements) and (rows, measurements, operations in ``by``).
            Rows with the same numbers are executed once, unless there are shots, whose samples must be independent.

        Raises:
            UnsupportedCircuitError: If the device refuses a circuit or lacks wires.
            DeviceExecutionError: If calls fail more often than they are retried.
            NumericalError: If results stay NaN or infinite.
        """
        for sweep in sweeps:
            self._check_wires(sweep)
        orders = [self._order(sweep) for sweep in sweeps]
        answers = self._execute([tape for tapes, _ in orders for tape in tapes])
        return [finish([next(answers) for _ in tapes]) for tapes, finish in orders]

    def differentiates(self, sweep: Sweep) -> bool:
        """Say whether the device differentiates the exact expectation values of a circuit by itself.

        Args:
            sweep: The circuit; ``by`` says by what.

        Returns:
            Whether it does.
        """
        if sweep.shots is not None or not sweep.by:
            return False
        # Devices decide by kinds of gates and measurements, and take as long for it as for a small circuit.
        gates = tuple((op.name, tuple(op.wires)) for op in sweep.operations)
        key = (gates, repr(sweep.measurements), sweep.by)
        if key not in self._differentiable:
            if len(self._differentiable) >= _FORGET_STRUCTURES:
                self._differentiable.clear()
            (tape,) = sweep.take(np.zeros(1, dtype=np.intp)).single_tapes()
            self._differentiable[key] = differentiates(self.device, tape)
        return self._differentiable[key]

    # -- orders -------------------------------------------------------------------------------------------------

    def _order(self, sweep: Sweep) -> tuple[list[Any], Callable[[_Answers], list[Array]]]:
        """The tapes that the device gets, and what makes the sweep's result of their answers."""
        which = None  # row of the sweep asked for -> row that is run; None: the same
        if sweep.shots is None:
            sweep, which = sweep.distinct()
        broadcast = sweep.rows > 1 and self._takes_broadcast(sweep)
        if broadcast:
            wires = len(sweep.wires if self.device.wires is None else self.device.wires)
            room = max(1, self.memory // _BROADCASTING[self.device.name](wires))
            every = np.arange(sweep.rows)
            chunks = [sweep]
            if sweep.rows > room:
                chunks = [sweep.take(every[start : start + room]) for start in every[::room]]
            tapes = [chunk.broadcast_tape() for chunk in chunks]
        else:
            tapes = sweep.single_tapes()

        def finish(answers: _Answers) -> list[Array]:
            rows = sum(len(a[0]) for a in answers) if broadcast else len(answers)
            if rows != sweep.rows:
                raise UnsupportedCircuitError(
                    f"device: {self.device.name} returned {rows} results for {sweep.rows} settings"
                )
            join = np.concatenate if broadcast else np.stack
            parts: list[Array] = [join(part) for part in zip(*answers, strict=True)]
            return parts if which is None else [part[which] for part in parts]

        return tapes, finish

    def _takes_broadcast(self, sweep: Sweep) -> bool:
        moving = [op for op in sweep.operations if op.batch_size is not None]
        if not self.broadcasts or not moving or sweep.by:
            return False
        # default.mixed decomposes a generic controlled gate, and cannot when its parameters are broadcast; nor can it run
        # broadcast phases.
        refused = {"Controlled", "ControlledOp", "GlobalPhase"}
        kinds = {type(op).__name__ for op in moving}
        return self.device.name != "default.mixed" or refused.isdisjoint(kinds)

    def _calls(self, tapes: Sequence[Any], which: Sequence[int]) -> list[list[int]]:
        """The tapes of every call: results and derivatives are asked for separately."""
        step = max(1, len(tapes)) if self.device.name in SIMULATORS else _TAPES_PER_CALL
        step = step if self.tapes_per_call is None else self.tapes_per_call
        kinds = [[k for k in which if is_derived(tapes[k]) is kind] for kind in (False, True)]
        return [kind[s : s + step] for kind in kinds for s in range(0, len(kind), step)]

    def _check_wires(self, sweep: Sweep) -> None:
        if self.device.wires is None:
            return
        missing = [w for w in sweep.wires if w not in self.device.wires]
        if missing:
            raise UnsupportedCircuitError(
                f"device: {self.device.name} refused a circuit: expected the wires {sweep.wires.tolist()}, got a device "
                f"with {self.device.wires.tolist()}; give the device the wires {missing} as well"
            )

    # -- execution ----------------------------------------------------------------------------------------------

    def _execute(self, tapes: list[Any]) -> Iterator[list[Array]]:
        done = self._paid_for(tapes)
        open_ = [k for k, answer in enumerate(done) if answer is None]
        show = progress_of(self.progress, len(tapes))
        show(len(tapes) - len(open_))
        try:
            for chunk in self._calls(tapes, open_):
                self._attempts(tapes, chunk, done)
                show(sum(answer is not None for answer in done))
        except BaseException:
            # Kept for the next attempt, an interrupted one (control-C) included.
            self._keep(tapes, done)
            self._unused_runs = 0
            raise
        finally:
            show(None)
        return iter([answer for answer in done if answer is not None])

    def _paid_for(self, tapes: list[Any]) -> list[list[Array] | None]:
        """Results of runs that failed, and of calls that took too long; each at most once, as samples must differ."""
        done: list[list[Array] | None] = [None] * len(tapes)
        for late in [late for late in self._late if late[1].done()]:
            self._late.remove(late)
            if late[1].exception() is None:
                self._keep(late[0], late[1].result())
        if not self._paid and not self._late:
            return done
        for k, tape in enumerate(tapes):
            kept = self._paid.get(tape_key(tape))
            if kept:
                done[k] = kept.pop()
        self._unused_runs = 0 if any(a is not None for a in done) else self._unused_runs + 1
        if self._unused_runs >= _FORGET_AFTER:  # the weights have moved on
            self._paid.clear()
            self._late.clear()
        return done

    def _keep(self, tapes: list[Any], answers: Sequence[list[Array] | None]) -> None:
        for tape, answer in zip(tapes, answers, strict=True):
            if answer is not None and _finite(answer):
                self._paid.setdefault(tape_key(tape), []).append(answer)

    def _attempts(self, tapes: list[Any], indices: list[int], done: list[Any]) -> None:
        problem: Exception | None = None
        pending: tuple[list[Any], Future[_Answers]] | None = None
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(self.backoff * 2.0 ** (attempt - 1))
            if pending is None or not pending[1].done():  # else it is late, but paid for
                chosen = [tapes[k] for k in indices]
                self.usage = self.usage + usage_of(chosen)
                pending = chosen, self._started(chosen)
            try:
                answers = pending[1].result(self.timeout)
            except UnsupportedCircuitError:
                raise
            except REFUSALS as error:  # a second attempt would only repeat it
                raise UnsupportedCircuitError(
                    f"device: {self.device.name} refused a circuit: {error}"
                ) from error
            except Exception as error:  # noqa: BLE001 - what plugins raise for a failing network or queue
                # The end of a call that was late may have come since.
                if pending[1].done() and pending[1].exception() is error:
                    problem, pending = error, None
                else:
                    problem = TimeoutError(f"no answer within {self.timeout:g} s")
                continue
            pending = None
            bad = []
            for k, answer in zip(indices, answers, strict=True):
                if _finite(answer):
                    done[k] = answer
                else:
                    bad.append(k)
            if not bad:
                return
            problem = NumericalError(
                f"device: {self.device.name} returned NaN or infinity for {len(bad)} of {len(indices)} circuits"
            )
            indices = bad
        if pending is not None:  # still running, or just about to end: the next run asks again
            self._late.append(pending)
        tries = f"{self.retries + 1} attempts" if self.retries else "1 attempt"
        kept = sum(answer is not None for answer in done)
        text = (
            f"{problem} ({type(problem).__name__}, after {tries}); {kept} of {len(tapes)} results are kept and will be "
            "reused when the same circuits are run again"
        )
        if isinstance(problem, NumericalError):
            raise NumericalError(text)
        raise DeviceExecutionError(f"device: {self.device.name} failed: {text}") from problem

    def _started(self, tapes: list[Any]) -> Future[_Answers]:
        """A call of the device: over, or, where it may take too long, in a thread of its own."""
        outcome: Future[_Answers] = Future()

        def run() -> None:
            try:
                outcome.set_result(self._call(tapes))
            except BaseException as error:  # noqa: BLE001 - raised where the answer is waited for
                outcome.set_exception(error)

        if self.timeout is None:
            run()
        else:
            # A thread that does not keep Python from ending, as those of an executor do.
            threading.Thread(target=run, daemon=True).start()
        return outcome

    def _call(self, tapes: list[Any]) -> _Answers:
        if is_derived(tapes[0]):
            return differentiated(self.device, tapes)
        answers = qml.execute(tapes, self.device, diff_method=None, interface="numpy", cache=False)
        if len(answers) != len(tapes):
            raise UnsupportedCircuitError(
                f"device: {self.device.name} returned {len(answers)} results for {len(tapes)} circuits"
            )
        result = []
        for tape, answer in zip(tapes, answers, strict=True):
            parts = answer if len(tape.measurements) > 1 else [answer]
            result.append([to_numpy(part, None) for part in parts])
        return result


def _finite(answer: list[Array]) -> bool:
    return all(np.isfinite(part).all() for part in answer)


def check_device(device: Any) -> None:
    """Refuse devices that cannot run circuits with arbitrary angles.

    Raises:
        UnsupportedCircuitError: For default.clifford.
        TypeError: If it is no PennyLane device.
    """
    name = getattr(device, "name", None)
    if not isinstance(device, qml.devices.Device):
        raise TypeError(
            f"device: expected a PennyLane device, got {type(device).__name__}; see qml.device"
        )
    if name == "default.clifford":
        raise UnsupportedCircuitError(
            "device: default.clifford runs Clifford gates only, whose angles are multiples of pi/2, so there is nothing "
            "to differentiate or to train; use default.qubit or lightning.qubit"
        )


_ATTRIBUTE = "_fubini_executor"


def executor_of(device: Any) -> Executor:
    """Return the executor with default settings that all users of a device share unless they bring their own.

    Args:
        device: PennyLane device.
    """
    found = getattr(device, _ATTRIBUTE, None)
    # A copied device brings the original's.
    if not isinstance(found, Executor) or found.device is not device:
        found = Executor(device)
        setattr(device, _ATTRIBUTE, found)
    return found


def device_reason(qnode: Any) -> str:
    """Return why a QNode must run on its device, as far as the device decides it; empty where it need not."""
    if qnode.device.name not in STATE_VECTORS:
        return f"{qnode.device.name} is no noiseless state-vector simulator"
    if qnode.shots.total_shots is not None:
        return f"it has {qnode.shots.total_shots} shots"
    return ""
