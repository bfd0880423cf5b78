"""The damped symmetric solve against NumPy, SciPy and torch: same data, same run, one thread and two.

Times include the crossing from Python and the addition of the damping. ``numpy loop`` solves matrix by matrix, the other
NumPy line the stack in one call; SciPy's Cholesky is called matrix by matrix, as its documentation says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
import torch
from numpy.typing import NDArray

import common
import fubini

LAM = 1e-3
OURS = "fubini"
NUMPY = "numpy"
#: (size, batch, at least so many times faster than stacked NumPy, than the best other)
CASES = [
    *[(n, 1, 2.0, None) for n in (2, 4, 8, 16)],
    *[(n, 10, None, None) for n in (2, 8, 32)],
    *[(n, 10_000, 8.0, 3.0) for n in (2, 4, 8)],
    (16, 2_000, 8.0, 3.0),
    (32, 1_000, 8.0, 3.0),
    (64, 300, 5.0, None),
    *[(n, 1, 2.5, 1.0) for n in (128, 256, 512, 1024, 2048)],
]
QUICK = {(2, 1), (16, 1), (2, 10_000), (8, 10_000), (32, 1_000), (64, 300), (256, 1), (1024, 1)}


def systems(n: int, batch: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Metrics as they come up: averages of n/2 + 1 outer products, singular without damping."""
    rng = np.random.default_rng(n)
    factor = rng.normal(size=(batch, n, n // 2 + 1)) / np.sqrt(n)
    return factor @ factor.swapaxes(1, 2), rng.normal(size=(batch, n))


def competitors(a: NDArray[Any], b: NDArray[Any]) -> dict[str, Callable[[], Any]]:
    """Each library's way of solving (a + LAM I) x = b."""
    batch, n = b.shape
    eye = np.eye(n)
    ta, tb, teye = torch.from_numpy(a), torch.from_numpy(b), torch.eye(n, dtype=torch.float64)
    one_a, one_b, one_ta, one_tb = a[0], b[0], ta[0], tb[0]

    def torch_cholesky() -> Any:
        factor, _ = torch.linalg.cholesky_ex(ta + LAM * teye)
        return torch.cholesky_solve(tb.unsqueeze(-1), factor).squeeze(-1)

    if batch == 1:
        return {
            OURS: lambda: fubini.solve(one_a, one_b, damping=LAM),
            NUMPY: lambda: np.linalg.solve(one_a + LAM * eye, one_b),
            "scipy cho": lambda: scipy.linalg.cho_solve(
                scipy.linalg.cho_factor(one_a + LAM * eye, lower=True), one_b
            ),
            "torch solve": lambda: torch.linalg.solve(one_ta + LAM * teye, one_tb),
            "torch cholesky": torch_cholesky,
        }
    calls = {
        OURS: lambda: fubini.solve(a, b, damping=LAM),
        NUMPY: lambda: np.linalg.solve(a + LAM * eye, b[..., None])[..., 0],
        "torch solve": lambda: torch.linalg.solve(ta + LAM * teye, tb),
        "torch cholesky": torch_cholesky,
        "numpy loop": lambda: [
            np.linalg.solve(x + LAM * eye, y) for x, y in zip(a, b, strict=True)
        ],
        "scipy cho": lambda: [
            scipy.linalg.cho_solve(scipy.linalg.cho_factor(x + LAM * eye, lower=True), y)
            for x, y in zip(a, b, strict=True)
        ],
    }
    return calls


def mixed(quick: bool) -> dict[str, Any]:
    """Blocks of sizes 1 to 32 in one call, against uniform stacks of the same sizes in one call for each."""
    rng = np.random.default_rng(0)
    sizes = np.repeat(np.arange(1, 33), 10 if quick else 50)
    rng.shuffle(sizes)
    blocks = [systems(int(n), 1) for n in sizes]
    a, b = [x[0] for x, _ in blocks], [y[0] for _, y in blocks]
    ta, tb = [torch.from_numpy(x) for x in a], [torch.from_numpy(y) for y in b]
    stacks = [
        (np.stack([x for x in a if len(x) == n]), np.stack([y for y in b if len(y) == n]))
        for n in range(1, 33)
    ]
    times = common.interleaved(
        {
            OURS: lambda: fubini.solve_blocks(a, b, damping=LAM),
            "fubini, stacks": lambda: [fubini.solve(x, y, damping=LAM) for x, y in stacks],
            "fubini, tensors": lambda: fubini.solve_blocks(ta, tb, damping=LAM),
            "numpy loop": lambda: [
                np.linalg.solve(x + LAM * np.eye(len(x)), y) for x, y in zip(a, b, strict=True)
            ],
        }
    )
    return {"blocks": len(sizes), "times": {name: one.as_dict() for name, one in times.items()}}


def run(quick: bool) -> dict[str, Any]:
    """Measure, print, draw.

    Args:
        quick: Fewer cases and samples.

    Returns:
        What goes into the JSON file.
    """
    cases = [case for case in CASES if not quick or case[:2] in QUICK]
    counts = [1] if quick or fubini._core.num_threads() == 1 else [1, 2]
    results, rates = [], {}
    for count in counts:
        with common.threads(count):
            rates[count] = common.peak_rate()
            rows = []
            for n, batch, goal_numpy, goal_best in cases:
                a, b = systems(n, batch)
                calls = competitors(a, b)
                x, reference = calls[OURS](), calls[NUMPY]()
                if not np.allclose(x, reference, rtol=1e-6, atol=1e-6):
                    raise RuntimeError(f"wrong result for n = {n}, batch = {batch}")
                times = common.interleaved(calls, seconds=0.15 if quick else 0.6)
                ours = times[OURS]
                others = {name: one for name, one in times.items() if name != OURS}
                best = min(others, key=lambda name: others[name].minimum)
                ratio_numpy = (
                    times[NUMPY].minimum / ours.minimum,
                    times[NUMPY].median / ours.median,
                )
                ratio_best = (
                    others[best].minimum / ours.minimum,
                    others[best].median / ours.median,
                )
                results.append(
                    {
                        "n": n,
                        "batch": batch,
                        "threads": count,
                        "times": {name: one.as_dict() for name, one in times.items()},
                        "best_other": best,
                        "over_numpy": {
                            "min": ratio_numpy[0],
                            "median": ratio_numpy[1],
                            "goal": goal_numpy,
                        },
                        "over_best": {
                            "min": ratio_best[0],
                            "median": ratio_best[1],
                            "goal": goal_best,
                        },
                    }
                )
                rows.append(
                    [
                        str(n),
                        str(batch),
                        f"{ours.minimum / batch * 1e6:.3f}",
                        f"{ours.median / batch * 1e6:.3f}",
                        *_ratio(ratio_numpy, goal_numpy),
                        *_ratio(ratio_best, goal_best),
                        best,
                        f"{n**3 / 3 * batch / ours.minimum / rates[count]:.0%}",
                    ]
                )
            common.print_table(
                f"{count} thread{'s' if count > 1 else ''}; ratios by minimum / by median; goal reached: +; "
                f"peak: n^3/3 at the {rates[count] / 1e9:.0f} GFlop/s of multiply-adds in registers",
                [
                    "n",
                    "batch",
                    "us each",
                    "median",
                    "x numpy",
                    "goal",
                    "x best",
                    "goal",
                    "best other",
                    "of peak",
                ],
                rows,
            )
    with common.threads(1):
        blocks = mixed(quick)
    ours = blocks["times"][OURS]["min_s"]
    print(
        f"\n{blocks['blocks']} blocks of sizes 1 to 32 in one call: {ours * 1e6:.0f} us; "
        + ", ".join(
            f"{name}: {one['min_s'] * 1e6:.0f} us"
            for name, one in blocks["times"].items()
            if name != OURS
        )
    )
    draw(results, rates)
    return {"cases": results, "peak_flops": {str(k): v for k, v in rates.items()}, "mixed": blocks}


def _ratio(ratio: tuple[float, float], goal: float | None) -> list[str]:
    text = f"{ratio[0]:.1f} / {ratio[1]:.1f}"
    return [text, "" if goal is None else f"{goal:g} {'+' if ratio[0] >= goal else '-'}"]


def draw(results: list[dict[str, Any]], rates: dict[int, float]) -> None:
    """Time over size, each library a line, and the time at the machine's peak."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5))
    for axis, single in zip(axes, (False, True), strict=True):
        chosen = [
            r
            for r in results
            if r["threads"] == 1 and (r["batch"] == 1) == single and r["batch"] != 10
        ]
        sizes = [r["n"] for r in chosen]
        for name in dict.fromkeys(name for r in chosen for name in r["times"]):
            values = [r["times"][name]["min_s"] / r["batch"] * 1e6 for r in chosen]
            axis.plot(sizes, values, "o-", label=name, linewidth=2.5 if name == OURS else 1.2)
        axis.plot(
            sizes,
            [n**3 / 3 / rates[1] * 1e6 for n in sizes],
            "k:",
            label="n³/3 at the machine's peak",
        )
        axis.set(xscale="log", yscale="log", xlabel="n", ylabel="microseconds per system")
        axis.set_title("one system per call" if single else "batches of 300 to 10000")
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"(G + lam I) x = b, float64, one thread, {common.environment()['cpu']}")
    figure.tight_layout()
    figure.savefig(common.picture_path("solve"), dpi=130)
    plt.close(figure)
