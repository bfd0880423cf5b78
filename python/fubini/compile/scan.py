"""What the code of a function names: globals, variables of functions around it, attributes and imports."""

import dis
import sys
import types
from dataclasses import dataclass

from fubini.circuit.torch_names import words

_NAMES_CHAIN = {"LOAD_ATTR", "LOAD_METHOD"}
_NAMES_GLOBAL = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}
_NAMES_FREE = {"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"}
_NAMES_SET = {"STORE_GLOBAL", "DELETE_GLOBAL"}
_NAMES_ATTRIBUTE = {
    "STORE_ATTR", "DELETE_ATTR", "LOAD_SUPER_ATTR", "LOAD_SUPER_METHOD", "LOAD_ZERO_SUPER_ATTR",
    "LOAD_ZERO_SUPER_METHOD", "IMPORT_FROM",
}  # fmt: skip
_LOADS = {"LOAD_CONST", "LOAD_FAST", "LOAD_GLOBAL", "LOAD_DEREF"}
_SETS = {"STORE_ATTR", "DELETE_ATTR"}
_SETTERS = ("setattr", "delattr", "__setattr__", "__delattr__")
_NAMES_LOCAL = {"STORE_NAME", "DELETE_NAME"}  # in the body of a class
# Attributes with two underscores lead behind what is watched, these excepted.
HARMLESS = frozenset(
    f"__{name}__"
    for name in words(
        "name qualname class init call len getitem iter next contains enter exit doc module "
        "post_init array float int add mul sub matmul neg radd rmul eq lt gt le ge hash bool str "
        "repr version all members setitem index abs pow truediv new file spec path match_args "
        "dataclass_fields orig_class set_name getattr mro bases notes traceback cause"
    )
)


@dataclass(frozen=True)
class Use:
    """A value that code loads by name, and what it does with it first.

    Attributes:
        name: The name of the variable.
        free: Whether it is a variable of a function around the code; else a global one.
        chain: Attributes that are read of it at once, one of the other.
        called: Whether what the chain ends in is called at once, and nothing else.
        changed: Whether an attribute of what the chain ends in is set or deleted.
    """

    name: str
    free: bool
    chain: tuple[str, ...]
    called: bool
    changed: bool


@dataclass(frozen=True)
class Scan:
    """What code names.

    Attributes:
        uses: Values that are loaded by name.
        attributes: Names of attributes.
        strings: Constants that may name an attribute too.
        imports: Modules, names that are taken from them, and levels.
        written: Globals that are set.
        made: Code of functions that it defines.
        by_constant: Places of calls whose second argument is a constant string, as in getattr(x, "name").
        sets: Whether it may set or delete an attribute.
        problem: What is not understood, in words.
    """

    uses: tuple[Use, ...]
    attributes: frozenset[str]
    strings: frozenset[str]
    imports: tuple[tuple[str, tuple[str, ...], int], ...]
    written: frozenset[str]
    made: tuple[types.CodeType, ...]
    by_constant: frozenset[int]
    sets: bool
    problem: str | None


_scans: dict[int, tuple[types.CodeType, Scan]] = {}


def scan(code: types.CodeType) -> Scan:
    """What the code of a function, a comprehension or the body of a class names; remembered."""
    known = _scans.get(id(code))
    if known is None:
        if len(_scans) > 4096:
            _scans.clear()
        known = _scans[id(code)] = (code, _scan(code))
    return known[1]


def _scan(code: types.CodeType) -> Scan:
    uses: set[Use] = set()
    attributes: set[str] = set()
    imports: list[tuple[str, tuple[str, ...], int]] = []
    written: set[str] = set()
    problem: str | None = None
    instructions = [
        i for i in dis.get_instructions(code) if i.opname not in {"CACHE", "EXTENDED_ARG"}
    ]
    for k, instruction in enumerate(instructions):
        name, what = instruction.opname, instruction.argval
        if name in _NAMES_GLOBAL or (name in _NAMES_FREE and what in code.co_freevars):
            uses.add(_use(instructions, k))
        elif name in _NAMES_CHAIN or name in _NAMES_ATTRIBUTE:
            attributes.add(what)
        elif name == "IMPORT_NAME":
            level, names = (i.argval for i in instructions[k - 2 : k])
            imports.append((what, tuple(names or ()), level))
        elif name in _NAMES_SET:
            written.add(what)
        elif instruction.opcode in dis.hasname and name not in _NAMES_LOCAL | _NAMES_FREE:
            problem = f"it uses {name}, which is not understood"
        elif name in {"IMPORT_STAR", "LOAD_LOCALS"} or "IMPORT_STAR" in instruction.argrepr:
            problem = "it imports everything of a module"
    for name in sorted(attributes):
        if name.startswith("__") and name.endswith("__") and name not in HARMLESS:
            problem = f"it reads {name}, through which anything may be reached"
    return Scan(
        tuple(uses),
        frozenset(attributes),
        frozenset(c for c in code.co_consts if isinstance(c, str)),
        tuple(imports),
        frozenset(written),
        tuple(c for c in code.co_consts if isinstance(c, types.CodeType)),
        frozenset(i.offset for k, i in enumerate(instructions) if _by_constant(instructions, k)),
        any(i.opname in _SETS or i.argval in _SETTERS for i in instructions),
        problem,
    )


def _by_constant(instructions: list[dis.Instruction], k: int) -> bool:
    count = instructions[k].arg
    if instructions[k].opname != "CALL" or count not in {2, 3}:
        return False
    before = [i for i in instructions[max(k - 4, 0) : k] if i.opname not in {"PRECALL", "NOP"}]
    if count == 3 and before[-1].opname not in _LOADS:
        return False
    name = before[1 - count]
    return name.opname == "LOAD_CONST" and isinstance(name.argval, str)


def _use(instructions: list[dis.Instruction], k: int) -> Use:
    first = instructions[k]
    name, free = str(first.argval), first.opname in _NAMES_FREE
    # A global with this bit is called, or what is read of it is.
    of_call = first.opname == "LOAD_GLOBAL" and bool((first.arg or 0) & 1)
    chain: list[str] = []
    called = changed = False
    for following in instructions[k + 1 :]:
        if following.opname not in _NAMES_CHAIN or following.is_jump_target or called:
            changed = not called and following.opname in _SETS
            break
        chain.append(following.argval)
        method = sys.version_info >= (3, 12) and bool((following.arg or 0) & 1)
        called = following.opname == "LOAD_METHOD" or method
    return Use(name, free, tuple(chain), called or of_call, changed)
