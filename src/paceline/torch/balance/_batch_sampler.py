"""Batches of indices for this rank, planned so that all ranks finish together."""

from collections.abc import Callable, Mapping
from math import inf
from typing import Any

from numpy.typing import ArrayLike
from torch import distributed as dist
from torch.utils.data import Sampler

from paceline.balance import (
    BalanceConfig,
    Counts,
    Cursor,
    EpochPlan,
    EpochPlanner,
    Shards,
)
from paceline.cost import ExampleCost, Worker, example_costs
from paceline.timeline import Timeline
from paceline.torch.balance._epoch_walk import BatchPass, EpochWalk
from paceline.torch.balance._named_orders import Order, policy_of
from paceline.torch.balance._plan_check import (
    PlanCheck,
    digest_of_column,
    facts_of,
    place_facts,
)
from paceline.torch.balance._refit import checked_finished, refitted
from paceline.torch.balance._short_form import (
    checked_cost,
    checked_loss_terms,
    checked_sizes,
    config_of,
)
from paceline.torch.ranks import Facts, Group, Replica, data_ranks_of, process_group_of, replica_of


class BalancedBatchSampler(Sampler[list[int]]):
    """Yields this rank's indices, one list per micro-batch.

    Every rank makes the same plan of an epoch by itself, once, and takes its own part of it; all
    have equally many steps, so none is left waiting at the end. Before the first batch ranks
    compare what they plan. While one epoch is under way, the next is planned in a background
    thread, unless its order is yet to be learnt.

    An iterator belongs to the epoch that is set when its first batch is asked for. A forgotten
    `set_epoch` is made up for by going to the next epoch, with a warning.

    Where workers hold different numbers of examples, their mean losses count differently: use
    `paceline.DataLoader`, or `carry_info` with another loader, and multiply by `loss_weight`.

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
        data_axis: Which axis of the mesh in `process_group` shares the data. Ranks that differ in
            other axes (tensor, context, pipeline) get the same examples, and agree on one plan.
        order: In which order examples come; who computes them is decided afterwards.
            `"shuffle"` is plain reshuffling; `"stratified"` spreads each class evenly;
            `"pair-balance"` is `paceline.order.pair_balance`, which learns from gradients: see
            `GradientOrder`. Or a policy, of this sampler alone. All but the first need a
            window of 1, and no `longest_first`, which undo an order, and no shards.
        labels: Class of each example, for `"stratified"`.
        example_bytes: Bytes of each example, for `limits.max_bytes`.
        shards: Who can read which example; see `plan_epoch`.
        loss_terms: Terms of each example in the mean that the loss is, such as its target tokens
            for a mean over tokens, positive; unset for one each, a mean over examples.
        check_plan: Whether ranks compare sizes, settings and plan before the first batch, where
            there is a process group. All ranks must then iterate.

    Raises:
        ValueError: If a value is bad or values do not fit together.
        PlanMismatchError: At the first batch, if ranks plan differently; names them, and what
            differs.

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
        data_axis: str | None = None,
        order: Order = "shuffle",
        labels: ArrayLike | None = None,
        example_bytes: ArrayLike | None = None,
        shards: Shards | None = None,
        loss_terms: ArrayLike | None = None,
        check_plan: bool = True,
    ) -> None:
        data_ranks, self._everyone = data_ranks_of(process_group, data_axis)
        place = replica_of(data_ranks)
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
        size = checked_sizes(sizes)
        policy = policy_of(order, labels, len(size), config)
        planner = EpochPlanner(
            example_costs(checked_cost(cost), size),
            config,
            sizes=size if config.limits.max_tokens < inf else None,
            example_bytes=example_bytes,
            shards=shards,
            order=policy,
        )
        self.order = policy
        terms = checked_loss_terms(loss_terms, len(size), policy)
        self._walk = EpochWalk(
            planner, self.rank, terms, workers or (Worker(),) * self.num_replicas
        )
        self._process_group = data_ranks
        self._check = PlanCheck(type(self).__name__, is_wanted=check_plan)
        self._walk.begin_calls.append(self._compare)

    @property
    def planner(self) -> EpochPlanner:
        """What plans its epochs, from any position."""
        return self._walk.planner

    @property
    def epoch(self) -> int:
        """The epoch under way, or the next one if none is."""
        return self.cursor.epoch

    @property
    def cursor(self) -> Cursor:
        """Where the newest iterator stands, or where the next one begins."""
        return self._walk.cursor

    @property
    def workers(self) -> tuple[Worker, ...]:
        """Speed and overhead of each rank that plans assume from here on."""
        return self.cursor.workers

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
        return self.planner.plan(self.cursor)

    @property
    def newest_pass(self) -> BatchPass | None:
        """The last iterator that was made, unless the position was set since."""
        return self._walk.newest

    @property
    def facts(self) -> Facts:
        """What must be equal on all ranks, by what a user calls it."""
        dataset, order = self.planner.dataset, self.order
        return facts_of(
            dataset.num_examples,
            dataset.digest,
            self.planner.config,
            order="shuffle" if order is None else order.name,
            workers=self.workers,
            loss_terms=digest_of_column(self._walk.loss_terms),
        )

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a restored position inside it is kept.

        Setting the epoch that is already being iterated starts it over. An order that
        learns makes its next order here, on all ranks, and cannot go back.

        Raises:
            ValueError: If `epoch` is negative, or gone for an order that learns.
        """
        self._walk.set_epoch(epoch)

    def __iter__(self) -> BatchPass:
        return self._walk.new_pass()

    def on_begin(self, call: Callable[[BatchPass], None]) -> None:
        """Have `call` told of every pass that begins, before its first batch is asked for."""
        self._walk.begin_calls.append(call)

    def use_step_ends(self) -> None:
        """Learn that each batch tells whether it ends its step.

        Then a padded model's steps are cut by plan if the config says what a micro-batch costs,
        unless it says how many there are.
        """
        self._walk.use_step_ends()

    def __len__(self) -> int:
        """Return how many micro-batches the epoch under way, or else the next one, has here.

        The whole epoch, also after a restore; what other numbers of ranks delivered of it counts
        with the most that one of them had. Limits and `"auto"` can make it differ from epoch to
        epoch. While the order of the next is yet to be learnt, it is the epoch before.
        """
        return self._walk.num_microbatches()

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the newest iterator, in whole steps that it yielded.

        Plain values, equal on all ranks, safe to save as JSON. A loader with workers asks
        for batches before they are needed: save the state of `paceline.DataLoader`, which
        counts what it delivered. What an order learnt is part of it; arrays are base64 text.
        """
        return self.planner.state_dict(self.cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood, also on another number of ranks.

        Each example that was not delivered is, once. With a window of 1 the global
        batches stay the same. `state` is left unchanged.

        Raises:
            StateMismatchError: If the state is of another dataset, cost model or
                configuration, or damaged; raised on every rank alike, before any
                communication.
        """
        self._walk.load_state_dict(state)
        self._check.renew()

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
        walk = self._walk
        finished = checked_finished(walk.finished, self.epoch, is_under_way=walk.is_under_way)
        plan, group = self.planner.plan(finished), self._everyone or self.process_group
        workers = refitted(timeline, plan, finished.num_steps, group)
        if workers != plan.workers:
            walk.use_workers(workers)

    def _compare(self, run: BatchPass) -> None:
        self._check.run(
            lambda: {**self.facts, **place_facts(self.planner, run.begin)},
            self._everyone or self.process_group,
            self._everyone.size() if self._everyone else self.num_replicas,
        )
