"""Batches of indices for this rank, planned so that all ranks finish together."""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch.utils.data import Sampler

from paceline.balance import (
    MIN_REFIT_STEPS,
    BalanceConfig,
    Counts,
    Cursor,
    EpochPlan,
    EpochPlanner,
    Limits,
    Shards,
    Tail,
    micro_batches_of,
    refit_workers,
)
from paceline.cost import ExampleCost, LinearCost, Worker, example_costs
from paceline.timeline import Timeline
from paceline.torch.balance._named_orders import Order, policy_of
from paceline.torch.balance._refit import busy_seconds, workers_of_rank_0
from paceline.torch.ranks import Group, process_group_of, replica_of


class BalancedBatchSampler(Sampler[list[int]]):
    """Yields this rank's indices, one list per micro-batch.

    Every rank makes the same plan of an epoch by itself, once, and takes its own part
    of it; all have equally many micro-batches, so none is left waiting at the end.
    While one epoch is under way, the next is planned in a background thread, unless its
    order is yet to be learnt.

    A forgotten `set_epoch` is made up for by going to the next epoch, with a warning.

    Where workers hold different numbers of examples, their mean losses count
    differently: use `paceline.DataLoader` and multiply by its `loss_weight`.

    Args:
        sizes: Size of each example in tokens, frames or nodes, shape `(num_examples,)`;
            see `example_sizes`.
        batch_size: Examples per step over all ranks: the global batch.
        cost: Cost of an example by its size.
        num_replicas: Data-parallel ranks. By default from the environment (`WORLD_SIZE`),
            then from the process group, else 1.
        rank: This rank, likewise (`RANK`).
        group: Process group, or one axis of a device mesh, to take both from.
        counts: As in `BalanceConfig`, like the next four.
        padded: Whether a micro-batch is padded to its longest example.
        window: Steps over which examples may move; 1 keeps the global batches of a plain
            shuffle.
        num_microbatches: Micro-batches per rank and step.
        limits: What one micro-batch may hold.
        tail: What becomes of a last batch that is not full; by default `"zero-weight"`.
        drop_last: Short for `tail="drop"`.
        longest_first: Whether the dearest step comes first.
        shuffle: Whether each epoch has an order of its own.
        seed: Of the shuffle; equal on all ranks.
        order: In which order examples come; who computes them is decided afterwards.
            `"shuffle"` is plain reshuffling; `"stratified"` spreads each class evenly;
            `"pair-balance"` is `paceline.order.pair_balance`, which learns from gradients: see
            `GradientOrder`. Or a policy, of this sampler alone. All but the first need a
            window of 1, and no `longest_first`, which undo an order, and no shards.
        labels: Class of each example, for `"stratified"`.
        example_bytes: Bytes of each example, for `limits.max_bytes`.
        shards: Who can read which example; see `plan_epoch`.
        workers: Speed and overhead of each rank; unset for equal ones.

    Raises:
        ValueError: If a value is bad or values do not fit together.

    Examples:
        >>> batches = BalancedBatchSampler([3, 1, 2, 2], 4, num_replicas=2, rank=0, shuffle=False)
        >>> list(batches), len(batches)
        ([[0, 1]], 1)
    """

    def __init__(
        self,
        sizes: ArrayLike,
        batch_size: int,
        *,
        cost: ExampleCost | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
        group: Group | None = None,
        counts: Counts = "equal",
        padded: bool = False,
        window: int = 1,
        num_microbatches: int = 1,
        limits: Limits | None = None,
        tail: Tail | None = None,
        drop_last: bool = False,
        longest_first: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        order: Order = "shuffle",
        labels: ArrayLike | None = None,
        example_bytes: ArrayLike | None = None,
        shards: Shards | None = None,
        workers: tuple[Worker, ...] | None = None,
    ) -> None:
        self.num_replicas, self.rank = replica_of(num_replicas, rank, group)
        config = BalanceConfig(
            batch_size=batch_size,
            num_workers=self.num_replicas,
            counts=counts,
            padded=padded,
            window=window,
            num_microbatches=num_microbatches,
            limits=limits or Limits(),
            tail=_tail(tail, drop_last=drop_last),
            longest_first=longest_first,
            shuffle=shuffle,
            seed=seed,
        )
        if workers is not None and len(workers) != self.num_replicas:
            raise ValueError(f"workers must hold {self.num_replicas} entries, got {len(workers)}")
        size = np.asarray(sizes, dtype=np.float64)
        self.order = policy_of(order, labels, len(size), shuffle=shuffle, seed=seed)
        self.planner = EpochPlanner(
            example_costs(cost or LinearCost(), size),
            config,
            sizes=size if config.limits.max_tokens < inf else None,
            example_bytes=example_bytes,
            shards=shards,
            order=self.order,
        )
        self._workers = workers or (Worker(),) * self.num_replicas
        self.group = group
        self._begin_calls: list[Callable[[BatchPass], None]] = []
        self._cursor = Cursor(workers=self._workers)
        self._pass: BatchPass | None = None
        self._is_epoch_set = True
        self._has_warned = not shuffle
        self._plans_ahead = True
        self._finished: Cursor | None = None

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one if none is."""
        return self._cursor.epoch

    @property
    def cursor(self) -> Cursor:
        """Where the newest iterator stands, or where the next one begins."""
        return self._cursor

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Speed and overhead of each rank that plans assume from here on."""
        return self._cursor.workers

    @property
    def plan(self) -> EpochPlan:
        """The plan of `epoch`, made if it is not there yet; equal on all ranks.

        Raises:
            ValueError: If its order is yet to be learnt; `set_epoch` ends the epoch before.
        """
        return self.planner.plan(self._cursor)

    @property
    def newest_pass(self) -> "BatchPass | None":
        """The last iterator that was made, unless the position was set since."""
        return self._pass

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a restored position inside it is kept.

        Setting the epoch that is already being iterated starts it over. An order that
        learns makes its next order here, on all ranks, and cannot go back.

        Raises:
            ValueError: If `epoch` is negative, or gone for an order that learns.
        """
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self.planner.begin_epoch(epoch)
        has_begun = self._pass is not None and self._pass.has_begun
        if epoch != self._cursor.epoch or has_begun:
            self._move_to(self._cursor.at_epoch(epoch))
        self._is_epoch_set = True

    def __iter__(self) -> "BatchPass":
        if not self._is_epoch_set:
            if self._pass is not None and not self._pass.has_ended:
                self._cursor = self._cursor.at_epoch(self.epoch + 1)
            self._is_epoch_set = True
            if not self._has_warned:
                self._has_warned = True
                warn_of_forgotten_epoch(self.epoch)
        self.planner.begin_epoch(self.epoch)
        self._pass = BatchPass(self, self._cursor)
        return self._pass

    def on_begin(self, call: Callable[["BatchPass"], None]) -> None:
        """Have `call` told of every pass that begins, before its first batch is asked for."""
        self._begin_calls.append(call)

    def __len__(self) -> int:
        """Return how many micro-batches the pass under way, or else the next one, yields.

        After a restore that is what is left of the epoch. Limits can make it differ from
        epoch to epoch. While the order of the next pass is yet to be learnt, it is the length
        of the whole epoch before.
        """
        is_under_way = self._pass is not None and not self._pass.has_ended
        begin = self._pass.begin if self._pass and is_under_way else self._cursor
        if self.order is not None and not self.planner.knows(begin.epoch):
            # Asked on one rank alone, say for a progress bar, it must not end an epoch.
            begin = begin.at_epoch(self.order.epoch)
        offsets = self.planner.plan(begin).step_offsets
        return int(offsets[-1] - offsets[begin.num_steps]) // self.num_replicas

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the newest iterator, in whole steps that it yielded.

        Plain values, equal on all ranks, safe to save as JSON. A loader with workers asks
        for batches before they are needed: save the state of `paceline.DataLoader`, which
        counts what it delivered. What an order learnt is part of it; arrays are base64 text.
        """
        return self.planner.state_dict(self._cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood, also on another number of ranks.

        Each example that was not delivered is, once. With a window of 1 the global
        batches stay the same. `state` is left unchanged.

        Raises:
            StateMismatchError: If the state is of another dataset, cost model or
                configuration, or damaged; raised on every rank alike, before any
                communication.
        """
        self._move_to(self.planner.load_state_dict(state, self._workers))
        self._is_epoch_set = True

    def refit(self, timeline: Timeline) -> None:
        """Learn each rank's speed from the last epoch, and plan with it from now on.

        All ranks must call it, between two epochs; they agree on rank 0's numbers. An
        epoch of fewer than 4 steps, such as the end of a restored one, says too little:
        then nothing changes.

        Args:
            timeline: The measured spans of all ranks, `run.gather()`. If it holds more
                steps than the last epoch had, its last ones count.

        Raises:
            ValueError: If no epoch has ended, one is under way, or the timeline does
                not cover the last one.
        """
        if self._finished is None or self._is_under_way:
            raise ValueError(
                f"refit needs an epoch that has just ended, and epoch {self.epoch} "
                f"{'is under way' if self._is_under_way else 'has nothing before it'}; call it "
                "after the loop over the loader"
            )
        plan, first = self.planner.plan(self._finished), self._finished.num_steps
        if plan.num_steps - first < MIN_REFIT_STEPS:
            return
        seconds = busy_seconds(timeline, self.num_replicas, plan.num_steps - first)
        workers = refit_workers(plan.load[first:], seconds, plan.workers)
        group = process_group_of(self.group, self.num_replicas)
        self._cursor = replace(self._cursor, workers=workers_of_rank_0(workers, group))
        # A plan made ahead would not know the speeds that the next refit finds.
        self._plans_ahead = False
        self.planner.plan_ahead(self._cursor)

    @property
    def _is_under_way(self) -> bool:
        run = self._pass
        is_running = run is not None and run.has_begun and not run.has_ended
        return is_running or bool(self._cursor.num_steps or self._cursor.earlier)

    def _move_to(self, cursor: Cursor) -> None:
        self._cursor = cursor
        self._pass = None

    def _on_begin(self, run: "BatchPass") -> None:
        """Note that an epoch is in use; a loader with workers makes two passes and uses one."""
        if run is self._pass:
            self._is_epoch_set = False
            for call in self._begin_calls:
                call(run)
            if self._plans_ahead:
                self.planner.plan_ahead(self._cursor.at_epoch(self.epoch + 1))

    def _on_step(self, run: "BatchPass") -> None:
        if run is self._pass:
            self._cursor = run.cursor

    def _on_end(self, run: "BatchPass") -> None:
        if run is self._pass:
            self._finished = run.begin
            self._cursor = run.cursor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pass": None, "_is_epoch_set": True, "_begin_calls": []}


class BatchPass(Iterator[list[int]]):
    """One pass over the rest of an epoch; yields lists of indices.

    Attributes:
        begin: Where it began.
        cursor: Where it stands; at the start of the next epoch once it has ended.
        has_begun: Whether it was asked for a batch.
        has_ended: Whether all were yielded.
    """

    def __init__(self, sampler: BalancedBatchSampler, begin: Cursor) -> None:
        self._sampler = sampler
        self._start(begin)

    def _start(self, begin: Cursor) -> None:
        self.begin = self.cursor = begin
        self.plan = self._sampler.planner.plan(begin)
        self.has_begun = self.has_ended = False
        self._batches = micro_batches_of(self.plan, self._sampler.rank, first_step=begin.num_steps)

    def __next__(self) -> list[int]:
        if not self.has_begun:
            self.has_begun = True
            self._sampler._on_begin(self)
        batch = next(self._batches, None)
        if batch is None:
            self._end()
            raise StopIteration
        if batch.is_step_end:
            self.cursor = replace(self.cursor, num_steps=batch.step + 1)
            self._sampler._on_step(self)
        indices: list[int] = batch.examples.tolist()
        return indices

    def _end(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            self.cursor = self.begin.at_epoch(self.begin.epoch + 1)
            self._sampler._on_end(self)

    def state_dict(self) -> dict[str, Any]:
        """Return where this iterator stands; like the sampler's."""
        return self._sampler.planner.state_dict(self.cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, and bring the sampler along."""
        self._sampler.load_state_dict(state)
        self._sampler._pass = self
        self._start(self._sampler._cursor)


def warn_of_forgotten_epoch(epoch: int) -> None:
    """Say that a sampler went on to `epoch` by itself."""
    warnings.warn(
        f"set_epoch was not called before epoch {epoch}; the sampler goes on to it by itself. "
        "Call set_epoch(epoch) before each epoch to choose it.",
        stacklevel=3,
    )


def _tail(tail: Tail | None, *, drop_last: bool) -> Tail:
    if drop_last and tail not in (None, "drop"):
        raise ValueError(f"drop_last=True and tail={tail!r} contradict; pass one of them")
    return tail or ("drop" if drop_last else "zero-weight")
