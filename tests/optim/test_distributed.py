"""Several processes: as one process with the whole batch, also when their shares are uneven."""

import faulthandler
import os
import subprocess
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import pennylane as qml
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, spawn

import fubini
from fubini.blocks import Block, DenseBlock, FactorBlock, OperatorBlock
from fubini.blocks.distributed import mean_blocks
from fubini.demo.distributed import train as train_example
from models import hybrid

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")

STEPS = 10
DATA = 12


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(STEPS, DATA, 3, dtype=torch.float64, generator=generator)
    return x, torch.randint(0, 2, (STEPS, DATA, 1), generator=generator).double()


class Calling(torch.nn.Module):
    """A model that calls a compiled QNode with weights of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.pre, self.post = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
        self.w = torch.nn.Parameter(torch.rand(2, 2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.post(torch.stack(calls(torch.tanh(self.pre(x)), self.w), -1))


@fubini.compiled
@qml.qnode(qml.device("default.qubit", wires=2))
def calls(inputs: torch.Tensor, w: torch.Tensor) -> Any:
    qml.AngleEmbedding(inputs, wires=range(2))
    qml.StronglyEntanglingLayers(w, wires=range(2))
    return [qml.expval(qml.Z(0)), qml.expval(qml.Z(1))]


def model_of(seed: int, compiled: bool = False) -> torch.nn.Module:
    torch.manual_seed(seed)
    return Calling().double() if compiled else hybrid(second=True)


CASES: dict[str, dict[str, Any]] = {
    "quantum": {"metric": "quantum", "approx": None},
    "compiled": {"metric": "quantum", "approx": None},
    "compiled, loss": {"loss": torch.nn.BCEWithLogitsLoss()},
    "average and momentum": {
        "metric": "quantum",
        "averaging": 0.9,
        "momentum": 0.5,
        "update_every": 2,
    },
    "levenberg-marquardt": {"metric": "quantum", "lam": 0.1},
    "fisher": {"metric": "fisher", "likelihood": "bernoulli", "lam": 0.01},
    "joint fisher": {"metric": "fisher", "likelihood": "bernoulli", "lam": 0.01, "approx": None},
    "hybrid": {"metric": "hybrid", "likelihood": "bernoulli", "lam": 0.01},
    "loss": {"loss": torch.nn.BCEWithLogitsLoss()},
    "loss, sum": {"loss": torch.nn.BCEWithLogitsLoss(reduction="sum")},
}


def train(rank: int, size: int, name: str, wrapped: bool, share: float) -> torch.nn.Module:
    """The first `share` of each batch belongs to rank 0 of two."""
    # DDP broadcasts the weights of rank 0
    model = model_of(0 if size == 1 else rank * int(wrapped), name.startswith("compiled"))
    called: Any = torch.nn.parallel.DistributedDataParallel(model) if wrapped else model
    options = dict(CASES[name])
    if name == "levenberg-marquardt":
        options["lam"] = fubini.LevenbergMarquardt(0.1)
    opt = fubini.QNGOptimizer(called, lr=0.1, **options)
    criterion = options.get("loss", torch.nn.BCEWithLogitsLoss())
    cut = DATA if size == 1 else round(share * DATA)
    for x, y in zip(*data(), strict=True):
        mine = slice(0, cut) if rank == 0 else slice(cut, DATA)

        def closure(x: torch.Tensor = x[mine], y: torch.Tensor = y[mine]) -> torch.Tensor:
            opt.zero_grad()
            loss = criterion(called(x), y)
            if wrapped:  # DDP counts every process alike
                loss = loss * (len(y) * size / DATA)
            loss.backward()
            return loss

        opt.step(closure)
    return model


RUNS = [
    ("quantum", False, 0.5),
    ("quantum", True, 0.5),
    ("quantum", False, 0.25),
    ("compiled", True, 0.5),
    ("compiled", False, 0.25),
    ("compiled, loss", True, 0.5),
    ("average and momentum", False, 0.5),
    ("levenberg-marquardt", True, 0.5),
    ("levenberg-marquardt", False, 0.75),
    ("levenberg-marquardt", True, 0.25),
    ("fisher", True, 0.5),
    ("fisher", False, 0.25),
    ("joint fisher", False, 0.25),
    ("hybrid", False, 0.5),
    ("loss", False, 0.5),
    ("loss", False, 0.25),
    ("loss", True, 0.5),
    ("loss, sum", False, 0.25),
]


UNLIKE = {
    "values": "expected the same values in all processes",
    "shapes": "expected the same parameters in all processes",
    "sharded": "ZeroRedundancyOptimizer",
}
MIXED = ("ff", "fd", "df", "of", "do", "oo", "Oo", "oO", "dO", "Of")


def failing(rank: int, value: float) -> str:
    """Process 1 never ran a backward pass."""
    model = model_of(0)
    opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
    if rank == 0:
        model(data()[0][0]).sum().backward()
    else:
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
    try:
        opt.step()
    except (RuntimeError, fubini.NumericalError) as error:
        return str(error)
    return ""


def unlike(rank: int, kind: str) -> str:
    """Processes that do not start alike, or have parts of the parameters; and a step that is one."""
    model = model_of(rank if kind == "values" else 0)
    if kind == "shapes" and rank:
        model = torch.nn.Sequential(torch.nn.Linear(3, 1).double())
    before = [p.detach().clone() for p in model.parameters()]
    opt: Any
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of the models has no quantum layer
        if kind == "sharded":
            from torch.distributed.optim import ZeroRedundancyOptimizer  # torch warns of its own

            options = {"lr": 0.1, "model": model}
            opt = ZeroRedundancyOptimizer(
                model.parameters(), optimizer_class=fubini.QNGOptimizer, **options
            )
        else:
            opt = fubini.QNGOptimizer(model, lr=0.1, metric="quantum")
    model(data()[0][0]).sum().backward()
    try:
        opt.step()
    except RuntimeError as error:
        assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        return str(error)
    return ""


def mixed(rank: int, kinds: str) -> torch.Tensor:
    """Which form of a joint metric is cheapest depends on the number of inputs, which differs between processes."""
    p = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    factor = torch.arange(6, dtype=torch.float64).reshape(2, 3) + rank
    matrix = factor.T @ factor
    block: Block = {
        "f": FactorBlock([p], factor),
        "d": DenseBlock([p], matrix),
        "o": OperatorBlock([p], lambda v: matrix @ v),
        "O": OperatorBlock([p], lambda v: matrix @ v, diagonal=matrix.diagonal),
    }[kinds[rank]]
    (mean,) = mean_blocks([block], [1.0 + 2 * rank])
    ones = torch.ones(3, dtype=torch.float64)
    mean.solve(
        ones, 0.1 * ones
    )  # conjugate gradients with or without the diagonal, the same in both
    return mean.dense()


def process(rank: int, folder: str) -> None:
    log = Path(folder, f"{rank}.log").open("w")  # noqa: SIM115 (open until the process ends)
    os.dup2(log.fileno(), sys.stderr.fileno())  # what C++ says before it aborts, too
    faulthandler.enable(log)
    torch.set_num_threads(1)
    fubini.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        ends = [[p.detach() for p in train(rank, 2, *run).parameters()] for run in RUNS]
        messages = [failing(rank, value) for value in (1.0, float("nan"))]
        means = {kinds: mixed(rank, kinds) for kinds in MIXED}
        refusals = {kind: unlike(rank, kind) for kind in UNLIKE}
        found = {"ends": ends, "messages": messages, "means": means, "refusals": refusals}
        torch.save(found, f"{folder}/{rank}.pt")
        dist.barrier()  # none closes its connections while the other still talks
    except BaseException:
        traceback.print_exc(file=log)  # spawn shows only what the first process to end has to say
        raise
    finally:
        dist.destroy_process_group()
    log.flush()
    os._exit(0)  # torch with DDP, alone too, sometimes aborts while the interpreter ends


@pytest.fixture(scope="module")
def processes() -> list[Any]:
    """What two processes found; starting them costs more than all they do."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            spawn(process, args=(folder,), nprocs=2)  # raises if a process fails
        except ProcessException as error:
            logs = [Path(folder, f"{rank}.log").read_text() for rank in range(2)]
            raise RuntimeError("\n".join([str(error), *(log[-4000:] for log in logs)])) from error
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("index", range(len(RUNS)), ids=[str(run) for run in RUNS])
def test_two_processes_end_where_one_does(processes: list[Any], index: int) -> None:
    name, _, share = RUNS[index]
    first, second = (found["ends"][index] for found in processes)
    single = list(train(0, 1, name, False, share).parameters())
    for p, q, expected in zip(first, second, single, strict=True):
        assert torch.equal(p, q)  # to the bit, or the processes drift apart
        torch.testing.assert_close(p, expected.detach(), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kinds", MIXED)
def test_blocks_of_two_kinds_have_a_mean(processes: list[Any], kinds: str) -> None:
    factors = [torch.arange(6, dtype=torch.float64).reshape(2, 3) + rank for rank in range(2)]
    expected = (factors[0].T @ factors[0] + 3 * factors[1].T @ factors[1]) / 4
    for found in processes:
        torch.testing.assert_close(found["means"][kinds], expected, rtol=1e-13, atol=0)


@pytest.mark.parametrize(
    ("index", "reason"), [(0, "no backward pass went through"), (1, "expected a finite gradient")]
)
def test_an_error_in_one_process_stops_all(processes: list[Any], index: int, reason: str) -> None:
    assert "failed in 1 other of 2 processes" in processes[0]["messages"][index]
    assert reason in processes[1]["messages"][index]


@pytest.mark.slow
def test_the_torchrun_example_ends_where_one_process_ends(tmp_path: Path) -> None:
    """Uneven shares under DistributedDataParallel included: 15 steps reach the rest of an epoch."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, sys, torch, torch.distributed as dist\n"
        "from fubini.demo.distributed import train\n"
        "torch.set_num_threads(1)\n"
        "dist.init_process_group('gloo')\n"
        "model = train(17)\n"
        "torch.save(model.state_dict(), f'{sys.argv[1]}/{dist.get_rank()}.pt')\n"
        "dist.destroy_process_group()\n"
        "os._exit(0)  # torch with DDP sometimes aborts while the interpreter ends\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    subprocess.run([*command, str(script), str(tmp_path)], check=True, timeout=300)
    single = train_example(17).state_dict()
    for rank in range(3):
        for name, value in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(value, single[name], rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("kind", UNLIKE)
def test_processes_that_do_not_start_alike_are_refused(processes: list[Any], kind: str) -> None:
    """In every process, instead of training on, an abort of the back end, or waiting forever."""
    for found in processes:
        assert UNLIKE[kind] in found["refusals"][kind]
