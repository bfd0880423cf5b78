"""Two commits in turn: ``python bench/compare.py OLDER [--only engine,metric,layer,solve,step] [--rounds 3]``.

``OLDER`` is another checkout with its extension built inside ``python/fubini`` (preset ``python``), as this one has. Each
round runs every benchmark once in each, quick; of every time that both of them report the minimum over the rounds counts.
Printed are the ratios of this checkout to the older one: of each benchmark the geometric mean, and the worst times.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent.parent
NAMES = "engine,metric,layer,solve,step"
PEERS = ("lightning", "default.qubit", "TorchLayer", "pennylane", "numpy", "scipy", "jax", "torch.")


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Every shortest time in a result, by its path; a case goes by its sizes, not by its place in the list."""
    if isinstance(value, dict):
        sizes = (v for v in value.values() if isinstance(v, (int, str)))
        words = [str(size) for size in sizes if len(str(size)) < 40]
        label = path if "min_s" in value else f"{path} {' '.join(words)}".strip()
        for key, part in value.items():
            if key == "min_s":
                yield path, float(part)
            elif isinstance(part, (dict, list)):
                yield from leaves(part, f"{label}/{key}")
    elif isinstance(value, list):
        for part in value:
            yield from leaves(part, path)


def times(folder: Path, name: str) -> dict[str, float]:
    """What one quick run of a benchmark in a checkout reports."""
    environment = {**os.environ, "PYTHONPATH": str(folder / "python")}
    command = [sys.executable, "bench/run.py", "--only", name, "--quick"]
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    result = json.loads((folder / "bench" / "results" / f"{name}.json").read_text())
    result.pop("environment")
    return {
        path: seconds
        for path, seconds in leaves(result)
        if seconds > 0 and not any(peer.lower() in path.lower() for peer in PEERS)
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description="two checkouts, interleaved")
    parser.add_argument("older", type=Path, help="the other checkout")
    parser.add_argument("--only", default=NAMES, help=f"some of: {NAMES}")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each benchmark in each")
    options = parser.parse_args()
    for name in options.only.split(","):
        best: list[dict[str, float]] = [{}, {}]
        for _ in range(options.rounds):
            for which, folder in enumerate((options.older.resolve(), HERE)):
                for path, seconds in times(folder, name).items():
                    best[which][path] = min(seconds, best[which].get(path, math.inf))
        old, new = best
        ratios = {path: new[path] / old[path] for path in new if path in old}
        if not ratios:
            print(f"{name}: no time that both report")
            continue
        mean = math.exp(sum(math.log(ratio) for ratio in ratios.values()) / len(ratios))
        print(f"{name}: {len(ratios)} times, this over older {mean:.3f} (geometric mean)")
        for path in sorted(ratios, key=lambda path: -ratios[path])[:5]:
            print(
                f"  {ratios[path]:.3f}  {1e3 * old[path]:.4f} -> {1e3 * new[path]:.4f} ms  {path}"
            )


if __name__ == "__main__":
    main()
