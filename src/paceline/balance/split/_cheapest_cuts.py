"""The cheapest contiguous cuts of a sorted batch, by dynamic programming in linear time."""

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled


@compiled
def cheapest_cuts(cost: NDArray[np.float64], overhead: float, ends: NDArray[np.int64]) -> int:
    """Fill `ends` with the contiguous cuts that cost least in sum; return how many.

    Args:
        cost: Cost of each example, most expensive first; a cut pays its first for all.
        overhead: Cost of each cut.
        ends: Room for as many as there are examples.
    """
    size = len(cost)
    best, back = np.zeros(size + 1), np.zeros(size + 1, dtype=np.int64)
    # A cut from i to j costs best[i] + (j - i) * cost[i]: a line in j. Slopes only fall, so the
    # lower envelope is a queue: lines enter at its end, and the best one only moves on.
    queue, head, tail = np.zeros(size + 1, dtype=np.int64), 0, 0
    for end in range(1, size + 1):
        new = end - 1
        height = best[new] - new * cost[new]
        while tail - head >= 2:
            low, last = queue[tail - 2], queue[tail - 1]
            low_height, last_height = best[low] - low * cost[low], best[last] - last * cost[last]
            gain = (height - low_height) * (cost[low] - cost[last])
            if gain > (last_height - low_height) * (cost[low] - cost[new]):
                break
            tail -= 1
        queue[tail] = new
        tail += 1
        while tail - head >= 2 and _until(end, queue[head + 1], best, cost) <= _until(
            end, queue[head], best, cost
        ):
            head += 1
        back[end] = queue[head]
        best[end] = _until(end, queue[head], best, cost) + overhead
    number, end = 0, size
    while end > 0:
        number, end = number + 1, back[end]
    end = size
    for cut in range(number - 1, -1, -1):
        ends[cut] = end
        end = back[end]
    return number


@compiled
def _until(end: int, begin: int, best: NDArray[np.float64], cost: NDArray[np.float64]) -> float:
    return float(best[begin] + (end - begin) * cost[begin])
