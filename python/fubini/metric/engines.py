"""Where a metric is asked for: a QNode or layer at given weights and inputs, and the engine that serves it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pennylane as qml
import torch

from fubini.circuit.angles import gate_tape
from fubini.circuit.arguments import Argnums, check_finite_weights, weights_of
from fubini.circuit.jacobian import Jacobian
from fubini.circuit.tape import GateTape
from fubini.compile.calls import compiled_call
from fubini.devices.executor import Executor, device_reason, executor_of
from fubini.devices.metric import geometric_tensor_job, metric_job
from fubini.devices.mixed import mixed_metric_job
from fubini.errors import UnsupportedCircuitError
from fubini.native.pullback import Pullback, assembled
from fubini.native.taped import of_tape
from fubini.options import Approx, Complex, Engine, LayerRule, Real, Reduce
from fubini.runtime import MATRIX_FREE, check_fits


@dataclass(frozen=True, eq=False)
class Call:
    """A call of a quantum function, to be made again for derivatives.

    Attributes:
        qnode: The QNode.
        args: Positional arguments.
        kwargs: Keyword arguments.
        weights: Which of them are the weights.
        compiled: Whether the circuit is what a layer compiled, rather than the gates of ``fubini.circuit.tape``.
    """

    qnode: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    weights: tuple[int | str, ...]
    compiled: bool = False

    def values(self) -> list[Any]:
        """All arguments, positional ones first."""
        return [*self.args, *self.kwargs.values()]

    def value(self, name: int | str) -> Any:
        """The argument of a position or name."""
        return self.args[name] if isinstance(name, int) else self.kwargs[name]

    def _mapped(self, change: Callable[[Any], Any]) -> "Call":
        args = tuple(change(v) for v in self.args)
        return replace(self, args=args, kwargs={n: change(v) for n, v in self.kwargs.items()})

    def replaced(self, leaves: Sequence[torch.Tensor]) -> "Call":
        """Return the call with other tensors for those that require grad, in order."""
        following = iter(leaves)
        return self._mapped(
            lambda v: next(following) if isinstance(v, torch.Tensor) and v.requires_grad else v
        )

    def with_weights(self, weights: Sequence[torch.Tensor]) -> "Call":
        """Return the call with other weights."""
        new = dict(zip(self.weights, weights, strict=True))
        args = tuple(new.get(k, v) for k, v in enumerate(self.args))
        return replace(self, args=args, kwargs={n: new.get(n, v) for n, v in self.kwargs.items()})

    def detached(self) -> "Call":
        """Return the call with tensors that carry no graph."""
        return self._mapped(lambda v: v.detach() if isinstance(v, torch.Tensor) else v)

    def in_double(self) -> "Call":
        """Return the call with float64 tensors, as angles are computed from; graphs go on through the conversion."""
        return self._mapped(
            lambda v: (
                v.to(torch.float64) if isinstance(v, torch.Tensor) and v.is_floating_point() else v
            )
        )


@dataclass(frozen=True, eq=False)
class Point:
    """A circuit at given weights and inputs.

    Attributes:
        weights: The weights as the caller passed them.
        call: The call that led here.
        pullback: On the native engine; None for the device.
        tape: The gates and the Jacobian of their angles, where the device serves it; None on the native engine.
        device: The PennyLane device.
        reason: Why the device serves it, where it does.
        argnum: Gate parameters that are differentiated; None for all.
        executor: Of a layer that has its own; None: the device's.
    """

    weights: list[Any]
    call: Call
    pullback: Pullback | None
    tape: GateTape | None = None
    device: Any = None
    reason: str = ""
    argnum: tuple[int, ...] | None = None
    executor: Executor | None = None

    def metric(self, approx: Approx, layers: LayerRule, reduce: Reduce) -> Real:
        """Return the metric over the flattened weights.

        Args:
            approx: Which part of the metric over angles to take.
            layers: Which gates form a block.
            reduce: ``"mean"`` averages over the inputs.

        Returns:
            (batch, P, P) for a circuit with a batch and no reduction, else (P, P).
        """
        if self.pullback is not None:
            return self.pullback.metric(approx, layers, reduce)
        tape, jacobian, runner = self._on_device(1, reduce)
        # Without entries of weights there is nothing to measure.
        blocks = metric_job(tape, runner, approx, layers).run(runner) if jacobian.size else []
        return assembled(
            [(block.angles, block.values) for block in blocks], jacobian, tape.batch, reduce
        )

    def geometric_tensor(self, reduce: Reduce) -> Complex:
        """Return the quantum geometric tensor over the flattened weights.

        Args:
            reduce: ``"mean"`` averages over the inputs.

        Returns:
            (batch, P, P) or (P, P), as for the metric.
        """
        if self.pullback is not None:
            return self.pullback.geometric_tensor(reduce)
        tape, jacobian, runner = self._on_device(2, reduce)
        values = geometric_tensor_job(tape, runner).run(runner)
        slots = list(range(values.shape[-1]))
        result: Complex = assembled([(slots, values)], jacobian, tape.batch, reduce)
        return result

    def is_mixed(self) -> bool:
        """Return whether the circuit has channels and runs on a simulator of mixed states."""
        return (
            self.tape is not None
            and self.device.name == "default.mixed"
            and any(isinstance(g.operation, qml.operation.Channel) for g in self.tape.gates)
        )

    def mixed_metric(self, reduce: Reduce) -> Real:
        """Return a quarter of the quantum Fisher information of a mixed state, which is the metric of a pure one.

        Args:
            reduce: ``"mean"`` averages over the inputs.

        Returns:
            (batch, P, P) or (P, P), as for the metric.

        Raises:
            UnsupportedCircuitError: With shots, and for gates without a shift rule.
        """
        tape, jacobian, runner = self._on_device(1, reduce)
        if tape.shots is not None:
            raise UnsupportedCircuitError(
                f"qnode: expected no shots for the metric of a mixed state, which is that of its density matrix, got {tape.shots}"
            )
        values = mixed_metric_job(tape, self.device).run(runner)
        return assembled([(list(range(values.shape[-1])), values)], jacobian, tape.batch, reduce)

    def _on_device(self, doubles: int, reduce: Reduce) -> tuple[GateTape, Jacobian, Executor]:
        """The gates, the Jacobian of what is differentiated, and who runs them, if so many doubles an entry fit."""
        assert self.tape is not None
        jacobian = Jacobian(np.arange(self.tape.jacobian.shape[1]), self.tape.jacobian)
        if self.argnum is not None:
            chosen = set(self.argnum)
            numbers = self.tape.parameter_numbers
            jacobian = jacobian.restricted(i for i, n in enumerate(numbers) if n in chosen)
        rows = 1 if reduce == "mean" else self.tape.batch or 1
        shape = (rows, jacobian.size, jacobian.size)
        check_fits(f"{shape}: the metric", doubles * float(np.prod(shape)), MATRIX_FREE)
        return self.tape, jacobian, self.executor or executor_of(self.device)


def at_call(
    qnode: Any,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    engine: Engine,
    argnum: tuple[int, ...] | None,
    argnums: Argnums = None,
) -> Point:
    """Return the point of a call of a QNode.

    Args:
        qnode: The QNode.
        args: Positional arguments.
        kwargs: Keyword arguments.
        engine: Which engine is asked for.
        argnum: Gate parameters that are differentiated.
        argnums: Positions of the weights, if the caller names them.

    Returns:
        The point.
    """
    names = weights_of(qnode.func, args, kwargs, argnums)
    weights = [args[w] if isinstance(w, int) else kwargs[w] for w in names]
    check_finite_weights(qnode.func, names, weights)
    call = Call(qnode, tuple(args), dict(kwargs), tuple(names))
    if argnum is None and (engine == "native" or (engine == "auto" and not device_reason(qnode))):
        compiled = compiled_call(qnode, args, kwargs, names)
        if compiled is not None:
            return Point(weights, replace(call, compiled=True), compiled)
    tape = gate_tape(qnode, args, kwargs, names, pure=engine == "native", as_passed=True)
    return of_gates(call, tape, weights, engine, argnum)


def of_gates(
    call: Call,
    tape: GateTape,
    weights: list[Any],
    engine: Engine,
    argnum: tuple[int, ...] | None,
) -> Point:
    """Return the point of a tape, on the native engine where that is asked for and can be."""
    numbers = tape.parameter_numbers
    if argnum is not None and not set(argnum) <= set(numbers):
        raise ValueError(
            f"argnum: expected numbers of gate parameters that depend on weights, {numbers}, got {list(argnum)}"
        )
    reason = "the device engine was asked for" if engine == "device" else ""
    if engine == "auto":
        reason = device_reason(call.qnode)
    if not reason:
        try:
            pullback = of_tape(tape, argnum)
        except UnsupportedCircuitError as error:
            if engine == "native":
                raise
            reason = str(error)
        else:
            return Point(weights, call, pullback, argnum=argnum)
    return Point(weights, call, None, tape, call.qnode.device, reason, argnum)
