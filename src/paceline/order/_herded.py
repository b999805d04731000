"""Orders that are made from stored rows: halve, then herd.

A row is stored as bytes with a scale of its own, `dim + 4` bytes for each example, which takes a
quarter of the memory and moves a prefix sum by no more than its rounding. Scores are sums of whole
numbers, which are the same in whatever order a processor adds them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled
from paceline.order._descent import MeanTrees, leaf_rank, mean_balance
from paceline.order._learned import Arrays, LearnedOrder, Rule
from paceline.order._policy import OrderPolicy, shuffled
from paceline.order._rows import pack

WINDOW = 320
# Halving stops at parts of this many windows: the window balances what is left within one.
PART_WINDOWS = 2
MAX_DEPTH = 10
# Rows that are unpacked at once.
CHUNK = 512
# Examples that are chosen before scores are computed anew. More is faster, and overshoots
# where all gradients have one direction in common.
CHOSEN_TOGETHER = 4


def windowed_greedy(num_examples: int, *, window: int = 64, seed: int = 0) -> OrderPolicy:
    """Return an order whose next example is the one of a window that most shortens the sum.

    Starts from the order before. Takes O(n dim window) time per epoch, and stores all rows. Where
    we differ from the paper: it chooses from a window that moves along, not from all that are left.

    Args:
        num_examples: Number of examples of the dataset.
        window: Examples to choose from.
        seed: Of the first shuffle.

    References:
        Greedy herding, Y. Lu, S. Y. Meng, C. De Sa, "A general analysis of example-selection for
        stochastic gradient descent", ICLR 2022.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    return LearnedOrder("windowed-greedy", num_examples, HerdRule(seed, window))


def halve_and_herd(num_examples: int, *, seed: int = 0) -> OrderPolicy:
    """Return an order that shuffles each epoch, halves it into alike parts, then herds.

    Any worker may process any example, so what counts is where the sum stands in the global order.
    Herding takes, from a window of the next 320 examples, those that bring the sum back to zero.
    What is left of a plain shuffle may be too unbalanced for any window, so its examples are first
    arranged in parts that add up to about the same. Each epoch begins with a new shuffle, so the
    order is never frozen, and epochs that observe nothing get new ones from the rows known so far.

    Halving takes O(n dim log n) time, herding O(80 n dim); storage is n (dim + 4) bytes.

    Args:
        num_examples: Number of examples of the dataset.
        seed: Of the shuffles.

    Examples:
        >>> order = halve_and_herd(4)
        >>> order.observe([0, 1, 2, 3], [[1.0], [1.0], [-1.0], [-1.0]])
        >>> order.end_epoch()
        >>> sorted(order.order(epoch=1)[:2] // 2)
        [np.int64(0), np.int64(1)]

    References:
        Halving as in R. Dwivedi, L. Mackey, "Kernel thinning", COLT 2021; herding as in
        `windowed_greedy`, some examples at a time. Their union, on a new shuffle, is ours.
    """
    return LearnedOrder("halve-and-herd", num_examples, HerdRule(seed))


@dataclass(frozen=True, eq=False)
class HerdRule(Rule):
    """The `Rule` that stores the last row of each example.

    Examples whose row is not known yet keep their places; the others are arranged between them.

    Attributes:
        seed: Of the shuffles.
        window: Herd the order before, one example at a time, from a window of so many; None to
            shuffle each epoch, halve, then herd.
        num_examples: Of the order that the rule was placed for.
    """

    seed: int
    window: int | None = None
    num_examples: int = 0

    def options(self) -> dict[str, Any]:
        return {} if self.window is None else {"window": self.window}

    def placed(self, order: NDArray[np.int64], state: Mapping[str, Any]) -> Self:
        return replace(self, num_examples=len(order))

    def begin(self, dim: int) -> Arrays:
        return {
            "rows": np.zeros((self.num_examples, dim), dtype=np.int8),
            "scales": np.zeros(self.num_examples, dtype=np.float32),
            "is_known": np.zeros(self.num_examples, dtype=np.bool_),
            "is_new": np.zeros(self.num_examples, dtype=np.bool_),
        }

    def learn(
        self, learnt: Arrays, ids: NDArray[np.int64], rows: NDArray[np.float32], epoch: int
    ) -> None:
        _, first = np.unique(ids, return_index=True)
        if len(first) < len(ids) or learnt["is_new"][ids].any():
            keep = np.sort(first[~learnt["is_new"][ids[first]]])
            ids, rows = ids[keep], rows[keep]
        pack(rows, ids, learnt["rows"], learnt["scales"])
        learnt["is_known"][ids] = learnt["is_new"][ids] = True

    def next_order(self, learnt: Arrays, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        learnt["is_new"][:] = False
        is_herded = self.window is not None
        following = order.copy() if is_herded else shuffled(len(order), self.seed, epoch)
        slots = np.flatnonzero(learnt["is_known"][following])
        if len(slots):
            following[slots] = self._arranged(learnt["rows"], learnt["scales"], following[slots])
        return following

    def _arranged(
        self, rows: NDArray[np.int8], scales: NDArray[np.float32], known: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        mean = stored_mean(rows, scales, known)
        if self.window is not None:
            return herd(rows, scales, mean, known, self.window, 1)
        if depth := _depth(len(known)):
            known = halve(rows, scales, mean, known, depth)
        return herd(rows, scales, mean, known, WINDOW, CHOSEN_TOGETHER)


def _depth(num_examples: int) -> int:
    return min(MAX_DEPTH, max(0, ceil(log2(num_examples / (PART_WINDOWS * WINDOW)))))


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
        stored: Rows as bytes, shape `(num_examples, dim)`, whose factors are `scales`.
        scales: Shape `(num_examples,)`.
        mean: Of the rows to arrange, shape `(dim,)`.
        order: Examples to arrange, shape `(num,)`; returned part after part.
        depth: Levels, at least 1.
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
    ones that in the lower slot of the window. `together` are chosen before products are computed
    anew; other arguments are as in `halve`. Takes O(n dim window / together) time.
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
