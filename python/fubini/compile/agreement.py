"""Whether expressions agree with torch at random numbers: a second line of defence behind the rules.

What was recorded (:mod:`fubini.compile.replay`) is run by torch at random points and compared with what the expressions give
there, so that a rule that is wrong for large numbers, whole ones or zeros shows although it was right for the caller's.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from fubini.compile.replay import Place, Replay
from fubini.options import Real

#: Agreement that needs no second look: the kernel's functions are right to a few units in the last place, and no angle need
#: be better than this.
TOLERANCE = 1e-10
#: A difference beyond it is rounding if ``SHAKE`` moves the result by a tenth of it in one of these runs: sin(1e9 x) and
#: (x + 1e12) - 1e12 have no more digits.
TRIES = 8

Theirs = Callable[[dict[int, torch.Tensor]], Real]
Ours = Callable[[Real, Real], Real]


def columns_of(tensors: Sequence[torch.Tensor], rows: int) -> Theirs:
    """Return numbers of one each, or of one for each input, as the columns of a matrix.

    Args:
        tensors: (), or (B,).
        rows: B.

    Returns:
        From the memory behind the operations to the matrix, (B, k).
    """
    places = []
    for key, size, stride, offset in map(Place.of, tensors):
        step = next((s for n, s in zip(size, stride, strict=True) if n > 1), 0)
        places.append(Place(key, (rows,), (step,), offset))
    return lambda memory: torch.stack([p.within(memory) for p in places], 1).numpy()


def points(num_weights: int, rows: int, width: int, count: int) -> Iterator[tuple[Real, Real]]:
    """Points to compare at: a normal one, then wide ones of magnitudes from 1e-3 to 1e3, whole numbers and zeros.

    Args:
        num_weights: P.
        rows: B.
        width: d.
        count: How many.

    Yields:
        Weights, (P,), and inputs, (B, d).
    """
    rng = np.random.default_rng(0)
    size = num_weights + rows * width
    for number in range(count):
        values = rng.standard_normal(size)
        if number:
            kind = rng.integers(8, size=size)
            wide = np.copysign(10.0 ** rng.uniform(-3.0, 3.0, size), values)
            values = np.where(kind == 0, 0.0, np.where(kind < 3, np.rint(wide), wide))
        yield values[:num_weights], values[num_weights:].reshape(rows, width)


def same(
    replay: Replay, pairs: Sequence[tuple[Theirs, Ours]], num_weights: int, rows: int, width: int
) -> bool:
    """Say whether expressions give what the recorded operations give, at random points, wherever both are finite.

    Args:
        replay: The operations.
        pairs: What is compared: from the memory behind the operations, and from weights (P,) and inputs (B, d), to arrays
            that broadcast.
        num_weights: P.
        rows: B.
        width: d.

    Returns:
        Whether they agree.
    """
    # As torch does it, whatever modes of users are in force.
    plain = torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch()
    with np.errstate(all="ignore"), torch.no_grad(), plain[0], plain[1]:
        # More wide points where they cost little: a single number may miss what is wrong for large ones.
        count = 2 + min(6, 48 // len(replay))
        for weights, inputs in points(num_weights, rows, width, count):
            memory = replay.run(weights, inputs)
            wrong = []
            for theirs, ours in pairs:
                values, own = theirs(memory), ours(weights, inputs)
                apart = np.abs(own - values)
                left = np.isfinite(values) & np.isfinite(own)
                left &= apart > TOLERANCE * (1.0 + np.abs(values))
                if left.any():
                    wrong.append((theirs, values, apart, left))
            generator = torch.Generator().manual_seed(1) if wrong else None
            for _ in range(
                TRIES if wrong else 0
            ):  # where they differ by more than rounding explains
                memory = replay.run(weights, inputs, generator)
                for theirs, values, apart, left in wrong:
                    moved = np.abs(theirs(memory) - values)
                    left &= np.isfinite(moved) & (apart > 10.0 * moved)
            if any(left.any() for *_, left in wrong):
                return False
    return True
