"""What does a step of natural gradient cost beside a step of plain gradient?

The digits classifier of the demo, Linear(64, 4) -> 4 qubits, 3 layers -> Linear(4, 10), 32 inputs, one whole training step:
zero_grad, forward, backward, step. On one thread. Competitors: PennyLane's ``TorchLayer`` with plain gradient on
default.qubit (backprop) and lightning.qubit (adjoint), at the faster of which the goal is measured; and the recipe that
users are told, ``qml.metric_tensor(approx="block-diag")`` for each input, averaged and solved. Ours: plain gradient on
the native engine, and QNGOptimizer with each metric.

Then ``opt.step()`` alone, beside forward and backward of the same model, for two sizes of the circuit and every metric
and approximation: a step is to cost no more than a gradient, and no approximation more than what it approximates.
"""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import pennylane as qml
import torch

import common
import fubini
from fubini.demo.digits import LAYERS, QUBITS, load, make_model

INPUTS = 32
PLAIN = "fubini, plain gradient"
OURS: dict[str, dict[str, Any]] = {
    "quantum, full": {"metric": "quantum", "approx": None},
    "quantum, block-diag": {"metric": "quantum", "approx": "block-diag"},
    "fisher, block-diag": {"metric": "fisher", "approx": "block-diag"},
    "fisher, joint": {"metric": "fisher", "approx": None},
    "hybrid, block-diag": {"metric": "hybrid", "approx": "block-diag"},
}
# (qubits, layers) of the circuits whose steps are timed alone, and how.
SIZES = ((4, 3), (8, 6))
STEPS: dict[str, dict[str, Any]] = {
    "loss=": {"loss": torch.nn.CrossEntropyLoss()},
    "fisher, block-diag": {"metric": "fisher", "likelihood": "categorical"},
    "fisher, diag": {"metric": "fisher", "likelihood": "categorical", "approx": "diag"},
    "quantum, full": {"metric": "quantum", "approx": None},
    "quantum, block-diag": {"metric": "quantum", "approx": "block-diag"},
    "quantum, diag": {"metric": "quantum", "approx": "diag"},
}
# At most so many times forward and backward.
STEP_GOALS = {"loss=": 1.0, "quantum, block-diag": 1.5, "quantum, diag": 1.5}
# A cheaper approximation first. Equal to the noise of the measurement is equal.
ORDER = (
    ("quantum, diag", "quantum, block-diag"),
    ("quantum, block-diag", "quantum, full"),
    ("fisher, diag", "fisher, block-diag"),
)
NOISE = 1.1
TOGETHER = 8  # steps whose mean is one sample: what is not done in every step counts
# (ours, theirs, goal as a multiple of theirs)
GOALS = [
    ("quantum, full", "PennyLane, plain gradient", 1 / 10),
    ("quantum, full", "PennyLane, metric_tensor per input", 1 / 1000),
    ("fisher, block-diag", PLAIN, 3.0),
]


def training_step(
    model: torch.nn.Module, opt: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor
) -> Callable[[], Any]:
    criterion = torch.nn.CrossEntropyLoss()

    def step() -> None:
        opt.zero_grad()
        criterion(model(x), y).backward()
        opt.step()

    return step


def with_torch_layer(
    model: torch.nn.Sequential, device: str, method: str
) -> tuple[torch.nn.Sequential, Any]:
    """The same classifier with PennyLane's layer, and its QNode."""

    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(QUBITS))
        qml.StronglyEntanglingLayers(weights, wires=range(QUBITS))
        return [qml.expval(qml.Z(wire)) for wire in range(QUBITS)]

    qnode = qml.QNode(circuit, qml.device(device, wires=QUBITS), diff_method=method)
    weights = model[1].weights.detach().clone()
    layer = qml.qnn.TorchLayer(qnode, {"weights": (LAYERS, QUBITS, 3)}, {"weights": weights})
    twin = torch.nn.Sequential(torch.nn.Linear(64, QUBITS), layer, torch.nn.Linear(QUBITS, 10))
    twin = twin.double()
    for k in (0, 2):
        twin[k].load_state_dict(model[k].state_dict())
    return twin, qnode


def recipe(model: torch.nn.Sequential, qnode: Any, x: torch.Tensor, y: torch.Tensor) -> None:
    """One step with the block-diagonal metric of every input, averaged."""
    criterion, weights = torch.nn.CrossEntropyLoss(), model[1].weights
    model.zero_grad()
    criterion(model(x), y).backward()
    hidden = model[0](x).detach()
    size = weights.numel()
    total = torch.zeros(size, size, dtype=torch.float64)
    free = weights.detach().clone().requires_grad_()
    for inputs in hidden.numpy():
        # Of the inputs as an argument, trainable or not, PennyLane's classical Jacobian has a wrong size.
        bound = qml.QNode(functools.partial(qnode.func, inputs), qnode.device)
        total += qml.metric_tensor(bound, approx="block-diag")(free).detach().reshape(size, size)
    damped = total / len(x) + 1e-3 * torch.eye(size, dtype=torch.float64)
    direction = torch.linalg.solve(damped, weights.grad.reshape(-1))
    with torch.no_grad():
        for p in model.parameters():
            d = direction.reshape(p.shape) if p is weights else p.grad
            p.sub_(0.01 * d)


def hybrid(qubits: int, layers: int) -> torch.nn.Sequential:
    """Linear, circuit, Linear."""

    @qml.qnode(qml.device("default.qubit", wires=qubits))
    def circuit(inputs: Any, weights: Any) -> Any:
        qml.AngleEmbedding(inputs, wires=range(qubits))
        qml.StronglyEntanglingLayers(weights, wires=range(qubits))
        return [qml.expval(qml.Z(wire)) for wire in range(qubits)]

    torch.manual_seed(0)
    layer = fubini.QuantumLayer(circuit, {"weights": (layers, qubits, 3)})
    model = torch.nn.Sequential(torch.nn.Linear(64, qubits), layer, torch.nn.Linear(qubits, 10))
    return model.double()


def steps_alone(size: tuple[int, int], rounds: int) -> dict[str, dict[str, float]]:
    """CPU seconds of forward with backward, and of ``step`` for every metric: minimum and median of means over steps."""
    images, digits = load()
    x, y = images[:INPUTS], digits[:INPUTS]
    loss = torch.nn.CrossEntropyLoss()
    cases: dict[str, tuple[torch.nn.Module, Any]] = {}
    for name, options in {"gradient": None, **STEPS}.items():
        model = hybrid(*size)
        opt: Any = torch.optim.SGD(model.parameters(), lr=0.01)
        cases[name] = model, opt if options is None else fubini.QNGOptimizer(model, **options)
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, (model, opt) in cases.items():
            gradient = step = 0.0
            for _ in range(TOGETHER):
                opt.zero_grad()
                start = time.thread_time()
                loss(model(x), y).backward()
                middle = time.thread_time()
                opt.step()
                gradient += middle - start
                step += time.thread_time() - middle
            if number:  # the first round compiles
                samples[name].append((gradient if name == "gradient" else step) / TOGETHER)
    return {n: {"min_s": min(v), "median_s": statistics.median(v)} for n, v in samples.items()}


def report_steps(quick: bool) -> dict[str, Any]:
    """Time steps alone for all sizes, and print ratios and goals."""
    result: dict[str, Any] = {}
    for size in SIZES:
        with common.threads(1):
            times = steps_alone(size, 12 if quick else 60)
        ratios = {n: t["min_s"] / times["gradient"]["min_s"] for n, t in times.items()}
        rows = [
            [
                n,
                f"{t['min_s'] * 1e3:.3g}",
                f"{t['median_s'] * 1e3:.3g}",
                f"{ratios[n]:.2f}",
                f"{STEP_GOALS[n]:g}" if n in STEP_GOALS else "",
            ]
            for n, t in times.items()
        ]
        title = f"step() alone: {size[0]} qubits, {size[1]} layers, {INPUTS} inputs, 1 thread"
        common.print_table(title, ["", "min ms", "median ms", "x gradient", "at most"], rows)
        reached = {n: ratios[n] <= goal for n, goal in STEP_GOALS.items()}
        ordered = {f"{a} <= {b}": ratios[a] <= NOISE * ratios[b] for a, b in ORDER}
        for name, good in {**reached, **ordered}.items():
            print(f"  {'+' if good else '-'} {name}")
        result[f"{size[0]}x{size[1]}"] = {"times": times, "goals": reached, "order": ordered}
    return result


def run(quick: bool) -> dict[str, Any]:
    """Time one training step of each kind.

    Args:
        quick: Fewer samples.

    Returns:
        The results.
    """
    images, digits = load()
    x, y = images[:INPUTS], digits[:INPUTS]
    torch.manual_seed(0)
    model, _ = make_model()
    calls: dict[str, Callable[[], Any]] = {}

    def twin() -> torch.nn.Sequential:
        other, _ = make_model()
        other.load_state_dict(model.state_dict())
        return other

    with common.threads(1):
        peers = {}
        for device, method in {"default.qubit": "backprop", "lightning.qubit": "adjoint"}.items():
            theirs, qnode = with_torch_layer(model, device, method)
            torch.testing.assert_close(theirs(x), model(x), rtol=0, atol=1e-6)
            peers[device] = (theirs, qnode)
            opt = torch.optim.SGD(theirs.parameters(), lr=0.01)
            calls[f"PennyLane, {device}"] = training_step(theirs, opt, x, y)
        plain = twin()
        calls[PLAIN] = training_step(plain, torch.optim.SGD(plain.parameters(), lr=0.01), x, y)
        for name, options in OURS.items():
            mine = twin()
            known = {} if options["metric"] == "quantum" else {"likelihood": "categorical"}
            opt = fubini.QNGOptimizer(mine, lr=0.01, **options, **known)
            calls[name] = training_step(mine, opt, x, y)
        timings = common.interleaved(calls, seconds=0.5 if quick else 4.0, rounds=40, slice_s=2e-2)
        seconds = []
        theirs, qnode = peers["default.qubit"]
        for _ in range(1 if quick else 3):
            start = time.perf_counter()
            recipe(theirs, qnode, x, y)
            seconds.append(time.perf_counter() - start)
    times = {name: t.as_dict() for name, t in timings.items()}
    best = min((n for n in times if n.startswith("PennyLane")), key=lambda n: times[n]["min_s"])
    times["PennyLane, plain gradient"] = times[best]
    times["PennyLane, metric_tensor per input"] = {
        "min_s": min(seconds),
        "median_s": statistics.median(seconds),
    }
    rows = [
        [
            name,
            f"{t['min_s'] * 1e3:.3g}",
            f"{t['median_s'] * 1e3:.3g}",
            f"{t['min_s'] / times[PLAIN]['min_s']:.2f}",
        ]
        for name, t in times.items()
        if name != "PennyLane, plain gradient"
    ]
    common.print_table(
        f"one training step, {INPUTS} inputs, 1 thread",
        ["", "min ms", "median ms", "x our plain gradient"],
        rows,
    )
    goals, rows = [], []
    for ours, theirs_name, goal in GOALS:
        ratio = times[ours]["min_s"] / times[theirs_name]["min_s"]
        goals.append({"ours": ours, "theirs": theirs_name, "ratio": ratio, "goal": goal})
        rows.append([ours, theirs_name, f"{ratio:.3g}", f"{goal:g}", "+" if ratio <= goal else "-"])
    common.print_table("goals", ["ours", "theirs", "ratio", "at most", "reached"], rows)
    with contextlib.suppress(ImportError):
        draw(times)
    alone = report_steps(quick)
    return {"inputs": INPUTS, "times": times, "goals": goals, "steps": alone, "threads": 1}


def draw(times: dict[str, dict[str, float]]) -> None:
    """Bars: milliseconds of a step."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [name for name in times if name != "PennyLane, plain gradient"]
    figure, axis = plt.subplots(figsize=(8, 4))
    axis.barh(names, [times[name]["min_s"] * 1e3 for name in names])
    axis.invert_yaxis()
    axis.set(xscale="log", xlabel="milliseconds per training step")
    axis.grid(alpha=0.3, axis="x")
    figure.tight_layout()
    figure.savefig(common.picture_path("step"), dpi=130)
    plt.close(figure)
