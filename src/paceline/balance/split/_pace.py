"""How fast each worker is, as compiled code sees it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.cost import Worker


class Pace(NamedTuple):
    """Time per unit of cost of each worker, and its time that no example causes."""

    rate: NDArray[np.float64]
    start: NDArray[np.float64]


def pace_of(workers: tuple[Worker, ...] | None, num_workers: int) -> Pace:
    """Return the pace of `workers`; all are alike if they are unset."""
    if workers is None:
        return Pace(np.ones(num_workers), np.zeros(num_workers))
    rate = np.array([1.0 / worker.speed for worker in workers])
    return Pace(rate, np.array([float(worker.overhead_s) for worker in workers]))
