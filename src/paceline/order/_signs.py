"""Learning by signs: rows go down trees of running sums, and the leaves make the next order.

Examples that got a plus come first in the next epoch, in the order in which they came, and those
with a minus last, backwards; both halves then add up to about the same. What is random in the first
epoch evens out. One pass, O(dim) time per example and level; only rows that wait are stored.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from paceline._files import shown
from paceline.errors import StateMismatchError
from paceline.order._descent import MeanTrees, PairTrees, leaf_rank, mean_balance, pair_balance
from paceline.order._learned import Arrays, Rule
from paceline.order._policy import saved_count


@dataclass(frozen=True, eq=False)
class SignRule(Rule):
    """The `Rule` of orders that are made of signs.

    Position p of an order belongs to lane p % num_lanes, the examples of one worker of the paper;
    an example keeps its lane. Examples that were not observed come first in their lane, in their
    order of now, so that epochs that always end early do not leave the same ones out.

    Attributes:
        seed: Of the first shuffle and of random signs.
        num_lanes: Workers that the order is made for.
        depth: Levels of a tree.
        is_independent: Whether each lane has a tree of its own; else one is shared.
        lane: Lane of each example, shape `(num_examples,)`.
    """

    seed: int
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

    @abstractmethod
    def own_arrays(self, dim: int) -> Arrays:
        """Return empty arrays beside the sums."""

    @abstractmethod
    def end(self, learnt: Arrays) -> None:
        """Be ready to learn anew."""

    def options(self) -> dict[str, Any]:
        return {"depth": self.depth}

    def saved(self) -> dict[str, Any]:
        return {"num_lanes": self.num_lanes}

    def ranges(self) -> dict[str, tuple[int, int]]:
        return {"node": (0, 2 << self.depth)}

    def placed(self, order: NDArray[np.int64], state: Mapping[str, Any]) -> Self:
        num_lanes = max(1, saved_count(state, "num_lanes"))
        if num_lanes > max(len(order), self.num_lanes):
            raise StateMismatchError(f"the state is damaged: 'num_lanes' is {shown(num_lanes)}")
        lane = np.empty_like(order)
        lane[order] = np.arange(len(order)) % num_lanes
        return replace(self, num_lanes=num_lanes, lane=lane)

    def begin(self, dim: int) -> Arrays:
        return {
            "sums": np.zeros((self.num_trees, 1 << self.depth, dim), dtype=np.float32),
            "node": np.zeros_like(self.lane),
            "arrival": np.zeros_like(self.lane),
            **self.own_arrays(dim),
        }

    def next_order(self, learnt: Arrays, order: NDArray[np.int64], epoch: int) -> NDArray[np.int64]:
        rank = leaf_rank(learnt["node"], self.depth)
        # In a part that is traversed backwards, who came first goes last.
        arrival = np.where(rank % 2 == 1, -learnt["arrival"], learnt["arrival"])
        place = np.argsort(order)
        arrival[rank < 0] = place[rank < 0]
        slots = np.argsort(np.arange(len(order)) % self.num_lanes, kind="stable")
        following = np.empty_like(order)
        following[slots] = np.lexsort((arrival, rank, self.lane))
        self.end(learnt)
        for name in ("sums", "node", "arrival"):
            learnt[name][:] = 0
        return following


@dataclass(frozen=True, eq=False)
class MeanSigns(SignRule):
    """Signs from rows, less the mean of the epoch before (none in the first)."""

    def own_arrays(self, dim: int) -> Arrays:
        return {
            "centre": np.zeros((self.num_trees, dim), dtype=np.float32),
            "row_sum": np.zeros((self.num_trees, dim)),
            "num_rows": np.zeros(self.num_trees, dtype=np.int64),
        }

    def learn(
        self, learnt: Arrays, ids: NDArray[np.int64], rows: NDArray[np.float32], epoch: int
    ) -> None:
        tree = self.lane if self.is_independent else np.zeros_like(self.lane)
        mean_balance(rows, ids, MeanTrees(tree=tree, **learnt))

    def end(self, learnt: Arrays) -> None:
        some = learnt["num_rows"] > 0
        learnt["centre"][some] = learnt["row_sum"][some] / learnt["num_rows"][some, None]
        learnt["row_sum"][:] = 0
        learnt["num_rows"][:] = 0


@dataclass(frozen=True, eq=False)
class PairSigns(SignRule):
    """Signs from differences of pairs; if random, likelier the more they shorten the sum."""

    is_random: bool = False

    def own_arrays(self, dim: int) -> Arrays:
        shape = self.num_lanes, 1 << self.depth
        return {
            "waiting": np.zeros((*shape, dim), dtype=np.float32),
            "waiting_id": np.full(shape, -1, dtype=np.int64),
            "walk": np.array([0.0, 0.0 if self.is_random else -1.0]),
        }

    def ranges(self) -> dict[str, tuple[int, int]]:
        return {**super().ranges(), "waiting_id": (-1, len(self.lane))}

    def learn(
        self, learnt: Arrays, ids: NDArray[np.int64], rows: NDArray[np.float32], epoch: int
    ) -> None:
        pair_balance(rows, ids, PairTrees(lane=self.lane, **learnt), self.seed * 1_000_003 + epoch)

    def end(self, learnt: Arrays) -> None:
        learnt["waiting_id"][:] = -1
        learnt["walk"][0] = 0
