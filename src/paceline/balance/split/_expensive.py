"""Choose which expensive examples share a step: one per worker, and what fits beside each.

A step takes at least as long as its most expensive example. So it should hold enough for all
workers to be busy that long: the most expensive examples that are left, one per worker, and beside
each the largest other that fits, until what is left free is what ordinary examples fill.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled, compiled_beyond
from paceline.balance.split._starts import sift_down

# What ordinary examples cost depends on which are expensive, and the other way round.
MAX_ROUNDS = 4


class Shape(NamedTuple):
    """The steps that a window of examples makes.

    Attributes:
        num_steps: Steps of the window.
        batch_size: Examples of a step.
        num_workers: Workers that share a step.
        capacity: Most examples per worker and step.
        share: An example is expensive if it costs more than this share of a worker's load in a
            step of ordinary examples.
    """

    num_steps: int
    batch_size: int
    num_workers: int
    capacity: int
    share: float


class Ranked(NamedTuple):
    """Examples in the order in which they are taken.

    Attributes:
        rank_cost: What they are ranked by, largest first.
        cost: What they cost.
        step: Step of each, -1 for ordinary ones; changed.
        following: At each place a place from which to look for one that is not taken; changed.
    """

    rank_cost: NDArray[np.float64]
    cost: NDArray[np.float64]
    step: NDArray[np.int64]
    following: NDArray[np.int64]


@compiled_beyond(20_000)
def choose_expensive(
    rank_costs: NDArray[np.float64],
    costs: NDArray[np.float64],
    shape: Shape,
    steps: NDArray[np.int64],
) -> None:
    """Fill `steps` with the step of each expensive example of many windows, -1 for the others.

    Takes O(n log n) time for n examples.

    Args:
        rank_costs: What the examples of each window are ranked by, largest first: about the cost.
        costs: What they cost, shape `(num_windows, examples of a window)`.
        shape: Of each window.
        steps: Filled, same shape.
    """
    following = np.empty(costs.shape[1] + 1, dtype=np.int64)
    for window in range(len(costs)):
        ranked = Ranked(rank_costs[window], costs[window], steps[window], following)
        ordinary = 0.0
        for cost in costs[window]:
            ordinary += cost
        ordinary /= costs.shape[1]
        for _ in range(MAX_ROUNDS):
            ordinary_now = _choose(ranked, shape, ordinary)
            if ordinary_now == ordinary:
                break
            ordinary = ordinary_now


@compiled
def _choose(ranked: Ranked, shape: Shape, ordinary: float) -> float:
    """Fill steps until the rest is ordinary; return the mean cost of what is ordinary.

    `ordinary` is what that mean is taken for.
    """
    num_examples = len(ranked.cost)
    for place in range(num_examples):
        ranked.step[place] = -1
        ranked.following[place] = place
    ranked.following[num_examples] = num_examples
    threshold = shape.share * ordinary * shape.batch_size / shape.num_workers
    load, num_held = np.empty(shape.num_workers), np.empty(shape.num_workers, dtype=np.int64)
    for step in range(shape.num_steps - 1):
        first = _free_from(0, ranked.following)
        if first == num_examples or ranked.cost[first] <= threshold:
            break
        num_held[:] = 1
        for worker in range(shape.num_workers):
            place = _free_from(first, ranked.following)
            load[worker] = ranked.cost[place]
            _take(place, step, ranked)
        _fill_up(step, shape, ordinary, load, num_held, ranked)
    left, num_left = 0.0, 0
    for place in range(num_examples):
        if ranked.step[place] < 0:
            left += ranked.cost[place]
            num_left += 1
    return left / num_left


@compiled
def _fill_up(
    step: int,
    shape: Shape,
    ordinary: float,
    load: NDArray[np.float64],
    num_held: NDArray[np.int64],
    ranked: Ranked,
) -> None:
    """Give the worker with the least load what fits until ordinary examples fill the rest."""
    size, num_taken = shape.num_workers, shape.num_workers
    heap, latest, free = np.empty(size, dtype=np.int64), 0.0, 0.0
    for worker in range(size):
        heap[worker] = worker
        latest = max(latest, load[worker])
    for worker in range(size):
        free += latest - load[worker]
    for at in range(size // 2 - 1, -1, -1):
        sift_down(heap, at, size, load)
    while size and num_taken < shape.batch_size:
        if free <= (shape.batch_size - num_taken) * ordinary:
            return
        worker = heap[0]
        place = _fitting(latest - load[worker], ranked)
        fits = place < len(ranked.cost) and ranked.cost[place] > ordinary
        if fits and num_held[worker] < shape.capacity:
            _take(place, step, ranked)
            load[worker] += ranked.cost[place]
            free -= ranked.cost[place]
            num_held[worker] += 1
            num_taken += 1
        else:
            size -= 1
            heap[0] = heap[size]
        if size:
            sift_down(heap, 0, size, load)


@compiled
def _fitting(most: float, ranked: Ranked) -> int:
    """Return the place of the largest that is not taken and is ranked at `most` or below."""
    low, high = 0, len(ranked.cost)
    while low < high:
        middle = (low + high) // 2
        if ranked.rank_cost[middle] <= most:
            high = middle
        else:
            low = middle + 1
    return _free_from(low, ranked.following)


@compiled
def _take(place: int, step: int, ranked: Ranked) -> None:
    ranked.step[place] = step
    ranked.following[place] = place + 1


@compiled
def _free_from(place: int, following: NDArray[np.int64]) -> int:
    """Return the first place from `place` on that is not taken, and shorten the way to it."""
    free = place
    while following[free] != free:
        free = following[free]
    while following[place] != free:
        place, following[place] = following[place], free
    return free


@compiled_beyond(60_000)
def gather_steps(
    examples: NDArray[np.int64], steps: NDArray[np.int64], gathered: NDArray[np.int64]
) -> None:
    """Fill `gathered` step by step: with what belongs there, then with others in their order.

    Args:
        examples: Examples of each window, in the order of the shuffle.
        steps: Step of each that has one, else -1, same shape.
        gathered: Filled, shape `(num_windows, num_steps, batch_size)`.
    """
    num_windows, num_steps, batch_size = gathered.shape
    for window in range(num_windows):
        count = np.zeros(num_steps, dtype=np.int64)
        for place in range(steps.shape[1]):
            step = steps[window, place]
            if step >= 0:
                gathered[window, step, count[step]] = examples[window, place]
                count[step] += 1
        step = 0
        for place in range(steps.shape[1]):
            if steps[window, place] < 0:
                while count[step] == batch_size:
                    step += 1
                gathered[window, step, count[step]] = examples[window, place]
                count[step] += 1
