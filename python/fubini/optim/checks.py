"""What the optimizer refuses, before anything has changed."""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pennylane as qml
import torch

from fubini.arrays import first_not_finite
from fubini.errors import NumericalError
from fubini.options import check_number

Groups = Sequence[Mapping[str, Any]]
_BOUNDS = {"lr": math.inf, "lam": math.inf, "weight_decay": math.inf, "momentum": 1.0}


def listed(params: Any) -> list[Any]:
    """Return the parameters or groups that an optimizer was made from as a list.

    Args:
        params: What the caller passed.

    Raises:
        TypeError: If it is nothing that parameters can be taken from.
    """
    if isinstance(params, torch.Tensor):
        raise TypeError(
            "params: params argument given to the optimizer should be an iterable of Tensors or dicts, or a module, got a "
            f"tensor of shape {tuple(params.shape)}; write [tensor]"
        )
    if isinstance(params, Mapping | set | frozenset | str | bytes) or not hasattr(
        type(params), "__iter__"
    ):
        advice = ""
        if callable(params) and getattr(params, "__name__", "") == "parameters":
            advice = "; call it: model.parameters()"
        elif isinstance(params, qml.QNode):
            advice = "; make a layer of it, QuantumLayer(qnode, weight_shapes), or pass [weights] and a closure"
        elif isinstance(params, set | frozenset):
            advice = "; the order of parameters matters, which a set does not keep"
        elif isinstance(params, Mapping):
            advice = "; a single group is written [group], and named parameters dictionary.items()"
        got = f"{type(params).__name__} {params!r}" if not advice else type(params).__name__
        raise TypeError(
            f"params: expected a module, or an iterable of parameters or groups, got {got}{advice}"
        )
    return list(params)


def check_count(name: str, value: Any) -> None:
    """Refuse what is no whole number of at least one.

    Args:
        name: For messages.
        value: The number.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a whole number >= 1, got {value!r}")


def check_parameters(parameters: Iterable[Any], names: Mapping[Any, str]) -> None:
    """Refuse complex parameters. Dtypes may differ: a step is computed in float64 whatever they are.

    Args:
        parameters: All of them; what is no tensor is left to torch to refuse.
        names: Their names, as far as there are any.

    Raises:
        TypeError: Names the parameters.
    """
    for k, p in enumerate(parameters):
        if isinstance(p, torch.Tensor) and p.is_complex():
            raise TypeError(
                f"{names.get(p, f'parameter {k}')}: expected a real parameter, got {p.dtype}; use torch.view_as_real"
            )


def check_group(group: Mapping[str, Any]) -> None:
    """Check those options of a parameter group that are there: lr, lam, weight decay, momentum and maximize.

    Args:
        group: The group.

    Raises:
        TypeError: If one is no number, or maximize is no truth value.
        ValueError: If one is out of its range.
    """
    for name, below in _BOUNDS.items():
        value = group.get(name, 0.0)
        if type(value) is not float or not 0.0 <= value < below:  # which it seldom is
            check_number(name, value, below)
    if not isinstance(group.get("maximize", False), bool):
        raise TypeError(f"maximize: expected True or False, got {group['maximize']!r}")


def check_gradients(groups: Groups, names: Mapping[Any, str]) -> None:
    """Check the groups' numbers and the gradients.

    Args:
        groups: Parameter groups.
        names: Names of the parameters, as far as there are any.

    Raises:
        NumericalError: If a gradient is not finite.
        TypeError: If a gradient is sparse.
        ValueError: If a number is out of its range.
    """
    for group in groups:
        check_group(group)
        dense, places = [], []
        for k, p in enumerate(group["params"]):
            gradient = p.grad
            if gradient is None:
                continue
            if gradient.layout is not torch.strided:
                raise TypeError(
                    f"{names.get(p, f'parameter {k}')}: expected a dense gradient, got a sparse one; use sparse=False"
                )
            dense.append(gradient)
            places.append(k)
        bad = first_not_finite(dense)
        if bad is not None:
            k = places[bad]
            name = names.get(group["params"][k], f"parameter {k}")
            raise NumericalError(f"{name}: expected a finite gradient, got NaN or infinity")
