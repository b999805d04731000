"""Policies over stored rows."""

from abc import abstractmethod
from math import ceil, log2
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.order._learned import LearnedOrder
from paceline.order._policy import shuffled
from paceline.order._rows import pack
from paceline.order._stored import CHOSEN_TOGETHER, halve, herd, stored_mean

WINDOW = 320
# Halving stops at parts of this many windows: what strays within one, the window mends.
PART_WINDOWS = 2
MAX_DEPTH = 10


class StoredOrder(LearnedOrder):
    """Base of the orders that store the last row of each example, `dim + 4` bytes of it.

    Examples whose row is not known yet keep the places that the shuffle, or the order
    before, gave them; all others are arranged in the places between.
    """

    def _begin(self, dim: int) -> dict[str, NDArray[Any]]:
        return {
            "rows": np.zeros((self.num_examples, dim), dtype=np.int8),
            "scales": np.zeros(self.num_examples, dtype=np.float32),
            "is_known": np.zeros(self.num_examples, dtype=np.bool_),
            "is_new": np.zeros(self.num_examples, dtype=np.bool_),
        }

    def _learn(self, ids: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        learnt = self._learnt
        _, first = np.unique(ids, return_index=True)
        if len(first) < len(ids) or learnt["is_new"][ids].any():
            keep = np.sort(first[~learnt["is_new"][ids[first]]])
            ids, rows = ids[keep], rows[keep]
        pack(rows, ids, learnt["rows"], learnt["scales"])
        learnt["is_known"][ids] = learnt["is_new"][ids] = True

    def _next_order(self) -> NDArray[np.int64]:
        learnt = self._learnt
        learnt["is_new"][:] = False
        following = self._base()
        slots = np.flatnonzero(learnt["is_known"][following])
        if len(slots):
            known = following[slots]
            mean = stored_mean(learnt["rows"], learnt["scales"], known)
            following[slots] = self._arrange(known, mean)
        return following

    def _base(self) -> NDArray[np.int64]:
        """Return a new order to start from."""
        return self._order.copy()

    @abstractmethod
    def _arrange(self, known: NDArray[np.int64], mean: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the examples whose rows are known in their new order."""


class WindowedGreedy(StoredOrder):
    """Each next example is the one of a window that most shortens the running sum.

    Starts from the order before. Takes O(n dim window) time per epoch, and stores all rows.
    Source: greedy herding, Y. Lu, S. Y. Meng, C. De Sa, "A general analysis of
    example-selection for stochastic gradient descent", ICLR 2022. Where we differ: it
    chooses from a window that moves along, not from all that are left.

    Args:
        num_examples: Number of examples of the dataset.
        window: Examples to choose from.
        seed: Of the first shuffle.
    """

    name = "windowed-greedy"

    def __init__(self, num_examples: int, *, window: int = 64, seed: int = 0) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        super().__init__(num_examples, seed=seed)
        self._window = window

    def _arrange(self, known: NDArray[np.int64], mean: NDArray[np.float32]) -> NDArray[np.int64]:
        learnt = self._learnt
        return herd(learnt["rows"], learnt["scales"], mean, known, self._window, 1)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "window": self._window}


class HalveAndHerd(StoredOrder):
    """A new shuffle each epoch, halved into alike parts, then herded.

    Any worker may process any example, so what counts is where the sum stands in the global
    order. Herding takes, from a window of the next 320 examples, those that cancel what the
    sum has strayed. In a plain shuffle what is still to come may have strayed too far
    for any window to mend; so its examples are first arranged in parts that add up to about
    the same. Each epoch begins with a shuffle of its own: the order is balanced and never
    frozen, and epochs that observe nothing get new orders from the rows that are known.

    Halving takes O(n dim log n) time, herding O(80 n dim); storage is n (dim + 4) bytes.

    Args:
        num_examples: Number of examples of the dataset.
        seed: Of the shuffles.

    Examples:
        >>> order = HalveAndHerd(4)
        >>> order.observe([0, 1, 2, 3], [[1.0], [1.0], [-1.0], [-1.0]])
        >>> order.end_epoch()
        >>> sorted(order.order(epoch=1)[:2] // 2)
        [np.int64(0), np.int64(1)]

    References:
        Halving as in R. Dwivedi, L. Mackey, "Kernel thinning", COLT 2021; herding as in
        `WindowedGreedy`, some examples at a time. Their union, on a new shuffle, is ours.
    """

    name = "halve-and-herd"

    def _base(self) -> NDArray[np.int64]:
        return shuffled(self.num_examples, self._seed, self._epoch)

    def _arrange(self, known: NDArray[np.int64], mean: NDArray[np.float32]) -> NDArray[np.int64]:
        rows, scales = self._learnt["rows"], self._learnt["scales"]
        depth = _depth(len(known))
        if depth:
            known = halve(rows, scales, mean, known, depth)
        return herd(rows, scales, mean, known, WINDOW, CHOSEN_TOGETHER)


def _depth(num_examples: int) -> int:
    return min(MAX_DEPTH, max(0, ceil(log2(num_examples / (PART_WINDOWS * WINDOW)))))
