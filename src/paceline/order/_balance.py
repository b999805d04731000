"""The GraB family: orders that balance the rows of one epoch for the next.

Examples that got a plus come first in the next epoch, in the order in which they came, and
those with a minus last, backwards; both halves then add up to about the same. What is
random in the first epoch evens out over the following ones. One pass, O(dim) time per
example and level, and no row is stored but those that wait for the other of their pair.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from paceline.order._descent import leaf_rank, mean_balance, pair_balance
from paceline.order._learned import LearnedOrder
from paceline.order._policy import check_range, saved_count


class BalancedOrder(LearnedOrder):
    """Base of the orders that are made of signs.

    Position p of the order belongs to *lane* p % num_lanes, the examples of one worker of
    the method's paper; an example keeps its lane. Examples that were not observed come first
    in their lane, as they would have come now, so that an epoch that always ends early does
    not leave the same ones out.
    """

    is_independent: ClassVar[bool] = False

    def __init__(
        self, num_examples: int, *, num_lanes: int = 1, depth: int = 1, seed: int = 0
    ) -> None:
        for name, value in (("num_workers", num_lanes), ("depth", depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        super().__init__(num_examples, seed=seed)
        self._num_lanes = num_lanes
        self._depth = depth
        self._place_lanes()

    def _place_lanes(self) -> None:
        self._lane = np.empty(self.num_examples, dtype=np.int64)
        self._lane[self._order] = np.arange(self.num_examples) % self._num_lanes

    def _begin(self, dim: int) -> dict[str, NDArray[Any]]:
        num_sums = self._num_lanes if self.is_independent else 1
        return {
            "sums": np.zeros((num_sums, 1 << self._depth, dim), dtype=np.float32),
            "node": np.zeros(self.num_examples, dtype=np.int64),
            "arrival": np.zeros(self.num_examples, dtype=np.int64),
        }

    def _next_order(self) -> NDArray[np.int64]:
        learnt = self._learnt
        rank = leaf_rank(learnt["node"], self._depth)
        # In a part that is traversed backwards, who came first goes last.
        arrival = np.where(rank % 2 == 1, -learnt["arrival"], learnt["arrival"])
        place = np.argsort(self._order)
        arrival[rank < 0] = place[rank < 0]
        by_lane = np.lexsort((arrival, rank, self._lane))
        slots = np.lexsort((np.arange(self.num_examples) % self._num_lanes,))
        following = np.empty_like(self._order)
        following[slots] = by_lane
        for name in ("sums", "node", "arrival"):
            learnt[name][:] = 0
        return following

    def _adopt(self, state: Mapping[str, Any]) -> None:
        self._num_lanes = max(1, saved_count(state, "num_lanes"))
        self._place_lanes()

    def _check(self, learnt: Mapping[str, NDArray[Any]]) -> None:
        check_range("node", learnt["node"], 0, 2 << self._depth)

    def state_dict(self) -> dict[str, Any]:
        """Return plain values and NumPy arrays, copied, equal on all ranks."""
        return {**super().state_dict(), "num_lanes": self._num_lanes}

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "depth": self._depth}


class _MeanBalance(BalancedOrder):
    """Signs from rows, less the mean of the epoch before (none in the first)."""

    def _begin(self, dim: int) -> dict[str, NDArray[Any]]:
        empty = super()._begin(dim)
        num_sums = len(empty["sums"])
        return {
            **empty,
            "centre": np.zeros((num_sums, dim), dtype=np.float32),
            "row_sum": np.zeros((num_sums, dim)),
            "num_rows": np.zeros(num_sums, dtype=np.int64),
        }

    def _learn(self, ids: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        learnt = self._learnt
        mean_balance(
            rows,
            ids,
            self._lane if self.is_independent else np.zeros_like(self._lane),
            learnt["centre"],
            learnt["sums"],
            learnt["node"],
            learnt["arrival"],
            learnt["row_sum"],
            learnt["num_rows"],
        )

    def _next_order(self) -> NDArray[np.int64]:
        learnt = self._learnt
        some = learnt["num_rows"] > 0
        learnt["centre"][some] = learnt["row_sum"][some] / learnt["num_rows"][some, None]
        learnt["row_sum"][:] = 0
        learnt["num_rows"][:] = 0
        return super()._next_order()


class _PairBalance(BalancedOrder):
    """Signs from the differences of pairs, which need no mean."""

    is_walk: ClassVar[bool] = False

    def _begin(self, dim: int) -> dict[str, NDArray[Any]]:
        num_leaves = 1 << self._depth
        return {
            **super()._begin(dim),
            "waiting": np.zeros((self._num_lanes, num_leaves, dim), dtype=np.float32),
            "waiting_id": np.full((self._num_lanes, num_leaves), -1, dtype=np.int64),
            "walk": np.array([0.0, 0.0 if self.is_walk else -1.0]),
        }

    def _check(self, learnt: Mapping[str, NDArray[Any]]) -> None:
        super()._check(learnt)
        check_range("waiting_id", learnt["waiting_id"], -1, self.num_examples)

    def _learn(self, ids: NDArray[np.int64], rows: NDArray[np.float32]) -> None:
        learnt = self._learnt
        pair_balance(
            rows,
            ids,
            self._lane,
            learnt["sums"],
            learnt["waiting"],
            learnt["waiting_id"],
            learnt["node"],
            learnt["arrival"],
            learnt["walk"],
            self._seed * 1_000_003 + self._epoch,
        )

    def _next_order(self) -> NDArray[np.int64]:
        self._learnt["waiting_id"][:] = -1
        self._learnt["walk"][0] = 0
        return super()._next_order()


class MeanBalance(_MeanBalance):
    """GraB: one running sum of all rows, less their last mean.

    Source: Y. Lu, W. Guo, C. De Sa, "GraB: finding provably better data permutations than
    random reshuffling", NeurIPS 2022, algorithm 4, with the greedy sign of algorithm 5.
    """

    name = "grab"

    def __init__(self, num_examples: int, *, seed: int = 0) -> None:
        super().__init__(num_examples, seed=seed)


class PairBalance(_PairBalance):
    """Pair balance: one running sum of the differences of consecutive rows.

    Source: as `CoordinatedPairBalance`, on one worker.
    """

    name = "pair-balance"

    def __init__(self, num_examples: int, *, seed: int = 0) -> None:
        super().__init__(num_examples, seed=seed)


class IndependentMeanBalance(_MeanBalance):
    """I-B: GraB on each worker's examples by themselves.

    Args:
        num_examples: Number of examples of the dataset.
        num_workers: Workers that the order is made for; a loaded state brings its own.
        seed: Of the first shuffle.
    """

    name = "i-b"
    is_independent = True

    def __init__(self, num_examples: int, num_workers: int, *, seed: int = 0) -> None:
        super().__init__(num_examples, num_lanes=num_workers, seed=seed)


class IndependentPairBalance(_PairBalance):
    """I-PB: pair balance on each worker's examples by themselves.

    Args:
        num_examples: Number of examples of the dataset.
        num_workers: Workers that the order is made for; a loaded state brings its own.
        seed: Of the first shuffle.
    """

    name = "i-pb"
    is_independent = True

    def __init__(self, num_examples: int, num_workers: int, *, seed: int = 0) -> None:
        super().__init__(num_examples, num_lanes=num_workers, seed=seed)


class CoordinatedPairBalance(_PairBalance):
    """D-GraB, also called CD-GraB: pairs per worker, one running sum over all workers.

    Source: A. F. Cooper, W. Guo, K. Pham, T. Yuan, C. Ruan, Y. Lu, C. De Sa, "Coordinating
    distributed example orders for provably accelerated training", NeurIPS 2023, algorithm 2.
    Where we differ: odd counts and workers of unequal share are fine, and a position in
    the global batch stands for a worker, whoever computes it.

    Args:
        num_examples: Number of examples of the dataset.
        num_workers: Workers that the order is made for; a loaded state brings its own.
        seed: Of the first shuffle.

    Examples:
        >>> order = CoordinatedPairBalance(4, num_workers=2)
        >>> first = order.order(epoch=0)
        >>> order.observe(first, [[1.0], [2.0], [0.0], [1.0]])
        >>> order.end_epoch()
        >>> order.order(epoch=1).tolist() == first[[0, 3, 2, 1]].tolist()
        True
    """

    name = "d-grab"

    def __init__(self, num_examples: int, num_workers: int, *, seed: int = 0) -> None:
        super().__init__(num_examples, num_lanes=num_workers, seed=seed)


class RecursiveMeanBalance(_MeanBalance):
    """GraB that balances both halves again, and again, within one pass.

    Takes `depth` times GraB's time and `2**depth` running sums. Source: R. Dwivedi,
    L. Mackey, "Kernel thinning", COLT 2021, whose halving rounds are nested like this; there
    one of the halves is kept, here all of them make up the order.
    """

    name = "recursive-mean-balance"

    def __init__(self, num_examples: int, *, depth: int = 5, seed: int = 0) -> None:
        super().__init__(num_examples, depth=depth, seed=seed)


class RecursivePairBalance(_PairBalance):
    """Pair balance that balances both halves again, and again, within one pass.

    A level has half as many pairs per node as the one above. Takes up to `depth` times the
    time of pair balance, `2**depth` running sums and as many rows that wait.
    Source: as `RecursiveMeanBalance`.
    """

    name = "recursive-pair-balance"

    def __init__(self, num_examples: int, *, depth: int = 5, seed: int = 0) -> None:
        super().__init__(num_examples, depth=depth, seed=seed)


class SelfBalancingWalk(_PairBalance):
    """Pair balance with a random sign, the likelier the more it shortens the sum.

    Source: R. Alweiss, Y. Liu, M. Sawhney, "Discrepancy minimization via a self-balancing
    walk", STOC 2021. Where we differ: the walk is over differences of pairs; lengths are
    relative to the longest so far; and its constant, there 30 log(n dim), is 1, with signs
    that are certain where the rule would leave [0, 1] and the walk there fails.
    """

    name = "self-balancing-walk"
    is_walk = True

    def __init__(self, num_examples: int, *, seed: int = 0) -> None:
        super().__init__(num_examples, seed=seed)
