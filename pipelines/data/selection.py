"""Which items are measured where there are more than asked for."""

import numpy as np
from numpy.typing import NDArray


def evenly(size: int, count: int) -> NDArray[np.int64]:
    """Returns at most `count` indices, ascending and spread evenly over `size`; all of them if `count` is enough."""
    return np.unique(np.linspace(0, size - 1, min(size, count)).round().astype(np.int64))
