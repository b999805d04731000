"""Compose the steps of a window so that little is padded.

Within one global batch the few longest examples force wide groups: with eight workers
and 256 examples of text, 40 % of the work is padding. Over a window of steps,
each step can take some of the longest examples and fill up with a run of others of
similar length, so that fewer steps pad to the longest.
"""

import numpy as np
from numpy.typing import NDArray

from paceline._compile import in_threads
from paceline.balance._compose import blocks_of_windows, in_uncorrelated_order
from paceline.balance._config import BalanceConfig
from paceline.balance.split import Crew, Pace, crew_of, descending_order, divide_window

# Beyond this many steps the search costs more than the padding that it saves.
MAX_WINDOW = 16


def compose_padded_steps(
    costs: NDArray[np.float64],
    shuffled: NDArray[np.int64],
    config: BalanceConfig,
    pace: Pace,
    seed: tuple[int, ...],
) -> NDArray[np.int64]:
    """Return the examples of each step, shape `(num_steps, batch_size)`.

    A heuristic. For each step but the last of a window it tries a grid of choices,
    "the m longest of what is left and a run of the others", prices the rest of the
    window as plain slices of the sorted rest, and takes the cheapest; then it re-divides
    pairs of steps in the same manner. With equal counts the slices are best possible. Takes
    O(n * window) time for n examples; windows are cut at 16 steps.

    Args:
        costs: Cost of each example of the dataset, unpadded.
        shuffled: Examples in the order of the shuffle; the batch size divides its length.
        config: Batch size, counts and window.
        pace: Time per unit of cost, and time that no example causes, of each worker.
        seed: Derives the order of the steps within each window.
    """
    rng = np.random.default_rng(seed)
    crew = crew_of(pace)
    steps = shuffled.reshape(-1, config.batch_size)
    parts = [steps[:0]]
    for windows in blocks_of_windows(steps, min(config.window, MAX_WINDOW)):
        composed = _composed(costs, windows, config, crew)
        parts.append(in_uncorrelated_order(composed, costs[composed].sum(axis=2), rng))
    return np.concatenate(parts)


def _composed(
    costs: NDArray[np.float64], windows: NDArray[np.int64], config: BalanceConfig, crew: Crew
) -> NDArray[np.int64]:
    """Return the examples of many windows, step by step, in the shape of `windows`."""
    examples = windows.reshape(len(windows), -1)
    examples = np.take_along_axis(examples, descending_order(costs[examples]), axis=1)
    if config.counts == "free" and windows.shape[1] > 1:
        descending = costs[examples]

        def divided(window: int) -> NDArray[np.int64]:
            places = divide_window(descending[window], config.batch_size, crew)
            row: NDArray[np.int64] = examples[window][places]
            return row

        examples = np.stack(in_threads(divided, range(len(windows))))
    composed: NDArray[np.int64] = examples.reshape(windows.shape)
    return composed
