"""Whether all ranks plan the same, asked before the first batch."""

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import distributed as dist
from torch.utils.data import get_worker_info

import paceline
from paceline.balance import BalanceConfig, Cursor, EpochPlanner
from paceline.errors import PlanMismatchError
from paceline.torch.ranks import Facts, difference, meet

# At the start ranks may still be preparing data; the first all-reduce waits as long.
FIRST_BATCH_S = 1800.0
VERSIONS = {
    "version of paceline": paceline.__version__,
    "version of numpy": np.__version__,
}


def facts_of(num_examples: int, sizes: str, config: BalanceConfig, **others: Any) -> Facts:
    """Return what fixes a plan, by what a user calls it."""
    facts = {"number of examples": num_examples, "sizes": sizes, **asdict(config), **others}
    return {name: str(value) for name, value in facts.items()}


def digest_of_column(column: NDArray[np.float64] | None) -> str:
    """Return a hash of one value per example; empty for none."""
    return "" if column is None else hashlib.blake2b(column.tobytes(), digest_size=16).hexdigest()


def place_facts(planner: EpochPlanner, cursor: Cursor) -> Facts:
    """Return where a run stands in the data, and in which plan."""
    place = {"epoch": str(cursor.epoch), "steps of the epoch": str(cursor.num_steps)}
    return {**place, "plan": planner.digest(cursor)}


class PlanCheck:
    """Compares once, over ranks, what a sampler plans.

    Args:
        kind: What kind of sampler asks.
        is_wanted: Whether it compares at all.
    """

    def __init__(self, kind: str, *, is_wanted: bool) -> None:
        self._kind, self._is_wanted = kind, is_wanted
        self.renew()

    def renew(self) -> None:
        """Compare again before the next batch: something that fixes the plan was set."""
        self._is_due = self._is_wanted

    def run(
        self,
        facts: Callable[[], Facts],
        group: dist.ProcessGroup | None,
        num_replicas: int,
    ) -> None:
        """Compare `facts` over the ranks of `group`, if that is due; all must call it.

        Never for one rank, without a group, or in a worker process of a loader.

        Raises:
            PlanMismatchError: On every rank alike; names who differs in what.
            RankStalledError: If a rank does not come.
        """
        is_due, self._is_due = self._is_due, False
        can_talk = num_replicas > 1 and group is not None and get_worker_info() is None
        if not (is_due and can_talk):
            return
        way_out = "every rank must iterate its own; check_plan=False does not compare plans"
        place = f"the first batch of {self._kind}"
        meet(place, group, timeout_s=FIRST_BATCH_S, way_out=way_out)
        found = difference({**facts(), **VERSIONS}, group)
        if found is not None:
            raise PlanMismatchError(
                f"before the first batch: {found}; give every rank the same sizes, seed and "
                "configuration, or examples are lost and repeated"
            )
