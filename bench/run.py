"""Run benchmarks: ``python bench/run.py [--only solve,...] [--quick]``.

Every other ``bench/<name>.py`` with a function ``run(quick: bool) -> dict`` is a benchmark; the dictionary and the
environment are saved as ``bench/results/<name>.json``.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # so that the script runs from any directory

import common


def main() -> None:
    known = sorted(
        path.stem for path in HERE.glob("*.py") if path.stem not in ("run", "common", "compare")
    )
    parser = argparse.ArgumentParser(description="fubini's benchmarks")
    parser.add_argument("--only", default=",".join(known), help=f"some of: {', '.join(known)}")
    parser.add_argument("--quick", action="store_true", help="fewer cases and samples")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"--only: expected some of {known}, got {unknown}")
    for name in names:
        environment = common.environment()
        print(
            f"{name}: {environment['cpu']}, {environment['isa']}, "
            + ", ".join(f"{key} {value}" for key, value in environment["versions"].items())
            + f", commit {environment['commit']}"
        )
        start = time.perf_counter()
        result = importlib.import_module(name).run(options.quick)
        seconds = time.perf_counter() - start
        path = common.save(
            name, {"environment": environment, "quick": options.quick, "seconds": seconds, **result}
        )
        print(f"{name}: {seconds:.0f} s, written to {path.relative_to(HERE.parent)}")


if __name__ == "__main__":
    main()
