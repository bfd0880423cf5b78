"""The digits classifier on several processes: ``torchrun --nproc-per-node=2 -m fubini.demo.distributed``.

Every process works on its share of each batch; ``DistributedDataParallel`` averages the gradients and ``QNGOptimizer`` the
metric, so the weights end where those of one process with the whole batches end. The last batch of an epoch is smaller
and its shares are uneven: DistributedDataParallel counts every process alike, so the loss is scaled to make every image
count alike.
"""

import os

import torch
import torch.distributed as dist

import fubini
from fubini.demo.digits import TRAINING, accuracy, load, make_model

BATCH = 100  # 1408 images are 14 batches and a rest of 8
STEPS = 45


def train(steps: int = STEPS) -> torch.nn.Module:
    """Train in the process group that is initialised, or alone.

    Args:
        steps: Number of steps.

    Returns:
        The classifier, the same in every process.
    """
    torch.manual_seed(0)
    several = dist.is_initialized() and dist.get_world_size() > 1
    rank, size = (dist.get_rank(), dist.get_world_size()) if several else (0, 1)
    images, digits = load()
    model, _ = make_model()
    parallel = torch.nn.parallel.DistributedDataParallel(model) if several else model
    criterion = torch.nn.CrossEntropyLoss()
    opt = fubini.QNGOptimizer(parallel, loss=criterion)
    batches: list[torch.Tensor] = []
    for step in range(steps):
        if not batches:
            order = torch.randperm(TRAINING, generator=torch.Generator().manual_seed(step))
            batches = list(torch.split(order, BATCH))
        whole = batches.pop(0)
        mine = whole.tensor_split(size)[rank]
        opt.zero_grad()
        loss = criterion(parallel(images[mine]), digits[mine]) * (len(mine) * size / len(whole))
        loss.backward()
        opt.step()
        if rank == 0 and step % 15 == 14:
            held_out = accuracy(model, images[TRAINING:], digits[TRAINING:])
            length = opt.diagnostics()["step_length"]
            print(f"step {step + 1}: held-out accuracy {held_out:.3f}, step length {length:.3f}")
    return model


def main() -> None:
    """Train in the processes that torchrun started."""
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    try:
        train()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
