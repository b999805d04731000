"""Split many global batches over workers so that all finish together.

Longest-first gives a start that is near perfect on skewed sizes, Karmarkar-Karp one
that is on narrow sizes; pairwise exchanges improve either until it is near its lower bound.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled, compiled_beyond
from paceline.balance.split._exchange import exchange
from paceline.balance.split._pace import Pace
from paceline.balance.split._sorting import descending_order
from paceline.balance.split._starts import Rules, karmarkar_karp, longest_first

Counts = Literal["equal", "free"]

# A split this close to the lower bound is not improved further; half a percent is the
# promise, and each tenth of it costs about as much time as the one before.
TOLERANCE = 0.003
# Where expensive examples were moved between steps, the bound of one step is not what counts.
WINDOW_TOLERANCE = 0.02
# With more examples per worker than this, longest-first leaves nothing to gain.
KARMARKAR_KARP_MAX_PER_WORKER = 8


def partition_steps(
    costs: NDArray[np.float64],
    counts: Counts,
    pace: Pace,
    tolerance: float = TOLERANCE,
) -> NDArray[np.int64]:
    """Return the worker of each example of many global batches.

    Args:
        costs: Checked costs, shape `(num_steps, batch_size)`.
        counts: As in `partition`.
        pace: Of each worker.
        tolerance: A step this close to its lower bound is not improved further.

    Returns:
        Shape `(num_steps, batch_size)`.
    """
    num_steps, batch_size = costs.shape
    num_workers = len(pace.rate)
    owner = np.zeros((num_steps, batch_size), dtype=np.int64)
    if num_workers == 1 or not batch_size:
        return owner
    descending = descending_order(costs)
    capacity = batch_size // num_workers if counts == "equal" else batch_size
    rules = Rules(capacity, counts == "free", pace.rate, pace.start, tolerance)
    _partition_steps(costs, descending, rules, owner)
    return owner


@compiled_beyond(60_000)
def _partition_steps(
    costs: NDArray[np.float64],
    descending: NDArray[np.int64],
    rules: Rules,
    owner: NDArray[np.int64],
) -> None:
    num_workers, per_row = len(rules.rate), descending.shape[1] // len(rules.rate)
    time, other_time = np.empty(num_workers), np.empty(num_workers)
    other = np.empty(costs.shape[1], dtype=np.int64)
    rows_fit = not rules.is_free and per_row <= KARMARKAR_KARP_MAX_PER_WORKER
    for step in range(len(costs)):
        cost, by_cost = costs[step], descending[step]
        target = (1 + rules.tolerance) * lower_bound(cost, by_cost, rules)
        longest_first(cost, by_cost, rules, time, owner[step])
        if _last(time) <= target:
            continue
        if rows_fit:
            karmarkar_karp(cost, by_cost, rules, other_time, other)
            if _last(other_time) < _last(time):
                for example in range(len(other)):
                    owner[step, example] = other[example]
                for worker in range(num_workers):
                    time[worker] = other_time[worker]
        exchange(cost, by_cost, rules, time, owner[step], target)


@compiled
def _last(time: NDArray[np.float64]) -> float:
    last = -np.inf
    for worker in range(len(time)):
        last = max(last, time[worker])
    return last


@compiled
def lower_bound(
    cost: NDArray[np.float64],
    by_cost: NDArray[np.int64],
    rules: Rules,
) -> float:
    """Return a time before which no split of one batch can end.

    The larger of the mean, and of the most expensive example on the fastest worker, with
    the cheapest examples that equal counts force upon that worker.
    """
    rate, start = rules.rate, rules.start
    total, speed, started = 0.0, 0.0, 0.0
    for worker in range(len(rate)):
        speed += 1.0 / rate[worker]
        started += start[worker] / rate[worker]
    for example in range(len(cost)):
        total += cost[example]
    forced = cost[by_cost[0]]
    if not rules.is_free:
        for position in range(len(by_cost) - rules.capacity + 1, len(by_cost)):
            forced += cost[by_cost[position]]
    soonest = np.inf
    for worker in range(len(rate)):
        soonest = min(soonest, start[worker] + forced * rate[worker])
    return max((total + started) / speed, soonest)
