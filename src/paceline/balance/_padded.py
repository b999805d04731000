"""Split a batch over workers when every micro-batch is padded to its longest example."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._compile import compiled
from paceline.cost import checked_column


@dataclass(frozen=True, slots=True, eq=False)
class Partition:
    """One global batch, split over workers.

    Attributes:
        owner: Worker of each example. Shape `(num_examples,)`, values in
            `[0, num_workers)`.
        load: Cost per worker. Shape `(num_workers,)`, in the unit of the costs.
    """

    owner: NDArray[np.int64]
    load: NDArray[np.float64]

    def examples_of(self, worker: int) -> NDArray[np.int64]:
        """Return the indices of the examples that `worker` holds, ascending."""
        return np.flatnonzero(self.owner == worker)


def split_padded(costs: ArrayLike, num_workers: int) -> Partition:
    """Split by similar cost so that the dearest *padded* worker is as cheap as possible.

    A worker pays its number of examples times the cost of its dearest one, because
    all are padded to that. Counts are free: one worker takes a few long examples,
    another many short ones. Among the splits of the batch, sorted by cost, into
    contiguous parts this one is optimal. The largest load is found by bisection over
    its bits, filling each worker greedily from the dearest example down, in O(n log n
    + w log n) time for n examples and w workers, with a constant of about 64.

    Args:
        costs: Cost of each example when not padded, finite and non-negative, shape
            `(num_examples,)`; must grow with the size that is padded.
        num_workers: Number of workers, at least 1.

    Returns:
        The split. Worker 0 holds the dearest examples. No worker is left without
        examples unless there are fewer examples than workers. Ties go to the lower
        example index.

    Raises:
        ValueError: If a cost is bad or `num_workers` is below 1.

    Examples:
        >>> split = split_padded([1.0, 9.0, 1.0, 2.0, 3.0, 1.0], num_workers=2)
        >>> split.owner.tolist(), split.load.tolist()
        ([1, 0, 1, 1, 1, 1], [9.0, 15.0])
    """
    cost = checked_column("costs", costs)
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    order = np.argsort(-cost, kind="stable")
    counts = _counts(cost[order], num_workers)
    owner = np.empty(len(cost), dtype=np.int64)
    owner[order] = np.repeat(np.arange(num_workers), counts)
    dearest = np.zeros(num_workers)
    np.maximum.at(dearest, owner, cost)
    return Partition(owner=owner, load=counts * dearest)


@compiled
def _counts(descending: NDArray[np.float64], num_workers: int) -> NDArray[np.int64]:
    """Return the examples per worker for the least possible largest load."""
    counts = np.zeros(num_workers, dtype=np.int64)
    if len(descending) == 0:
        return counts
    low, high = 0.0, len(descending) * descending[0]
    while True:
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        if _fill(descending, middle, counts):
            high = middle
        else:
            low = middle
    _fill(descending, high, counts)
    return counts


@compiled
def _fill(descending: NDArray[np.float64], limit: float, counts: NDArray[np.int64]) -> bool:
    """Give each worker as many examples as fit under `limit`; say whether all were placed."""
    left = len(descending)
    for worker in range(len(counts)):
        dearest = descending[len(descending) - left] if left > 0 else 0.0
        # Leave one example for each worker that is still to come.
        most = max(left - (len(counts) - worker - 1), min(left, 1))
        fits = min(most, int(limit / dearest)) if dearest * most > limit else most
        counts[worker] = fits
        left -= fits
    return left == 0
