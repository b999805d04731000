"""Orders that are herded from stored rows, `dim + 4` bytes of each example's last one."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import ceil, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.order._learned import Arrays, LearnedOrder
from paceline.order._policy import OrderPolicy, shuffled
from paceline.order._rows import pack
from paceline.order._stored import CHOSEN_TOGETHER, halve, herd, stored_mean

WINDOW = 320
# Halving stops at parts of this many windows: the window balances what is left within one.
PART_WINDOWS = 2
MAX_DEPTH = 10

# Arranges examples, given all stored rows, their scales, and the mean of those to arrange.
Arrange = Callable[
    [NDArray[np.int8], NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]],
    NDArray[np.int64],
]


def windowed_greedy(num_examples: int, *, window: int = 64, seed: int = 0) -> OrderPolicy:
    """Return an order whose next example is the one of a window that most shortens the sum.

    Starts from the order before. Takes O(n dim window) time per epoch, and stores all rows.
    Where we differ from the paper: it chooses from a window that moves along, not from all
    that are left.

    Args:
        num_examples: Number of examples of the dataset.
        window: Examples to choose from.
        seed: Of the first shuffle.

    References:
        Greedy herding, Y. Lu, S. Y. Meng, C. De Sa, "A general analysis of
        example-selection for stochastic gradient descent", ICLR 2022.
    """
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    rule = StoredRule(
        lambda rows, scales, mean, known: herd(rows, scales, mean, known, window, 1),
        own_options={"window": window},
    )
    return LearnedOrder("windowed-greedy", num_examples, rule, seed=seed)


def halve_and_herd(num_examples: int, *, seed: int = 0) -> OrderPolicy:
    """Return an order that shuffles each epoch, halves it into alike parts, then herds.

    Any worker may process any example, so what counts is where the sum stands in the global
    order. Herding takes, from a window of the next 320 examples, those that bring the
    sum back to zero. In a plain shuffle the rest may be too unbalanced
    for any window to do so; so its examples are first arranged in parts that add up to about
    the same. Each epoch begins with a shuffle of its own: the order is balanced and never
    frozen, and epochs that observe nothing get new orders from the rows that are known.

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
    rule = StoredRule(_halved_and_herded, reshuffle_seed=seed)
    return LearnedOrder("halve-and-herd", num_examples, rule, seed=seed)


@dataclass(frozen=True, slots=True, eq=False)
class StoredRule:
    """The `Rule` that stores the last row of each example.

    Examples whose row is not known yet keep the places that the shuffle, or the order
    before, gave them; all others are arranged in the places between.

    Attributes:
        arrange: How.
        own_options: What a state must agree on.
        reshuffle_seed: Of the shuffle that each epoch starts from; None to start from the
            order before.
        num_examples: Of the order that the rule was placed for.
    """

    arrange: Arrange
    own_options: Mapping[str, Any] | None = None
    reshuffle_seed: int | None = None
    num_examples: int = 0

    def options(self) -> dict[str, Any]:
        return dict(self.own_options or {})

    def saved(self) -> dict[str, Any]:
        return {}

    def placed(self, order: NDArray[np.int64], state: Mapping[str, Any]) -> "StoredRule":
        return replace(self, num_examples=len(order))

    def begin(self, dim: int) -> Arrays:
        return {
            "rows": np.zeros((self.num_examples, dim), dtype=np.int8),
            "scales": np.zeros(self.num_examples, dtype=np.float32),
            "is_known": np.zeros(self.num_examples, dtype=np.bool_),
            "is_new": np.zeros(self.num_examples, dtype=np.bool_),
        }

    def check(self, learnt: Arrays) -> None:
        pass

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
        seed = self.reshuffle_seed
        following = order.copy() if seed is None else shuffled(len(order), seed, epoch)
        slots = np.flatnonzero(learnt["is_known"][following])
        if len(slots):
            known = following[slots]
            mean = stored_mean(learnt["rows"], learnt["scales"], known)
            following[slots] = self.arrange(learnt["rows"], learnt["scales"], mean, known)
        return following


def _halved_and_herded(
    rows: NDArray[np.int8],
    scales: NDArray[np.float32],
    mean: NDArray[np.float32],
    known: NDArray[np.int64],
) -> NDArray[np.int64]:
    depth = _depth(len(known))
    if depth:
        known = halve(rows, scales, mean, known, depth)
    return herd(rows, scales, mean, known, WINDOW, CHOSEN_TOGETHER)


def _depth(num_examples: int) -> int:
    return min(MAX_DEPTH, max(0, ceil(log2(num_examples / (PART_WINDOWS * WINDOW)))))
