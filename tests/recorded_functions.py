"""Functions of tensors that are recorded as expressions."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fubini.compile.graph import Graph
from fubini.compile.recorder import Recording

BATCH, FEATURES, WEIGHTS = 3, 4, 6
TABLE = torch.tensor([0.3, -0.7, 1.1, 0.2], dtype=torch.float64)
F = torch.nn.functional
Function = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _filled(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    out = torch.zeros(len(x), 3, dtype=x.dtype)
    out[:, 0] = x[:, 1] * w[0]
    out[:, 1:] = x[:, 2:]
    out[:, 2] += w[1]
    out.mul_(2.0)
    return out.sum(-1)


def _copied(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    out = x.clone()
    out[..., 0].copy_(w[2].expand(len(x)))
    view = out[:, 1:3]
    view.neg_()
    out[:, 3].fill_(0.5)
    return out @ w[:4]


#: Functions (B, 4), (6,) -> (B,) that are recorded.
RECORDED: dict[str, Function] = {
    "product": lambda x, w: w[0] * x[..., 0] + w[1],
    "difference": lambda x, w: 1.5 - x[..., 0] - w[0],
    "quotient": lambda x, w: x[..., 0] / (2 + w[0] ** 2) + 1 / (3 + x[..., 1] ** 2),
    "powers": lambda x, w: x[..., 0] ** 3 + (1 + x[..., 1] ** 2) ** 0.5 + 2.0 ** x[..., 2],
    "power of tensors": lambda x, w: (1.2 + x[..., 0] ** 2) ** w[0],
    "trigonometric": lambda x, w: torch.sin(x[..., 0]) + torch.cos(w[0]) * torch.tan(0.3 * x[..., 1]),
    "inverse": lambda x, w: torch.arcsin(0.3 * torch.tanh(x[..., 0])) + torch.arctan(w[0]) + torch.arccos(0.2 * torch.tanh(w[1])),
    "hyperbolic": lambda x, w: torch.sinh(x[..., 0]) + torch.cosh(w[0]) + torch.asinh(x[..., 1]) + torch.acosh(2 + x[..., 2] ** 2) + torch.atanh(0.4 * torch.tanh(w[1])),
    "exponential": lambda x, w: torch.exp(0.2 * x[..., 0]) + torch.expm1(w[0]) + torch.exp2(0.1 * x[..., 1]),
    "logarithm": lambda x, w: torch.log(2 + x[..., 0] ** 2) + torch.log1p(w[0] ** 2) + torch.log2(3 + w[1] ** 2) + torch.log10(2 + x[..., 1] ** 2),
    "roots": lambda x, w: torch.sqrt(1 + x[..., 0] ** 2) * torch.rsqrt(2 + w[0] ** 2) + torch.reciprocal(2 + x[..., 1] ** 2),
    "activations": lambda x, w: F.relu(x[..., 0]) + torch.sigmoid(w[0]) + F.silu(x[..., 1]) + x[..., 2].abs() + torch.erf(w[1]) + torch.erfc(x[..., 3]),
    "atan2": lambda x, w: torch.atan2(x[..., 0], 2 + w[0] ** 2),
    "extrema": lambda x, w: torch.maximum(x[..., 0], w[0]) + torch.minimum(x[..., 1], x[..., 2]),
    "degrees": lambda x, w: torch.deg2rad(x[..., 0]) + torch.rad2deg(w[0]),
    "square": lambda x, w: torch.square(x[..., 0]) + x[..., 1].square() * w[0],
    "addcmul": lambda x, w: torch.addcmul(x[..., 0], w[0], x[..., 1], value=0.5),
    "matrix product": lambda x, w: (x @ w[:4].reshape(4, 1))[:, 0],
    "two matrices": lambda x, w: ((x @ w[:4].reshape(4, 1)) @ w[4:].reshape(1, 2)).sum(-1),
    "linear": lambda x, w: F.linear(x[:, :2], w.reshape(3, 2), TABLE[:3])[:, 1],
    "einsum": lambda x, w: torch.einsum("bi,i->b", x, w[:4]) + torch.einsum("bi,bi->b", x, x),
    "batched product": lambda x, w: torch.bmm(x[:, None, :], x[:, :, None])[:, 0, 0] * w[0],
    "outer": lambda x, w: torch.outer(w[:2], w[2:4]).sum() * x[..., 0],
    "dot": lambda x, w: torch.dot(w[:4], TABLE) * x[..., 0] + w @ w,
    "addmm": lambda x, w: torch.addmm(w[0].expand(len(x), 1), x, w[:4, None], beta=0.5, alpha=2.0)[:, 0],
    "sum": lambda x, w: x.sum(-1) + w.sum() + x[:, 1:].sum(dim=1, keepdim=True)[:, 0],
    "mean": lambda x, w: x.mean(-1) * w.mean() + w.reshape(2, 3).mean(0)[1],
    "prod": lambda x, w: x.prod(-1) + w[:3].prod(),
    "norm": lambda x, w: x.norm(dim=-1) + torch.linalg.norm(w),
    "cumulative": lambda x, w: x.cumsum(-1)[:, 2] + w.cumsum(0)[3],
    "softmax": lambda x, w: torch.softmax(x, -1)[:, 1] + torch.softmax(w, 0)[2],
    "stack": lambda x, w: torch.stack([x[..., 0], w[0] * x[..., 1]], dim=-1).sum(-1),
    "cat": lambda x, w: torch.cat([x, w[:2].expand(len(x), 2)], dim=-1)[:, [5, 0]].prod(-1),
    "flip": lambda x, w: x.flip(-1)[..., 0] * w.flip(0)[0],
    "roll": lambda x, w: x.roll(1, -1)[..., 0] + w.roll(2)[0],
    "repeat": lambda x, w: x.repeat(1, 2)[:, 5] + w.repeat(2)[7] + w.tile(2)[8],
    "gather": lambda x, w: x.gather(1, torch.tensor([[2], [2], [2]]))[:, 0] * w[0],
    "index": lambda x, w: x[:, [3, 1]].sum(-1) + w[torch.tensor([0, 5])].prod(),
    "index_select": lambda x, w: x.index_select(1, torch.tensor([3, 0])).sum(-1),
    "mask": lambda x, w: w[torch.tensor([True, False, True, False, False, True])].sum() * x[:, 0],
    "pad": lambda x, w: F.pad(x, (1, 2), value=0.4).sum(-1) * w[0],
    "diagonal matrix": lambda x, w: torch.diag_embed(w[:4]).sum() * x[:, 0],
    "shapes": lambda x, w: x.T[1] + w.view(2, 3).permute(1, 0)[2, 1] + x.reshape(-1).reshape(3, 4)[:, 3],
    "chunks": lambda x, w: x.chunk(2, dim=-1)[1].sum(-1) + w.split(2)[1][0] + x.unbind(-1)[2],
    "broadcast": lambda x, w: (x[:, :, None] * w[None, None, :]).sum((1, 2)),
    "in place": _filled,
    "copy in place": _copied,
    "numbers": lambda x, w: math.pi * x[..., 0] - np.float64(0.3) * w[0] + torch.pi * w[1],
    "constants": lambda x, w: (x * TABLE).sum(-1) + torch.linspace(0, 1, 6, dtype=x.dtype) @ w,
    "log softmax": lambda x, w: torch.log_softmax(x, -1)[:, 1] + torch.log_softmax(w, 0)[2],
    "lerp": lambda x, w: torch.lerp(x[..., 0], x[..., 1], 0.3) + torch.lerp(x[..., 0], w[0], w[1]),
    "limits": lambda x, w: x[..., 0].clamp(-0.5, 0.5) + F.hardtanh(w[0]) + F.relu6(x[..., 1]) + torch.clamp_min(x[..., 2], 0.1) + torch.clamp_max(w[1], 0.2),
    "further activations": lambda x, w: F.leaky_relu(x[..., 0]) + F.elu(w[0]) + F.gelu(x[..., 1]) + F.softplus(w[1]) + F.mish(x[..., 2]),
    "choices": lambda x, w: torch.where(TABLE > 0, x, 0.5 * x).sum(-1) + w[:4].masked_fill(TABLE > 0, 0.1).sum(),
    "triangles": lambda x, w: w[:4].reshape(2, 2).tril().sum() * x[:, 0] + w[:4].reshape(2, 2).triu(1).sum(),
    "statistics": lambda x, w: x.var(-1) + w.std() + torch.logsumexp(x, -1) + w.cumprod(0)[2] + x.diff(dim=-1)[:, 1],
    "as it is": lambda x, w: x[..., 2],
    "small": lambda x, w: 5e-15 * x[..., 0] + 1e-20 * w[0],
}  # fmt: skip


def record(
    function: Callable[..., Any], x: torch.Tensor, w: torch.Tensor
) -> tuple[Recording, torch.Tensor]:
    recording = Recording(Graph())
    recording.leaves("weight", w, 0)
    recording.leaves("input", x, 0, batch=True)
    with recording:
        result = function(x, w)
    return recording, result
