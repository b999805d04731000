"""Fewer points than steps: what a page of 10,000 steps can hold without hiding a slow one."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

MAX_BUCKETS = 600  # About a bucket for each two pixels of a wide screen.


class Band(NamedTuple):
    """Least, mean and largest value of each bucket; all columns have shape `(num_buckets,)`."""

    low: NDArray[np.float64]
    mean: NDArray[np.float64]
    high: NDArray[np.float64]


def bucket_starts(num_steps: int, max_buckets: int = MAX_BUCKETS) -> NDArray[np.int64]:
    """Return the first step of each bucket; buckets differ by one step at most.

    Examples:
        >>> bucket_starts(7, 3).tolist()
        [0, 2, 4]
        >>> bucket_starts(3).tolist()
        [0, 1, 2]
    """
    num_buckets = max(1, min(num_steps, max_buckets))
    return np.arange(num_buckets, dtype=np.int64) * num_steps // num_buckets


def band_of(values: ArrayLike, starts: NDArray[np.int64]) -> Band:
    """Return what each bucket of steps holds; no extreme value is lost.

    `values` have shape `(num_steps,)`. A bucket with a NaN is NaN.

    Examples:
        >>> band_of([1.0, 3.0, 5.0], bucket_starts(3, 2)).high.tolist()
        [1.0, 5.0]
    """
    column = np.asarray(values, dtype=np.float64)
    counts = np.diff(starts, append=len(column))
    return Band(
        np.minimum.reduceat(column, starts),
        np.add.reduceat(column, starts) / counts,
        np.maximum.reduceat(column, starts),
    )


def means(values: NDArray[np.float64], starts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean of each bucket along the last axis, which is that of steps."""
    counts = np.diff(starts, append=values.shape[-1])
    return np.add.reduceat(values, starts, axis=-1) / counts
