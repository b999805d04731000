"""Divide padded steps anew, pair by pair, where that is cheaper."""

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.balance.split._padded_price import Crew, Parts, Rest, bound_of, price_of, rest_of

# How finely the number of longest examples and the place of the run are searched: on a grid, and
# then by halving strides down to a part of a batch. Prices of many workers take longer.
GRID, GRID_OF_MANY, MANY_WORKERS = 8, 3, 16
MIN_STRIDE = 128
# Pairs are left alone where less than this share is padding.
MIN_GAIN = 0.02
# A choice of the grid that costs this much more than what there is may be refined.
SLACK = 0.005


@compiled
def redivide_pairs(descending: NDArray[np.float64], steps: NDArray[np.int64], crew: Crew) -> None:
    """Pool each pair of steps and divide it anew where that is cheaper."""
    batch_size = steps.shape[1]
    price, bound = np.empty(len(steps)), np.empty(len(steps))
    for step in range(len(steps)):
        whole = Parts(0, batch_size, 0, batch_size)
        rest = rest_of(descending, steps[step])
        price[step], bound[step] = price_of(rest, whole, np.inf, crew), bound_of(rest, whole, crew)
    for a in range(len(steps)):
        for b in range(a + 1, len(steps)):
            if price[a] + price[b] > (bound[a] + bound[b]) * (1 + MIN_GAIN):
                _redivide(descending, steps, price, bound, a, b, crew)


@compiled
def _redivide(
    descending: NDArray[np.float64],
    steps: NDArray[np.int64],
    price: NDArray[np.float64],
    bound: NDArray[np.float64],
    a: int,
    b: int,
    crew: Crew,
) -> None:
    batch_size = steps.shape[1]
    pool = _merged(steps[a], steps[b])
    rest = rest_of(descending, pool)
    most = price[a] + price[b]
    num_longest, run = _best_pair(rest, batch_size, most * (1 + SLACK), crew)
    if num_longest == 0:
        return
    num_longest, run, reached = _refine(rest, num_longest, run, batch_size, crew)
    if reached < most:
        one, other = take(pool, num_longest, run, batch_size)
        copy_row(one, steps[a])
        copy_row(other, steps[b])
        whole = Parts(0, batch_size, 0, batch_size)
        for step in (a, b):
            now = rest_of(descending, steps[step])
            price[step], bound[step] = (
                price_of(now, whole, np.inf, crew),
                bound_of(now, whole, crew),
            )


@compiled
def _best_pair(rest: Rest, batch_size: int, most: float, crew: Crew) -> tuple[int, int]:
    """Return the choice of a grid whose two steps cost least, less than `most`; else 0, 0."""
    best, num_longest, run = most, 0, 0
    grid = GRID if len(crew.speed) <= MANY_WORKERS else GRID_OF_MANY
    for share in range(1, grid):
        longest = share * batch_size // grid
        for place in range(1, grid + 1):
            begin = longest + batch_size * place // grid
            price = _price_pair(rest, longest, begin, batch_size, best, crew)
            if price < best:
                best, num_longest, run = price, longest, begin
    return num_longest, run


@compiled
def _price_pair(
    rest: Rest, longest: int, begin: int, batch_size: int, most: float, crew: Crew
) -> float:
    """Return the price of the step and of the rest of the pair; infinite if not below `most`."""
    step = Parts(0, longest, begin - longest, batch_size)
    other = Parts(longest, begin - longest, batch_size, batch_size)
    price = price_of(rest, step, most - bound_of(rest, other, crew), crew)
    return price if price == np.inf else price + price_of(rest, other, most - price, crew)


@compiled
def _refine(
    rest: Rest, num_longest: int, run: int, batch_size: int, crew: Crew
) -> tuple[int, int, float]:
    """Move both numbers of a pair by ever smaller strides as long as that is cheaper."""
    best = _price_pair(rest, num_longest, run, batch_size, np.inf, crew)
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
                price = _price_pair(rest, longest, begin, batch_size, best, crew)
                if price < best:
                    best, num_longest, run, has_helped = price, longest, begin, True
                    break
        if not has_helped:
            stride //= 2
    return num_longest, run, best


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
def take(
    positions: NDArray[np.int64], num_longest: int, run: int, batch_size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Take the first `num_longest` and a run from `run` on; return both parts in order."""
    if num_longest >= batch_size:
        return positions[:batch_size].copy(), positions[batch_size:].copy()
    end = run + batch_size - num_longest
    taken = np.concatenate((positions[:num_longest], positions[run:end]))
    return taken, np.concatenate((positions[num_longest:run], positions[end:]))


@compiled
def copy_row(row: NDArray[np.int64], to: NDArray[np.int64]) -> None:
    for at in range(len(row)):
        to[at] = row[at]
