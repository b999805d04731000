"""Partitioned data: each example can be read by some workers only."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._compile import compiled, compiled_beyond
from paceline.balance._config import BalanceConfig
from paceline.balance.split import Pace, descending_order
from paceline.cost import checked_column

MAX_ROUNDS = 64
MAX_READER_SETS = 12


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """Where examples lie, and who can read what.

    Attributes:
        shard: Shard of each example, shape `(num_examples,)`.
        readers: Workers that can read each shard, at least one, as tuples of ranks.

    Raises:
        ValueError: If an example's shard does not exist or a shard has no readers.

    Examples:
        >>> node_local = Shards(np.array([0, 0, 1, 1]), readers=((0, 1), (2, 3)))
        >>> node_local.can_read(num_workers=4).astype(int).tolist()
        [[1, 1, 0, 0], [0, 0, 1, 1]]
    """

    shard: NDArray[np.int64]
    readers: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        bad = np.flatnonzero((self.shard < 0) | (self.shard >= len(self.readers)))
        if bad.size:
            raise ValueError(
                f"shard must lie in [0, {len(self.readers)}), but example {bad[0]} has "
                f"{self.shard[bad[0]]}"
            )
        for shard, workers in enumerate(self.readers):
            if not workers:
                raise ValueError(f"shard {shard} has no readers; its examples would be lost")

    def can_read(self, num_workers: int) -> NDArray[np.bool_]:
        """Return whether each worker can read each shard, shape `(num_shards, num_workers)`."""
        allowed = np.zeros((len(self.readers), num_workers), dtype=bool)
        for shard, workers in enumerate(self.readers):
            if not 0 <= min(workers) <= max(workers) < num_workers:
                raise ValueError(
                    f"readers of shard {shard} must lie in [0, {num_workers}), got {workers}"
                )
            allowed[shard, list(workers)] = True
        return allowed


@dataclass(frozen=True, slots=True)
class ShardBound:
    """How even partitioned data can be, at best.

    Attributes:
        imbalance: Least possible makespan over the mean load; 1.0 is perfect.
        workers: The workers that hold it up.
        share: Part of all cost that only they can read.
    """

    imbalance: float
    workers: tuple[int, ...]
    share: float

    def __str__(self) -> str:
        if self.imbalance <= 1.0:
            return "the shards allow perfect balance"
        return (
            f"the shards allow at best {self.imbalance:.3f} x the mean load: {self.share:.1%} of "
            f"the cost can be read by workers {', '.join(map(str, self.workers))} alone; give more "
            "workers access to it, or move examples to other shards"
        )


def shard_bound(costs: ArrayLike, shards: Shards, num_workers: int) -> ShardBound:
    """Return the balance that readability allows, with examples of any fineness.

    What only the workers of a set can read, they must share: its cost over their number
    is a bound, and the largest over all sets is the exact one (Hall's condition). Exact
    for up to 12 different sets of readers; beyond, unions of up to three are tried,
    which gives a bound that may be too low.
    """
    cost = checked_column("costs", costs)
    if cost.shape != shards.shard.shape:
        raise ValueError(f"costs must have {len(shards.shard)} entries, got {len(cost)}")
    total = np.bincount(shards.shard, cost, minlength=len(shards.readers))
    allowed = shards.can_read(num_workers)
    sets = sorted({frozenset(np.flatnonzero(row).tolist()) for row in allowed}, key=sorted)
    most = len(sets) if len(sets) <= MAX_READER_SETS else 3
    best = ShardBound(imbalance=1.0, workers=tuple(range(num_workers)), share=1.0)
    for size in range(1, most + 1):
        for chosen in combinations(sets, size):
            workers = sorted(frozenset().union(*chosen))
            outside = np.setdiff1d(np.arange(num_workers), workers)
            share = float(total[~allowed[:, outside].any(axis=1)].sum() / max(cost.sum(), 1e-300))
            imbalance = share * num_workers / len(workers)
            if imbalance > best.imbalance * (1 + 1e-12):
                best = ShardBound(imbalance, tuple(workers), share)
    return best


def check_sharded(shards: Shards, num_examples: int, config: BalanceConfig) -> None:
    """Raise a `ValueError` if the shards do not fit the dataset, or the plan not the shards."""
    if shards.shard.shape != (num_examples,):
        raise ValueError(f"shard must have {num_examples} entries, got {shards.shard.shape}")
    wanted = {"counts": "free", "window": 1, "padded": False, "tail": "drop"}
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ValueError(f"shards need {name}={value!r}, got {getattr(config, name)!r}")


def spread_shards(shards: Shards, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `order` such that every step draws from each shard in proportion to its size.

    Uneven shards then run out together, and no step finds a worker without anything
    that it can read. Within a shard the order of the shuffle is kept.
    """
    shard = shards.shard[order]
    place = np.empty(len(order))
    for index in range(len(shards.readers)):
        mine = np.flatnonzero(shard == index)
        place[mine] = (np.arange(len(mine)) + 0.5) / max(len(mine), 1)
    return order[np.argsort(place, kind="stable")]


def partition_shards(
    costs: NDArray[np.float64],
    shard: NDArray[np.int64],
    allowed: NDArray[np.bool_],
    pace: Pace,
    first_step: int = 0,
) -> NDArray[np.int64]:
    """Return the worker of each example, none that cannot read it.

    Longest-first among the workers that can read the example, then moves from the
    latest worker to any that can take one and end earlier. Counts are free.

    Args:
        costs: Shape `(num_steps, batch_size)`.
        shard: Shard of each example, same shape.
        allowed: Who reads what, shape `(num_shards, num_workers)`.
        pace: Of each worker.
        first_step: What an error calls the first of the steps.

    Raises:
        ValueError: If a worker finds nothing in a step that it can read; names both.
    """
    owner = np.zeros(costs.shape, dtype=np.int64)
    _partition(costs, descending_order(costs), shard, allowed, pace, owner)
    num_workers = len(pace.rate)
    at = np.arange(len(costs))[:, None] * num_workers + owner
    held = np.bincount(at.ravel(), minlength=len(costs) * num_workers)
    empty = np.flatnonzero(held == 0)
    if empty.size:
        step, worker = divmod(int(empty[0]), num_workers)
        raise ValueError(
            f"worker {worker} can read nothing that is left in step {first_step + step}; a rank "
            "without examples hangs the next all-reduce. Give it access to more shards, or use a "
            "larger batch"
        )
    return owner


def check_readable(
    shards: Shards,
    steps: NDArray[np.int64],
    owner: NDArray[np.int64],
    num_workers: int,
    first_step: int = 0,
) -> None:
    """Raise a `ValueError` if a worker got an example that it cannot read, to fill up."""
    bad = np.argwhere(~shards.can_read(num_workers)[shards.shard[steps], owner])
    if len(bad):
        step, column = bad[0].tolist()
        raise ValueError(
            f"worker {owner[step, column]} can read too few examples of step {first_step + step} "
            "for as many micro-batches as num_microbatches and limits ask for; use a larger batch, "
            "fewer micro-batches or wider limits"
        )


@compiled_beyond(60_000)
def _partition(
    costs: NDArray[np.float64],
    descending: NDArray[np.int64],
    shard: NDArray[np.int64],
    allowed: NDArray[np.bool_],
    pace: Pace,
    owner: NDArray[np.int64],
) -> None:
    for step in range(len(costs)):
        time = pace.start.copy()
        for example in descending[step]:
            cost, readers = costs[step, example], allowed[shard[step, example]]
            worker = _earliest(time, pace.rate, cost, readers)
            owner[step, example] = worker
            time[worker] += cost * pace.rate[worker]
        for _ in range(MAX_ROUNDS):
            late = int(np.argmax(time))
            if not _relieve(costs[step], shard[step], allowed, pace.rate, time, owner[step], late):
                break
        _feed_empty(descending[step], shard[step], allowed, owner[step], len(pace.rate))


@compiled
def _earliest(
    time: NDArray[np.float64], rate: NDArray[np.float64], cost: float, readers: NDArray[np.bool_]
) -> int:
    best, best_end = -1, np.inf
    for worker in range(len(time)):
        end = time[worker] + cost * rate[worker]
        if readers[worker] and end < best_end:
            best, best_end = worker, end
    return best


@compiled
def _relieve(
    cost: NDArray[np.float64],
    shard: NDArray[np.int64],
    allowed: NDArray[np.bool_],
    rate: NDArray[np.float64],
    time: NDArray[np.float64],
    owner: NDArray[np.int64],
    late: int,
) -> bool:
    """Move the one example of the latest worker that lets both end earliest."""
    best, moved, target = time[late] * (1 - 1e-12), -1, -1
    for example in np.flatnonzero(owner == late):
        left = time[late] - cost[example] * rate[late]
        for worker in range(len(rate)):
            end = max(left, time[worker] + cost[example] * rate[worker])
            if worker != late and allowed[shard[example], worker] and end < best:
                best, moved, target = end, int(example), worker
    if moved < 0:
        return False
    owner[moved] = target
    time[late] -= cost[moved] * rate[late]
    time[target] += cost[moved] * rate[target]
    return True


@compiled
def _feed_empty(
    descending: NDArray[np.int64],
    shard: NDArray[np.int64],
    allowed: NDArray[np.bool_],
    owner: NDArray[np.int64],
    num_workers: int,
) -> None:
    """Give each worker without examples the cheapest that it can read of another's several."""
    count = np.bincount(owner, minlength=num_workers)
    for worker in np.flatnonzero(count == 0):
        for example in descending[::-1]:
            if allowed[shard[example], worker] and count[owner[example]] > 1:
                count[owner[example]] -= 1
                count[worker] += 1
                owner[example] = worker
                break
