"""Which examples make up each global batch.

A *window* is the number of steps over which examples may move. With a window of 1 the
global batches are those of the plain shuffle. In a wider window the few examples that
cost more than a worker's share are put into the same steps, one per worker. All others
stay in the order of the shuffle, so most of the mixing is kept. The steps of a window are
ordered such that the cost of one says little about the next.
"""

import numpy as np
from numpy.typing import NDArray

from paceline.balance._config import BalanceConfig

# An example decides how long its step takes once it costs about the mean load of a worker;
# just below, the worker's other examples can be cheaper to make up for it.
EXPENSIVE_SHARE = 0.8
# Expensive examples are ranked by cost times a random factor of this spread, so that in
# each epoch other examples share a step, of about the same cost.
RANK_SPREAD = 0.05
# Orders of the steps that are drawn before the least autocorrelated one is taken.
NUM_ORDERS = 8


def compose_steps(
    costs: NDArray[np.float64],
    shuffled: NDArray[np.int64],
    config: BalanceConfig,
    seed: tuple[int, ...],
) -> NDArray[np.int64]:
    """Return the examples of each step, shape `(num_steps, batch_size)`.

    Takes O(n log n) time for n examples. Every example of `shuffled` appears once.

    Args:
        costs: Cost of each example of the dataset.
        shuffled: Examples in the order of the shuffle; the batch size divides its length.
        config: Batch size, number of workers and window.
        seed: Derives the random factors and orders.
    """
    steps = shuffled.reshape(-1, config.batch_size)
    rng = np.random.default_rng(seed)
    parts = [
        _mix(costs, steps[first : first + config.window], config.num_workers, rng)
        for first in range(0, len(steps), config.window)
    ]
    return np.concatenate(parts) if parts else steps


def _mix(
    costs: NDArray[np.float64],
    steps: NDArray[np.int64],
    num_workers: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Put expensive examples into the same steps, one per worker; leave the others shuffled."""
    num_steps, batch_size = steps.shape
    examples = steps.ravel()
    cost = costs[examples]
    descending = -np.sort(-cost)
    num_heavy = _num_heavy_steps(descending, num_steps, num_workers)
    if not num_heavy:
        return steps[uncorrelated_order(costs[steps].sum(axis=1), rng)]
    num_expensive = num_heavy * num_workers
    # Not by argpartition: which of equal costs it takes is up to the processor.
    is_expensive = cost > descending[num_expensive - 1]
    equal = np.flatnonzero(cost == descending[num_expensive - 1])
    is_expensive[equal[: num_expensive - is_expensive.sum()]] = True
    expensive, others = examples[is_expensive], examples[~is_expensive]
    rank = costs[expensive] * (1 + RANK_SPREAD * rng.standard_normal(num_expensive))
    expensive = expensive[np.argsort(-rank, kind="stable")].reshape(num_heavy, num_workers)
    num_fillers = num_heavy * (batch_size - num_workers)
    heavy = np.concatenate([expensive, others[:num_fillers].reshape(num_heavy, -1)], axis=1)
    mixed = np.concatenate([heavy, others[num_fillers:].reshape(-1, batch_size)])
    return mixed[uncorrelated_order(costs[mixed].sum(axis=1), rng)]


def _num_heavy_steps(descending: NDArray[np.float64], num_steps: int, num_workers: int) -> int:
    """Return how many steps hold all expensive examples, one per worker.

    An example is expensive if it costs more than `EXPENSIVE_SHARE` of a worker's mean load
    in a step without expensive ones. Taking those out lowers the mean, so more become so.
    """
    left = descending.sum() - np.concatenate([[0.0], np.cumsum(descending)])
    num_examples, num_heavy = len(descending), np.arange(num_steps + 1)
    first = np.minimum(num_heavy * num_workers, num_examples - 1)
    mean = left[first] / (num_examples - first) * (num_examples / num_steps / num_workers)
    is_enough = descending[first] <= EXPENSIVE_SHARE * mean
    is_enough[-1] = True
    return int(is_enough.argmax())


def uncorrelated_order(
    step_costs: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return the least autocorrelated of a few random orders of the steps."""
    orders = [rng.permutation(len(step_costs)) for _ in range(NUM_ORDERS)]
    return min(orders, key=lambda order: abs(lag_1_autocorrelation(step_costs[order])))


def lag_1_autocorrelation(series: NDArray[np.float64]) -> float:
    """Return the correlation of each value with the next; 0 for a constant series."""
    if len(series) == 0 or series.min() == series.max():
        return 0.0
    centred = series - series.mean()
    centred /= np.abs(centred).max()
    # Not by `@`, whose rounding differs between processors: plans depend on this.
    return float((centred[1:] * centred[:-1]).sum() / (centred * centred).sum())
