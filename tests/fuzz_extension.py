"""Calls every function of the private extension with garbage: each call returns or raises, and nothing else happens.

``python tests/fuzz_extension.py [calls [seed [aloud]]]``; under the sanitizers of CONTRIBUTING.md what it finds has an address.
Argument names come from the committed stub, so that new functions are fuzzed without a change here.
"""

import ast
import faulthandler
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fubini import _core

STUB = Path(_core.__file__).with_name("_core.pyi")
LIMIT = 1e8  # bytes, so that what is too large is refused instead of computed
EDGES = (0, 1, -1, 2, 3, 24, 25, 2**24, 2**31 - 1, -(2**31), 2**31, 2**62, 2**63 - 1)
NUMBERS = (0.0, 1.0, -1.0, 0.3, 1e-300, 1e300, float("nan"), float("inf"), -float("inf"))
WORDS = ("", "auto", "cholesky", "ldlt", "pinv", "power", "cg", "absolute", "relative", "diagonal")
FAMILIES = ("categorical", "bernoulli", "gaussian", "X", "ZZ", "Q", "RX", "CNOT", "Rot", "\0")


def _is(value: Any, kind: str) -> bool:
    return kind in (base.__name__ for base in type(value).__mro__)


class Garbage:
    """Values for arguments: what a function expects, nearly that, or anything."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.numpy = np.random.default_rng(seed)
        self.programs = [self._program() for _ in range(12)]
        self.ready = [*self.programs, *(self._expression(one) for one in self.programs)]
        self.objects: list[Any] = []
        self.next_call()

    def _program(self) -> Any:
        pick = self.random
        wires, angles, takes_state = pick.randint(1, 4), pick.randint(0, 4), pick.random() < 0.3
        builder = _core.ProgramBuilder(wires, angles, takes_state)
        for _ in range(pick.randint(0, 6)):
            slot = pick.randint(-1, angles - 1)
            wire = pick.randrange(wires)
            builder.pauli_rotation(pick.choice("IXYZ"), [wire], [], [], False, (slot, 0.5, 0.1))
            if wires > 1:
                builder.gate("CNOT", [wire, (wire + 1) % wires], [], [], False, [])
        for moment in range(pick.randint(0, 3)):
            builder.pauli_term(moment, 0.5, "Z", [0])
            builder.output(moment, pick.choice((-1, 0)))
        return builder.build()

    def _expression(self, program: Any) -> Any:
        """A program's angles, each the sum of a weight and an input."""
        count = program.num_angles
        nodes = [(kind, k, -1, 0.0) for kind in ("weight", "input") for k in range(count)]
        nodes += [("sum", 2 * k, 2, 0.1) for k in range(count)]
        terms = [(0.5, n, -1) for k in range(count) for n in (k, count + k)]
        return _core.Expression(count, count, nodes, terms, [*range(2 * count, 3 * count)], count)

    def next_call(self) -> None:
        """The arrays of one call have few sizes and one number of axes, mostly, so that some fit each other."""
        self.rank = self.random.randint(1, 3)
        usual = (0, 1, 1, 2, 2, 3, 4, 5, 16)
        self.sizes = [self.random.choice(usual) for _ in range(self.random.choice((1, 1, 2, 3)))]

    def integer(self) -> int:
        if self.random.random() < 0.2:
            return self.random.choice(self.sizes)
        return (
            self.random.choice(EDGES) if self.random.random() < 0.4 else self.random.randint(-2, 6)
        )

    def number(self) -> float:
        return self.random.choice(NUMBERS)

    def array(self, dtype: Any = np.float64) -> np.ndarray[Any, Any]:
        pick = self.random
        rank = self.rank if pick.random() < 0.6 else pick.randint(0, 4)
        shape = [pick.choice(self.sizes) for _ in range(rank)]
        if pick.random() < 0.02 and 0 in shape:  # no element, and sizes whose products overflow
            shape.insert(pick.randint(0, len(shape)), 2**40)
        if 0 not in shape and np.prod(shape, dtype=float) > 1e5:
            shape = shape[:1]
        values = self.numpy.normal(size=shape) * pick.choice((1.0, 1.0, 1e-3, 1e160))
        if values.size and pick.random() < 0.1:
            values.reshape(-1)[pick.randrange(values.size)] = self.number()
        found = values.astype(dtype)
        kind = pick.random()
        if kind < 0.05:
            found = found[..., ::-1] if found.ndim else found
        elif kind < 0.1:  # not aligned
            memory = np.empty(found.nbytes + 1, dtype=np.uint8)
            odd = memory[1:].view(found.dtype) if found.nbytes else found.reshape(-1)
            odd[...] = found.reshape(-1)
            found = odd.reshape(found.shape)
        elif kind < 0.13:
            found = found.astype(found.dtype.newbyteorder())
        elif kind < 0.2 and found.ndim >= 2 and found.size:  # square and symmetric
            n = found.shape[-1]
            found = np.ascontiguousarray(
                np.broadcast_to(np.eye(n, dtype=dtype), (*found.shape[:-2], n, n))
            )
        return found

    def listed(self, value: Callable[[], Any]) -> list[Any]:
        return [value() for _ in range(self.random.randint(0, 5))]

    def pair_of_masks(self) -> tuple[Any, ...]:
        return (abs(self.integer()), abs(self.integer()), self.number())

    def anything(self) -> Any:
        choices: tuple[Callable[[], Any], ...] = (
            self.integer,
            self.number,
            self.array,
            lambda: self.array(np.complex128),
            lambda: self.array(np.float32),
            lambda: self.array(np.int64) if self.random.random() < 0.9 else np.array(["a"]),
            lambda: None,
            lambda: self.random.choice((True, False)),
            lambda: self.random.choice(WORDS + FAMILIES),
            lambda: self.random.choice(self.ready),
            lambda: self.listed(self.integer),
            lambda: self.listed(self.number),
            lambda: self.listed(self.array),
            lambda: self.listed(self.pair_of_masks),
            lambda: self.listed(lambda: self.listed(self.pair_of_masks)),
            lambda: self.random.choice(self.objects) if self.objects else {},
            object,
        )
        return self.random.choice(choices)()

    def fitting(self, kind: str) -> Any:
        """A value of the annotated type, more or less."""
        if kind in (
            "Program",
            "Expression",
            "Pass",
            "ProgramBuilder",
            "ShiftPlan",
        ):
            fits = [one for one in (*self.objects, *self.ready) if _is(one, kind)]
            return self.random.choice(fits) if fits else self.anything()
        if kind.startswith(("collections.abc.Sequence[", "list[", "typing.List[")):
            inner = kind[kind.index("[") + 1 : -1]
            return self.listed(lambda: self.fitting(inner))
        if kind.startswith("tuple["):
            parts = kind[6:-1].split(", ")
            return tuple(self.fitting(part) for part in parts)
        if " | None" in kind:
            return None if self.random.random() < 0.4 else self.fitting(kind.replace(" | None", ""))
        if "complex" in kind:
            return self.array(np.complex128)
        if "int64" in kind:
            return self.array(np.int64)
        if "NDArray" in kind or kind == "numpy.ndarray":
            return self.array()
        if kind == "bool":
            return self.random.random() < 0.5
        if kind == "str":
            return self.random.choice(WORDS + FAMILIES)
        if "SupportsInt" in kind:
            return self.integer()
        if "SupportsFloat" in kind:
            return self.number()
        return self.anything()

    def argument(self, name: str, kind: str, program: Any) -> Any:
        """A value for an argument; the shapes that belong to a program more often than not."""
        pick = self.random
        if pick.random() < 0.08:
            return self.anything()
        batch = pick.choice((0, 1, 1, 2, 3, 9))
        if name == "program":
            return program
        shapes: dict[str, tuple[Any, ...]] = {
            "angles": (batch, program.num_angles),
            "tangents": (batch, program.num_angles),
            "cotangents": (batch, program.num_outputs),
            "vectors": (batch, program.num_angles),
            "covectors": (batch, 1 << program.num_wires),
            "states": (batch, 1 << program.num_wires),
            "state_tangents": (batch, 1 << program.num_wires),
        }
        if name in shapes and pick.random() < 0.8:
            if name in ("states", "state_tangents") and not program.takes_state:
                return None
            self.last = getattr(self, "last", batch) if pick.random() < 0.7 else batch
            values = self.numpy.normal(size=(self.last, *shapes[name][1:]))
            return values.astype(np.complex128) if "complex" in kind else values
        return self.fitting(kind)


def functions() -> Iterator[tuple[str | None, str, list[tuple[str, str]]]]:
    """Class or None, name, and the names and annotations of the arguments, from the stub."""
    for node in ast.parse(STUB.read_text()).body:
        owner = node.name if isinstance(node, ast.ClassDef) else None
        for item in node.body if isinstance(node, ast.ClassDef) else [node]:
            if isinstance(item, ast.FunctionDef) and not (
                item.name.startswith("__") and item.name not in ("__init__", "__len__")
            ):
                arguments = [
                    (a.arg, ast.unparse(a.annotation) if a.annotation else "")
                    for a in item.args.args
                ]
                yield owner, item.name, arguments[1:] if owner else arguments


def main(calls: int, seed: int, aloud: bool) -> None:
    """Make the calls; aloud, the last one that began is the last one printed where the process dies."""
    faulthandler.enable()
    _core.set_memory_limit(LIMIT)
    garbage = Garbage(seed)
    targets = list(functions())
    returned = dict.fromkeys((f"{owner or ''}.{name}" for owner, name, _ in targets), 0)
    for call in range(calls):
        owner, name, arguments = garbage.random.choice(targets)
        if name in ("set_memory_limit", "set_num_threads"):
            continue
        if len(garbage.objects) > 60:
            del garbage.objects[:30]
        garbage.next_call()
        program = garbage.random.choice(garbage.programs)
        values = [garbage.argument(n, kind, program) for n, kind in arguments]
        function: Any = getattr(_core, name if owner is None else owner, None)
        if owner is not None and name != "__init__":
            instances = [one for one in (*garbage.objects, *garbage.ready) if _is(one, owner)]
            if not instances:
                continue
            function = getattr(garbage.random.choice(instances), name)
        if aloud:
            print(call, owner, name, values, flush=True)
        if not callable(function):  # a property
            returned[f"{owner or ''}.{name}"] += 1
            continue
        try:
            result = function(*values)
        except (TypeError, ValueError, IndexError, MemoryError, OverflowError, RuntimeError):
            continue
        returned[f"{owner or ''}.{name}"] += 1
        for one in result if isinstance(result, tuple) else (result,):
            if type(one).__module__.startswith("fubini"):
                garbage.objects.append(one)
    never = sorted(name for name, count in returned.items() if not count)
    print(f"{calls} calls, {sum(returned.values())} returned; never: {', '.join(never) or 'none'}")


if __name__ == "__main__":
    given = [int(one) for one in sys.argv[1:3]]
    main(*(given + [20000, 0][len(given) :]), aloud=len(sys.argv) > 3)
