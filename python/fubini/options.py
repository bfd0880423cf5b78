"""Names for types that the modules of the metric share."""

from typing import Literal

import numpy as np
import numpy.typing as npt

Real = npt.NDArray[np.float64]
Complex = npt.NDArray[np.complex128]
Index = npt.NDArray[np.intp]
#: Which part of the metric over angles is taken; None for all of it.
Approx = Literal["block-diag", "diag"] | None
#: What becomes of a batch; None keeps one metric per input.
Reduce = Literal["mean"] | None
