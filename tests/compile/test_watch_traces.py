"""Nothing is left behind, and the function does what it does without a watch."""

import sys
import threading
import types
import unittest.mock
from typing import Any

import pennylane as qml
import pytest
import torch

from fubini.compile import hooks
from fubini.compile.watch import Watch
from watching import INPUTS, Strict, WithMeta, angle, watched

# Attributes by name are the subject.
# ruff: noqa: B009


class Box:
    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)


def plain_helper() -> float:
    return 0.3


BOX = Box(depth=3)

# -- objects that answer to every name --------------------------------------------------------------------------------


class Endless(dict[str, Any]):
    """Makes what it is asked for."""

    asked: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        self.asked.append(name)
        if name.startswith("__"):
            raise AttributeError(name)
        return self.setdefault(name, Endless())


class Validated:
    """Keeps its fields apart, as validated models do, and refuses new ones."""

    __slots__ = ("_fields",)

    def __init__(self, **fields: Any) -> None:
        object.__setattr__(self, "_fields", fields)

    def __getattr__(self, name: str) -> Any:
        fields = object.__getattribute__(self, "_fields")
        if name not in fields:
            raise AttributeError(f"no field {name}")
        return fields[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError("frozen")


def test_nothing_is_asked_of_an_object_but_what_the_function_asks() -> None:
    config = Endless(depth=3)
    watch = watched(angle(lambda: config.depth))
    assert Endless.asked == ["depth"] or Endless.asked == []
    assert watch.problem is None or "depth" not in watch.problem
    Endless.asked.clear()
    endless = Endless(angle=Endless(first=0.3))
    watch = watched(angle(lambda: endless.angle.first))
    assert dict.keys(endless) == {"angle"}
    endless["angle"]["first"] = 0.4
    assert not watch.holds()
    watch = watched(angle(lambda: len(endless.made_by_reading)))
    assert watch.problem is not None


@pytest.mark.parametrize(
    "config", [Validated(depth=3), unittest.mock.MagicMock(depth=3), Strict(), WithMeta()]
)
def test_other_configurations_do_not_break(config: Any) -> None:
    read: list[Any] = []

    def function() -> Any:
        read.append(config.depth if not isinstance(config, WithMeta) else 3)
        return read[-1]

    before = dict(vars(type(config)))
    watch = Watch(function)
    with watch:
        assert function() == 3
    assert dict(vars(type(config))) == before
    assert watch.problem is not None  # it appends


# -- nothing is changed by watching -----------------------------------------------------------------------------------


class Failing(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depth = 3

    def circuit(self, inputs: Any, fail: Any) -> Any:
        qml.RX(inputs[0, 0] * self.depth, 0)
        if fail:
            return self.missing.deeper
        return self.depth


def state_of(*kinds: type) -> Any:
    return [(dict(vars(k)), k.__mro__, type(k)) for k in kinds]


@pytest.mark.parametrize("fail", [False, True])
def test_nothing_stays_behind(fail: bool) -> None:
    model, module = Failing(), types.ModuleType("watched_module")
    module.depth = 3  # type: ignore[attr-defined]
    before = state_of(Failing, torch.nn.Module, Box, types.ModuleType, type(qml)), type(module)

    def function(inputs: Any, fail: Any) -> Any:
        return model.circuit(inputs, fail), module.depth, getattr(qml, "RX"), BOX.depth

    watch = Watch(function)
    try:
        with watch:
            function(INPUTS, fail)
    except AttributeError as error:
        message, frames = str(error), []
        trace = error.__traceback__
        while trace is not None:
            frames.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert frames == ["test_nothing_stays_behind", "function", "circuit", "__getattr__"]
        assert "Failing" in message
    assert (watch.problem is not None) == fail
    assert (
        state_of(Failing, torch.nn.Module, Box, types.ModuleType, type(qml)),
        type(module),
    ) == before
    assert type(qml) is types.ModuleType
    assert sys.getprofile() is None
    assert not hooks._installed
    assert hooks.running.readers == []


def test_profilers_are_restored() -> None:
    import cProfile

    events: list[str] = []

    def mine(frame: Any, event: str, arg: Any) -> None:
        events.append(event)

    sys.setprofile(mine)
    try:
        watch = watched(angle(lambda: BOX.depth))
        assert sys.getprofile() is mine
    finally:
        sys.setprofile(None)
    assert watch.problem is None
    profiler = cProfile.Profile()
    profiler.enable()
    watch = watched(angle(lambda: BOX.depth))
    plain_helper()
    profiler.disable()
    assert watch.problem is None
    assert any("plain_helper" in str(entry.code) for entry in profiler.getstats())


def test_threads_watch_for_themselves() -> None:
    model = Failing()
    problems: list[Any] = []

    def run() -> None:
        for _ in range(20):
            watch = watched(lambda inputs, weights: model.circuit(inputs, False))
            problems.append(watch.problem)

    def disturb() -> None:
        for _ in range(2000):
            model.other = object()
            assert model.depth == 3

    threads = [threading.Thread(target=t) for t in (run, run, disturb)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [None] * 40
    assert not hooks._installed


def test_nested_watches() -> None:
    inner_watches: list[Watch] = []

    def inner() -> Any:
        return BOX.depth

    def outer() -> Any:
        watch = Watch(inner)
        inner_watches.append(watch)
        with watch:
            return inner()

    watch = Watch(outer)
    with watch:
        assert outer() == 3
    assert sys.getprofile() is None
    assert not hooks._installed
    assert inner_watches[0].problem is None
    assert watch.problem is not None


def test_the_block_may_be_entered_again() -> None:
    box = Box(depth=3, width=2)
    watch = Watch(lambda: box.depth)
    with watch:
        watch_depth = box.depth
    assert watch.holds() or watch_depth
    more = angle(lambda: box.width)
    again = Watch(more)
    with again:
        pass
    with again, qml.queuing.AnnotatedQueue():
        more(INPUTS, None)
    assert again.problem is None
    box.width = 5
    assert not again.holds()
