"""Split batches over workers when every micro-batch is padded to its longest example."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._compile import compiled, compiled_beyond
from paceline.balance.split._pace import Pace, pace_of
from paceline.balance.split._partition import Partition, checked_costs
from paceline.balance.split._sorting import descending_order
from paceline.balance.split._steps import Counts

# Bisection ends when the largest load is known to this share; the split is then the
# greedy one, whose loads are exact sums.
PRECISION = 1e-9
# Below this no share of a number is left to halve.
TINY = 1e-300


def split_padded(costs: ArrayLike, num_workers: int) -> Partition:
    """Split by similar cost so that the slowest *padded* worker ends as early as possible.

    A worker pays its number of examples times the cost of the most expensive one, because
    all are padded to that. Counts are free: one worker takes a few long examples,
    another many short ones. Among the splits of the batch, sorted by cost, into
    contiguous parts this one is optimal to within a part in 10⁹: the largest load is
    found by bisection, filling each worker greedily from the most expensive example down, in
    O(n log n) time for n examples plus O(num_workers) per bisection.

    Args:
        costs: Cost of each example when not padded, finite and non-negative, shape
            `(num_examples,)`; must grow with the size that is padded.
        num_workers: Number of workers, at least 1.

    Returns:
        The split. Worker 0 holds the most expensive examples. No worker is left without
        examples unless there are fewer examples than workers. Ties go to the lower
        example index.

    Raises:
        ValueError: If a cost is bad or `num_workers` is below 1.

    Examples:
        >>> split = split_padded([1.0, 9.0, 1.0, 2.0, 3.0, 1.0], num_workers=2)
        >>> split.owner.tolist(), split.load.tolist()
        ([1, 0, 1, 1, 1, 1], [9.0, 15.0])
    """
    cost = checked_costs(costs)
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    owner = split_padded_steps(cost[None], "free", pace_of(None, num_workers))[0]
    highest = np.zeros(num_workers)
    np.maximum.at(highest, owner, cost)
    return Partition(owner=owner, load=np.bincount(owner, minlength=num_workers) * highest)


def split_padded_steps(
    costs: NDArray[np.float64],
    counts: Counts,
    pace: Pace,
) -> NDArray[np.int64]:
    """Return the worker of each example of many global batches, shape of `costs`.

    The most expensive examples go to the fastest worker. With equal counts the parts are the
    sorted batch cut evenly. That pads least in sum, but the worker with the longest
    example sets the step whatever the cut.

    Args:
        costs: Checked costs, shape `(num_steps, batch_size)`.
        counts: `"equal"` or `"free"`.
        pace: Of each worker.
    """
    if len(pace.rate) == 1:
        return np.zeros(costs.shape, dtype=np.int64)
    num_steps, batch_size = costs.shape
    by_cost = descending_order(costs)
    fastest, pace = fastest_first(pace)
    if counts == "equal":
        parts = np.broadcast_to(np.arange(batch_size) * len(fastest) // batch_size, costs.shape)
    else:
        parts = np.empty((num_steps, batch_size), dtype=np.int64)
        _split_rows(np.take_along_axis(costs, by_cost, axis=1), pace, parts)
    owner = np.empty((num_steps, batch_size), dtype=np.int64)
    np.put_along_axis(owner, by_cost, fastest[parts], axis=1)
    return owner


def fastest_first(pace: Pace) -> tuple[NDArray[np.int64], Pace]:
    """Return the workers by time per unit of cost, start and rank, and their pace so sorted."""
    fastest = np.lexsort((pace.start, pace.rate))
    return fastest, Pace(pace.rate[fastest], pace.start[fastest])


@compiled_beyond(100_000)
def _split_rows(
    descending: NDArray[np.float64],
    pace: Pace,
    parts: NDArray[np.int64],
) -> None:
    counts = np.empty(len(pace.rate), dtype=np.int64)
    for step in range(len(descending)):
        end = earliest_end(descending[step], pace, PRECISION)
        fill(descending[step], end, pace, counts)
        first = 0
        for worker in range(len(pace.rate)):
            parts[step, first : first + counts[worker]] = worker
            first += counts[worker]


@compiled
def earliest_end(
    descending: NDArray[np.float64],
    pace: Pace,
    precision: float,
) -> float:
    """Return when the latest worker ends at best, never too early, late by `precision`."""
    if len(descending) == 0:
        last = pace.start[0]
        for start in pace.start:
            last = max(last, start)
        return float(last)
    total, speed = 0.0, 0.0
    for cost in descending:
        total += cost
    for worker in range(len(pace.rate)):
        speed += 1.0 / pace.rate[worker]
        total += pace.start[worker] / pace.rate[worker]
    low = total / speed * (1 - precision)
    high = low
    while not can_hold(descending, high, pace):
        low, high = high, max(1.25 * high, TINY)
    while high - low > max(precision * high, TINY):
        middle = low + (high - low) / 2
        if can_hold(descending, middle, pace):
            high = middle
        else:
            low = middle
    return high


@compiled
def can_hold(
    descending: NDArray[np.float64],
    end: float,
    pace: Pace,
) -> bool:
    """Say whether workers that end by `end` hold the whole batch, most expensive first."""
    first, left = 0, len(descending)
    for worker in range(len(pace.rate)):
        budget = (end - pace.start[worker]) / pace.rate[worker]
        if left == 0 or descending[first] * left <= budget:
            return True
        fits = min(int(budget / descending[first]), left) if budget > 0 else 0
        first, left = first + fits, left - fits
    return False


@compiled
def fill(
    descending: NDArray[np.float64],
    end: float,
    pace: Pace,
    counts: NDArray[np.int64],
) -> None:
    """Give each worker what it finishes by `end`, most expensive first, at least one.

    One example is left for each worker that is still to be filled.
    """
    left = len(descending)
    for worker in range(len(counts)):
        most = max(left - (len(counts) - worker - 1), min(left, 1))
        highest = descending[len(descending) - left] if left > 0 else 0.0
        budget = (end - pace.start[worker]) / pace.rate[worker]
        if highest * most <= budget:
            counts[worker] = most
        else:
            counts[worker] = max(1, int(budget / highest)) if budget > 0 else min(1, most)
        left -= counts[worker]
    counts[-1] += left
