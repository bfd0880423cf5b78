"""Captured functions, closures and modules that change: by every road, none is overlooked."""

import contextlib
import copy
import dataclasses
import functools
import operator
import string
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from fubini.compile.watch import Watch
from watching import angle, watched

# Uncommon ways of reading are the subject.
# ruff: noqa: B006, PLW0108, F841
TABLE = [0.0]
Case = tuple[Callable[[], Any], Callable[[], Any]]


class C:
    pass


def C1():
    c = C()
    c.v, c.t = 0.3, [1]
    return c


def replace_():

    @dataclasses.dataclass
    class D:
        v: float = 0.3

    c = D()
    return (lambda: dataclasses.replace(c).v, lambda: setattr(c, "v", 1))


def ctxmanager():
    k = [0.3]

    @contextlib.contextmanager
    def cm():
        yield k[0]

    def read():
        with cm() as v:
            return v

    return (read, lambda: k.__setitem__(0, 1))


def cachedprop():

    class K:
        def __init__(s):
            s.v = 0.3

        @functools.cached_property
        def p(s):
            return s.v

    o = K()
    o.p

    def ch():
        o.v = 1
        del o.p

    return (lambda: o.p, ch)


def partialmethod():

    class K:
        v = 0.3

        def f(s, k):
            return s.v * k

        g = functools.partialmethod(f, 2)

    o = K()
    return (lambda: o.g(), lambda: setattr(o, "v", 1))


def closure_swap():
    k = 0.3

    def f():
        return k

    return (lambda: f(), lambda: setattr(f.__closure__[0], "cell_contents", 1.0))


def glob_dict():
    sc = {"K": 0.3}
    exec("def f(): return K", sc)
    f = sc["f"]
    return (lambda: f(), lambda: sc.update(K=1))


def two_globals():
    sc = {"K": 0.3}
    exec("def f(): return K", sc)
    f = sc["f"]
    g = types.FunctionType(f.__code__, {"K": 0.5})
    return (lambda: f() + g(), lambda: g.__globals__.update(K=1))


def two_closures():

    def mk(k):

        def f():
            return k[0]

        return f

    a, b = ([0.3], [0.4])
    fs = [mk(a), mk(b)]
    return (lambda: sum(f() for f in fs), lambda: b.__setitem__(0, 1))


def inrun_same_code():
    ks = [[0.3], [0.4]]

    def mk(k):

        def f():
            return k[0]

        return f

    old = mk(ks[0])
    return (lambda: mk(ks[1])() + old(), lambda: ks[0].__setitem__(0, 9))


def fn_default_mutable():

    def f(x=[0.3]):
        return x[0]

    return (lambda: f(), lambda: f.__defaults__[0].__setitem__(0, 1))


def method_self_swap():

    class K:
        def f(s):
            return s.v

    o = K()
    o.v = 0.3
    m = o.f
    return (lambda: m(), lambda: setattr(o, "v", 1))


def getattr_module():
    m = types.ModuleType("mm_")
    sys.modules["mm_"] = m
    # torch asks every module for its file
    code = "if n == '__file__':\n  raise AttributeError(n)\n return K[0]"
    exec(f"K=[0.3]\ndef __getattr__(n):\n {code}", m.__dict__)
    return (lambda: m.anything, lambda: m.K.__setitem__(0, 1))


def module_in_attr():
    c = C()
    m = types.ModuleType("mn_")
    m.K = 0.3
    c.m = m
    return (lambda: c.m.K, lambda: setattr(m, "K", 1))


def attrgetter_map():
    c = C1()
    return (lambda: sum(map(operator.attrgetter("v"), [c])), lambda: setattr(c, "v", 1))


def methodcaller():
    c = [1]
    return (lambda: operator.methodcaller("count", 1)(c), lambda: c.append(1))


def deepcopy_():
    c = C1()
    return (lambda: copy.deepcopy(c).v, lambda: setattr(c, "v", 1))


def copy_():
    c = C1()
    return (lambda: copy.copy(c).v, lambda: setattr(c, "v", 1))


def asdict_():

    @dataclasses.dataclass
    class D:
        v: float = 0.3

    c = D()
    return (lambda: dataclasses.asdict(c)["v"], lambda: setattr(c, "v", 1))


def template():
    c = {"v": "0.3"}
    return (lambda: float(string.Template("$v").substitute(c)), lambda: c.update(v="1"))


def lru():
    k = [0.3]

    @functools.lru_cache
    def f():
        return k[0]

    return (lambda: f(), lambda: (k.__setitem__(0, 1), f.cache_clear()))


def reduce_state():
    import pickle

    c = C1()
    return (lambda: len(pickle.dumps(c)), lambda: setattr(c, "z", 1))


def np_in_attr():
    c = C()
    c.np = np
    return (lambda: c.np.random.rand(), lambda: None)


def np_local():

    def read():
        m = np
        return m.random.rand()

    return (read, lambda: None)


def np_tuple():
    t = (np, torch)
    return (lambda: t[1].rand(1).sum(), lambda: None)


def rand_method_local():

    def read():
        g = torch.Generator
        return g().seed() * 0 + 0.3

    return (read, lambda: None)


def tracemalloc_():
    import tracemalloc

    return (lambda: tracemalloc.is_tracing(), lambda: None)


def gccount():
    import gc

    return (lambda: len(gc.get_objects()) * 0, lambda: None)


def inspect_():
    import inspect

    k = 0.3
    return (lambda: inspect.currentframe().f_back.f_lineno * 0, lambda: None)


def locale_():
    import locale

    return (lambda: len(locale.getlocale()), lambda: None)


# Understood: compiled, and a change is noticed.
NOTICED = [
    replace_,
    ctxmanager,
    cachedprop,
    partialmethod,
    closure_swap,
    glob_dict,
    two_globals,
    two_closures,
    inrun_same_code,
    fn_default_mutable,
    method_self_swap,
    getattr_module,
    module_in_attr,
]
# Not understood, or different from call to call: named.
NAMED = [
    attrgetter_map,
    methodcaller,
    deepcopy_,
    copy_,
    asdict_,
    template,
    lru,
    reduce_state,
    np_in_attr,
    np_local,
    np_tuple,
    rand_method_local,
    tracemalloc_,
    gccount,
    inspect_,
    locale_,
]


@pytest.mark.parametrize("make", NOTICED, ids=lambda make: make.__name__)
def test_a_change_is_noticed(make: Callable[[], Case]) -> None:
    read, change = make()
    watch = watched(angle(read))
    assert watch.problem is None
    assert watch.holds()
    change()
    assert not watch.holds()


@pytest.mark.parametrize("make", NAMED, ids=lambda make: make.__name__)
def test_what_cannot_be_followed_is_named(make: Callable[[], Case]) -> None:
    assert watched(angle(make()[0])).problem is not None


def test_a_transform_is_watched_as_well() -> None:
    settings = {"scale": 1.0}

    def scaled(tape: Any, table: Any) -> Any:
        ops = [
            qml.RX(settings["scale"] * op.data[0] + table[0], op.wires) for op in tape.operations
        ]
        return [type(tape)(ops, tape.measurements, shots=tape.shots)], lambda results: results[0]

    def circuit(inputs: Any) -> Any:
        qml.RX(inputs, 0)
        return qml.expval(qml.Z(0))

    for change in (lambda: settings.update(scale=2.0), lambda: TABLE.__setitem__(0, 0.8)):
        TABLE[:] = [0.0]
        watch = Watch(circuit)
        watch.also(scaled, "a transform")
        watch.also(TABLE, "what a transform is given")
        with watch:
            tape = qml.tape.make_qscript(circuit)(0.3)
            scaled(tape, TABLE)
        assert watch.problem is None
        assert watch.holds()
        change()
        assert not watch.holds()
