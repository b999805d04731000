"""Where a run stands in the data, and how it goes on with another number of workers.

An epoch is a list of *segments*: steps that one set of workers delivered. Each plans
what the ones before it left over, in the order in which they would have gone on. With a
window of 1 the global batches stay the same, whoever shares them.
"""

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.balance._config import BalanceConfig
from paceline.balance._epoch_plan import EpochPlan
from paceline.balance._plan import plan_epoch
from paceline.balance._shards import Shards
from paceline.balance._state import Dataset, Segment, plain_state, segments_of
from paceline.cost import Worker, checked_column
from paceline.errors import StateMismatchError

PLANS_KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Cursor:
    """Where a run stands in the data; equal on every rank.

    Attributes:
        workers: Speed and overhead of each present worker.
        epoch: Number of the epoch.
        num_steps: Steps that the present workers delivered in this epoch.
        earlier: What other workers delivered of it before.
    """

    workers: tuple[Worker, ...]
    epoch: int = 0
    num_steps: int = 0
    earlier: tuple[Segment, ...] = ()

    def at_epoch(self, epoch: int) -> "Cursor":
        """Return the start of `epoch` with the same workers."""
        return Cursor(workers=self.workers, epoch=epoch)


class EpochPlanner:
    """Plans what is left of an epoch, from wherever a run stands.

    Plans are pure functions of a `Cursor` and of what the planner was made with. The
    last two are kept, and the next can be computed in the background.

    Args:
        costs: Cost of each example, shape `(num_examples,)`.
        config: What fixes the plan.
        sizes: Size of each example, for `max_tokens`; same shape.
        example_bytes: Bytes of each example, for `max_bytes`; same shape.
        shards: Who can read which example; part of what tells the dataset.

    Raises:
        ValueError: If a value is negative or not finite, or shapes disagree.

    Examples:
        >>> config = BalanceConfig(batch_size=4, num_workers=2)
        >>> planner = EpochPlanner(range(10), config)
        >>> start = Cursor(workers=(Worker(), Worker()))
        >>> planner.plan(start).num_steps
        3
        >>> state = planner.state_dict(replace(start, num_steps=1))
        >>> elsewhere = EpochPlanner(range(10), replace(config, num_workers=4))
        >>> cursor = elsewhere.load_state_dict(state)
        >>> cursor.num_steps, len(cursor.workers), elsewhere.plan(cursor).num_steps
        (0, 4, 2)
    """

    def __init__(
        self,
        costs: ArrayLike,
        config: BalanceConfig,
        *,
        sizes: ArrayLike | None = None,
        example_bytes: ArrayLike | None = None,
        shards: Shards | None = None,
    ) -> None:
        self.config = config
        self.costs = checked_column("costs", costs)
        self._sizes = _like(self.costs, "sizes", sizes)
        self._example_bytes = _like(self.costs, "example_bytes", example_bytes)
        self._shards = shards
        self._plans: dict[Cursor, EpochPlan] = {}
        self._digests: dict[Cursor, str] = {}
        self._ahead: tuple[Cursor, Future[EpochPlan]] | None = None

    @cached_property
    def dataset(self) -> Dataset:
        """What tells this dataset from another."""
        columns = (self.costs, self._sizes, self._example_bytes)
        given: list[NDArray[Any]] = [column for column in columns if column is not None]
        if self._shards is not None:
            readers = [(s, rank) for s, ranks in enumerate(self._shards.readers) for rank in ranks]
            given += [self._shards.shard, np.array(readers)]
        return Dataset(num_examples=len(self.costs), digest=_digest(*given))

    def plan(self, cursor: Cursor) -> EpochPlan:
        """Return the plan of which `cursor.num_steps` steps are delivered.

        Raises:
            ValueError: If the epoch cannot be planned; see `plan_epoch`.
            StateMismatchError: If the plan of an earlier segment is not the saved one.
        """
        start = replace(cursor, num_steps=0)
        if start not in self._plans:
            ahead, self._ahead = self._ahead, None
            is_ahead = ahead is not None and ahead[0] == start
            plan = ahead[1].result() if ahead and is_ahead else self._compute(start)
            while len(self._plans) >= PLANS_KEPT:
                oldest = next(iter(self._plans))
                del self._plans[oldest]
                self._digests.pop(oldest, None)
            self._plans[start] = plan
        return self._plans[start]

    def plan_ahead(self, cursor: Cursor) -> None:
        """Begin to plan in a background thread, so that `plan(cursor)` need not wait long."""
        start = replace(cursor, num_steps=0)
        if start in self._plans or (self._ahead and self._ahead[0] == start):
            return
        executor = ThreadPoolExecutor(1, thread_name_prefix="paceline-plan")
        self._ahead = start, executor.submit(self._compute, start)
        executor.shutdown(wait=False)

    def state_dict(self, cursor: Cursor) -> dict[str, Any]:
        """Return plain values, the same on every rank, safe to save as JSON."""
        segments = (*cursor.earlier, self._segment(cursor))
        return plain_state(self.dataset, self.config, cursor.epoch, segments)

    def load_state_dict(
        self, state: Mapping[str, Any], workers: tuple[Worker, ...] | None = None
    ) -> Cursor:
        """Return where a saved run stands, for the workers of this one.

        With as many workers and micro-batches as before it goes on in the same plan,
        with the speeds that were saved. Otherwise what is left is planned anew, for
        `workers`. `state` is left unchanged.

        Args:
            state: What `state_dict` returned, on any rank of the saved run.
            workers: Speed and overhead of each present worker; unset for equal ones.

        Raises:
            StateMismatchError: If the state is of another dataset, configuration or
                version, or damaged, or if its plans come out differently here.
        """
        epoch, segments = segments_of(state, self.dataset, self.config)
        # Nothing binds to the plan of workers who were gone before they began.
        segments = tuple(s for s in segments if s.num_steps) or segments[-1:]
        last = segments[-1]
        workers = workers or (Worker(),) * self.config.num_workers
        is_same = (len(last.workers), last.num_microbatches) == (
            self.config.num_workers,
            self.config.num_microbatches,
        )
        if is_same:
            cursor = Cursor(workers=last.workers, epoch=epoch, earlier=segments[:-1])
            self._check_segment(last, self.plan(cursor), epoch)
            return replace(cursor, num_steps=last.num_steps)
        earlier = segments if last.num_steps else ()
        cursor = Cursor(workers=workers, epoch=epoch, earlier=earlier)
        self.plan(cursor)
        return cursor

    def _segment(self, cursor: Cursor) -> Segment:
        return Segment(
            workers=cursor.workers,
            num_microbatches=self.config.num_microbatches,
            num_steps=cursor.num_steps,
            digest=self._plan_digest(cursor) if cursor.num_steps else None,
        )

    def _plan_digest(self, cursor: Cursor) -> str:
        start = replace(cursor, num_steps=0)
        plan = self.plan(start)
        if start not in self._digests:
            self._digests[start] = plan_digest(plan)
        return self._digests[start]

    def _compute(self, start: Cursor) -> EpochPlan:
        remaining: NDArray[np.int64] | None = None
        for segment in start.earlier:
            plan = self._plan_rest(segment, remaining, start.epoch)
            self._check_segment(segment, plan, start.epoch)
            remaining = remaining_examples(plan, segment.num_steps)
        return self._plan_rest(self._segment(start), remaining, start.epoch)

    def _plan_rest(
        self, segment: Segment, remaining: NDArray[np.int64] | None, epoch: int
    ) -> EpochPlan:
        config = replace(
            self.config,
            num_workers=len(segment.workers),
            num_microbatches=segment.num_microbatches,
        )
        if remaining is not None and not len(remaining):
            return _empty_plan(segment.workers)
        is_few = remaining is not None and len(remaining) < config.num_workers
        if remaining is not None and is_few:
            remaining = np.resize(remaining, config.num_workers)
        plan = plan_epoch(
            self.costs,
            config,
            epoch=epoch,
            sizes=self._sizes,
            example_bytes=self._example_bytes,
            workers=segment.workers,
            remaining=remaining,
            shards=self._shards,
        )
        return _with_repeats(plan) if is_few else plan

    @staticmethod
    def _check_segment(segment: Segment, plan: EpochPlan, epoch: int) -> None:
        is_same = not segment.num_steps or plan_digest(plan) == segment.digest
        if not is_same or segment.num_steps > plan.num_steps:
            raise StateMismatchError(
                f"the plan of epoch {epoch} for {len(segment.workers)} workers comes out other "
                "than the one that was saved, so examples would be lost or repeated; use the "
                "versions of paceline and NumPy that saved the state, or start the next epoch"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None}


def remaining_examples(plan: EpochPlan, num_steps: int) -> NDArray[np.int64]:
    """Return what is left after `num_steps` steps of `plan`, each example once, in order."""
    first = plan.micro_offsets[plan.step_offsets[num_steps]]
    return plan.examples[first:][~plan.is_repeat[first:]]


def plan_digest(plan: EpochPlan) -> str:
    """Return a hash of who gets what and when."""
    return _digest(plan.examples, plan.is_repeat, plan.micro_offsets, plan.step_offsets)


def _digest(*arrays: NDArray[Any]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _like(
    costs: NDArray[np.float64], name: str, values: ArrayLike | None
) -> NDArray[np.float64] | None:
    if values is None:
        return None
    column = checked_column(name, values)
    if column.shape != costs.shape:
        raise ValueError(f"{name} must have shape {costs.shape} like the costs, got {column.shape}")
    return column


def _with_repeats(plan: EpochPlan) -> EpochPlan:
    """Mark all but one slot of each example of a plan of one step as repeats."""
    _, first = np.unique(plan.examples, return_index=True)
    is_repeat = np.ones(len(plan.examples), dtype=bool)
    is_repeat[first] = False
    return replace(plan, is_repeat=is_repeat)


def _empty_plan(workers: tuple[Worker, ...]) -> EpochPlan:
    return EpochPlan(
        num_workers=len(workers),
        examples=np.zeros(0, dtype=np.int64),
        is_repeat=np.zeros(0, dtype=bool),
        weighs_repeats=False,
        micro_offsets=np.zeros(1, dtype=np.int64),
        step_offsets=np.zeros(1, dtype=np.int64),
        load=np.zeros((0, len(workers))),
        workers=workers,
    )
