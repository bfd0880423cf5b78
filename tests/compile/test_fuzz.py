"""Random quantum functions against TorchLayer; ``python tests/compile_fuzz.py`` runs as many as one likes."""

import warnings

import pytest

import compile_fuzz


def run_all(first: int, count: int) -> None:
    states = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # functions do what people do, not what torch recommends
        for seed in range(first, first + count):
            states.append(compile_fuzz.run(seed))
    assert states.count("compiled") > count // 5
    assert states.count("refused") < count // 20


def test_random_functions() -> None:
    run_all(0, 60)


@pytest.mark.slow
def test_many_random_functions() -> None:
    run_all(100_000, 1000)
