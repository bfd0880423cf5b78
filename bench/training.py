"""Does the natural gradient train better? Supervised hybrid models: the default call against tuned peers.

``QNGOptimizer(model, loss=...)`` without any number runs on every problem of ``problems/supervised.py``, beside peers whose
learning rates come from a grid on other seeds, separately for the value at the end and for the steps to the target
(``problems/tuned.py``; ``python bench/training.py --tune`` repeats the search, some minutes). All train with our layer on
one thread, so the comparison is between optimizers, not simulators; seconds are those of the CPU, and the methods run in
turns. Steps of L-BFGS take several gradients, so it is compared by evaluations, which for all others are the steps.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import common
from problems.peers import OURS, PEERS, Method, Run, train
from problems.supervised import PROBLEMS, Problem
from problems.tuned import TUNED

SEEDS = tuple(range(8))
TUNING_SEEDS = (1000, 1001, 1002)
Row = dict[str, Any]


def contest(problem: Problem, methods: Sequence[Method], seeds: Sequence[int]) -> dict[str, Row]:
    """Train a problem with all methods from all seeds.

    Args:
        problem: What to train.
        methods: Those that do not fit the problem are left out.
        seeds: Of weights and batches.

    Returns:
        What the table shows, by method.
    """
    entered = []
    for method in methods:
        if method.fits(problem):
            rates = TUNED[problem.name][method.name] if method.rates else (math.nan, math.nan)
            entered.append((method, rates))
    runs: dict[str, list[tuple[Run, Run]]] = {method.name: [] for method, _ in entered}
    for seed in seeds:
        for method, (final, target) in entered:
            end = train(method, problem, final, seed)
            same = final == target or not method.rates
            runs[method.name].append((end, end if same else train(method, problem, target, seed)))
    return {method.name: _row(runs[method.name], rates, problem) for method, rates in entered}


def _row(runs: list[tuple[Run, Run]], rates: tuple[float, float], problem: Problem) -> Row:
    """The figures of one method: the end from the first run of every pair, the way to the target from the second."""
    reached = [run.at(problem.target) for _, run in runs]
    steps, evaluations, seconds = (statistics.median(part) for part in zip(*reached, strict=True))
    ends = [run.losses[-1] for run, _ in runs]
    known = all(map(math.isfinite, ends))
    return {
        "reached": sum(math.isfinite(r[0]) for r in reached),
        "runs": len(runs),
        "steps": _finite(steps),
        "evaluations": _finite(evaluations),
        "seconds": _finite(seconds),
        "final": statistics.fmean(ends) if known else None,
        "deviation": statistics.pstdev(ends) if known else None,
        "held_out": statistics.fmean(run.held_out for run, _ in runs) if known else None,
        "diverged": sum(run.diverged for run, _ in runs),
        "ms_per_step": 1e3
        * statistics.median(r.seconds[-1] / max(1, r.steps[-1]) for r, _ in runs),
        "rates": [_finite(rate) for rate in rates],
    }


def _finite(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}g}"


def show(problem: Problem, rows: dict[str, Row]) -> None:
    """Print the table of a problem.

    Args:
        problem: The problem.
        rows: By method.
    """
    head = ["", "at target", "steps", "evaluations", "seconds", "final", "+-", "held out"]
    head += ["diverged", "ms/step", "lr final", "lr target"]
    lines = [
        [
            name,
            f"{r['reached']}/{r['runs']}",
            _number(r["steps"]),
            _number(r["evaluations"]),
            _number(r["seconds"]),
            _number(r["final"]),
            _number(r["deviation"], 1),
            _number(r["held_out"]),
            f"{r['diverged']}/{r['runs']}",
            _number(r["ms_per_step"]),
            *(_number(rate) for rate in r["rates"]),
        ]
        for name, r in rows.items()
    ]
    batch = "all data" if problem.batch is None else f"batches of {problem.batch}"
    common.print_table(
        f"{problem.name}: loss {problem.target:g}, {batch}, {problem.steps} steps", head, lines
    )


def verdict(results: dict[str, dict[str, Row]], ours: str = "fubini") -> list[dict[str, Any]]:
    """Compare one of our calls with the best peer of every problem, and print where it loses.

    Steps and seconds are each compared with the peer that needs fewest, the end with the peer that ends lowest. The end
    is lost if it is above that by more than the larger of the two standard deviations.

    Args:
        results: Rows by method, by problem.
        ours: Which of our calls.

    Returns:
        The comparison, problem by problem.
    """
    found, lines = [], []
    for name, rows in results.items():
        mine = rows[ours]
        peers = {peer.name: rows[peer.name] for peer in PEERS if peer.name in rows}
        line, entry = [name], {"problem": name}
        for what in ("evaluations", "seconds"):
            best = min(peers, key=lambda p: math.inf if peers[p][what] is None else peers[p][what])
            theirs, own = peers[best][what], mine[what]
            ratio = math.inf if own is None else 0.0 if theirs is None else own / theirs
            entry[what] = _finite(ratio)
            lost = ratio > (1.0 if what == "evaluations" else 1.2)
            line += [_number(own), f"{_number(theirs)} ({best})", f"{ratio:.2f}"]
            line[-1] += " LOST" if lost else ""
        best = min(
            peers, key=lambda p: math.inf if peers[p]["final"] is None else peers[p]["final"]
        )
        spread = max(peers[best]["deviation"], mine["deviation"] or 0.0)
        over = math.inf if mine["final"] is None else (mine["final"] - peers[best]["final"])
        entry["final_over"] = _finite(over / spread) if spread else None
        line += [f"{_number(mine['final'])} +- {_number(mine['deviation'], 1)}"]
        end = f"{_number(peers[best]['final'])} +- {_number(peers[best]['deviation'], 1)} ({best})"
        line += [end + (" LOST" if over > spread else "")]
        line += [f"{mine['diverged']}" + (" LOST" if mine["diverged"] else "")]
        found.append(entry)
        lines.append(line)
    head = ["", "gradients", "best peer", "ratio", "seconds", "best peer", "ratio", "final"]
    common.print_table(f"{ours}, against the best tuned peers", [*head, "best peer", "div."], lines)
    faster = sum(1 for e in found if e["seconds"] is not None and e["seconds"] < 1)
    print(f"fewer seconds than every peer on {faster} of {len(found)} problems")
    return found


def run(quick: bool) -> dict[str, Any]:
    """Run all problems on one thread.

    Args:
        quick: Two seeds.

    Returns:
        The results.
    """
    seeds = SEEDS[:2] if quick else SEEDS
    results = {}
    with common.threads(1):
        for problem in PROBLEMS:
            results[problem.name] = contest(problem, (*OURS, *PEERS), seeds)
            show(problem, results[problem.name])
    comparison = verdict(results)
    return {"problems": results, "verdict": comparison, "seeds": list(seeds), "threads": 1}


def tune(only: Sequence[str] = ()) -> dict[str, dict[str, tuple[float, float]]]:
    """Search the peers' learning rates, on other seeds.

    Args:
        only: Names of problems; none: all.

    Returns:
        By problem and method: the rate with the lowest mean loss at the end, and the one that is most often and soonest
        at the target.
    """
    found = dict(TUNED)
    for problem in PROBLEMS:
        if only and problem.name not in only:
            continue
        found[problem.name] = {}
        for method in PEERS:
            if not (method.fits(problem) and method.rates):
                continue
            ends, ways = {}, {}
            for rate in method.rates:
                runs = [train(method, problem, rate, seed) for seed in TUNING_SEEDS]
                losses = [r.losses[-1] if math.isfinite(r.losses[-1]) else math.inf for r in runs]
                steps = [r.at(problem.target)[0] for r in runs]
                ends[rate] = statistics.fmean(losses)
                ways[rate] = (
                    sum(map(math.isinf, steps)),
                    statistics.fmean(problem.steps if math.isinf(s) else s for s in steps),
                    ends[rate],
                )
            best = min(ends, key=lambda r: ends[r]), min(ways, key=lambda r: ways[r])
            found[problem.name][method.name] = best
            print(f"{problem.name}, {method.name}: {best[0]} for the end, {best[1]} for the target")
    return found


def main() -> None:
    """Search the learning rates and write them down."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--tune", action="store_true", required=True)
    parser.add_argument("--only", default="", help="names of problems, with commas between them")
    options = parser.parse_args()
    with common.threads(1):
        found = tune([name for name in options.only.split(",") if name])
    lines = [
        '"""Learning rates of the peers, for the end and for the target: ``python bench/training.py --tune``."""',
        "",
        "TUNED: dict[str, dict[str, tuple[float, float]]] = {",
    ]
    for problem, methods in found.items():
        lines.append(f'    "{problem}": {{')
        lines += [f'        "{name}": {rates},' for name, rates in methods.items()]
        lines.append("    },")
    path = Path(__file__).parent / "problems" / "tuned.py"
    path.write_text("\n".join([*lines, "}"]) + "\n")
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
