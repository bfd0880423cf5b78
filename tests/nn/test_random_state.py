"""States of the global generators are those that NumPy and Python say, also where they are not asked."""

import random

import numpy as np
import pytest
import torch

from fubini.nn.random_state import AllRandom

DRAWS = {
    "nothing": lambda: None,
    "numpy": np.random.uniform,
    "numpy's normal numbers, which come in pairs": np.random.normal,
    "numpy, another start": lambda: np.random.seed(5),  # noqa: NPY002
    "python": random.random,
    "python's normal numbers, which come in pairs": lambda: random.gauss(0.0, 1.0),
    "python, another start": lambda: random.seed(5),
    "torch": lambda: torch.rand(()),
}


def numbers():
    """One of each kind."""
    return [
        *(np.random.normal(), np.random.uniform()),  # noqa: NPY002
        *(random.gauss(0.0, 1.0), random.random(), torch.rand(()).item()),
    ]


@pytest.fixture(autouse=True)
def _kept():
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    yield
    torch.set_rng_state(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    random.setstate(before[2])


@pytest.mark.parametrize("seed", range(6))
def test_restored_generators_draw_the_same(seed):
    order = np.random.default_rng(seed)
    known = []
    for name in order.choice(list(DRAWS), size=30):
        DRAWS[name]()
        state = AllRandom.now()
        known.append((state, numbers()))
        state.restore()
        if order.random() < 0.3:
            past, expected = known[order.integers(len(known))]
            now = AllRandom.now()
            past.restore()
            assert numbers() == expected
            now.restore()
        assert numbers() == known[-1][1]


def test_a_generator_that_does_not_move_is_not_asked():
    state = AllRandom.now()
    np.random.seed(3)  # noqa: NPY002
    random.seed(3)
    moved = AllRandom.now()
    assert AllRandom.now().numpy is moved.numpy
    assert AllRandom.now().python is moved.python
    state.restore()
    now = AllRandom.now()
    assert now.numpy["state"]["key"].tolist() == state.numpy["state"]["key"].tolist()
    assert now.python == state.python


def test_another_bit_generator_of_numpy():
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(2))
        state = AllRandom.now()
        first = np.random.uniform()  # noqa: NPY002
        state.restore()
        assert np.random.uniform() == first  # noqa: NPY002
    finally:
        np.random.set_bit_generator(before)
