"""Plan what is left of an epoch, for any number of workers."""

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.balance._config import BalanceConfig, Microbatches
from paceline.balance._epoch_plan import EpochPlan
from paceline.balance._example_order import (
    ExampleOrder,
    check_keeps_order,
    go_to_epoch,
    knows,
    load_plain_order,
    plain_order,
)
from paceline.balance._plan import column_like_costs, plan_epoch
from paceline.balance._shards import Shards
from paceline.balance.cursor._cursor import Cursor
from paceline.balance.cursor._rest import (
    KeptPlan,
    check_segment,
    digest_of,
    empty_plan,
    remaining_examples,
    with_repeats,
)
from paceline.balance.cursor._state import Dataset, Segment, plain_state, segments_of
from paceline.cost import Worker, checked_column

PLANS_KEPT = 2


class EpochPlanner:
    """Plans what is left of an epoch, from wherever a run stands.

    Plans are pure functions of a `Cursor` and of what the planner was made with; with an
    order that learns, of what it learnt as well. The last two are kept, and the next can
    be computed in the background, unless its order is yet to be learnt.

    Args:
        costs: Cost of each example, shape `(num_examples,)`.
        config: What fixes the plan.
        sizes: Size of each example, for `max_tokens`; same shape.
        example_bytes: Bytes of each example, for `max_bytes`; same shape.
        shards: Who can read which example; part of what tells the dataset.
        order: In which order examples come; unset for the shuffle. It belongs to this
            planner alone: its epochs end, and its state is saved and loaded, here.

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
        order: ExampleOrder | None = None,
    ) -> None:
        self.costs = checked_column("costs", costs)
        self.config = config = config.with_window(len(self.costs))
        self._sizes = self._column("sizes", sizes)
        self._example_bytes = self._column("example_bytes", example_bytes)
        self._shards = shards
        if order is not None:
            check_keeps_order(config, shards)
            if order.num_examples != len(self.costs):
                raise ValueError(
                    f"the order is of {order.num_examples} examples, and there are "
                    f"{len(self.costs)} costs; make it for this dataset"
                )
        self.order = order
        self._plans: dict[Cursor, KeptPlan] = {}
        self._ahead: tuple[Cursor, Future[KeptPlan]] | None = None

    def _column(self, name: str, values: ArrayLike | None) -> NDArray[np.float64] | None:
        return None if values is None else column_like_costs(name, values, len(self.costs))

    @cached_property
    def dataset(self) -> Dataset:
        """What tells this dataset from another."""
        columns = (self.costs, self._sizes, self._example_bytes)
        given: list[NDArray[Any]] = [column for column in columns if column is not None]
        if self._shards is not None:
            readers = [(s, rank) for s, ranks in enumerate(self._shards.readers) for rank in ranks]
            given += [self._shards.shard, np.array(readers)]
        return Dataset(num_examples=len(self.costs), digest=digest_of(*given))

    def plan(self, cursor: Cursor) -> EpochPlan:
        """Return the plan of which `cursor.num_steps` steps are delivered.

        Raises:
            ValueError: If the epoch cannot be planned; see `plan_epoch`.
            StateMismatchError: If the plan of an earlier segment is not the saved one.
        """
        return self._kept(cursor).plan

    def digest(self, cursor: Cursor) -> str:
        """Return a hash of `plan(cursor)`: who gets what and when; equal on all ranks."""
        return self._kept(cursor).digest

    def num_microbatches(self, cursor: Cursor, worker: int) -> int:
        """Return how many the whole epoch has for `worker`, with what others delivered of it."""
        kept = self._kept(cursor)
        return kept.num_before + int(kept.plan.num_microbatches[:, worker].sum())

    def recut(self, num_microbatches: Microbatches) -> "EpochPlanner":
        """Return a planner that differs in the number of micro-batches only."""
        twin = copy(self)
        twin.config = replace(self.config, num_microbatches=num_microbatches)
        twin._plans, twin._ahead = {}, None
        return twin

    def knows(self, epoch: int) -> bool:
        """Whether the order of `epoch` is known, so that it can be planned."""
        return self.order is None or knows(self.order, epoch)

    def begin_epoch(self, epoch: int) -> None:
        """Tell the order that the epochs before `epoch` have ended: it makes the next.

        Call it on all ranks; without an order it does nothing.

        Raises:
            ValueError: If the order learns and is past that epoch.
        """
        if self.order is not None:
            go_to_epoch(self.order, epoch)

    def plan_ahead(self, cursor: Cursor) -> None:
        """Begin to plan in a background thread, so that `plan(cursor)` need not wait long.

        Does nothing where the order is yet to be learnt.
        """
        start = replace(cursor, num_steps=0)
        is_there = start in self._plans or (self._ahead and self._ahead[0] == start)
        if is_there or not self.knows(cursor.epoch):
            return
        executor = ThreadPoolExecutor(1, thread_name_prefix="paceline-plan")
        self._ahead = start, executor.submit(self._compute, start)
        executor.shutdown(wait=False)

    def state_dict(self, cursor: Cursor) -> dict[str, Any]:
        """Return plain values, the same on every rank, safe to save as JSON."""
        segments = (*cursor.earlier, self._segment(cursor))
        state = plain_state(self.dataset, self.config, cursor.epoch, segments)
        return state if self.order is None else {**state, "order": plain_order(self.order)}

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
                version, or damaged, or if its plans come out differently here; then
                nothing is loaded.
        """
        epoch, segments = segments_of(state, self.dataset, self.config)
        before = None if self.order is None else self.order.state_dict()
        try:
            load_plain_order(self.order, state, epoch)
            self._forget_ordered()
            return self._resume(epoch, segments, workers)
        except ValueError:
            if self.order is not None and before is not None:
                self.order.load_state_dict(before)
                self._forget_ordered()
            raise

    def _resume(
        self, epoch: int, segments: tuple[Segment, ...], workers: tuple[Worker, ...] | None
    ) -> Cursor:
        # Nothing binds to the plan of workers who were gone before they began.
        segments = tuple(s for s in segments if s.num_steps) or segments[-1:]
        last = segments[-1]
        workers = workers or (Worker(),) * self.config.num_workers
        is_same = (len(last.workers), last.num_microbatches) == (
            self.config.num_workers,
            self.config.microbatches,
        )
        if is_same:
            cursor = Cursor(workers=last.workers, epoch=epoch, earlier=segments[:-1])
            check_segment(last, self.plan(cursor), epoch)
            return replace(cursor, num_steps=last.num_steps)
        earlier = segments if last.num_steps else ()
        cursor = Cursor(workers=workers, epoch=epoch, earlier=earlier)
        self.plan(cursor)
        return cursor

    def _forget_ordered(self) -> None:
        """Drop what was planned in an order that another state replaced."""
        if self.order is not None:
            self._plans.clear()
            self._ahead = None

    def _order_of(self, epoch: int) -> NDArray[np.int64] | None:
        if not self.knows(epoch):
            raise ValueError(
                f"epoch {epoch} has no order yet: it is learnt until the epoch before it has "
                f"ended; call set_epoch({epoch}) first"
            )
        return None if self.order is None else self.order.order(epoch)

    def _segment(self, cursor: Cursor) -> Segment:
        return Segment(
            workers=cursor.workers,
            num_microbatches=self.config.microbatches,
            num_steps=cursor.num_steps,
            digest=self.digest(cursor) if cursor.num_steps else None,
        )

    def _kept(self, cursor: Cursor) -> KeptPlan:
        """Return the plan that begins this part of the epoch, made if it is not there yet."""
        start = replace(cursor, num_steps=0)
        if start not in self._plans:
            ahead, self._ahead = self._ahead, None
            is_ahead = ahead is not None and ahead[0] == start
            kept = ahead[1].result() if ahead and is_ahead else self._compute(start)
            while len(self._plans) >= PLANS_KEPT:
                del self._plans[next(iter(self._plans))]
            self._plans[start] = kept
        return self._plans[start]

    def _compute(self, start: Cursor) -> KeptPlan:
        remaining: NDArray[np.int64] | None = None
        num_before = 0
        for segment in start.earlier:
            plan = self._plan_rest(segment, remaining, start.epoch)
            check_segment(segment, plan, start.epoch)
            remaining = remaining_examples(plan, segment.num_steps)
            num_before += int(plan.num_microbatches[: segment.num_steps].max(axis=1).sum())
        plan = self._plan_rest(self._segment(start), remaining, start.epoch)
        return KeptPlan(plan, num_before)

    def _plan_rest(
        self, segment: Segment, remaining: NDArray[np.int64] | None, epoch: int
    ) -> EpochPlan:
        config = replace(
            self.config,
            num_workers=len(segment.workers),
            num_microbatches=segment.num_microbatches,
        )
        if remaining is not None and not len(remaining):
            return empty_plan(segment.workers)
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
            order=self._order_of(epoch) if remaining is None else None,
            shards=self._shards,
        )
        return with_repeats(plan) if is_few else plan

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None}
