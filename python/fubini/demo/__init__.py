"""``python -m fubini demo``: three problems, each trained by quantum natural gradient beside SGD, Adam and SOAP.

The hybrid classifier is trained once more as PennyLane runs it, by Adam with a ``TorchLayer``.

Every optimizer runs with the best learning rate that a small grid gave it on other random seeds (``Case.grid``,
``Case.rates``); ``--tune`` repeats that search. The hybrid classifier's natural gradient has none: it is the default call.
"""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import fubini
from fubini.demo import circuit, digits, molecule, report
from fubini.demo.training import Case, Run, score

CASES: tuple[Case, ...] = (digits.CASE, circuit.CASE, molecule.CASE)
_NEEDED = {"matplotlib": "matplotlib", "sklearn": "scikit-learn", "tqdm": "tqdm"}
_SEED = 0
_TUNING_SEEDS = {"circuit": (1, 2, 3), "molecule": (1, 2, 3), "digits": (1, 2, 3, 4, 5, 6)}


def chosen_cases(only: str | None) -> tuple[Case, ...]:
    """Return the cases to run.

    Args:
        only: Name of one case, or None for all.

    Raises:
        ValueError: If there is no such case.
    """
    cases = tuple(case for case in CASES if only in (None, case.name))
    if not cases:
        raise ValueError(f"only: expected one of {[c.name for c in CASES]} or None, got {only!r}")
    return cases


def run(
    output: str | Path = "fubini_demo.png", *, only: str | None = None, quick: bool = False
) -> dict[Case, list[Run]]:
    """Train every case with every optimizer, print the table, write the picture.

    Args:
        output: File of the picture.
        only: Name of one case, or None for all.
        quick: A few steps each: shows that everything works, not how it compares.

    Returns:
        The runs by case.

    Raises:
        ValueError: If only or output is not usable.
    """
    check_packages()
    cases = chosen_cases(only)
    path = _checked_output(Path(output))
    total = sum(len(case.rates) * case.length(quick) for case in cases)
    results: dict[Case, list[Run]] = {}
    with one_thread(), _progress(total) as bar:
        for case in cases:
            results[case] = []
            for name in case.rates:
                bar.set_description(f"{case.name}, {name}")
                found = case.train(name, case.rates[name], case.length(quick), _SEED, bar.update)
                results[case].append(found)
                if bar.disable:
                    print(report.line(case, found), file=sys.stderr, flush=True)
    print(report.table(results))
    report.picture(results, path)
    print(f"\nTraining curves: {path}")
    return results


def tune(*, only: str | None = None, quick: bool = False) -> dict[tuple[str, str], Any]:
    """Try every learning rate of the grids and print the best: fewest steps to the target, then the lowest loss.

    Args:
        only: Name of one case, or None for all.
        quick: A few steps each.

    Returns:
        The best learning rates by case and optimizer.
    """
    check_packages()
    cases = chosen_cases(only)
    total = sum(
        case.length(quick) * len(case.grid) * len(_TUNING_SEEDS[case.name]) * len(_tuned(case))
        for case in cases
    )
    best: dict[tuple[str, str], Any] = {}
    with one_thread(), _progress(total) as bar:
        for case in cases:
            steps = case.length(quick)
            for name in _tuned(case):
                bar.set_description(f"{case.name}, {name}")
                ranked = []
                for rates in case.grid:
                    runs = [
                        case.train(name, rates, steps, seed, bar.update)
                        for seed in _TUNING_SEEDS[case.name]
                    ]
                    scores = [score(r, steps) for r in runs]
                    mean = tuple(sum(part) / len(runs) for part in zip(*scores, strict=True))
                    ranked.append((mean, rates))
                _, rates = min(ranked)
                best[case.name, name] = rates
                bar.write(f"{case.name:<10}{name:<16}{report.rates_text(rates)}", file=sys.stdout)
    return best


def check_packages() -> None:
    """Raise an ImportError that names the packages of the demo that are missing, and how to get them.

    Raises:
        ImportError: If one is missing.
    """
    missing = [
        package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise ImportError(
            f"the demo needs {', '.join(missing)}, which the package installs with its extra 'demo'; in a clone run: "
            "pip install -c constraints.txt '.[demo]'"
        )


def _tuned(case: Case) -> list[str]:
    """The optimizers that have a learning rate of their own."""
    return [name for name, rates in case.rates.items() if rates and name not in case.borrowed]


def _checked_output(path: Path) -> Path:
    """Find out before the training, not after it, whether the picture can be written."""
    from matplotlib.figure import Figure

    if not path.resolve().parent.is_dir():
        raise ValueError(f"output: expected a file in an existing folder, got {str(path)!r}")
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix[1:].lower() not in formats:
        raise ValueError(
            f"output: expected one of the formats {sorted(formats)}, got {str(path)!r}"
        )
    return path


@contextmanager
def _progress(total: int) -> Iterator[Any]:
    """A bar on a terminal; in a log, where it would be a line for each of its states, nothing."""
    from tqdm import tqdm

    quiet = not sys.stderr.isatty()
    with tqdm(total=total, unit="step", file=sys.stderr, dynamic_ncols=True, disable=quiet) as bar:
        yield bar


@contextmanager
def one_thread() -> Iterator[None]:
    """Use one thread: for states of 16 amplitudes several only wait, and the seconds are those of the CPU."""
    threads = torch.get_num_threads(), fubini.get_num_threads()
    torch.set_num_threads(1)
    fubini.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads[0])
        fubini.set_num_threads(threads[1])
