"""Split one global batch over workers so that all finish together."""

from dataclasses import dataclass
from math import isfinite

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._files import shown
from paceline.balance.split._pace import pace_of
from paceline.balance.split._steps import Counts, partition_steps
from paceline.cost import Worker, checked_column

MAX_BATCH_SIZE = 2**31 - 1


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
    owner = partition_steps(cost[None], counts, pace_of(workers, num_workers))[0]
    load = np.bincount(owner, cost, minlength=num_workers).astype(np.float64)
    return Partition(owner=owner, load=load)


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
    if batch_size > MAX_BATCH_SIZE:
        raise ValueError(f"batch_size must be at most {MAX_BATCH_SIZE}, got {shown(batch_size)}")
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
