"""Batches of indices for this rank, planned so that all ranks finish together."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import distributed as dist
from torch.utils.data import Sampler

from paceline.balance import (
    MIN_REFIT_STEPS,
    BalanceConfig,
    Counts,
    Cursor,
    EpochPlan,
    EpochPlanner,
    Shards,
    refit_workers,
)
from paceline.cost import ExampleCost, LinearCost, Worker, example_costs
from paceline.timeline import Timeline
from paceline.torch.balance._batch_pass import BatchPass
from paceline.torch.balance._epoch_choice import EpochChoice
from paceline.torch.balance._named_orders import Order, policy_of
from paceline.torch.balance._refit import busy_seconds, workers_of_rank_0
from paceline.torch.balance._short_form import config_of
from paceline.torch.ranks import Group, Replica, process_group_of, replica_of


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
        config: What fixes who gets which example; its `num_workers` is filled in. Or, for
            short, the next five:
        batch_size: Examples per step over all ranks: the global batch.
        counts: `"equal"` or `"free"` numbers of examples per rank and step.
        shuffle: Whether each epoch has an order of its own; by default it has.
        seed: Of the shuffle; equal on all ranks.
        drop_last: Whether a last batch that is not full is left out; by default it is
            filled up with repeats that count nothing.
        cost: Cost of an example by its size; by default the size.
        workers: Speed and overhead of each rank; unset for equal ones.
        process_group: The data-parallel ranks: a process group, one axis of a device mesh, or
            a `Replica`. By default from the environment (`WORLD_SIZE` and `RANK`), then the
            default process group, else one process.
        order: In which order examples come; who computes them is decided afterwards.
            `"shuffle"` is plain reshuffling; `"stratified"` spreads each class evenly;
            `"pair-balance"` is `paceline.order.pair_balance`, which learns from gradients: see
            `GradientOrder`. Or a policy, of this sampler alone. All but the first need a
            window of 1, and no `longest_first`, which undo an order, and no shards.
        labels: Class of each example, for `"stratified"`.
        example_bytes: Bytes of each example, for `limits.max_bytes`.
        shards: Who can read which example; see `plan_epoch`.

    Raises:
        ValueError: If a value is bad or values do not fit together.

    Examples:
        >>> first_of_two = Replica(rank=0, num_replicas=2)
        >>> batches = BalancedBatchSampler(
        ...     [3, 1, 2, 2], batch_size=4, shuffle=False, process_group=first_of_two
        ... )
        >>> list(batches), len(batches)
        ([[0, 1]], 1)
        >>> config = BalanceConfig(batch_size=4, padded=True, counts="free", shuffle=False)
        >>> batches = BalancedBatchSampler([6, 2, 2, 2], config, process_group=first_of_two)
        >>> list(batches)
        [[0]]
    """

    def __init__(
        self,
        sizes: ArrayLike,
        config: BalanceConfig | None = None,
        *,
        batch_size: int | None = None,
        counts: Counts | None = None,
        shuffle: bool | None = None,
        seed: int | None = None,
        drop_last: bool | None = None,
        cost: ExampleCost | None = None,
        workers: tuple[Worker, ...] | None = None,
        process_group: Group | Replica | None = None,
        order: Order = "shuffle",
        labels: ArrayLike | None = None,
        example_bytes: ArrayLike | None = None,
        shards: Shards | None = None,
    ) -> None:
        place = replica_of(process_group)
        self.num_replicas, self.rank = place.num_replicas, place.rank
        config = config_of(
            config,
            place.num_replicas,
            "zero-weight",
            batch_size=batch_size,
            counts=counts,
            shuffle=shuffle,
            seed=seed,
            drop_last=drop_last,
        )
        if workers is not None and len(workers) != self.num_replicas:
            raise ValueError(f"workers must hold {self.num_replicas} entries, got {len(workers)}")
        size = np.asarray(sizes, dtype=np.float64)
        self.order = policy_of(order, labels, len(size), config)
        self.planner = EpochPlanner(
            example_costs(cost or LinearCost(), size),
            config,
            sizes=size if config.limits.max_tokens < inf else None,
            example_bytes=example_bytes,
            shards=shards,
            order=self.order,
        )
        self._workers = workers or (Worker(),) * self.num_replicas
        self._process_group = process_group
        self._begin_calls: list[Callable[[BatchPass], None]] = []
        self._cursor = Cursor(workers=self._workers)
        self._pass: BatchPass | None = None
        self._choice = EpochChoice(warns=config.shuffle)
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
    def process_group(self) -> dist.ProcessGroup | None:
        """The process group in which the ranks can talk; None if there is none."""
        return process_group_of(self._process_group, self.num_replicas)

    @property
    def plan(self) -> EpochPlan:
        """The plan of `epoch`, made if it is not there yet; equal on all ranks.

        Raises:
            ValueError: If its order is yet to be learnt; `set_epoch` ends the epoch before.
        """
        return self.planner.plan(self._cursor)

    @property
    def newest_pass(self) -> BatchPass | None:
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
            self._cursor, self._pass = self._cursor.at_epoch(epoch), None
        self._choice.is_made = True

    def __iter__(self) -> BatchPass:
        if not self._choice.is_made:
            if self._pass is not None and not self._pass.has_ended:
                self._cursor = self._cursor.at_epoch(self.epoch + 1)
            self._choice.make_up(self.epoch)
        self.planner.begin_epoch(self.epoch)
        self._pass = BatchPass(self, self._cursor)
        return self._pass

    def on_begin(self, call: Callable[[BatchPass], None]) -> None:
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
        counts = self.planner.plan(begin).num_microbatches
        return int(counts[begin.num_steps :, self.rank].sum())

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
        self._cursor = self.planner.load_state_dict(state, self._workers)
        self._pass = None
        self._choice.is_made = True

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
        workers = workers_of_rank_0(workers, self.process_group)
        self._cursor = replace(self._cursor, workers=workers)
        # A plan made ahead would not know the speeds that the next refit finds.
        self._plans_ahead = False
        self.planner.plan_ahead(self._cursor)

    @property
    def _is_under_way(self) -> bool:
        is_running = self._pass is not None and self._pass.is_under_way
        return is_running or bool(self._cursor.num_steps or self._cursor.earlier)

    def _restore(self, state: Mapping[str, Any], run: BatchPass) -> Cursor:
        self.load_state_dict(state)
        self._pass = run
        return self._cursor

    def _on_begin(self, run: BatchPass) -> None:
        """Note that an epoch is in use; a loader with workers makes two passes and uses one."""
        if run is self._pass:
            self._choice.is_made = False
            for call in self._begin_calls:
                call(run)
            if self._plans_ahead:
                self.planner.plan_ahead(self._cursor.at_epoch(self.epoch + 1))

    def _on_move(self, run: BatchPass) -> None:
        if run is self._pass:
            self._cursor = run.cursor
            if run.has_ended:
                self._finished = run.begin

    def __getstate__(self) -> dict[str, Any]:
        chosen = replace(self._choice, is_made=True)
        return {**self.__dict__, "_pass": None, "_begin_calls": [], "_choice": chosen}
