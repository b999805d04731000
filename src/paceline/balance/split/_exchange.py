"""Improve a split: exchange examples between the latest and the earliest workers."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.balance.split._sorting import sort_order
from paceline.balance.split._starts import Rules

MAX_ROUNDS = 32


class Shares(NamedTuple):
    """Who holds what of one batch; the last four are changed in place.

    Attributes:
        cost: Cost of each example.
        rate: Time per unit of cost of each worker.
        is_free: Whether an example may move without another coming back.
        members: Examples of each worker by descending cost, one row each.
        num_held: How many of its row each worker holds.
        time: When each worker is done.
        owner: Worker of each example.
    """

    cost: NDArray[np.float64]
    rate: NDArray[np.float64]
    is_free: bool
    members: NDArray[np.int64]
    num_held: NDArray[np.int64]
    time: NDArray[np.float64]
    owner: NDArray[np.int64]


@compiled
def exchange(
    cost: NDArray[np.float64],
    by_cost: NDArray[np.int64],
    rules: Rules,
    time: NDArray[np.float64],
    owner: NDArray[np.int64],
    target: float,
) -> None:
    """Improve `owner` and `time` in place until the latest worker is done by `target`.

    Each round pairs the latest worker with the earliest, the second latest with the
    second earliest, and so on, and makes the best exchange of each pair. When that
    does not help the latest one, it is tried with all others; when that fails too,
    or after `MAX_ROUNDS`, the split stays.

    Args:
        cost: Cost per example.
        by_cost: Examples by descending cost.
        rules: Whether counts are free, and the pace of each worker.
        time: Finishing time per worker; changed.
        owner: Worker per example; changed.
        target: Finishing time that is good enough.
    """
    num_workers = len(time)
    members, count = _members(by_cost, owner, num_workers, rules.is_free)
    shares = Shares(cost, rules.rate, rules.is_free, members, count, time, owner)
    by_time, room = np.empty(num_workers, dtype=np.int64), np.empty(num_workers, dtype=np.int64)
    sort_order(time, by_time, room)
    for _ in range(MAX_ROUNDS):
        _sort_by_time(by_time, time)
        if time[by_time[-1]] <= target:
            return
        has_helped = False
        for pair in range(num_workers // 2):
            late, early = by_time[num_workers - 1 - pair], by_time[pair]
            if time[late] <= target:
                break
            gain, give, take = _best_exchange(shares, late, early)
            if gain > 0:
                _apply(shares, late, early, give, take)
                has_helped = has_helped or pair == 0
        if not has_helped and not _help_latest(shares, by_time, target):
            return


@compiled
def _help_latest(shares: Shares, by_time: NDArray[np.int64], target: float) -> bool:
    """Make the best exchange of the latest worker with any other."""
    late, time = by_time[-1], shares.time
    best_gain, best_early, best_give, best_take = 0.0, -1, -1, -1
    for early in by_time[:-1]:
        if time[late] - time[early] <= best_gain:
            break
        gain, give, take = _best_exchange(shares, late, early)
        if gain > best_gain:
            best_gain, best_early, best_give, best_take = gain, early, give, take
            if gain >= 0.25 * (time[late] - target):
                break
    if best_early < 0:
        return False
    _apply(shares, late, best_early, best_give, best_take)
    return True


@compiled
def _best_exchange(shares: Shares, late: int, early: int) -> tuple[float, int, int]:
    """Return the gain and the positions of the examples to give and to take (-1: none).

    The gain is how much earlier the later of the two is done. Both hold their
    examples by descending cost, so one pass over both finds the best pair.
    """
    cost, rate, is_free, members, count, time, _ = shares
    gap = time[late] - time[early]
    wanted = gap / (rate[late] + rate[early])
    best_gain, best_give, best_take = 0.0, -1, -1
    can_move = is_free and count[late] > 1 and count[early] < members.shape[1]
    take = 0
    for give in range(count[late]):
        given = cost[members[late, give]]
        while take < count[early] and given - cost[members[early, take]] < wanted:
            take += 1
        for candidate in (take - 1, take):
            if candidate < 0 or (candidate >= count[early] and not can_move):
                continue
            taken = cost[members[early, candidate]] if candidate < count[early] else 0.0
            change = given - taken
            gain = min(change * rate[late], gap - change * rate[early])
            if gain > best_gain:
                best_gain, best_give = gain, give
                best_take = candidate if candidate < count[early] else -1
    # Gains of a rounding error would be exchanged for ever.
    return (best_gain if best_gain > 1e-12 * time[late] else 0.0), best_give, best_take


@compiled
def _apply(shares: Shares, late: int, early: int, give: int, take: int) -> None:
    given = shares.members[late, give]
    _remove(shares, late, give)
    change = shares.cost[given]
    if take >= 0:
        taken = shares.members[early, take]
        _remove(shares, early, take)
        _insert(shares, late, taken)
        change -= shares.cost[taken]
    _insert(shares, early, given)
    shares.time[late] -= change * shares.rate[late]
    shares.time[early] += change * shares.rate[early]


@compiled
def _remove(shares: Shares, worker: int, position: int) -> None:
    shares.num_held[worker] -= 1
    row = shares.members[worker]
    for at in range(position, shares.num_held[worker]):
        row[at] = row[at + 1]


@compiled
def _insert(shares: Shares, worker: int, example: int) -> None:
    row, at = shares.members[worker], shares.num_held[worker]
    while at > 0 and shares.cost[row[at - 1]] < shares.cost[example]:
        row[at] = row[at - 1]
        at -= 1
    row[at] = example
    shares.num_held[worker] += 1
    shares.owner[example] = worker


@compiled
def _members(
    by_cost: NDArray[np.int64], owner: NDArray[np.int64], num_workers: int, is_free: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """List each worker's examples by descending cost, with room for some more if free."""
    count, most = np.zeros(num_workers, dtype=np.int64), 0
    for example in by_cost:
        count[owner[example]] += 1
        most = max(most, count[owner[example]])
    members = np.empty((num_workers, most * (2 if is_free else 1)), dtype=np.int64)
    count[:] = 0
    for example in by_cost:
        worker = owner[example]
        members[worker, count[worker]] = example
        count[worker] += 1
    return members, count


@compiled
def _sort_by_time(by_time: NDArray[np.int64], time: NDArray[np.float64]) -> None:
    """Sort by insertion: from round to round little changes."""
    for index in range(1, len(by_time)):
        worker = by_time[index]
        at = index
        while at > 0 and time[by_time[at - 1]] > time[worker]:
            by_time[at] = by_time[at - 1]
            at -= 1
        by_time[at] = worker
