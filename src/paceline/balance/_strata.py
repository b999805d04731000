"""Compose steps of runs of similar length, one run from each part of the length spectrum.

Planned micro-batches need examples of similar length, but only a few at a time. So a window is
sorted and cut into strata, and each step gets one short run of neighbours from every stratum, drawn
at random. All steps then look like the whole window, and an example meets others of all lengths:
it shares its step with its neighbours in one run only, where sorted batches consist of them.
"""

import numpy as np
from numpy.typing import NDArray

from paceline.balance._config import BalanceConfig

# More runs mix better, but are more micro-batches; with fewer, they balance worse.
RUNS_PER_WORKER = 3


def compose_strata(
    costs: NDArray[np.float64],
    shuffled: NDArray[np.int64],
    config: BalanceConfig,
    seed: tuple[int, ...],
) -> NDArray[np.int64]:
    """Return the examples of each step, shape `(num_steps, batch_size)`.

    Takes O(n log n) time and O(n) memory for n examples. Every example of `shuffled` appears once.

    Args:
        costs: Cost of each example of the dataset; it grows with the length.
        shuffled: Examples in the order of the shuffle; the batch size divides its length.
        config: Batch size, number of workers and window.
        seed: Derives which run of each stratum a step gets.
    """
    rng = np.random.default_rng(seed)
    num_steps = len(shuffled) // config.batch_size
    window = min(config.window, max(num_steps, 1))
    whole = num_steps // window * window * config.batch_size
    parts = [
        _compose(costs, part.reshape(-1, steps * config.batch_size), steps, config, rng)
        for part, steps in ((shuffled[:whole], window), (shuffled[whole:], num_steps % window))
        if part.size
    ]
    return np.concatenate([shuffled[:0], *parts]).reshape(-1, config.batch_size)


def _compose(
    costs: NDArray[np.float64],
    windows: NDArray[np.int64],
    num_steps: int,
    config: BalanceConfig,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Return the rearranged examples of windows, shape `(num_windows, examples of a window)`."""
    ascending = np.argsort(costs[windows], axis=1, kind="stable")
    # A run of one example has no neighbours.
    num_runs = max(min(RUNS_PER_WORKER * config.num_workers, config.batch_size // 2), 1)
    ends = np.arange(1, num_runs + 1) * config.batch_size // num_runs
    sizes = np.diff(ends, prepend=0)
    stratum = np.repeat(np.arange(num_runs), sizes * num_steps)
    run, place = np.divmod(_counted(sizes * num_steps), sizes[stratum])
    step = rng.random((len(windows), num_runs, num_steps)).argsort(axis=2, kind="stable")
    step = step[:, stratum, run]
    target = step * config.batch_size + (ends - sizes)[stratum] + place
    composed = np.empty_like(windows)
    examples = np.take_along_axis(windows, ascending, axis=1)
    np.put_along_axis(composed, target, examples, axis=1)
    return composed.ravel()


def _counted(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return 0, 1, 2, ... of each group in turn."""
    begins = np.cumsum(sizes) - sizes
    counted: NDArray[np.int64] = np.arange(sizes.sum()) - np.repeat(begins, sizes)
    return counted
