"""Angles that are meant to be compiled wrongly: every call gives what TorchLayer gives."""

import math
import pickle
from typing import Any

import numpy as np
import pennylane as qml
import pytest
import torch

import fubini

# Two angles from inputs x and weights w.
ANGLES: dict[str, Any] = {
    "leave_tolist": lambda x, w: (
        torch.tensor(x.tolist(), dtype=x.dtype)[..., 0],
        x[..., 1] * w[0],
    ),
    "leave_numpy": lambda x, w: (
        torch.as_tensor(np.sin(x.detach().numpy()))[..., 0],
        x[..., 1] * w[0],
    ),
    "leave_pickle": lambda x, w: (pickle.loads(pickle.dumps(x.detach()))[..., 0], w[0] * x[..., 1]),
    "leave_format_tensor": lambda x, w: (x[..., 0] * float(f"{w[0]:.1f}"), w[0] * x[..., 1]),
    "leave_complex_py": lambda x, w: (x[..., 0] * abs(complex(w[0])), w[0] * x[..., 1]),
    "leave_index": lambda x, w: (x[..., 0] * [1.0, 2.0, 3.0][(w[0] > 0).long()], w[0] * x[..., 1]),
    "leave_max_py": lambda x, w: (x[..., 0] * max(w), x[..., 1] * min(w[0], w[1])),
    "leave_sum_py": lambda x, w: (x[..., 0] * sum(w), x[..., 1] * sum(v for v in w)),
    "leave_storage": lambda x, w: (x[..., 0] * w.untyped_storage()[3], x[..., 1] * w[0]),
    "leave_len": lambda x, w: (x[..., 0] * len(x), x[..., 1] * w[0]),
    "leave_size": lambda x, w: (x[..., 0] / x.shape[0], x[..., 1] * w[0] / x.numel()),
    "leave_math": lambda x, w: (x[..., 0] * math.sin(w[0]), x[..., 1] * math.exp(w[1])),
    "cut_detach": lambda x, w: (x.detach()[..., 0] + x[..., 1], x[..., 1].detach() * w[0]),
    "cut_data": lambda x, w: (x.data[..., 0], x[..., 1] * w.data[0]),
    "cut_ste": lambda x, w: (
        x[..., 0] + (x[..., 0].round() - x[..., 0]).detach(),
        x[..., 1] * w[0],
    ),
    "cut_zeros_like": lambda x, w: (
        torch.zeros_like(x)[..., 0] + w[0],
        x[..., 1] * torch.ones_like(w)[0],
    ),
    "cut_new_tensor": lambda x, w: (
        x.new_tensor([0.3]) * x[..., 0],
        x.new_full((), 0.2) * w[0] * x[..., 1],
    ),
    "cut_requires_grad_": lambda x, w: (
        x.clone().detach().requires_grad_()[..., 0],
        w[0] * x[..., 1],
    ),
    "cut_funcgrad": lambda x, w: (
        torch.func.grad(lambda v: v.sin() ** 2)(w[0]) * x[..., 0],
        x[..., 1] * w[0],
    ),
    "cut_vmap": lambda x, w: (
        torch.vmap(lambda v: v * w[0])(x[..., 0].reshape(-1)).reshape(x.shape[:-1]),
        x[..., 1] * w[0],
    ),
    "cut_where_nan": lambda x, w: (
        torch.where(x[..., 0] > 0, x[..., 0].clamp(min=0).sqrt(), x[..., 0]),
        x[..., 1] * w[0],
    ),
    "b_flip": lambda x, w: (x.flip(0)[..., 0], x[..., 1] * w[0]),
    "b_sort": lambda x, w: (x.sort(0)[0][..., 0], x[..., 1] * w[0]),
    "b_sortf": lambda x, w: (x.sort(-1)[0][..., 0], x.sort(-1)[0][..., 1] * w[0]),
    "b_squeeze": lambda x, w: (x[..., 0].squeeze(), x[..., 1].squeeze() * w[0]),
    "b_squeeze0": lambda x, w: (x.squeeze(0)[..., 0], x.squeeze(0)[..., 1] * w[0]),
    "b_mean": lambda x, w: ((x - x.mean(0))[..., 0], x[..., 1] * w[0]),
    "b_roll": lambda x, w: (x.roll(1)[..., 0], x[..., 1] * w[0]),
    "b_cumsum": lambda x, w: (x.cumsum(0)[..., 0], x[..., 1] * w[0]),
    "b_softmax": lambda x, w: (x.softmax(0)[..., 0], x.softmax(-1)[..., 1] * w[0]),
    "b_norm": lambda x, w: ((x / x.norm())[..., 0], x[..., 1] * w[0]),
    "b_normf": lambda x, w: (
        (x / x.norm(dim=-1, keepdim=True))[..., 0],
        torch.nn.functional.normalize(x, dim=-1)[..., 1] * w[0],
    ),
    "b_matmul": lambda x, w: ((x @ x.T).sum(-1) if x.ndim == 2 else x[0], x[..., 1] * w[0]),
    "b_fliprow2": lambda x, w: (
        x[torch.arange(len(x) - 1, -1, -1)][..., 0] if x.ndim == 2 else x[0],
        x[..., 1] * w[0],
    ),
    "b_expand": lambda x, w: (
        w[0].expand(x.shape[:-1]) * x[..., 0],
        w.expand(*x.shape[:-1], 2)[..., 1] * x[..., 1],
    ),
    "b_range": lambda x, w: (
        x[..., 0] + (torch.arange(x.shape[0], dtype=x.dtype) if x.ndim == 2 else 0),
        x[..., 1] * w[0],
    ),
    "b_linspace": lambda x, w: (
        x[..., 0] * torch.linspace(0, 1, x.shape[0]) if x.ndim == 2 else x[0],
        x[..., 1] * w[0],
    ),
    "b_outer": lambda x, w: (
        torch.einsum("...i,i->...", x, w),
        torch.einsum("...i,...i->...", x, x) * w[0],
    ),
    "b_conv": lambda x, w: (
        torch.nn.functional.conv1d(x.reshape(-1, 1, 2), w.reshape(1, 1, 2))[:, 0, 0].reshape(
            x.shape[:-1]
        ),
        x[..., 1] * w[0],
    ),
    "b_ellipsis_step": lambda x, w: (x[..., :: -1 if False else 1][..., 0], x[::1][..., 1] * w[0]),
    "b_slice_batch": lambda x, w: (
        x[:2][..., 0] if x.ndim == 2 and len(x) == 2 else x[..., 0],
        x[..., 1] * w[0],
    ),
    "b_wb": lambda x, w: (
        x[..., 0] * w if x.ndim == 2 and len(x) == 2 else x[..., 0],
        x[..., 1] * w[0],
    ),
    "s_relu": lambda x, w: (x.relu()[..., 0] + w[0], x[..., 1] * w[0]),
    "s_abs": lambda x, w: (x.abs()[..., 0] + w[0], x[..., 1] * w[0]),
    "s_max": lambda x, w: (torch.maximum(x[..., 0], x[..., 1]) + w[0], torch.max(x, -1)[0] * w[0]),
    "s_amax": lambda x, w: (x.amax(-1) + w[0], x.amin(-1) * w[0]),
    "s_clamp": lambda x, w: (x.clamp(0, 1)[..., 0] + w[0], x.clamp(min=1.0)[..., 1] * w[0]),
    "s_clampt": lambda x, w: (torch.clamp(x[..., 0], x[..., 1], w[0]), x[..., 1] * w[0]),
    "s_norm": lambda x, w: (x.norm(dim=-1) + w[0], torch.linalg.vector_norm(x, dim=-1) * w[0]),
    "s_pow": lambda x, w: (x[..., 0].abs() ** x[..., 1].abs(), x[..., 1] ** 2 * w[0]),
    "s_pow0": lambda x, w: (x[..., 0] ** 0, x[..., 1] ** 1 * w[0]),
    "s_powhalf": lambda x, w: (x[..., 0].abs() ** 0.5, x[..., 1] ** 3 * w[0]),
    "s_atan2": lambda x, w: (torch.atan2(x[..., 0], x[..., 1]), x[..., 1] * w[0]),
    "s_copysign": lambda x, w: (torch.copysign(w[0], x[..., 0]), torch.signbit(x[..., 1]) * w[0]),
    "s_div": lambda x, w: (
        torch.where(x[..., 1] != 0, x[..., 0] / x[..., 1], x[..., 0]),
        x[..., 1] * w[0],
    ),
    "s_hypot": lambda x, w: (torch.hypot(x[..., 0], x[..., 1]), x[..., 1] * w[0]),
    "s_sinc": lambda x, w: (torch.sinc(x[..., 0]), torch.logaddexp(x[..., 0], x[..., 1]) * w[0]),
    "s_softplus": lambda x, w: (
        torch.nn.functional.softplus(x * 30)[..., 0],
        torch.nn.functional.leaky_relu(x, 0.2)[..., 1] * w[0],
    ),
    "s_gelu": lambda x, w: (
        torch.nn.functional.gelu(x)[..., 0],
        torch.nn.functional.silu(x)[..., 1] * torch.nn.functional.hardtanh(w)[0],
    ),
    "s_fmod": lambda x, w: (
        torch.fmod(x[..., 0], math.pi / 3),
        torch.remainder(x[..., 1], -0.7) * w[0],
    ),
    "s_prod": lambda x, w: (x.prod(-1), x.cumprod(-1)[..., 1] * w[0]),
    "s_std": lambda x, w: (x.std(-1), x.var(-1) * w[0]),
    "s_median": lambda x, w: (x.median(-1)[0], x.logsumexp(-1) * w[0]),
    "s_minw": lambda x, w: (
        torch.minimum(w[0], w[0]) * x[..., 0],
        torch.max(torch.stack([w[0], w[0]])) * x[..., 1],
    ),
    "s_complexexp": lambda x, w: (torch.exp(1j * x[..., 0]).real, (x[..., 1] * 1j).imag * w[0]),
    "s_dist": lambda x, w: (
        torch.dist(w, w) + x[..., 0],
        torch.nn.functional.cosine_similarity(x, w.expand_as(x), dim=-1),
    ),
    "s_nanmean": lambda x, w: (
        x.nanmean(-1),
        torch.trunc(x * 1.5)[..., 1] * w[0] + torch.frac(x)[..., 0],
    ),
    "s_addcmul": lambda x, w: (
        torch.addcmul(x[..., 0], x[..., 1], w[0], value=2),
        torch.lerp(x[..., 0], x[..., 1], w[1]),
    ),
    "s_rsub": lambda x, w: (
        torch.rsub(x[..., 0], w[0], alpha=2),
        torch.sub(x[..., 1], w[1], alpha=3),
    ),
    "s_addmv": lambda x, w: (
        torch.add(x[..., 0], w[0], alpha=0.3),
        torch.nn.functional.linear(x, torch.outer(w, w), w)[..., 1],
    ),
}
SIZES = [(3, 2), (1, 2), (2, 2), (3, 2)]
# Ties, zeros of both signs, and numbers whose squares vanish.
SPECIAL = [[0.0, 0.0], [0.0, -0.0], [1.0, 1.0], [-1.0, 2.0], [1e-300, 1e-300]]


def _trace(kind: Any, angles: Any) -> list[torch.Tensor]:
    def circuit(inputs: Any, w: Any) -> Any:
        first, second = angles(inputs, w)
        qml.RX(first, wires=0)
        qml.RY(second, wires=1)
        qml.CNOT([0, 1])
        qml.RY(w[1], wires=0)
        return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]

    qnode = qml.QNode(circuit, qml.device("default.qubit", wires=2), interface="torch")
    layer = kind(qnode, {"w": 2}).double()
    (weight,) = layer.parameters()
    generator = torch.Generator().manual_seed(7)
    found = []
    for call, size in enumerate([*SIZES, None]):
        with torch.no_grad():
            weight.copy_(torch.tensor([0.7, -0.4]) * (-1) ** call)
        if size is None:
            x = torch.tensor(SPECIAL, dtype=torch.float64)
        else:
            x = torch.randn(size, generator=generator, dtype=torch.float64)
        x.requires_grad_()
        y = layer(x)
        target = torch.linspace(0.3, 1.1, y.numel(), dtype=torch.float64).reshape(y.shape)
        found += [y.detach()]
        gradients = torch.autograd.grad((y * target).sum(), [weight, x], allow_unused=True)
        found += [torch.zeros(()) if g is None or not g.any() else g for g in gradients]
    return found


# torch warns once of what some functions do on purpose.
@pytest.mark.filterwarnings("ignore:Converting a tensor")
@pytest.mark.parametrize("name", list(ANGLES))
def test_angles_that_are_meant_to_be_compiled_wrongly(name: str) -> None:
    expected = _trace(qml.qnn.TorchLayer, ANGLES[name])
    found = _trace(fubini.QuantumLayer, ANGLES[name])
    torch.testing.assert_close(
        found, expected, rtol=1e-8, atol=1e-8, equal_nan=True, check_dtype=False
    )
