"""Rules for functions, sums and products. The formulas are those of torch's derivatives.yaml."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fubini.arrays import to_numpy
from fubini.fisher.graph_values import NotKnown, Rule, Shape, Values, axis_of, check_fits
from fubini.options import Real

Tensor = torch.Tensor
aten = torch.ops.aten

# -- functions of each entry ----------------------------------------------------------------------------------------------


def _function(saved: str, slope: Callable[[Real], Any]) -> Rule:
    """The rule of a function of one argument, by its slope as a function of what the node has saved."""

    def rule(node: Any, _: list[Shape], arguments: list[Shape | None], values: Values) -> Any:
        kept = values.keep(getattr(node, saved))
        return lambda g: (g[0] * slope(to_numpy(kept))[:, None],), None

    return rule


def _torch_function(backward: Callable[..., Tensor], *names: str) -> Rule:
    """The same by torch's own derivative, which takes the cotangent and what is saved under these names."""

    def rule(node: Any, _: list[Shape], arguments: list[Shape | None], values: Values) -> Any:
        kept = values.keep(node._saved_self)
        options = tuple([getattr(node, f"_saved_{name}") for name in names])

        def pull(g: Any) -> Any:
            x = kept.to(torch.float64)
            slope = backward(torch.ones_like(x), x, *options)
            return (g[0] * slope.numpy()[:, None],)

        return pull, options

    return rule


def _gelu_backward(g: Tensor, x: Tensor, how: str) -> Tensor:
    result: Tensor = aten.gelu_backward(g, x, approximate=how)
    return result


def _elu_backward(g: Tensor, x: Tensor, *numbers: float) -> Tensor:
    result: Tensor = aten.elu_backward(g, *numbers, False, x)
    return result


def _power(node: Any, _: list[Shape], arguments: list[Shape | None], values: Values) -> Any:
    kept, e = values.keep(node._saved_self), node._saved_exponent
    if not isinstance(e, int | float) or e in (0, 1):
        raise NotKnown
    return lambda g: (g[0] * (e * to_numpy(kept) ** (e - 1))[:, None],), e


# -- sums and products ----------------------------------------------------------------------------------------------------


def _summed(g: Real, shape: Shape) -> Real:
    """A cotangent (N, K, ...) of an argument that was repeated along some axes."""
    for axis, size in enumerate(shape[1:], 2):
        if size == 1 and g.shape[axis] != 1:
            g = g.sum(axis, keepdims=True)
    return g


def _sum_of(sign: float) -> Rule:
    """Of ``a + sign * alpha * b``."""

    def rule(node: Any, shapes: list[Shape], arguments: list[Shape | None], _: Values) -> Any:
        alpha = node._saved_alpha
        if not isinstance(alpha, int | float):
            raise NotKnown
        for argument in arguments:
            check_fits(shapes[0], argument)
        factors = (1.0, sign * alpha)

        def pull(g: Any) -> Any:
            return [
                None if shape is None else _summed(g[0] if c == 1.0 else c * g[0], shape)
                for c, shape in zip(factors, arguments, strict=True)
            ]

        return pull, alpha

    return rule


def _factor(value: Any, shape: Shape, values: Values) -> Callable[[], Any]:
    """What cotangents (N, K, ...) are multiplied with, for a factor of a product of this shape."""
    if isinstance(value, Tensor) and not value.ndim and not value.requires_grad:
        number = float(value)  # also an int of the caller's
        return lambda: number
    kept = values.keep(value)
    if kept.ndim > len(shape):
        raise NotKnown

    def made() -> Any:
        array = to_numpy(kept)
        return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)[:, None]

    return made


def _binary(
    by_first: Callable[[Real, Any], Real],
    by_second: Callable[[Real, Any, Any], Real],
    reads_second: bool,
) -> Rule:
    """Of a product or quotient, by what its arguments make of a cotangent; the first one's may always take the second."""

    def rule(node: Any, shapes: list[Shape], arguments: list[Shape | None], values: Values) -> Any:
        shape, (first, second) = shapes[0], arguments
        check_fits(shape, first)
        check_fits(shape, second)
        a = None if second is None else _factor(node._saved_self, shape, values)
        b = None
        if reads_second or first is not None:
            b = _factor(node._saved_other, shape, values)

        def pull(g: Any) -> Any:
            x, y = a and a(), b and b()
            return (
                None if first is None else _summed(by_first(g[0], y), first),
                None if second is None else _summed(by_second(g[0], x, y), second),
            )

        return pull, None

    return rule


def _minus(node: Any, _: list[Shape], arguments: list[Shape | None], values: Values) -> Any:
    alpha = getattr(node, "_saved_alpha", 1)
    if not isinstance(alpha, int | float):
        raise NotKnown
    return lambda g: (-alpha * g[0],), alpha


def _softmax(log: bool) -> Rule:
    def rule(node: Any, shapes: list[Shape], _: list[Shape | None], values: Values) -> Any:
        axis, kept = axis_of(node._saved_dim, len(shapes[0])), values.keep(node._saved_result)

        def pull(g: Any) -> Any:
            y = to_numpy(kept)[:, None]
            if log:
                return (g[0] - np.exp(y) * g[0].sum(axis + 1, keepdims=True),)
            return (y * (g[0] - (g[0] * y).sum(axis + 1, keepdims=True)),)

        return pull, axis

    return rule


#: Rules of functions, sums and products, by the name of the node's class.
FUNCTIONS: dict[str, Rule] = {
    "TanhBackward0": _function("_saved_result", lambda y: 1.0 - y * y),
    "SigmoidBackward0": _function("_saved_result", lambda y: y * (1.0 - y)),
    "ReluBackward0": _function("_saved_result", lambda y: (y > 0.0).astype(np.float64)),
    "SinBackward0": _function("_saved_self", np.cos),
    "CosBackward0": _function("_saved_self", lambda x: -np.sin(x)),
    "ExpBackward0": _function("_saved_result", lambda y: y),
    "AtanBackward0": _function("_saved_self", lambda x: 1.0 / (1.0 + x * x)),
    "AsinBackward0": _function("_saved_self", lambda x: (1.0 - x * x) ** -0.5),
    "AcosBackward0": _function("_saved_self", lambda x: -((1.0 - x * x) ** -0.5)),
    "LogBackward0": _function("_saved_self", lambda x: 1.0 / x),
    "SqrtBackward0": _function("_saved_result", lambda y: 0.5 / y),
    "ReciprocalBackward0": _function("_saved_result", lambda y: -y * y),
    "AbsBackward0": _function("_saved_self", np.sign),
    "SiluBackward0": _torch_function(aten.silu_backward),
    "MishBackward0": _torch_function(aten.mish_backward),
    "SoftplusBackward0": _torch_function(aten.softplus_backward, "beta", "threshold"),
    "HardtanhBackward0": _torch_function(aten.hardtanh_backward, "min_val", "max_val"),
    "HardsigmoidBackward0": _torch_function(aten.hardsigmoid_backward),
    "HardswishBackward0": _torch_function(aten.hardswish_backward),
    "GeluBackward0": _torch_function(_gelu_backward, "approximate"),
    "EluBackward0": _torch_function(_elu_backward, "alpha", "scale", "input_scale"),
    "PowBackward0": _power,
    "AddBackward0": _sum_of(1.0),
    "SubBackward0": _sum_of(-1.0),
    "MulBackward0": _binary(lambda g, b: g * b, lambda g, a, b: g * a, False),
    "DivBackward0": _binary(lambda g, b: g / b, lambda g, a, b: -g * a / b**2, True),
    "NegBackward0": _minus,
    "RsubBackward1": _minus,
    "SoftmaxBackward0": _softmax(False),
    "LogSoftmaxBackward0": _softmax(True),
}
