"""Captured classes and their objects that change: by every road that Python offers, none is overlooked."""

import abc
import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from watching import angle, watched

# Uncommon ways of reading are the subject.
# ruff: noqa: PLW0108, RUF012
Case = tuple[Callable[[], Any], Callable[[], Any]]


class C:
    pass


def C1():
    c = C()
    c.v, c.t = 0.3, [1]
    return c


def enum_value():

    class E(enum.Enum):
        A = 0.3

    def ch():
        E.A._value_ = 1.0

    return (lambda: E.A.value, ch)


def enum_iter():

    class E(enum.IntEnum):
        A = 1
        B = 2

    return (lambda: sum(e.value for e in E), lambda: setattr(E.A, "_value_", 9))


def isabc():

    class B(abc.ABC):
        @abc.abstractmethod
        def f(self): ...

    class D:
        pass

    o = D()
    return (lambda: 1 if isinstance(o, B) else 0, lambda: B.register(D))


def subclasscheck():

    class M(type):
        flag = False

        def __instancecheck__(c, o):
            return c.flag

    class B(metaclass=M):
        pass

    return (lambda: 1 if isinstance(3, B) else 0, lambda: setattr(M, "flag", True))


def mro_change():

    class A:
        v = 0.3

    class B:
        v = 1.0

    class X(A):
        pass

    class Y(B):
        pass

    class Z(X):
        pass

    o = Z()
    return (lambda: o.v, lambda: setattr(Z, "__bases__", (Y,)))


def class_call():

    class K:
        scale = [0.3]

        def __call__(s):
            return s.scale[0]

    o = K()
    return (lambda: o(), lambda: K.scale.__setitem__(0, 1))


def new_():

    class K:
        reg = [0.3]

        def __new__(cls):
            o = object.__new__(cls)
            o.v = cls.reg[0]
            return o

    return (lambda: K().v, lambda: K.reg.__setitem__(0, 1))


def init_subclass():
    k = [0.3]

    class B:
        def __init_subclass__(cls):
            cls.v = k[0]

    def read():

        class D(B):
            pass

        return D.v

    return (read, lambda: k.__setitem__(0, 1))


def class_getitem():

    class B:
        t = {"a": 0.3}

        def __class_getitem__(cls, i):
            return cls.t[i]

    return (lambda: B["a"], lambda: B.t.update(a=1))


def slots_inherit():

    class A:
        __slots__ = ("v",)

    class B(A):
        __slots__ = ("w",)

    o = B()
    o.v = 0.3
    return (lambda: o.v, lambda: setattr(o, "v", 1))


def slot_absent():

    class A:
        __slots__ = ("v",)

    o = A()
    return (lambda: getattr(o, "v", 0), lambda: setattr(o, "v", 1))


def exc_notes():

    class E(Exception):
        v = 0.3

    def read():
        try:
            raise E
        except E as x:
            return x.v

    return (read, lambda: setattr(E, "v", 1))


def type_getattr():

    class K:
        v = 0.3

    n = "v".lower()
    return (lambda: getattr(K, n), lambda: setattr(K, "v", 1))


def nested_cls():

    class K:
        class I:
            v = 0.3

    return (lambda: K.I.v, lambda: setattr(K.I, "v", 1))


def cls_inst():

    class I:
        v = [0.3]

    class K:
        i = I()

    return (lambda: K.i.v[0], lambda: K.i.v.__setitem__(0, 1))


def cls_bad():

    class K:
        rng = np.random.default_rng(0)
        v = 0.3

    return (lambda: K.v, lambda: setattr(K, "v", 1))


def del_attr_then():
    c = C1()

    def read():
        try:
            return c.v
        except AttributeError:
            return 9

    return (read, lambda: delattr(c, "v"))


def attr_moves_to_class():

    class K:
        pass

    o = K()
    o.v = 0.3
    return (lambda: o.v, lambda: setattr(K, "v", property(lambda s: 1.0)))


def operator_index():

    class K:
        def __init__(s):
            s.v = 1

        def __index__(s):
            return s.v

    o = K()
    return (lambda: [1, 2, 3][o], lambda: setattr(o, "v", 2))


def sort_key():

    class K:
        def __init__(s, v):
            s.v = v

        def __lt__(s, o):
            return s.v < o.v

    a, b = (K(1), K(2))
    return (lambda: sorted([a, b])[1] is b, lambda: setattr(a, "v", 5))


def subclasses():

    class B:
        pass

    def ch():
        global kk
        kk = type("D", (B,), {})

    return (lambda: len(B.__subclasses__()), ch)


def exc_attr():
    e = ValueError()
    e.v = 0.3
    return (lambda: e.v, lambda: setattr(e, "v", 1))


def typ_dict():

    class K:
        v = 0.3

    return (lambda: K.__dict__["v"], lambda: setattr(K, "v", 1))


def property_setter():

    class K:
        _v = 0.3

        @property
        def v(s):
            return s._v

        @v.setter
        def v(s, x):
            s._v = x

    o = K()

    def read():
        o.v = 0.5
        return o.v

    return (read, lambda: None)


def cls_bad2():

    class K:
        rng = np.random.default_rng(0)
        v = 0.3

    return (lambda: K.rng.normal(), lambda: None)


def fwd_counter():

    class K(torch.nn.Module):
        def __init__(s):
            super().__init__()
            s.register_buffer("n", torch.tensor(0.0))

        def f(s):
            s.n += 1
            return 0

    o = K()
    return (lambda: o.f(), lambda: None)


# Understood: compiled, and a change is noticed.
NOTICED = [
    enum_value,
    enum_iter,
    isabc,
    subclasscheck,
    mro_change,
    class_call,
    new_,
    init_subclass,
    class_getitem,
    slots_inherit,
    slot_absent,
    exc_notes,
    type_getattr,
    nested_cls,
    cls_inst,
    cls_bad,
    del_attr_then,
    attr_moves_to_class,
    operator_index,
    sort_key,
]
# Not understood, or different from call to call: named.
NAMED = [subclasses, exc_attr, typ_dict, property_setter, cls_bad2, fwd_counter]


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


def test_a_hook_of_all_modules_is_noticed() -> None:
    module, x = torch.nn.Tanh(), torch.ones(1)
    watch = watched(angle(lambda: module(x).sum()))
    assert watch.problem is None
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *a: a[2] * 2)
    try:
        assert not watch.holds()
    finally:
        handle.remove()
    assert watch.holds()
