"""What each kind of layer does in a Fisher pass: its outputs, its pull-back, and the derivatives by its parameters.

A call is one use of a layer on a batch. Its outputs are cut from the graph, so that the pass can carry many cotangents
back at once, layer by layer: ``pull`` maps those of the outputs to those of the inputs, ``rows`` to derivatives by the
parameters, datum by datum, and ``outer`` and ``inner`` give the factors of K-FAC.

Cotangents of the outputs have the shape (K, *outputs.shape). Where a pass sees D independent data, outputs have D times
some number T of positions along their first dimensions, datum by datum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch

from fubini.nn.gradients import batched_gradients

Tensor = torch.Tensor


class Call(ABC):
    """One use of a layer.

    Args:
        module: The layer.
        name: Its name in the model.
        inputs: What it was called with.

    Attributes:
        module: As above.
        name: As above.
        inputs: As above.
        outputs: The outputs, without a graph.
        part: Number of the pass, where there are several.
        parameters: The layer's parameters that have rules, by name, in the order in which blocks have them.
    """

    #: Names of parameters that have rules, in the order in which blocks have them.
    names: tuple[str, ...] = ("weight", "bias")
    part = 0

    def __init__(self, module: Any, name: str, inputs: Tensor) -> None:
        self.module, self.name, self.inputs = module, name, inputs
        self.parameters = self.parameters_of(module)
        with torch.no_grad():
            self.outputs = self._evaluate(inputs.detach())

    @property
    def key(self) -> int:
        """Of the cotangents of its outputs, see ``Pass.backward``."""
        return id(self)

    @classmethod
    def parameters_of(cls, module: Any) -> dict[str, Tensor]:
        """Return the layer's parameters that have rules, by name."""
        return {n: p for n in cls.names if (p := module._parameters.get(n)) is not None}

    @classmethod
    def cast(cls, module: Any, inputs: Tensor) -> Tensor:
        """Return inputs in the precision of the layer's parameters, as autocast of the model's own would have them."""
        weight = module._parameters.get("weight")
        if weight is None or not inputs.is_floating_point() or inputs.dtype == weight.dtype:
            return inputs
        return inputs.to(weight.dtype)

    @classmethod
    def refuse(cls, module: Any, name: str) -> None:
        """Raise an error where an option of the layer has no rule."""
        return  # most have none

    def fits(self, data: int) -> bool:
        """Whether the outputs' first dimension may hold so many data."""
        # A vector is one position, whose first dimension are features.
        return self.outputs.ndim > 1 and self.outputs.shape[0] % data == 0

    def by_data(self, g: Tensor, data: int) -> Tensor:
        """Return cotangents datum by datum, (K, data, ...).

        Args:
            g: (K, *outputs.shape).
            data: Number of data in the batch.
        """
        return g.reshape(len(g), data, -1)

    def pull(self, g: Tensor) -> Tensor:
        """Return the cotangents of the inputs, (K, *inputs.shape).

        Args:
            g: (K, *outputs.shape).
        """
        with torch.enable_grad():
            x = self.inputs.detach().requires_grad_()
            s = self._evaluate(x)
        part = batched_gradients(s, [x], g)[0]
        assert part is not None
        return part

    @abstractmethod
    def rows(self, g: Tensor, data: int, part: slice) -> dict[str, Tensor]:
        """Return the derivatives by the parameters: (K, data in the part, entries) by name.

        Args:
            g: (K, *outputs.shape).
            data: Number of data in the batch.
            part: Which of them.
        """

    def gram(self, g: Tensor, data: int, names: tuple[str, ...]) -> Tensor | None:
        """Return the sum of the outer products of all rows, (P, P), where there is a cheaper way; else None.

        Args:
            g: (K, *outputs.shape).
            data: Number of data in the batch.
            names: The parameters, in order.
        """
        return None

    def squares(self, g: Tensor, data: int, names: tuple[str, ...]) -> Tensor | None:
        """Return the sum of the squares of all rows, (P,), where there is a cheaper way; else None.

        Args:
            g: (K, *outputs.shape).
            data: Number of data in the batch.
            names: The parameters, in order.
        """
        return None

    def _evaluate(self, x: Tensor) -> Tensor:
        """The outputs, by the layer's own forward, in whose place the pass has put another one."""
        result: Tensor = type(self.module).forward(self.module, x)
        return result


class KroneckerCall(Call):
    """A call of a layer with K-FAC factors."""

    #: Whether the parameters' first index is the inputs'.
    inputs_first = False

    @abstractmethod
    def outer(self, g: Tensor) -> Tensor:
        """Return the sum of g g^T over all positions, (groups, out, out).

        Args:
            g: (K, *outputs.shape).
        """

    @abstractmethod
    def inner(self, names: tuple[str, ...]) -> tuple[Tensor, int]:
        """Return the sum of a a^T over all positions, (groups, in, in), and the number of positions.

        Args:
            names: The parameters, in order; with a bias, a is the inputs with a 1 appended.
        """

    @classmethod
    def columns(cls, module: Any, names: tuple[str, ...]) -> tuple[int, ...]:
        """Return how many columns each parameter has in the matrix of the Kronecker product, such as [W, b].

        Args:
            module: The layer.
            names: The parameters, in order.
        """
        width = {"weight": module.weight[0].numel(), "bias": 1}
        return tuple(width[name] for name in names)

    @classmethod
    def factor_shapes(cls, module: Any, names: tuple[str, ...]) -> list[tuple[int, ...]]:
        """Return the shapes of what ``outer`` and ``inner`` return.

        Args:
            module: The layer.
            names: The parameters, in order.
        """
        groups = getattr(module, "groups", 1)
        rows, width = len(module.weight) // groups, sum(cls.columns(module, names))
        return [(groups, rows, rows), (groups, width, width)]


class LeafCall(Call):
    """A parameter without a layer, for which torch's own gradients are the rows. Data count as one.

    Args:
        module: The parameter.
        name: As for Call.
        inputs: The parameter.
    """

    @property
    def key(self) -> int:
        """Of the gradient by the parameter, see ``Pass.backward``."""
        return id(self.module)

    @classmethod
    def parameters_of(cls, module: Any) -> dict[str, Tensor]:
        """Return the parameter."""
        return {"": module}

    def _evaluate(self, x: Tensor) -> Tensor:
        return x

    def rows(self, g: Tensor, data: int, part: slice) -> dict[str, Tensor]:
        """Return the derivatives by the parameter, see Call."""
        return {"": g.reshape(len(g), 1, -1)[:, part].double()}


def plus(before: Tensor | None, more: Tensor) -> Tensor:
    """Return a sum so far with another term."""
    return more if before is None else before + more
