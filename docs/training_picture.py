"""Draws ``pictures/training.png``, the README's picture: two cases of ``python -m fubini demo`` over seconds.

Each training runs several times, from the same seed; of each step the shortest time counts, so that a busy machine does not
draw its own hiccups. Usage: ``python docs/training_picture.py [FILE]``.
"""

import dataclasses
import itertools
import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from fubini.demo import digits, molecule, one_thread, report
from fubini.demo.training import Case, Run

ROUNDS = 5
OUTPUT = Path(__file__).parent / "pictures/training.png"


def steadiest(case: Case, name: str) -> Run:
    """Return a run of the demo with the shortest time of each step in several."""
    runs = [case.train(name, case.rates[name], case.steps, 0, lambda: None) for _ in range(ROUNDS)]
    steps = zip(
        *([b - a for a, b in itertools.pairwise([0.0, *run.moments])] for run in runs), strict=True
    )
    moments = list(itertools.accumulate(map(min, steps)))
    return dataclasses.replace(runs[0], moments=moments, seconds=moments[-1])


def main() -> None:
    """Train, print what was reached when, and draw."""
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, case in zip(axes, (digits.CASE, molecule.CASE), strict=True):
        with one_thread():
            runs = [steadiest(case, name) for name in case.rates]
        print(report.table({case: runs}))
        report.curves(axis, case, runs, seconds=True)
        axis.set_title(case.title, fontsize="medium")
        axis.legend(fontsize="x-small", frameon=False, loc="lower left")
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else OUTPUT
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100)
    with Image.open(path) as drawn:  # few colours, a small file
        drawn.convert("RGB").quantize(64).save(path, optimize=True)


if __name__ == "__main__":
    main()
