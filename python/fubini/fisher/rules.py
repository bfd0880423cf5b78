"""The rules of classical layers in a Fisher pass, and which layer has which."""

from __future__ import annotations

import functools
from abc import abstractmethod
from typing import Any

import torch
from pennylane.qnn import TorchLayer
from torch.nn import functional
from torch.nn.utils.parametrize import is_parametrized

from fubini.fisher.calls import Call, KroneckerCall
from fubini.fisher.quantum import QuantumCall
from fubini.nn.layer import QuantumLayer

Tensor = torch.Tensor


class PatchCall(KroneckerCall):
    """A layer that is linear in the patches of its inputs that its places see."""

    @abstractmethod
    def _gradients(self, g: Tensor, data: int) -> Tensor:
        """(K, D, groups, T, out), float64; T counts the places of a datum."""

    @abstractmethod
    def _patches(self, data: int) -> Tensor:
        """(D, groups, T, in), float64: the inputs that each place sees."""

    def rows(self, g: Tensor, data: int, part: slice) -> dict[str, Tensor]:
        """Return the derivatives by the parameters, see Call."""
        g, a = self._gradients(g, data)[:, part], self._patches(data)[part]
        weight = torch.einsum("kdgto,dgtc->kdgoc", g, a)
        return {"weight": weight.flatten(2), "bias": g.sum(3).flatten(2)}

    def outer(self, g: Tensor) -> Tensor:
        """Return the sum of g g^T over all positions, see KroneckerCall."""
        g = self._gradients(g, 1)[:, 0].movedim(0, 1).flatten(1, 2)
        return g.mT @ g

    def inner(self, names: tuple[str, ...]) -> tuple[Tensor, int]:
        """Return the sum of a a^T over all positions, see KroneckerCall."""
        a = _augmented(self._patches(1)[0], names)
        return a.mT @ a, a.shape[1]


class LinearCall(PatchCall):
    """``torch.nn.Linear``."""

    def pull(self, g: Tensor) -> Tensor:
        """Return the cotangents of the inputs, see Call."""
        pulled: Tensor = g @ self.module.weight
        return pulled

    def gram(self, g: Tensor, data: int, names: tuple[str, ...]) -> Tensor | None:
        """Return the sum of the outer products of all rows, see Call."""
        if self.inputs.ndim != 2 or len(self.inputs) != data or "weight" not in names:
            return None
        # sum_n B_n kron a_n a_n^T with the curvature B_n of the loss by datum n's outputs
        g, a = g.double().permute(1, 2, 0), _augmented(self.inputs.detach().double(), names)
        curvatures = torch.bmm(g, g.mT).reshape(data, -1)
        moments = (a.unsqueeze(2) * a.unsqueeze(1)).reshape(data, -1)
        order = _kronecker_order(g.shape[1], a.shape[1], "bias" in names, g.device)
        return torch.take(curvatures.mT @ moments, order)

    def squares(self, g: Tensor, data: int, names: tuple[str, ...]) -> Tensor | None:
        """Return the sum of the squares of all rows, see Call."""
        g, a = self._gradients(g, data), self._patches(data)
        if a.shape[2] > 1:
            return None
        curvature = g[:, :, 0, 0].square().sum(0)  # (D, out)
        parts = {"weight": curvature.mT @ a[:, 0, 0].square(), "bias": curvature.sum(0)}
        return torch.cat([parts[name].reshape(-1) for name in names])

    def _gradients(self, g: Tensor, data: int) -> Tensor:
        return g.reshape(len(g), data, 1, -1, g.shape[-1]).double()

    def _patches(self, data: int) -> Tensor:
        return self.inputs.detach().reshape(data, 1, -1, self.inputs.shape[-1]).double()


class ConvCall(PatchCall):
    """``torch.nn.Conv1d`` and ``Conv2d``, with stride, padding of every mode, dilation and groups."""

    def fits(self, data: int) -> bool:
        """Whether the outputs may hold so many data, see Call."""
        return super().fits(data) if self._batched() else data == 1

    def _gradients(self, g: Tensor, data: int) -> Tensor:
        # T counts a datum's images and the places in them.
        groups, channels = self.module.groups, self.module.out_channels
        places = self.outputs[0, 0].numel() if self._batched() else self.outputs[0].numel()
        g = g.double().reshape(len(g), data, -1, groups, channels // groups, places)
        return g.permute(0, 1, 3, 2, 5, 4).flatten(3, 4)

    def _patches(self, data: int) -> Tensor:
        module = self.module
        x = self.inputs.detach().double()
        x = x if self._batched() else x[None]
        padding = module._reversed_padding_repeated_twice
        if any(padding):
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x = functional.pad(x, padding, mode=mode)
        sizes = [module.kernel_size, module.dilation, module.stride]
        if x.ndim == 3:  # one dimension is two, of which one has the length 1
            x, sizes = x[:, :, None], [(1, *size) for size in sizes]
        kernel, dilation, stride = sizes
        patches = functional.unfold(x, kernel, dilation=dilation, stride=stride)
        width, places = patches.shape[1] // module.groups, patches.shape[2]
        patches = patches.reshape(data, -1, module.groups, width, places)
        return patches.permute(0, 2, 1, 4, 3).flatten(2, 3)

    def _batched(self) -> bool:
        return bool(self.outputs.ndim == self.module.weight.ndim)


class EmbeddingCall(KroneckerCall):
    """``torch.nn.Embedding``."""

    names = ("weight",)
    inputs_first = True

    @classmethod
    def refuse(cls, module: Any, name: str) -> None:
        """Raise an error where an option of the layer has no rule, see Call."""
        for option, why in (
            ("sparse", "its gradients are sparse"),
            ("scale_grad_by_freq", "it rescales gradients"),
        ):
            if getattr(module, option):
                raise TypeError(
                    f"{name}: expected an Embedding with {option}=False, got {option}=True; {why}"
                )
        if module.max_norm is not None:
            raise TypeError(
                f"{name}: expected an Embedding without max_norm, which changes weights in the forward pass, "
                f"got {module.max_norm}"
            )

    def rows(self, g: Tensor, data: int, part: slice) -> dict[str, Tensor]:
        """Return the derivatives by the parameters, see Call."""
        words, width = self.module.weight.shape
        g = self._used(g).reshape(len(g), data, -1, width)[:, part]
        index = self.inputs.long().reshape(data, -1)[part]
        result = g.new_zeros(len(g), len(index), words, width)
        where = index[None, :, :, None].expand(g.shape)
        return {"weight": result.scatter_add_(2, where, g).flatten(2)}

    def outer(self, g: Tensor) -> Tensor:
        """Return the sum of g g^T over all positions, see KroneckerCall."""
        g = self._used(g).reshape(-1, g.shape[-1])
        return (g.mT @ g)[None]

    def inner(self, names: tuple[str, ...]) -> tuple[Tensor, int]:
        """Return how often each word is used, (1, words), see KroneckerCall."""
        counts = torch.bincount(self.inputs.reshape(-1), minlength=len(self.module.weight)).double()
        if self.module.padding_idx is not None:
            counts[self.module.padding_idx] = 0.0
        return counts[None], self.inputs.numel()

    @classmethod
    def columns(cls, module: Any, names: tuple[str, ...]) -> tuple[int, ...]:
        """Return the number of columns, see KroneckerCall."""
        return (int(module.weight.shape[1]),)

    @classmethod
    def factor_shapes(cls, module: Any, names: tuple[str, ...]) -> list[tuple[int, ...]]:
        """Return the shapes of the factors, see KroneckerCall."""
        words, width = module.weight.shape
        return [(1, width, width), (1, words)]

    def _used(self, g: Tensor) -> Tensor:
        g = g.double()
        if self.module.padding_idx is not None:
            g = g * (self.inputs != self.module.padding_idx)[..., None]
        return g


class NormCall(Call):
    """``torch.nn.LayerNorm`` and BatchNorm: ``weight * normalised + bias``."""

    def fits(self, data: int) -> bool:
        """Whether the outputs may hold so many data, see Call."""
        features = len(getattr(self.module, "normalized_shape", ()))
        return super().fits(data) and self.outputs.ndim > features

    def _normalised(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.module.normalized_shape, eps=self.module.eps)

    def rows(self, g: Tensor, data: int, part: slice) -> dict[str, Tensor]:
        """Return the derivatives by the parameters, see Call."""
        with torch.no_grad():
            normalised = self._normalised(self.inputs.detach()).double()
        g = g.double()
        return {
            "weight": self._summed(g * normalised, data, part),
            "bias": self._summed(g, data, part),
        }

    def _summed(self, g: Tensor, data: int, part: slice) -> Tensor:
        """(K, *outputs.shape) -> (K, data in the part, entries)."""
        entries = int(torch.Size(self.module.normalized_shape).numel())
        return g.reshape(len(g), data, -1, entries)[:, part].sum(2)


class BatchNormCall(NormCall):
    """``torch.nn.BatchNorm1d`` to ``3d``.

    Args:
        module: As for Call.
        name: As for Call.
        inputs: As for Call.
        fixed_statistics: Whether the batch's mean and variance count as constants, so that data stay independent.
    """

    def __init__(
        self, module: Any, name: str, inputs: Tensor, fixed_statistics: bool = True
    ) -> None:
        self._statistics: tuple[Tensor, Tensor] | None = None
        x = inputs.detach()
        if not module.training and module.running_mean is not None:
            self._statistics = (module.running_mean.detach(), module.running_var.detach())
        elif fixed_statistics:
            over = [0, *range(2, x.ndim)]
            self._statistics = (x.mean(over), x.var(over, correction=0))
        super().__init__(module, name, inputs)

    def _normalised(self, x: Tensor) -> Tensor:
        if self._statistics is None:
            return functional.batch_norm(x, None, None, training=True, eps=self.module.eps)
        mean, variance = self._statistics
        return (x - self._shaped(mean)) * self._shaped((variance + self.module.eps).rsqrt())

    def _evaluate(self, x: Tensor) -> Tensor:
        result, weight, bias = self._normalised(x), self.module.weight, self.module.bias
        if weight is not None:
            result = result * self._shaped(weight)
        return result if bias is None else result + self._shaped(bias)

    def _shaped(self, parameter: Tensor) -> Tensor:
        """The parameter, so that it broadcasts with the outputs."""
        return parameter.reshape(-1, *(1,) * (self.inputs.ndim - 2))

    def _summed(self, g: Tensor, data: int, part: slice) -> Tensor:
        shape = (len(g), data, -1, self.module.num_features, g[0, 0, 0].numel())
        return g.reshape(shape)[:, part].sum((2, 4))


def _augmented(a: Tensor, names: tuple[str, ...]) -> Tensor:
    """Inputs with a 1 appended where there is a bias, or the 1 alone."""
    if "weight" not in names:
        return a.new_ones(*a.shape[:-1], 1)
    return functional.pad(a, (0, 1), value=1.0) if "bias" in names else a


@functools.lru_cache(maxsize=256)
def _kronecker_order(rows: int, width: int, bias: bool, device: torch.device) -> Tensor:
    """Where the entries of sum B kron A, with B (rows, rows) and A (width, width), are in sum vec(B) vec(A)^T."""
    # The last column of the matrix [W, b] is the bias, which comes after all weights.
    place = torch.arange(rows * width, device=device).reshape(rows, width)
    if bias:
        place = torch.cat([place[:, :-1].reshape(-1), place[:, -1]])
    row, column = place.reshape(-1) // width, place.reshape(-1) % width
    return (row[:, None] * rows + row) * width**2 + column[:, None] * width + column


def rule_for(module: torch.nn.Module) -> type[Call] | None:
    """Return the rule of a layer, or None where it has none.

    A subclass with a forward of its own has none, but for quantum layers: nobody knows what it does with the parameters. Neither has a layer with
    a parametrisation: its weights are computed.

    Args:
        module: The layer.
    """
    kind: Any = type(module)
    return None if is_parametrized(module) else _rule_of(kind)


@functools.cache
def _rule_of(kind: Any) -> type[Call] | None:
    if issubclass(kind, QuantumLayer):
        return QuantumCall  # an override ends in the forward that it overrides
    if issubclass(kind, TorchLayer):
        return QuantumCall if kind.forward is TorchLayer.forward else None
    for known, call in _RULES.items():
        if issubclass(kind, known) and kind.forward is known.forward:
            return call
    return None


_RULES: dict[Any, type[Call]] = {
    torch.nn.Linear: LinearCall,
    torch.nn.Conv1d: ConvCall,
    torch.nn.Conv2d: ConvCall,
    torch.nn.Embedding: EmbeddingCall,
    torch.nn.LayerNorm: NormCall,
    torch.nn.BatchNorm1d: BatchNormCall,
    torch.nn.BatchNorm2d: BatchNormCall,
    torch.nn.BatchNorm3d: BatchNormCall,
}
