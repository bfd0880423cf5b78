"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner, a peer of the natural gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

BETA = 0.95  # decay of both moments, and of L and R
FREQUENCY = 10  # steps between two bases
LARGEST = 1024  # sides that are longer keep their basis
EPS = 1e-8  # added to the root of the second moment


class SOAP(torch.optim.Optimizer):
    """SOAP (Vyas et al. 2024, arXiv:2409.11321, algorithm 3), without weight decay.

    For a gradient matrix G, L and R are averages of G G^T and G^T G; Adam's second moment is that of Q_L^T G Q_R. The bases
    Q follow by one step of power iteration and QR every ``FREQUENCY`` steps, from the eigenvectors of the first gradient, on
    which the first step is not taken. Tensors of more than two dimensions are matrices with their first dimension for rows;
    vectors and sides longer than ``LARGEST`` have no rotation, so that vectors get plain Adam.

    Args:
        params: Parameters.
        lr: Step size.
    """

    def __init__(self, params: Iterable[Tensor], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Computes the loss and its gradient.

        Returns:
            The loss.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    _one_step(p, p.grad, self.state[p], group)
        return loss


def _one_step(p: Tensor, gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
    flat = gradient.reshape(1, -1) if p.ndim < 2 else gradient.reshape(len(p), -1)
    sides = [side for side in (0, 1) if p.ndim >= 2 and 1 < flat.shape[side] <= LARGEST]
    if not state:
        state.update(step=0, first=torch.zeros_like(flat), second=torch.zeros_like(flat))
        state["factors"] = {side: _gram(flat, side) for side in sides}
        state["bases"] = {side: torch.linalg.eigh(f)[1] for side, f in state["factors"].items()}
        if sides:
            return
    bases = state["bases"]
    state["step"] += 1
    rotated = _rotate(flat, bases)
    state["first"].lerp_(flat, 1 - BETA)
    state["second"].mul_(BETA).addcmul_(rotated, rotated, value=1 - BETA)
    mean = _rotate(state["first"], bases) / (1 - BETA ** state["step"])
    root = (state["second"] / (1 - BETA ** state["step"])).sqrt() + EPS
    change = _rotate(mean / root, {side: q.T for side, q in bases.items()})
    p.add_(change.reshape(p.shape), alpha=-group["lr"])
    for side, factor in state["factors"].items():
        factor.lerp_(_gram(flat, side), 1 - BETA)
    if state["step"] % FREQUENCY == 0:
        for side, factor in state["factors"].items():
            _turn(state, side, factor)


def _turn(state: dict[str, Any], side: int, factor: Tensor) -> None:
    """Move a basis on; the second moment follows the order of its directions."""
    basis = state["bases"][side]
    order = (basis * (factor @ basis)).sum(0).argsort(descending=True)
    state["second"] = state["second"].index_select(side, order)
    state["bases"][side] = torch.linalg.qr(factor @ basis[:, order])[0]


def _gram(matrix: Tensor, side: int) -> Tensor:
    return matrix @ matrix.T if side == 0 else matrix.T @ matrix


def _rotate(matrix: Tensor, bases: dict[int, Tensor]) -> Tensor:
    """Q_L^T matrix Q_R, for the sides that have a basis."""
    if 0 in bases:
        matrix = bases[0].T @ matrix
    return matrix @ bases[1] if 1 in bases else matrix
