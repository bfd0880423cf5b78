"""Gates that are made like others before them are not watched again; no code of users is missed for that."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pennylane as qml
import pytest
import torch
from pennylane.capture import CaptureMeta
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fubini.compile.watch import Watch
from watching import watched


class Labels(list[Any]):
    """Wires that read the clock, which is not understood."""

    def __getitem__(self, key: Any) -> Any:
        time.perf_counter()
        return super().__getitem__(key)


class Queue:
    def append(self, obj: Any, **kwargs: Any) -> None:
        time.perf_counter()

    def remove(self, obj: Any) -> None:
        time.perf_counter()


class Functions(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        time.perf_counter()
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        time.perf_counter()
        return function(*args, **(kwargs or {}))


def many(first: int = 0) -> None:
    for k in range(first, 3):
        qml.RX(0.1, k)
        qml.CNOT([k, k + 1])
        qml.Hadamard(wires=k)


def in_a_queue(inputs: Any, weights: Any) -> None:
    many()
    contexts = qml.QueuingManager.active_context()
    assert contexts is not None
    qml.QueuingManager.add_active_queue(Queue())
    qml.RX(0.1, 1)


def under_a_function_mode(inputs: Any, weights: Any) -> None:
    many()
    with Functions():
        qml.RX(weights[0, 0, 0], 0)
        qml.RX(weights[0, 0, 0], 0)


def under_a_dispatch_mode(inputs: Any, weights: Any) -> None:
    many()
    with Operations():
        qml.RX(weights[0, 0, 0], 0)
        qml.RX(weights[0, 0, 0] * 2, 0)


def with_labels(inputs: Any, weights: Any) -> None:
    many()
    qml.CNOT(Labels([0, 1]))
    qml.CNOT(Labels([1, 2]))


def with_a_replaced_part(inputs: Any, weights: Any) -> None:
    many()
    kind = qml.operation.Operator
    plain = kind.queue

    def queue(self: Any, context: Any = qml.QueuingManager) -> Any:
        time.perf_counter()
        return plain(self, context)

    kind.queue = queue
    try:
        many()
    finally:
        kind.queue = plain


def with_a_part_replaced_by_name(inputs: Any, weights: Any) -> None:
    many()
    kind = qml.operation.Operator
    plain = kind.queue

    def queue(self: Any, context: Any = qml.QueuingManager) -> Any:
        time.perf_counter()
        return plain(self, context)

    list(map(setattr, [kind], ["queue"], [queue]))
    try:
        many()
    finally:
        list(map(setattr, [kind], ["queue"], [plain]))


@pytest.mark.parametrize(
    "function",
    [
        in_a_queue,
        under_a_function_mode,
        under_a_dispatch_mode,
        with_labels,
        with_a_replaced_part,
        with_a_part_replaced_by_name,
    ],
)
def test_code_of_users_within_a_gate_is_seen(function: Callable[..., Any]) -> None:
    contexts = list(qml.QueuingManager._active_contexts)
    try:
        assert watched(function).problem is not None
    finally:
        qml.QueuingManager._active_contexts[:] = contexts


def test_what_was_replaced_before_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = qml.operation.Operator.queue

    def queue(self: Any, context: Any = qml.QueuingManager) -> Any:
        time.perf_counter()
        return plain(self, context)

    monkeypatch.setattr(qml.operation.Operator, "queue", queue)
    assert watched(lambda inputs, weights: many()).problem is not None


def test_gates_that_were_understood_are_not_watched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    plain = Watch.unwatched

    def unwatched(self: Any, *args: Any) -> Any:
        token = plain(self, *args)
        found.append(token is True)
        return token

    monkeypatch.setattr(Watch, "unwatched", unwatched)

    def function(inputs: Any, weights: Any) -> None:
        for _ in range(2):
            many()

    watch = watched(function)
    assert watch.problem is None
    assert len(found) == 18
    assert sum(found) == 18 - 3  # one of each kind is watched


def test_all_is_as_before_after_a_watch() -> None:
    plain = CaptureMeta.__dict__["__call__"]
    during: list[Any] = []

    def function(inputs: Any, weights: Any) -> None:
        many()
        during.append(CaptureMeta.__dict__["__call__"])
        many()
        raise ValueError("on purpose")

    with pytest.raises(ValueError, match="on purpose"):
        watched(function)
    assert during[0] is not plain
    assert CaptureMeta.__dict__["__call__"] is plain
    assert sys.getprofile() is None


def test_threads_do_not_meet() -> None:
    """Each has its own profile function; the first to end leaves the other's in force."""
    problems: list[Any] = []
    together = threading.Barrier(2)

    def function(inputs: Any, weights: Any) -> None:
        for _ in range(50):
            many()

    def run() -> None:
        together.wait()
        for _ in range(5):
            problems.append(watched(function).problem)
            qml.RX(0.1, 0)

    threads = [threading.Thread(target=run) for _ in range(2)]
    plain = CaptureMeta.__dict__["__call__"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [None] * 10
    assert CaptureMeta.__dict__["__call__"] is plain


def test_a_gate_that_raises_ends_like_any_other() -> None:
    def function(inputs: Any, weights: Any) -> None:
        qml.RX(0.1, 0)
        qml.RX(0.1, 0)
        try:
            qml.CNOT([0, 0])
        except Exception:  # noqa: BLE001 - PennyLane's own
            qml.Hadamard(0)
        qml.RX(torch.tensor(0.2), 0)

    watch = watched(function)
    assert sys.getprofile() is None
    assert watch.problem is not None or watch.holds()


class Counted:
    """Setting an attribute may replace parts of a library: then every object is watched while it is made."""


HAMILTONIAN = qml.dot([0.3, 0.4, 0.5], [qml.X(0), qml.Y(0), qml.Z(0)])
DRAWS: list[Callable[..., Any]] = [
    lambda **seed: qml.QDrift(HAMILTONIAN, time=1.0, n=3, **seed),
    lambda **seed: qml.adjoint(qml.QDrift)(HAMILTONIAN, time=1.0, n=3, **seed),
    lambda **seed: qml.ctrl(qml.QDrift, control=2)(HAMILTONIAN, time=1.0, n=3, **seed),
    lambda **seed: (setattr(Counted(), "calls", 1), qml.QDrift(HAMILTONIAN, time=1.0, n=3, **seed)),
]


@pytest.mark.parametrize("draw", DRAWS)
def test_gates_that_are_drawn_need_a_seed(draw: Callable[..., Any]) -> None:
    watch = watched(lambda inputs, weights: draw())
    assert watch.problem == "it draws the gates of QDrift without a seed"
    assert watched(lambda inputs, weights: draw(seed=3)).problem is None
