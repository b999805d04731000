"""What a padded step costs that takes two runs of a sorted list, without copying them.

A search asks for thousands of prices, and nearly all choices are worse than what it has. So a price
is first compared with what it must stay below, in one pass over the workers, and bisected only
where it does.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.balance.split._pace import Pace
from paceline.balance.split._padded import TINY, fastest_first

# Choices are compared by prices that are right to this share.
PRECISION = 2e-3


class Rest(NamedTuple):
    """Examples that are not in a step yet.

    Attributes:
        cost: Of each, most expensive first.
        inverse: One over each cost.
        total: Summed cost of all before each, and of all.
        position: Of each in the sorted window.
    """

    cost: NDArray[np.float64]
    inverse: NDArray[np.float64]
    total: NDArray[np.float64]
    position: NDArray[np.int64]


class Crew(NamedTuple):
    """The workers, fastest first.

    Attributes:
        speed: Cost per unit of time of each.
        start: Time of each that no example causes.
        all_speed: Summed speed.
        started: What all could do in the time that no example causes.
    """

    speed: NDArray[np.float64]
    start: NDArray[np.float64]
    all_speed: float
    started: float


class Parts(NamedTuple):
    """A step of two runs of what is left.

    Attributes:
        first: Where the first run begins.
        num_first: Its number of examples.
        second: What to add to a place in the step, beyond the first run, for that in the rest.
        size: Number of examples of the step.
    """

    first: int
    num_first: int
    second: int
    size: int


def crew_of(pace: Pace) -> Crew:
    """Return the workers as the search wants them."""
    _, pace = fastest_first(pace)
    speed = 1 / pace.rate
    return Crew(speed, pace.start, float(speed.sum()), float((pace.start * speed).sum()))


@compiled
def rest_of(descending: NDArray[np.float64], left: NDArray[np.int64]) -> Rest:
    cost, inverse = np.empty(len(left)), np.empty(len(left))
    total = np.zeros(len(left) + 1)
    for at in range(len(left)):
        cost[at] = descending[left[at]]
        inverse[at] = 1.0 / max(cost[at], TINY)
        total[at + 1] = total[at] + cost[at]
    return Rest(cost, inverse, total, left)


@compiled
def bound_of(rest: Rest, parts: Parts, crew: Crew) -> float:
    """Return when workers would end without padding, and the fastest with the longest example."""
    begin = parts.num_first + parts.second
    total = rest.total[parts.first + parts.num_first] - rest.total[parts.first]
    total += rest.total[begin + parts.size - parts.num_first] - rest.total[begin]
    longest = rest.cost[parts.first if parts.num_first else parts.second]
    return float(max((total + crew.started) / crew.all_speed, longest / crew.speed[0]))


@compiled
def price_of(rest: Rest, parts: Parts, most: float, crew: Crew) -> float:
    """Return when the latest worker of a step ends; infinite if that is not before `most`.

    `most` is tried first: most choices are worse than what is known.
    """
    low = bound_of(rest, parts, crew) * (1 - PRECISION)
    if most <= low or (most < np.inf and not _holds(rest, parts, most, crew)):
        return np.inf
    high = min(most, max(1.25 * low, TINY))
    while high < most and not _holds(rest, parts, high, crew):
        low, high = high, min(most, 1.25 * high)
    while high - low > max(PRECISION * high, TINY):
        middle = low + (high - low) / 2
        if _holds(rest, parts, middle, crew):
            high = middle
        else:
            low = middle
    return high


@compiled
def _holds(rest: Rest, parts: Parts, end: float, crew: Crew) -> bool:
    """Say whether workers that end by `end` hold both parts, most expensive first."""
    done, size = 0, parts.size
    for worker in range(len(crew.speed)):
        budget = (end - crew.start[worker]) * crew.speed[worker]
        at = done + (parts.first if done < parts.num_first else parts.second)
        left = float(size - done)
        if rest.cost[at] * left <= budget:
            return True
        if budget > 0:
            done += int(min(budget * rest.inverse[at], left))
        if done == size:
            return True
    return False
