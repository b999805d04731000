"""Divide a sorted window into padded steps."""

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled, compiled_beyond
from paceline.balance.split._padded_pairs import MANY_WORKERS, copy_row, redivide_pairs, take
from paceline.balance.split._padded_price import Crew, Parts, Rest, bound_of, price_of, rest_of

# How finely the number of longest examples and the place of the run are searched.
GRID, GRID_OF_MANY = 12, 4


@compiled_beyond(300)
def divide_window(
    descending: NDArray[np.float64], batch_size: int, crew: Crew
) -> NDArray[np.int64]:
    """Return positions in `descending`, step after step, each step's ascending.

    For each step but the last it tries a grid of choices, "the m longest of what is left and a run
    of the others", prices the rest as plain slices, and takes the cheapest; then pairs of
    steps are divided anew in the same manner. Takes O(n * num_steps) time for n examples.

    Args:
        descending: Cost of each example of a window, most expensive first.
        batch_size: Examples per step.
        crew: The workers.
    """
    num_steps = len(descending) // batch_size
    steps = np.empty((num_steps, batch_size), dtype=np.int64)
    left = np.empty(len(descending), dtype=np.int64)
    for position in range(len(left)):
        left[position] = position
    known = np.full(len(descending), -1.0)
    grid = GRID if len(crew.speed) <= MANY_WORKERS else GRID_OF_MANY
    for step in range(num_steps - 1):
        rest = rest_of(descending, left)
        num_longest, run = _best_step(rest, batch_size, grid, known, crew)
        taken, left = take(left, num_longest, run, batch_size)
        copy_row(taken, steps[step])
    copy_row(left, steps[num_steps - 1])
    redivide_pairs(descending, steps, crew)
    return steps.ravel()


@compiled
def _best_step(
    rest: Rest, batch_size: int, grid: int, known: NDArray[np.float64], crew: Crew
) -> tuple[int, int]:
    """Return how many of the longest to take, and where the run of the others begins.

    What is left is priced as slices of `batch_size`. After the run these are the slices
    of the whole, before it they depend on the number of longest alone, so each choice
    takes two prices: its step's, and that of the slice around the hole.
    """
    num_steps = len(rest.cost) // batch_size
    after = np.zeros(num_steps + 1)
    for step in range(num_steps - 1, -1, -1):
        after[step] = after[step + 1] + _slice_price(
            rest, step * batch_size, batch_size, known, crew
        )
    best, num_longest, run = after[0], batch_size, 0
    for share in range(1, grid):
        longest = share * batch_size // grid
        before, num_before = 0.0, 0
        for place in range(1, grid + 1):
            begin = longest + (num_steps - 1) * batch_size * place // grid
            while longest + (num_before + 1) * batch_size <= begin:
                first = longest + num_before * batch_size
                before += _slice_price(rest, first, batch_size, known, crew)
                num_before += 1
            first = longest + num_before * batch_size
            num_after = num_before + (2 if first < begin else 1)
            most = best - before - after[num_after]
            if most <= 0:
                continue
            price = _price_two(rest, longest, first, begin, batch_size, most, crew)
            if price < most:
                best, num_longest, run = before + after[num_after] + price, longest, begin
    return num_longest, run


@compiled
def _slice_price(
    rest: Rest, first: int, batch_size: int, known: NDArray[np.float64], crew: Crew
) -> float:
    """Return the price of a slice; that of neighbours in the window is kept in `known`."""
    at = rest.position[first]
    is_run = rest.position[first + batch_size - 1] - at == batch_size - 1
    if is_run and known[at] >= 0:
        return float(known[at])
    price = price_of(rest, Parts(first, batch_size, 0, batch_size), np.inf, crew)
    if is_run:
        known[at] = price
    return price


@compiled
def _price_two(
    rest: Rest, longest: int, first: int, begin: int, batch_size: int, most: float, crew: Crew
) -> float:
    """Return the price of a step and of the slice around its run; infinite if not below `most`.

    The step takes the first `longest` and a run from `begin` on, which parts the slice that
    begins at `first`; where it begins there, too, there is no such slice.
    """
    end = begin + batch_size - longest
    step = Parts(0, longest, begin - longest, batch_size)
    if first == begin:
        return price_of(rest, step, most, crew)
    around = Parts(first, begin - first, end - (begin - first), batch_size)
    at_least = bound_of(rest, around, crew)
    price = price_of(rest, step, most - at_least, crew)
    return price if price == np.inf else price + price_of(rest, around, most - price, crew)
