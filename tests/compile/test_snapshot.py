"""Captured containers, arrays, modules of torch and operators that change: by every road, none is overlooked."""

import collections
import enum
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

from watching import angle, watched

# Uncommon ways of reading are the subject.
# ruff: noqa: PLW0108, RUF015, UP031, UP030, UP032
Case = tuple[Callable[[], Any], Callable[[], Any]]


class C:
    pass


def C1():
    c = C()
    c.v, c.t = 0.3, [1]
    return c


def fstring():
    c = C1()
    return (lambda: float(f"{c.v}"), lambda: setattr(c, "v", 1))


def strformat():
    c = C1()
    return (lambda: float("{0.v}".format(c)), lambda: setattr(c, "v", 1))


def chainmap():
    a = {"v": 0.3}
    m = collections.ChainMap({}, a)
    return (lambda: m["v"], lambda: a.update(v=1))


def userdict():
    m = collections.UserDict(v=0.3)
    return (lambda: m["v"], lambda: m.update(v=1))


def np_rec():
    a = np.array([(0.3,)], dtype=[("v", float)])
    return (lambda: a["v"][0], lambda: a["v"].fill(1))


def np_vectorize():
    k = [0.3]
    f = np.vectorize(lambda x: x + k[0])
    return (lambda: float(f(0.0)), lambda: k.__setitem__(0, 1))


def np_poly():
    p = np.poly1d([0.3, 1])
    return (lambda: p(2.0), lambda: p.coeffs.__setitem__(0, 9))


def nn_seq():
    m = torch.nn.Sequential(torch.nn.Linear(1, 1)).requires_grad_(False)
    x = torch.ones(1)
    return (lambda: m(x).sum(), lambda: m[0].weight.data.fill_(9))


def nn_act():
    m = torch.nn.LeakyReLU(0.1)
    x = -torch.ones(1)
    return (lambda: m(x).sum(), lambda: setattr(m, "negative_slope", 0.9))


def nn_hook():
    m = torch.nn.Tanh()
    x = torch.ones(1)
    return (lambda: m(x).sum(), lambda: m.register_forward_hook(lambda *a: a[2] * 2))


def paramlist():
    m = torch.nn.ParameterList([torch.nn.Parameter(torch.ones(1), requires_grad=False)])
    return (lambda: m[0].sum(), lambda: m[0].data.fill_(4))


def moddict():
    m = torch.nn.ModuleDict({"a": torch.nn.Hardtanh()})
    x = torch.ones(1) * 5
    return (lambda: m["a"](x).sum(), lambda: setattr(m["a"], "max_val", 4))


def flag():

    class E(enum.Flag):
        A = 1
        B = 2

    v = [E.A | E.B]
    return (lambda: 1 if E.A in v[0] else 0, lambda: v.__setitem__(0, E.B))


def counter():
    d = collections.Counter("aab")
    return (lambda: d["a"], lambda: d.update("a"))


def ordered():
    d = collections.OrderedDict(a=1, b=2)
    return (lambda: list(d)[0] == "a", lambda: d.move_to_end("a"))


def setorder():
    s = {8, 0}
    return (lambda: list(s)[0], lambda: (s.clear(), s.update([0, 8])))


def qml_np_tensor_attr():
    t = qml.numpy.array([0.3])
    return (
        lambda: float(t[0]) + float(t.requires_grad),
        lambda: setattr(t, "requires_grad", False),
    )


def op_param_read():
    op = qml.RX(torch.tensor(0.3), 0)
    return (lambda: op.parameters[0], lambda: op.data[0].fill_(1))


def op_wires_set():
    op = qml.RX(0.3, 0)
    return (lambda: op.wires[0], lambda: setattr(op, "_wires", qml.wires.Wires([3])))


def ham_ops_replace():
    H = qml.Hamiltonian([1.0, 2.0], [qml.Z(0), qml.X(0)])
    return (lambda: (qml.expval(H), 0)[1], lambda: setattr(H, "operands", (qml.X(0),)))


def pauli_sentence():
    ps = qml.pauli.PauliSentence({qml.pauli.PauliWord({0: "X"}): 0.3})
    return (
        lambda: list(ps.values())[0],
        lambda: ps.__setitem__(qml.pauli.PauliWord({0: "X"}), 1.0),
    )


def dev_shots():
    d = qml.device("default.qubit", wires=2)
    return (lambda: len(d.wires), lambda: setattr(d, "_wires", qml.wires.Wires([0])))


def user_gate_class():
    k = [0.3]

    class G(qml.operation.Operation):
        num_wires = 1

        def __init__(s, x, wires):
            super().__init__(x * k[0], wires=wires)

    return (lambda: G(1.0, wires=0).data[0], lambda: k.__setitem__(0, 1))


def adj_sub():
    k = [0.3]

    def sub():
        return qml.RX(k[0], 0)

    return (lambda: qml.adjoint(sub)().data[0], lambda: k.__setitem__(0, 1))


def swap_type():
    v = [1]
    return (lambda: 1 if v[0] is True else 0, lambda: v.__setitem__(0, True))


def string_mod():
    c = C1()
    return (lambda: float("%s" % c.v), lambda: setattr(c, "v", 1))


def walrus_star():
    t = [1, 2, 3]

    def read():
        _, *b = t
        return len(b)

    return (read, lambda: t.append(1))


def kwargs_spread():
    cfg = {"wires": 0}
    return (lambda: qml.RX(0.3, **cfg).wires[0], lambda: cfg.update(wires=2))


def hash_eq():

    class K:
        def __init__(s):
            s.v = 1

        def __eq__(s, o):
            return s.v == o

        __hash__ = None

    o = K()
    return (lambda: 1 if o in [2, 3] else 0, lambda: setattr(o, "v", 2))


def torch_function():

    class T:
        k = 0.3

        @classmethod
        def __torch_function__(cls, f, t, a=(), k=None):
            return cls.k

    o = T()
    return (lambda: torch.add(o, 1), lambda: setattr(T, "k", 1))


def array_ufunc():

    class T:
        k = 0.3

        def __array_ufunc__(s, *a, **k):
            return s.k

    o = T()
    return (lambda: np.add(o, 1), lambda: setattr(o, "k", 1))


def frozen_list_sub():

    class L(list):
        def __getitem__(s, i):
            return list.__getitem__(s, i) * s.k

    l = L([1.0])
    l.k = 2
    return (lambda: l[0], lambda: setattr(l, "k", 3))


def float_sub():

    class F(float):
        pass

    f = F(0.3)
    f.k = 1
    return (lambda: f + f.k, lambda: setattr(f, "k", 3))


def str_sub():

    class S(str):
        pass

    s = S("a")
    s.k = 1
    return (lambda: s.k, lambda: setattr(s, "k", 3))


def mappingproxy():
    a = {"v": 0.3}
    m = types.MappingProxyType(a)
    return (lambda: m["v"], lambda: a.update(v=1))


def dictview():
    a = {"v": 0.3}
    m = a.values()
    return (lambda: sum(m), lambda: a.update(v=1))


def memview():
    a = np.array([0.3])
    m = memoryview(a)
    return (lambda: m[0], lambda: a.fill(1))


def np_iter():
    a = np.array([0.3])
    m = a.flat
    return (lambda: m[0], lambda: a.fill(1))


def np_void():
    a = np.array([(0.3,)], dtype=[("v", float)])
    b = a[0]
    return (lambda: b["v"], lambda: a["v"].fill(1))


def np_frompy():
    k = [0.3]
    f = np.frompyfunc(lambda x: x + k[0], 1, 1)
    return (lambda: f(0.0), lambda: k.__setitem__(0, 1))


def setdefaultdict():
    d = collections.defaultdict(lambda: 0.3)
    return (lambda: d["k"], lambda: d.update(k=1))


def nn_bn():
    m = torch.nn.BatchNorm1d(1).requires_grad_(False)
    x = torch.rand(4, 1)
    return (lambda: m(x).sum(), lambda: None)


def tensor_random():
    t = torch.zeros(3)
    return (lambda: t.clone().uniform_().sum(), lambda: None)


def getattr_dyn_tensor():
    t = torch.zeros(3)
    n = "uni" + "form_"
    return (lambda: getattr(t.clone(), n)().sum(), lambda: None)


def genexp():
    g = (k for k in [0.3, 0.4, 0.5, 0.6])
    return (lambda: next(g), lambda: None)


def zipped():
    g = zip([0.3, 0.4, 0.5], [1, 2, 3], strict=True)
    return (lambda: next(g)[0], lambda: None)


def template_wrapped():
    k = [0.3]

    def sub():
        qml.RX(k[0], 0)

    def read():
        return qml.tape.make_qscript(sub)().operations[0].data[0]

    return (read, lambda: k.__setitem__(0, 1))


def inplace_arr():
    a = np.zeros(3)

    def read():
        a[0] += 1
        return 0

    return (read, lambda: None)


# Understood: compiled, and a change is noticed.
NOTICED = [
    template_wrapped,
    fstring,
    strformat,
    chainmap,
    userdict,
    np_rec,
    np_vectorize,
    np_poly,
    nn_seq,
    nn_act,
    nn_hook,
    paramlist,
    moddict,
    flag,
    counter,
    ordered,
    setorder,
    qml_np_tensor_attr,
    op_param_read,
    op_wires_set,
    ham_ops_replace,
    pauli_sentence,
    dev_shots,
    user_gate_class,
    adj_sub,
    swap_type,
    string_mod,
    walrus_star,
    kwargs_spread,
    hash_eq,
    torch_function,
    array_ufunc,
    frozen_list_sub,
    float_sub,
    str_sub,
]
# Not understood, or different from call to call: named.
NAMED = [
    mappingproxy,
    dictview,
    memview,
    np_iter,
    np_void,
    np_frompy,
    setdefaultdict,
    nn_bn,
    tensor_random,
    getattr_dyn_tensor,
    genexp,
    zipped,
    inplace_arr,
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
