"""What all benchmark scripts share: the environment, interleaved timing, tables, JSON files and pictures."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import threadpoolctl
import torch

import fubini

RESULTS = Path(__file__).parent / "results"


@dataclass
class Timing:
    """Seconds per call: minimum and median over the rounds."""

    minimum: float
    median: float

    def as_dict(self) -> dict[str, float]:
        """For the JSON file."""
        return {"min_s": self.minimum, "median_s": self.median}


def interleaved(
    calls: dict[str, Callable[[], Any]],
    *,
    seconds: float = 0.5,
    rounds: int = 15,
    slice_s: float = 2e-3,
) -> dict[str, Timing]:
    """Time all calls in turn, so that a noisy moment of the machine hits each of them.

    Before every sample its call is made once untimed: what is timed is a loop, not the caches that the competitor
    before has emptied.

    Args:
        calls: What to time, by name.
        seconds: Stop after about this long for each call.
        rounds: At most this many samples for each call, at least 3.
        slice_s: A sample repeats a call until it lasts about this long.

    Returns:
        The timings, by name.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        once = min(_seconds(call) for _ in range(3))
        repeats[name] = max(1, round(slice_s / max(once, 1e-7)))
    samples: dict[str, list[float]] = {name: [] for name in calls}
    deadline = time.perf_counter() + seconds * len(calls)
    for done in range(rounds):
        if done >= 3 and time.perf_counter() > deadline:
            break
        for name, call in calls.items():
            count = repeats[name]
            call()
            start = time.perf_counter()
            for _ in range(count):
                call()
            samples[name].append((time.perf_counter() - start) / count)
    return {name: Timing(min(taken), statistics.median(taken)) for name, taken in samples.items()}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Give every library that computes here the same number of threads."""
    torch_before, ours_before = torch.get_num_threads(), fubini._core.num_threads()
    torch.set_num_threads(count)
    fubini._core.set_num_threads(count)
    try:
        with threadpoolctl.threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(torch_before)
        fubini._core.set_num_threads(ours_before)


def environment() -> dict[str, Any]:
    """Versions, processor, instruction set, threads and commit: what a figure means nothing without."""
    versions = {}
    for name in ("numpy", "scipy", "torch", "pennylane"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "cpu": _cpu(),
        "isa": fubini._core.isa(),
        "compiler": fubini._core.compiler(),
        "threads_available": fubini._core.num_threads(),
        "python": platform.python_version(),
        "system": platform.platform(terse=True),
        "versions": {"fubini": fubini._core.version(), **versions},
        "commit": _commit(),
        "blas": [
            f"{pool['internal_api']} {pool['version']} {pool.get('architecture', '')}".strip()
            for pool in threadpoolctl.threadpool_info()
        ],
    }


def _cpu() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    here = Path(__file__).parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain", "-uno"],
            cwd=here,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + (" with changes" if dirty else "")


def peak_rate() -> float:
    """Floating-point operations per second of a large product by torch's BLAS, on our threads: the peak in pictures."""
    size, before = 2048, torch.get_num_threads()
    torch.set_num_threads(fubini.get_num_threads())
    try:
        a = torch.ones((size, size), dtype=torch.float64)
        return 2 * size**3 / min(_seconds(lambda: a @ a) for _ in range(15))
    finally:
        torch.set_num_threads(before)


def print_table(title: str, head: list[str], rows: list[list[str]]) -> None:
    """Print rows in aligned columns."""
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    print(f"\n{title}")
    for line in [head, ["-" * w for w in widths], *rows]:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def save(name: str, result: dict[str, Any]) -> Path:
    """Write a result as JSON into ``bench/results``."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def picture_path(name: str) -> Path:
    """Where a picture goes."""
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / f"{name}.png"
