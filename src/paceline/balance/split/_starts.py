"""Two ways to begin a split: longest-first, and Karmarkar-Karp's differencing."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.balance.split._sorting import sort_order


class Rules(NamedTuple):
    """What compiled code knows of a split besides the costs.

    Attributes:
        capacity: Most examples per worker.
        is_free: Whether workers may hold different numbers of examples.
        rate: Time per unit of cost of each worker.
        start: Time of each worker that no example causes.
        tolerance: A split this close to its lower bound is good enough.
    """

    capacity: int
    is_free: bool
    rate: NDArray[np.float64]
    start: NDArray[np.float64]
    tolerance: float


class Room(NamedTuple):
    """Room to sort one row in."""

    key: NDArray[np.float64]
    order: NDArray[np.int64]
    kept: NDArray[np.int64]


@compiled
def longest_first(
    cost: NDArray[np.float64],
    by_cost: NDArray[np.int64],
    rules: Rules,
    time: NDArray[np.float64],
    owner: NDArray[np.int64],
) -> None:
    """Give each example, most expensive first, to the worker that is free first.

    Workers wait in a binary heap, earliest and lowest first; full ones leave it. The last
    examples go to the workers that have none yet.
    """
    rate = rules.rate
    size, num_empty = len(rate), len(rate)
    heap, count = np.empty(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    for worker in range(size):
        heap[worker], time[worker] = worker, rules.start[worker]
    for at in range(size // 2 - 1, -1, -1):
        sift_down(heap, at, size, time)
    for position, example in enumerate(by_cost):
        while len(by_cost) - position <= num_empty and count[heap[0]] > 0:
            size -= 1
            heap[0] = heap[size]
            sift_down(heap, 0, size, time)
        worker = heap[0]
        num_empty -= count[worker] == 0
        owner[example] = worker
        time[worker] += cost[example] * rate[worker]
        count[worker] += 1
        if count[worker] == rules.capacity:
            size -= 1
            heap[0] = heap[size]
        sift_down(heap, 0, size, time)


@compiled
def sift_down(heap: NDArray[np.int64], at: int, size: int, time: NDArray[np.float64]) -> None:
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
def karmarkar_karp(
    cost: NDArray[np.float64],
    by_cost: NDArray[np.int64],
    rules: Rules,
    time: NDArray[np.float64],
    owner: NDArray[np.int64],
) -> None:
    """Difference rows of one example per worker until one row of sums is left.

    The two rows that differ most within are joined, the largest sum of one with the
    smallest of the other. Meant for equal workers; for others it is only a start.
    """
    num_workers, num_rows = len(rules.rate), len(by_cost) // len(rules.rate)
    total, spread = np.empty((num_rows, num_workers)), np.empty(num_rows)
    first = np.empty((num_rows, num_workers), dtype=np.int64)
    last, following = np.empty_like(first), np.empty(len(by_cost), dtype=np.int64)
    for row in range(num_rows):
        for worker in range(num_workers):
            example = by_cost[row * num_workers + worker]
            total[row, worker], following[example] = cost[example], -1
            first[row, worker] = last[row, worker] = example
        spread[row] = total[row, 0] - total[row, -1]
    room = Room(np.empty(num_workers), np.empty_like(first[0]), np.empty_like(first[0]))
    row = 0
    for _ in range(num_rows - 1):
        row = _widest(spread)
        spread[row] = -1.0
        joined = _widest(spread)
        spread[joined] = -1.0
        for a in range(num_workers):
            b = num_workers - 1 - a
            total[row, a] += total[joined, b]
            following[last[row, a]] = first[joined, b]
            last[row, a] = last[joined, b]
        _sort_sums(total[row], first[row], last[row], room)
        spread[row] = total[row, 0] - total[row, -1]
    for worker in range(num_workers):
        time[worker] = rules.start[worker] + total[row, worker] * rules.rate[worker]
        example = first[row, worker]
        while example >= 0:
            owner[example] = worker
            example = following[example]


@compiled
def _widest(spread: NDArray[np.float64]) -> int:
    widest = 0
    for row in range(len(spread)):
        if spread[row] > spread[widest]:
            widest = row
    return widest


@compiled
def _sort_sums(
    total: NDArray[np.float64], first: NDArray[np.int64], last: NDArray[np.int64], room: Room
) -> None:
    """Sort one row of sums, largest first, and the ends of the lists that belong to them."""
    key, order, kept = room
    for a in range(len(total)):
        key[a] = -total[a]
    sort_order(key, order, kept)
    for a in range(len(total)):
        total[a], kept[a] = -key[order[a]], first[order[a]]
    for a in range(len(total)):
        first[a], kept[a] = kept[a], last[order[a]]
    for a in range(len(total)):
        last[a] = kept[a]
