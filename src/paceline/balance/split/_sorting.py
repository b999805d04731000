"""Sorting that gives the same order on every platform, and fast."""

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled, compiled_beyond


def descending_order(costs: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the positions of each row's costs, most expensive first.

    NumPy's fast sorts leave the order of equal keys to the processor. So the last
    bits of each cost, as many as a position needs, are replaced by the position:
    keys differ, and one order is right everywhere. Costs that agree in all other bits
    count as equal, and the lower position is first.

    Args:
        costs: Not negative, shape `(num_rows, num_columns)`.
    """
    mask = (1 << max(costs.shape[1] - 1, 1).bit_length()) - 1
    # The bits of a float that is not negative grow with it; adding 0.0 turns -0.0 into 0.0.
    keys = (costs + 0.0).view(np.int64) & ~mask
    keys |= mask - np.arange(costs.shape[1])
    keys.sort(axis=1)
    return np.ascontiguousarray(mask - (keys[:, ::-1] & mask))


@compiled
def sort_order(
    keys: NDArray[np.float64], order: NDArray[np.int64], room: NDArray[np.int64]
) -> None:
    """Write the positions of ascending keys to `order`; of equal keys the lower one first.

    In compiled code in place of `np.argsort`, which takes ten times as long to compile.

    Args:
        keys: Shape `(num,)`.
        order: Filled; as long or longer.
        room: As long as `order`, for what is being sorted.
    """
    size, width = len(keys), 1
    for at in range(size):
        order[at] = at
    while width < size:
        for first in range(0, size, 2 * width):
            middle, stop = min(first + width, size), min(first + 2 * width, size)
            left, right = first, middle
            for at in range(first, stop):
                if right == stop or (left < middle and keys[order[left]] <= keys[order[right]]):
                    room[at] = order[left]
                    left += 1
                else:
                    room[at] = order[right]
                    right += 1
        for at in range(size):
            order[at] = room[at]
        width *= 2


@compiled_beyond(60_000)
def group_rows(
    place: NDArray[np.int64], num_places: NDArray[np.int64], slots: NDArray[np.int64]
) -> NDArray[np.int64]:
    """List the entries of each row by place, in their order within it.

    Args:
        place: Where each entry belongs, shape `(num_rows, num_columns)`.
        num_places: Number of places of each row.
        slots: Filled with flat indices into `place`, same shape.

    Returns:
        Number of entries of each place, row after row.
    """
    total, most = 0, 0
    for row in range(len(num_places)):
        total += num_places[row]
        most = max(most, num_places[row])
    counts, following = np.zeros(total, dtype=np.int64), np.zeros(most, dtype=np.int64)
    base = 0
    for row in range(len(place)):
        for column in range(place.shape[1]):
            counts[base + place[row, column]] += 1
        following[0] = 0
        for here in range(1, num_places[row]):
            following[here] = following[here - 1] + counts[base + here - 1]
        for column in range(place.shape[1]):
            here = place[row, column]
            slots[row, following[here]] = row * place.shape[1] + column
            following[here] += 1
        base += num_places[row]
    return counts
