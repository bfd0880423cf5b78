"""Copies and pickles of QNodes."""

import copy
import copyreg
import importlib
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class NamedQNode:
    """A QNode that a module has, such as one made by the decorator ``@qml.qnode``: its function is not the module's.

    Attributes:
        module: Name of the module.
        name: Name in it.
    """

    module: str
    name: str


def found_qnode(qnode: Any) -> Any:
    """Return the QNode that ``reduced`` gave a name.

    Raises:
        AttributeError: If the module does not have it any more.
    """
    if not isinstance(qnode, NamedQNode):
        return qnode
    found = _lookup(importlib.import_module(qnode.module), qnode.name)
    if found is None:
        raise AttributeError(
            f"qnode: expected the module {qnode.module!r} to have {qnode.name!r}, as where the layer was pickled; define it "
            "there before loading"
        )
    return found


def reduced(owner: Any) -> tuple[Any, ...]:
    """Return how an owner of a QNode is pickled: one that a module has under its function's name, by that name."""
    state, qnode = owner.__getstate__(), owner.qnode
    module = getattr(qnode.func, "__module__", None)
    name = getattr(qnode.func, "__qualname__", "")
    if module is not None and _lookup(sys.modules.get(module), name) is qnode:
        state = {**state, "qnode": NamedQNode(module, name)}
    return copyreg.__newobj__, (type(owner),), state  # type: ignore[attr-defined]


def share_uncopyable(qnode: Any, memo: dict[int, Any]) -> None:
    """Have a deep copy share the QNode, and its device, if they cannot be copied (a device that holds memory of its own)."""
    if id(qnode) in memo:
        return
    try:
        inner = dict(memo)
        copy.deepcopy(qnode, inner)
    except (TypeError, NotImplementedError):
        memo[id(qnode)] = qnode
        memo[id(qnode.device)] = qnode.device
    else:
        # Under its own identity a memo keeps alive what the others in it are of.
        kept = inner.pop(id(inner), [])
        memo.update(inner)
        memo.setdefault(id(memo), []).extend(kept)


def _lookup(place: Any, name: str) -> Any:
    for part in name.split("."):
        place = getattr(place, part, None)
    return place
