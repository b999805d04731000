"""Orders that are made from stored rows: halve, then herd.

A row is stored as bytes with a scale of its own, which takes a quarter of the memory and
moves a prefix sum by no more than its rounding. Scores are sums of whole numbers, which
are the same in whatever order a processor adds them.
"""

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.order._descent import MeanTrees, leaf_rank, mean_balance

# Rows that are unpacked at once.
CHUNK = 512
# Examples that are chosen before scores are computed anew. More is faster, and overshoots
# where all gradients have one direction in common.
CHOSEN_TOGETHER = 4


def halve(
    stored: NDArray[np.int8],
    scales: NDArray[np.float32],
    mean: NDArray[np.float32],
    order: NDArray[np.int64],
    depth: int,
) -> NDArray[np.int64]:
    """Arrange examples in `2**depth` parts that all add up to about the same.

    That is recursive mean balance, with the exact mean. Takes O(n dim depth) time.

    Args:
        stored: Rows as bytes, shape `(num_examples, dim)`.
        scales: Factor of each row.
        mean: Of the rows to arrange, shape `(dim,)`.
        order: Examples to arrange, shape `(num,)`.
        depth: Levels, at least 1.

    Returns:
        The examples, part after part, shape `(num,)`.
    """
    place, root = np.arange(len(order)), np.zeros(len(order), dtype=np.int64)
    trees = MeanTrees(
        tree=root,
        centre=mean[None],
        sums=np.zeros((1, 1 << depth, len(mean)), dtype=np.float32),
        node=np.zeros_like(root),
        arrival=np.zeros_like(root),
        row_sum=np.zeros((1, len(mean))),
        num_rows=np.zeros(1, dtype=np.int64),
    )
    for first in range(0, len(order), CHUNK):
        ids = order[first : first + CHUNK]
        mean_balance(stored[ids] * scales[ids][:, None], place[first : first + CHUNK], trees)
    rank, arrival = leaf_rank(trees.node, depth), trees.arrival
    return order[np.lexsort((np.where(rank % 2 == 1, -arrival, arrival), rank))]


@compiled
def herd(
    stored: NDArray[np.int8],
    scales: NDArray[np.float32],
    mean: NDArray[np.float32],
    order: NDArray[np.int64],
    window: int,
    together: int,
) -> NDArray[np.int64]:
    """Choose the next examples, greedily, from a window that moves along the order.

    Those go first whose products with the sum of all that went before are lowest; of equal
    ones that in the lower slot of the window. Takes O(n dim window / together) time.

    Args:
        stored: Rows as bytes, shape `(num_examples, dim)`.
        scales: Factor of each row.
        mean: Of the rows to arrange, shape `(dim,)`.
        order: Examples to arrange, shape `(num,)`.
        window: Examples to choose from.
        together: Examples that are chosen before products are computed anew.

    Returns:
        The examples as chosen, shape `(num,)`.
    """
    num, dim = len(order), stored.shape[1]
    waiting = order[: min(window, num)].copy()
    following = num_waiting = len(waiting)
    scores, total = np.empty(num_waiting, np.float32), np.zeros(dim, np.float32)
    direction = np.empty(dim, np.int16)
    arranged = np.empty_like(order)
    for first in range(0, num, together):
        _round(total, direction)
        for j in range(num_waiting):
            scores[j] = _product(stored[waiting[j]], direction) * scales[waiting[j]]
        for place in range(first, min(first + together, num)):
            j = int(scores[:num_waiting].argmin())
            example = arranged[place] = waiting[j]
            for i in range(dim):
                total[i] += stored[example, i] * scales[example] - mean[i]
            if following < num:
                waiting[j], scores[j] = order[following], np.inf
                following += 1
            else:
                num_waiting -= 1
                waiting[j], scores[j] = waiting[num_waiting], scores[num_waiting]
    return arranged


@compiled
def _round(total: NDArray[np.float32], direction: NDArray[np.int16]) -> None:
    """Write `total` into `direction`, as large as no product with a row overflows."""
    largest = np.float32(0.0)
    for i in range(len(total)):
        largest = max(largest, abs(total[i]))
    limit = min(32767.0, 2.0**31 / (127.0 * len(total)) - 1.0)
    factor = np.float32(limit / largest) if largest > 0.0 else np.float32(0.0)
    for i in range(len(total)):
        direction[i] = np.int16(total[i] * factor)


@compiled
def _product(row: NDArray[np.int8], direction: NDArray[np.int16]) -> int:
    total = np.int32(0)
    for i in range(len(row)):
        total += np.int32(row[i]) * np.int32(direction[i])
    return int(total)


@compiled
def stored_mean(
    stored: NDArray[np.int8], scales: NDArray[np.float32], examples: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Return the mean of some stored rows, shape `(dim,)`."""
    total = np.zeros(stored.shape[1])
    for example in examples:
        for i in range(len(total)):
            total[i] += stored[example, i] * scales[example]
    return (total / len(examples)).astype(np.float32)
