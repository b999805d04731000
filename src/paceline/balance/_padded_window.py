"""Compose the steps of a window so that little is padded.

Within one global batch the few longest examples force wide groups: with eight workers
and 256 examples of text, 40 % of the work is padding. Over a window of steps,
each step can take some of the longest examples and fill up with a run of others of
similar length, so that fewer steps pad to the longest.
"""

from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled, compiled_beyond
from paceline.balance._compose import in_uncorrelated_order
from paceline.balance._config import BalanceConfig
from paceline.balance.split import Pace, earliest_end, fastest_first

# Beyond this many steps the search costs more than the padding that it saves.
MAX_WINDOW = 16
# How finely the number of longest examples and the place of the run are searched: first
# on a grid, half as fine for more than 16 workers, whose prices take longer; then, for
# pairs, by halving strides down to this part of a batch.
GRID = 12
MIN_STRIDE = 128
# Choices are compared by prices that are right to this share.
PRECISION = 1e-3

Number = TypeVar("Number", np.int64, np.float64)


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
    _, pace = fastest_first(pace)
    steps = shuffled.reshape(-1, config.batch_size).copy()
    window = min(config.window, MAX_WINDOW)
    for first in range(0, len(steps), window):
        part = steps[first : first + window]
        examples = part.ravel()[np.argsort(-costs[part.ravel()], kind="stable")]
        if config.counts == "free" and len(part) > 1:
            examples = examples[_compose(costs[examples], config.batch_size, pace)]
        composed = examples.reshape(1, *part.shape)
        steps[first : first + window] = in_uncorrelated_order(
            composed, costs[composed].sum(axis=2), rng
        )
    return steps


@compiled_beyond(300)
def _compose(descending: NDArray[np.float64], batch_size: int, pace: Pace) -> NDArray[np.int64]:
    """Return positions in `descending`, step after step, each step's ascending."""
    num_steps = len(descending) // batch_size
    steps = np.empty((num_steps, batch_size), dtype=np.int64)
    left = np.empty(len(descending), dtype=np.int64)
    for position in range(len(left)):
        left[position] = position
    for step in range(num_steps - 1):
        num_longest, run = _best_step(_picked(descending, left), batch_size, pace)
        taken, left = _take(left, num_longest, run, batch_size)
        _copy(taken, steps[step])
    _copy(left, steps[num_steps - 1])
    _redivide_pairs(descending, steps, pace)
    return steps.ravel()


@compiled
def _picked(values: NDArray[np.float64], positions: NDArray[np.int64]) -> NDArray[np.float64]:
    picked = np.empty(len(positions))
    for at in range(len(positions)):
        picked[at] = values[positions[at]]
    return picked


@compiled
def _copy(row: NDArray[np.int64], to: NDArray[np.int64]) -> None:
    for at in range(len(row)):
        to[at] = row[at]


@compiled
def _best_step(descending: NDArray[np.float64], batch_size: int, pace: Pace) -> tuple[int, int]:
    """Return how many of the longest to take, and where the run of the others begins.

    What is left is priced as slices of `batch_size`. After the run these are the slices
    of the whole, before it they depend on the number of longest alone, so each choice
    takes two prices: its step's, and that of the slice around the hole.
    """
    num_steps = len(descending) // batch_size
    after = np.zeros(num_steps + 1)
    for step in range(num_steps - 1, -1, -1):
        first = step * batch_size
        price = _price(descending[first : first + batch_size], pace)
        after[step] = after[step + 1] + price
    best, num_longest, run = after[0], batch_size, 0
    grid = GRID if len(pace.rate) <= 16 else GRID // 2
    for share in range(1, grid):
        longest = share * batch_size // grid
        before, num_before = 0.0, 0
        for place in range(1, grid + 1):
            begin = longest + (num_steps - 1) * batch_size * place // grid
            while longest + (num_before + 1) * batch_size <= begin:
                first = longest + num_before * batch_size
                before += _price(descending[first : first + batch_size], pace)
                num_before += 1
            first = longest + num_before * batch_size
            end = begin + batch_size - longest
            step_costs = np.concatenate((descending[:longest], descending[begin:end]))
            price = _price(step_costs, pace) + before
            if first < begin:
                until = end + batch_size - (begin - first)
                around = np.concatenate((descending[first:begin], descending[end:until]))
                price += _price(around, pace) + after[num_before + 2]
            else:
                price += after[num_before + 1]
            if price < best:
                best, num_longest, run = price, longest, begin
    return num_longest, run


@compiled
def _take(
    ordered: NDArray[Number], num_longest: int, run: int, batch_size: int
) -> tuple[NDArray[Number], NDArray[Number]]:
    """Take the first `num_longest` and a run from `run` on; return both parts in order."""
    if num_longest >= batch_size:
        return ordered[:batch_size].copy(), ordered[batch_size:].copy()
    end = run + batch_size - num_longest
    taken = np.concatenate((ordered[:num_longest], ordered[run:end]))
    return taken, np.concatenate((ordered[num_longest:run], ordered[end:]))


@compiled
def _redivide_pairs(descending: NDArray[np.float64], steps: NDArray[np.int64], pace: Pace) -> None:
    """Pool each pair of steps and divide it anew where that is cheaper."""
    price = np.empty(len(steps))
    for step in range(len(steps)):
        price[step] = _price(_picked(descending, steps[step]), pace)
    for a in range(len(steps)):
        for b in range(a + 1, len(steps)):
            _redivide(descending, steps, price, a, b, pace)


@compiled
def _redivide(
    descending: NDArray[np.float64],
    steps: NDArray[np.int64],
    price: NDArray[np.float64],
    a: int,
    b: int,
    pace: Pace,
) -> None:
    batch_size = steps.shape[1]
    pool = _merged(steps[a], steps[b])
    costs = _picked(descending, pool)
    num_longest, run = _best_step(costs, batch_size, pace)
    num_longest, run = _refine(costs, num_longest, run, batch_size, pace)
    one, other = _take(pool, num_longest, run, batch_size)
    price_one = _price(_picked(descending, one), pace)
    price_other = _price(_picked(descending, other), pace)
    if price_one + price_other < price[a] + price[b]:
        _copy(one, steps[a])
        _copy(other, steps[b])
        price[a], price[b] = price_one, price_other


@compiled
def _merged(one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the entries of two ascending rows in ascending order."""
    merged, a, b = np.empty(len(one) + len(other), dtype=np.int64), 0, 0
    for at in range(len(merged)):
        if b == len(other) or (a < len(one) and one[a] < other[b]):
            merged[at] = one[a]
            a += 1
        else:
            merged[at] = other[b]
            b += 1
    return merged


@compiled
def _refine(
    pool: NDArray[np.float64], num_longest: int, run: int, batch_size: int, pace: Pace
) -> tuple[int, int]:
    """Move both numbers of a pair by ever smaller strides as long as that is cheaper."""
    best = _price_pair(pool, num_longest, run, batch_size, pace)
    stride = batch_size // (2 * GRID)
    while stride >= max(1, batch_size // MIN_STRIDE):
        has_helped = False
        for longest, begin in (
            (num_longest + stride, run + stride),
            (num_longest - stride, run),
            (num_longest, run + stride),
            (num_longest, run - stride),
        ):
            is_choice = 0 < longest < batch_size and longest <= begin <= batch_size + longest
            if is_choice:
                price = _price_pair(pool, longest, begin, batch_size, pace)
                if price < best:
                    best, num_longest, run, has_helped = price, longest, begin, True
                    break
        if not has_helped:
            stride //= 2
    return num_longest, run


@compiled
def _price_pair(
    pool: NDArray[np.float64], num_longest: int, run: int, batch_size: int, pace: Pace
) -> float:
    one, other = _take(pool, num_longest, run, batch_size)
    return _price(one, pace) + _price(other, pace)


@compiled
def _price(descending: NDArray[np.float64], pace: Pace) -> float:
    """Return when the latest worker of a step ends."""
    return earliest_end(descending, pace, PRECISION)
