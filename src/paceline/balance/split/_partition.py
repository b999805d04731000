"""Split global batches over workers so that all finish together.

Longest-first gives a start that is near perfect on skewed sizes, Karmarkar-Karp one
that is on narrow sizes; pairwise exchanges bring either onto the bound.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._compile import compiled
from paceline.balance.split._exchange import exchange
from paceline.balance.split._sorting import descending_order
from paceline.cost import Worker, checked_column

Counts = Literal["equal", "free"]

# A split this close to the lower bound is not improved further; half a percent is the
# promise, and each tenth of it costs about as much time as the one before.
TOLERANCE = 0.003
# Where dear examples were moved between steps, the bound of one step is not what counts.
WINDOW_TOLERANCE = 0.02
# With more examples per worker than this, longest-first leaves nothing to gain.
KARMARKAR_KARP_MAX_PER_WORKER = 8


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


def partition(
    costs: ArrayLike,
    num_workers: int,
    *,
    counts: Counts = "equal",
    workers: tuple[Worker, ...] | None = None,
) -> Partition:
    """Split by cost so that the worker that finishes last finishes early.

    Starts longest-first [1], or from Karmarkar-Karp's differencing [2] where workers
    hold few examples and that is better, then exchanges examples between the latest
    and the earliest workers until the latest is within 0.3 % of the lower bound or no
    exchange helps. O(n log n) time for n examples plus O(n) per exchange round, of
    which there are at most 32. Ties go to the lower example index and worker.

    Differs from [2] in that all workers get equally many examples (if `counts` is
    `"equal"`), by differencing whole rows of one example per worker.

    Args:
        costs: Cost of each example, finite and non-negative, shape `(num_examples,)`.
            In seconds of a worker of speed 1 if `workers` have overheads.
        num_workers: Number of workers, at least 1.
        counts: `"equal"`: all workers get the same number of examples, which must
            divide; `"free"`: any number, but none is left without if it can be helped.
        workers: Speed and overhead of each; unset for equal ones.

    Returns:
        The split; `load` is in units of cost, not divided by the speed.

    Raises:
        ValueError: If a cost is bad, or the numbers do not fit together.

    Examples:
        >>> partition([3.0, 1.0, 2.0, 2.0], num_workers=2).load.tolist()
        [4.0, 4.0]
        >>> slow = (Worker(), Worker(speed=0.5))
        >>> partition([3.0, 1.0, 2.0, 3.0], 2, counts="free", workers=slow).load.tolist()
        [6.0, 3.0]

    References:
        [1] R. L. Graham, "Bounds on multiprocessing timing anomalies", SIAM Journal
        on Applied Mathematics 17(2), 1969.
        [2] N. Karmarkar and R. Karp, "The differencing method of set partitioning",
        UCB/CSD 82/113, 1982.
    """
    cost = checked_costs(costs)
    check_worker_counts(len(cost), num_workers, counts, workers)
    owner = partition_steps(cost[None], counts, *pace_of(workers, num_workers))[0]
    return Partition(owner=owner, load=loads(owner, cost, num_workers))


def loads(
    owner: NDArray[np.int64], costs: NDArray[np.float64], num_workers: int
) -> NDArray[np.float64]:
    """Return the summed cost of each owner, shape `(num_workers,)`."""
    return np.bincount(owner, costs, minlength=num_workers).astype(np.float64)


def checked_costs(costs: ArrayLike) -> NDArray[np.float64]:
    """Return `costs` as floats; raise a `ValueError` if one is bad or they cannot be added."""
    cost = checked_column("costs", costs)
    # What a padded worker with all examples would cost, so every sum is finite.
    if not isfinite(float(cost.max(initial=0.0)) * len(cost)):
        raise ValueError("costs are too large to add up; use a larger unit")
    return cost


def check_worker_counts(
    batch_size: int, num_workers: int, counts: Counts, workers: tuple[Worker, ...] | None
) -> None:
    """Raise a `ValueError` if a batch cannot be split like this."""
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}")
    if counts not in ("equal", "free"):
        raise ValueError(f"counts must be 'equal' or 'free', got {counts!r}")
    if counts == "equal" and batch_size % num_workers:
        below = batch_size - batch_size % num_workers
        raise ValueError(
            f"equal counts need a batch size that num_workers ({num_workers}) divides, got "
            f"{batch_size}; use {below + num_workers}{f' or {below}' if below else ''}, or "
            "counts='free'"
        )
    if workers is not None and len(workers) != num_workers:
        raise ValueError(f"workers must hold {num_workers} entries, got {len(workers)}")


def partition_steps(
    costs: NDArray[np.float64],
    counts: Counts,
    rate: NDArray[np.float64],
    start: NDArray[np.float64],
    tolerance: float = TOLERANCE,
) -> NDArray[np.int64]:
    """Return the worker of each example of many global batches.

    Args:
        costs: Checked costs, shape `(num_steps, batch_size)`.
        counts: As in `partition`.
        rate: Time per unit of cost of each worker, shape `(num_workers,)`.
        start: Time of each worker that no example causes, same shape.
        tolerance: A step this close to its lower bound is not improved further.

    Returns:
        Shape `(num_steps, batch_size)`.
    """
    num_steps, batch_size = costs.shape
    num_workers = len(rate)
    owner = np.zeros((num_steps, batch_size), dtype=np.int64)
    if num_workers == 1 or not batch_size:
        return owner
    descending = descending_order(costs)
    capacity = batch_size // num_workers if counts == "equal" else batch_size
    _partition_steps(costs, descending, capacity, counts == "free", rate, start, tolerance, owner)
    return owner


def pace_of(
    workers: tuple[Worker, ...] | None, num_workers: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return each worker's time per unit of cost, and its time that no example causes."""
    if workers is None:
        return np.ones(num_workers), np.zeros(num_workers)
    rate = np.array([1.0 / worker.speed for worker in workers])
    return rate, np.array([worker.overhead_s for worker in workers])


@compiled
def _partition_steps(
    costs: NDArray[np.float64],
    descending: NDArray[np.int64],
    capacity: int,
    is_free: bool,
    rate: NDArray[np.float64],
    start: NDArray[np.float64],
    tolerance: float,
    owner: NDArray[np.int64],
) -> None:
    num_workers, per_row = len(rate), descending.shape[1] // len(rate)
    time, other_time = np.empty(num_workers), np.empty(num_workers)
    other = np.empty(costs.shape[1], dtype=np.int64)
    rows_fit = not is_free and per_row <= KARMARKAR_KARP_MAX_PER_WORKER
    for step in range(len(costs)):
        cost, order = costs[step], descending[step]
        target = (1 + tolerance) * lower_bound(cost, order, capacity, is_free, rate, start)
        _longest_first(cost, order, capacity, rate, start, time, owner[step])
        if time.max() <= target:
            continue
        if rows_fit:
            _karmarkar_karp(cost, order, rate, start, other_time, other)
            if other_time.max() < time.max():
                owner[step], time[:] = other, other_time
        exchange(cost, order, is_free, rate, time, owner[step], target)


@compiled
def lower_bound(
    cost: NDArray[np.float64],
    order: NDArray[np.int64],
    capacity: int,
    is_free: bool,
    rate: NDArray[np.float64],
    start: NDArray[np.float64],
) -> float:
    """Return a time before which no split of one batch can end.

    The larger of the mean, and of the dearest example on the fastest worker, with the
    cheapest examples that equal counts force upon that worker.
    """
    total, speed, started = 0.0, 0.0, 0.0
    for worker in range(len(rate)):
        speed += 1.0 / rate[worker]
        started += start[worker] / rate[worker]
    for example in range(len(cost)):
        total += cost[example]
    forced = cost[order[0]]
    if not is_free:
        for position in range(len(order) - capacity + 1, len(order)):
            forced += cost[order[position]]
    soonest = np.inf
    for worker in range(len(rate)):
        soonest = min(soonest, start[worker] + forced * rate[worker])
    return max((total + started) / speed, soonest)


@compiled
def _longest_first(
    cost: NDArray[np.float64],
    order: NDArray[np.int64],
    capacity: int,
    rate: NDArray[np.float64],
    start: NDArray[np.float64],
    time: NDArray[np.float64],
    owner: NDArray[np.int64],
) -> None:
    """Give each example, dearest first, to the worker that is free first.

    Workers wait in a binary heap, earliest and lowest first; full ones leave it. The last
    examples go to the workers that have none yet.
    """
    size, num_empty = len(rate), len(rate)
    heap = np.arange(size)
    count = np.zeros(size, dtype=np.int64)
    time[:] = start
    for at in range(size // 2 - 1, -1, -1):
        _sift_down(heap, at, size, time)
    for position, example in enumerate(order):
        while len(order) - position <= num_empty and count[heap[0]] > 0:
            size -= 1
            heap[0] = heap[size]
            _sift_down(heap, 0, size, time)
        worker = heap[0]
        num_empty -= count[worker] == 0
        owner[example] = worker
        time[worker] += cost[example] * rate[worker]
        count[worker] += 1
        if count[worker] == capacity:
            size -= 1
            heap[0] = heap[size]
        _sift_down(heap, 0, size, time)


@compiled
def _sift_down(heap: NDArray[np.int64], at: int, size: int, time: NDArray[np.float64]) -> None:
    moved = heap[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and _comes_first(heap[child + 1], heap[child], time):
            child += 1
        if not _comes_first(heap[child], moved, time):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moved


@compiled
def _comes_first(a: int, b: int, time: NDArray[np.float64]) -> bool:
    return bool(time[a] < time[b] or (time[a] == time[b] and a < b))


@compiled
def _karmarkar_karp(
    cost: NDArray[np.float64],
    order: NDArray[np.int64],
    rate: NDArray[np.float64],
    start: NDArray[np.float64],
    time: NDArray[np.float64],
    owner: NDArray[np.int64],
) -> None:
    """Difference rows of one example per worker until one row of sums is left.

    The two rows that differ most within are joined, the dearest of one with the
    cheapest of the other. Meant for equal workers; for others it is only a start.
    """
    num_workers = len(rate)
    num_rows = len(order) // num_workers
    total = cost[order].reshape(num_rows, num_workers).copy()
    first = order.reshape(num_rows, num_workers).copy()
    last = first.copy()
    following = np.full(len(order), -1, dtype=np.int64)
    spread = total[:, 0] - total[:, -1]
    for _ in range(num_rows - 1):
        row = np.argmax(spread)
        widest, spread[row] = spread[row], -1.0
        joined = np.argmax(spread)
        spread[joined], spread[row] = -1.0, widest
        for a in range(num_workers):
            b = num_workers - 1 - a
            total[row, a] += total[joined, b]
            following[last[row, a]] = first[joined, b]
            last[row, a] = last[joined, b]
        by_total = np.argsort(-total[row])
        total[row], first[row], last[row] = (
            total[row][by_total],
            first[row][by_total],
            last[row][by_total],
        )
        spread[row] = total[row, 0] - total[row, -1]
    row = np.argmax(spread)
    for worker in range(num_workers):
        time[worker] = start[worker] + total[row, worker] * rate[worker]
        example = first[row, worker]
        while example >= 0:
            owner[example] = worker
            example = following[example]
