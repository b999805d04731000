"""Learning by signs: rows go down trees of running sums, and the leaves make the next order.

Examples that got a plus come first in the next epoch, in the order in which they came, and
those with a minus last, backwards; both halves then add up to about the same. What is
random in the first epoch evens out over the following ones. One pass, O(dim) time per
example and level, and no row is stored but those that wait for the other of their pair.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from paceline.order._descent import MeanTrees, PairTrees, leaf_rank, mean_balance, pair_balance
from paceline.order._learned import Arrays
from paceline.order._policy import check_range, saved_count


@dataclass(frozen=True, slots=True, eq=False)
class Lanes:
    """Which examples belong together, and how deep the trees are that they go down.

    Position p of an order belongs to lane p % num_lanes, the examples of one worker of the
    method's paper; an example keeps its lane.

    Attributes:
        num_lanes: Workers that the order is made for.
        depth: Levels of a tree.
        is_independent: Whether each lane has a tree of its own; else one is shared.
        lane: Lane of each example, shape `(num_examples,)`.
    """

    num_lanes: int = 1
    depth: int = 1
    is_independent: bool = False
    lane: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:
        for name, value in (("num_workers", self.num_lanes), ("depth", self.depth)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")

    @property
    def num_trees(self) -> int:
        return self.num_lanes if self.is_independent else 1

    @property
    def tree(self) -> NDArray[np.int64]:
        """Tree of each example."""
        return self.lane if self.is_independent else np.zeros_like(self.lane)


class Signs(Protocol):
    """What decides over plus and minus."""

    def begin(self, lanes: Lanes, dim: int) -> Arrays:
        """Return empty arrays beside the sums."""

    def check(self, lanes: Lanes, learnt: Arrays) -> None:
        """Raise `StateMismatchError` if loaded arrays hold what cannot be."""

    def learn(
        self,
        lanes: Lanes,
        learnt: Arrays,
        ids: NDArray[np.int64],
        rows: NDArray[np.float32],
        epoch: int,
    ) -> None:
        """Send rows down their trees."""

    def end(self, learnt: Arrays) -> None:
        """Be ready to learn anew."""


@dataclass(frozen=True, slots=True)
class MeanSigns:
    """Signs from rows, less the mean of the epoch before (none in the first)."""

    def begin(self, lanes: Lanes, dim: int) -> Arrays:
        return {
            "centre": np.zeros((lanes.num_trees, dim), dtype=np.float32),
            "row_sum": np.zeros((lanes.num_trees, dim)),
            "num_rows": np.zeros(lanes.num_trees, dtype=np.int64),
        }

    def check(self, lanes: Lanes, learnt: Arrays) -> None:
        pass

    def learn(
        self,
        lanes: Lanes,
        learnt: Arrays,
        ids: NDArray[np.int64],
        rows: NDArray[np.float32],
        epoch: int,
    ) -> None:
        mean_balance(rows, ids, MeanTrees(tree=lanes.tree, **learnt))

    def end(self, learnt: Arrays) -> None:
        some = learnt["num_rows"] > 0
        learnt["centre"][some] = learnt["row_sum"][some] / learnt["num_rows"][some, None]
        learnt["row_sum"][:] = 0
        learnt["num_rows"][:] = 0


@dataclass(frozen=True, slots=True)
class PairSigns:
    """Signs from the differences of pairs, which need no mean.

    Attributes:
        seed: Of the random signs.
        is_random: Whether signs are random, the likelier the more they shorten the sum.
    """

    seed: int
    is_random: bool = False

    def begin(self, lanes: Lanes, dim: int) -> Arrays:
        shape = lanes.num_lanes, 1 << lanes.depth
        return {
            "waiting": np.zeros((*shape, dim), dtype=np.float32),
            "waiting_id": np.full(shape, -1, dtype=np.int64),
            "walk": np.array([0.0, 0.0 if self.is_random else -1.0]),
        }

    def check(self, lanes: Lanes, learnt: Arrays) -> None:
        check_range("waiting_id", learnt["waiting_id"], -1, len(lanes.lane))

    def learn(
        self,
        lanes: Lanes,
        learnt: Arrays,
        ids: NDArray[np.int64],
        rows: NDArray[np.float32],
        epoch: int,
    ) -> None:
        pair_balance(rows, ids, PairTrees(lane=lanes.lane, **learnt), self.seed * 1_000_003 + epoch)

    def end(self, learnt: Arrays) -> None:
        learnt["waiting_id"][:] = -1
        learnt["walk"][0] = 0


@dataclass(frozen=True, slots=True, eq=False)
class SignRule:
    """The `Rule` of orders that are made of signs.

    Examples that were not observed come first in their lane, as they would have come now, so
    that an epoch that always ends early does not leave the same ones out.
    """

    signs: Signs
    lanes: Lanes

    def options(self) -> dict[str, Any]:
        return {"depth": self.lanes.depth}

    def saved(self) -> dict[str, Any]:
        return {"num_lanes": self.lanes.num_lanes}

    def placed(self, order: NDArray[np.int64], state: Mapping[str, Any]) -> "SignRule":
        num_lanes = max(1, saved_count(state, "num_lanes"))
        lane = np.empty_like(order)
        lane[order] = np.arange(len(order)) % num_lanes
        return replace(self, lanes=replace(self.lanes, num_lanes=num_lanes, lane=lane))

    def begin(self, dim: int) -> Arrays:
        num_examples = len(self.lanes.lane)
        shape = self.lanes.num_trees, 1 << self.lanes.depth, dim
        return {
            "sums": np.zeros(shape, dtype=np.float32),
            "node": np.zeros(num_examples, dtype=np.int64),
            "arrival": np.zeros(num_examples, dtype=np.int64),
            **self.signs.begin(self.lanes, dim),
        }

    def check(self, learnt: Arrays) -> None:
        check_range("node", learnt["node"], 0, 2 << self.lanes.depth)
        self.signs.check(self.lanes, learnt)

    def learn(
        self, learnt: Arrays, ids: NDArray[np.int64], rows: NDArray[np.float32], epoch: int
    ) -> None:
        self.signs.learn(self.lanes, learnt, ids, rows, epoch)

    def next_order(self, learnt: Arrays, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        rank = leaf_rank(learnt["node"], self.lanes.depth)
        # In a part that is traversed backwards, who came first goes last.
        arrival = np.where(rank % 2 == 1, -learnt["arrival"], learnt["arrival"])
        place = np.argsort(order)
        arrival[rank < 0] = place[rank < 0]
        by_lane = np.lexsort((arrival, rank, self.lanes.lane))
        slots = np.argsort(np.arange(len(order)) % self.lanes.num_lanes, kind="stable")
        following = np.empty_like(order)
        following[slots] = by_lane
        self.signs.end(learnt)
        for name in ("sums", "node", "arrival"):
            learnt[name][:] = 0
        return following
