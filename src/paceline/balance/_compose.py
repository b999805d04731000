"""Which examples make up each global batch.

A *window* is the number of steps over which examples may move. With a window of 1 the
global batches are those of the plain shuffle. In a wider window the examples that cost
about a worker's share or more are put into the same steps: one per worker, and what fits
beside each, so that all workers are busy as long as the most expensive example takes. All
others stay in the order of the shuffle, so most of the mixing is kept. The steps of a window
are ordered such that the cost of one says little about the next.
"""

import numpy as np
from numpy.typing import NDArray

from paceline.balance._config import BalanceConfig
from paceline.balance.split import Shape, choose_expensive, descending_order, gather_steps

# An example decides how long its step takes once it costs about the mean load of a worker;
# just below, the worker's other examples can be cheaper to make up for it.
EXPENSIVE_SHARE = 0.8
# Expensive examples are ranked by cost times a random factor that differs from 1 by this at most,
# so that in each epoch other examples share a step, of about the same cost. More mixes better,
# and brings examples of other costs together.
RANK_SPREAD = 0.15
# The same where most workers hold one example, so that nothing makes up for a cheaper one.
ALONE_SPREAD = 0.05
# Orders of the steps that are drawn before the least autocorrelated one is taken.
NUM_ORDERS = 8
# Examples of short windows that are composed at once.
BLOCK_EXAMPLES = 2**18


def compose_steps(
    costs: NDArray[np.float64],
    shuffled: NDArray[np.int64],
    config: BalanceConfig,
    seed: tuple[int, ...],
) -> NDArray[np.int64]:
    """Return the examples of each step, shape `(num_steps, batch_size)`.

    Takes O(n log n) time for n examples. Every example of `shuffled` appears once.

    A step of window `w` ends with its most expensive example at the earliest, so no way of
    composing ends before `max(top - T / num_workers, 0)` past the mean load, for the `batch_size`
    most expensive examples of `w`, that sum up to T. `docs/balance.md` says how near this comes.

    Args:
        costs: Cost of each example of the dataset.
        shuffled: Examples in the order of the shuffle; the batch size divides its length.
        config: Batch size, number of workers, counts and window.
        seed: Derives the random factors and orders.
    """
    rng = np.random.default_rng(seed)
    parts = [
        _mix(costs, windows, config, rng)
        for windows in blocks_of_windows(shuffled.reshape(-1, config.batch_size), config.window)
    ]
    return np.concatenate([shuffled[:0].reshape(-1, config.batch_size), *parts])


def blocks_of_windows(steps: NDArray[np.int64], window: int) -> list[NDArray[np.int64]]:
    """Return views of shape `(num_windows, window, batch_size)` on steps; the last is shorter."""
    window = min(window, max(len(steps), 1))
    whole, batch_size = len(steps) // window * window, steps.shape[1]
    per_block = max(BLOCK_EXAMPLES // (window * batch_size), 1) * window
    ends = [*range(per_block, whole, per_block), whole]
    parts = [*np.split(steps, ends)]
    return [part.reshape(-1, min(window, len(part)), batch_size) for part in parts if len(part)]


def _mix(
    costs: NDArray[np.float64],
    windows: NDArray[np.int64],
    config: BalanceConfig,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Put expensive examples into the same steps; leave the others shuffled."""
    num_steps = windows.shape[1]
    step_costs = costs[windows].sum(axis=2)
    share = EXPENSIVE_SHARE * step_costs.sum(axis=1) / (num_steps * config.num_workers)
    is_uneven = np.flatnonzero(costs[windows].max(axis=(1, 2)) > share)
    if num_steps > 1 and is_uneven.size:
        windows = windows.copy()
        windows[is_uneven] = _gather_expensive(costs, windows[is_uneven], config, rng)
        step_costs = costs[windows].sum(axis=2)
    return in_uncorrelated_order(windows, step_costs, rng)


def _gather_expensive(
    costs: NDArray[np.float64],
    windows: NDArray[np.int64],
    config: BalanceConfig,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the windows with their expensive examples in the first steps."""
    num_windows, num_steps, batch_size = windows.shape
    examples = windows.reshape(num_windows, -1)
    cost = costs[examples]
    spread = RANK_SPREAD if batch_size >= 2 * config.num_workers else ALONE_SPREAD
    rank_cost = cost * (1 + spread * (2 * rng.random(cost.shape) - 1))
    order = descending_order(rank_cost)
    capacity = batch_size // config.num_workers if config.counts == "equal" else batch_size
    shape = Shape(num_steps, batch_size, config.num_workers, capacity, EXPENSIVE_SHARE)
    ranked_steps, steps = np.empty_like(order), np.empty_like(order)
    ranked = [np.take_along_axis(values, order, axis=1) for values in (rank_cost, cost)]
    choose_expensive(ranked[0], ranked[1], shape, ranked_steps)
    np.put_along_axis(steps, order, ranked_steps, axis=1)
    gathered = np.empty_like(windows)
    gather_steps(examples, steps, gathered)
    return gathered


def in_uncorrelated_order(
    windows: NDArray[np.int64], step_costs: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Return all steps, those of each window in the least autocorrelated of a few random orders.

    Args:
        windows: Examples, shape `(num_windows, num_steps, batch_size)`.
        step_costs: Cost of each step, shape `(num_windows, num_steps)`.
        rng: Draws the orders.
    """
    num_windows, num_steps, batch_size = windows.shape
    shape = (num_windows, NUM_ORDERS, num_steps)
    orders = rng.permuted(np.broadcast_to(np.arange(num_steps), shape), axis=2)
    drawn = np.take_along_axis(step_costs[:, None], orders, axis=2)
    least = np.abs(lag_1_autocorrelation(drawn)).argmin(axis=1)
    best = orders[np.arange(num_windows), least]
    return np.take_along_axis(windows, best[:, :, None], axis=1).reshape(-1, batch_size)


def lag_1_autocorrelation(series: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the correlation of each value with the next, along the last axis.

    0 for a constant series.
    """
    if series.shape[-1] == 0:
        return np.zeros(series.shape[:-1])
    is_constant = series.min(axis=-1) == series.max(axis=-1)
    centred = series - series.mean(axis=-1, keepdims=True)
    largest = np.abs(centred).max(axis=-1, keepdims=True)
    centred /= np.where(is_constant[..., None], 1.0, largest)
    # Not by `@`, whose rounding differs between processors: plans depend on this.
    products = (centred[..., 1:] * centred[..., :-1]).sum(axis=-1)
    squares = np.where(is_constant, 1.0, (centred * centred).sum(axis=-1))
    return np.asarray(np.where(is_constant, 0.0, products / squares))
