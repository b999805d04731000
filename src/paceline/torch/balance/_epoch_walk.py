"""Where a sampler stands in its epochs, and the passes that move it."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.balance import Cursor, EpochPlan, EpochPlanner, MicroBatch, micro_batches_of
from paceline.cost import Worker
from paceline.torch.balance._batch_info import BatchPlace, IndexBatch
from paceline.torch.balance._epoch_choice import EpochChoice


class BatchPass(Iterator[list[int]]):
    """One pass over the rest of an epoch; yields lists of indices.

    It belongs to the epoch that is set when its first batch is asked for.

    Attributes:
        begin: Where it began.
        cursor: Where it stands; at the start of the next epoch once it has ended.
        plan: The plan of its epoch; there once it has begun.
        has_begun: Whether it was asked for a batch.
        has_ended: Whether all were yielded.
    """

    plan: EpochPlan

    def __init__(self, walk: "EpochWalk", begin: Cursor) -> None:
        self._walk = walk
        self.begin = self.cursor = begin
        self.has_begun = self.has_ended = False

    def _begin(self) -> None:
        self.begin = self.cursor = self._walk.bind(self)
        self.plan = self._walk.planner.plan(self.begin)
        self._batches = self.micro_batches()
        self._next_place = BatchPlace(run=self._walk.next_run(), number=0)
        self.has_begun = True
        self._walk.on_begin(self)

    @property
    def is_under_way(self) -> bool:
        """Whether it was asked for a batch and is not at its end."""
        return self.has_begun and not self.has_ended

    def micro_batches(self) -> Iterator[MicroBatch]:
        """Yield what this pass yields, from its beginning on."""
        first_step, terms = self.begin.num_steps, self._walk.loss_terms
        return micro_batches_of(self.plan, self._walk.rank, first_step=first_step, loss_terms=terms)

    def cursor_after(self, batch: MicroBatch | None) -> Cursor:
        """Return where a run stands that has received `batch`, in whole steps.

        With the last batch of an epoch that is the start of the next.
        """
        num_steps = self.begin.num_steps if batch is None else batch.step + batch.is_step_end
        if batch is not None and num_steps == self.plan.num_steps:
            return self.begin.at_epoch(self.begin.epoch + 1)
        return self.begin.at_step(num_steps)

    def __next__(self) -> list[int]:
        if not self.has_begun:
            self._begin()
        batch = next(self._batches, None)
        if batch is None:
            self._move(self.begin.at_epoch(self.begin.epoch + 1))
            raise StopIteration
        if batch.is_step_end:
            self._move(self.cursor_after(batch))
        place = self._next_place
        self._next_place = place._replace(number=place.number + 1)
        return IndexBatch(batch, place)

    def _move(self, cursor: Cursor) -> None:
        if not self.has_ended:
            self.cursor = cursor
            self.has_ended = cursor.epoch != self.begin.epoch
            self._walk.on_move(self)

    def state_dict(self) -> dict[str, Any]:
        """Return where this iterator stands; like the sampler's."""
        return self._walk.planner.state_dict(self.cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, and bring the sampler along."""
        self.begin = self.cursor = self._walk.restore(state, self)
        self.has_begun = self.has_ended = False


class EpochWalk:
    """The position of a sampler, and the passes that it makes.

    Args:
        planner: Plans its epochs.
        rank: Whose part passes yield.
        loss_terms: As in `micro_batches_of`.
        workers: Speed and overhead of each rank.

    Attributes:
        cursor: Where the newest pass stands, or where the next one begins.
        newest: The last pass that was made, unless the position was set since.
        finished: Where the last pass began that came to its end.
        begin_calls: Told of every pass whose first batch is asked for.
    """

    def __init__(
        self,
        planner: EpochPlanner,
        rank: int,
        loss_terms: NDArray[np.float64] | None,
        workers: tuple[Worker, ...],
    ) -> None:
        self.planner, self.rank, self.loss_terms = planner, rank, loss_terms
        self._workers = workers
        self.cursor = Cursor(workers=workers)
        self.newest: BatchPass | None = None
        self.finished: Cursor | None = None
        self.begin_calls: list[Callable[[BatchPass], None]] = []
        self._choice = EpochChoice(warns=planner.config.shuffle)
        self._plans_ahead = True
        self._num_runs = 0

    @property
    def is_under_way(self) -> bool:
        """Whether a part of an epoch is delivered, and not all of it."""
        is_running = self.newest is not None and self.newest.is_under_way
        return is_running or bool(self.cursor.num_steps or self.cursor.earlier)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of `epoch`; a restored position inside it is kept."""
        if epoch < 0:
            raise ValueError(f"epoch must not be negative, got {epoch}")
        self.planner.begin_epoch(epoch)
        has_begun = self.newest is not None and self.newest.has_begun
        if epoch != self.cursor.epoch or has_begun:
            self.cursor = self.cursor.at_epoch(epoch)
        if has_begun:
            self.newest = None
        self._choice.is_made = True

    def new_pass(self) -> BatchPass:
        """Return an iterator over the rest of the epoch that is set when it begins."""
        self.newest = BatchPass(self, self.cursor)
        return self.newest

    def next_run(self) -> int:
        """Return a number that tells this beginning of a pass from all others."""
        self._num_runs += 1
        return self._num_runs

    def num_microbatches(self) -> int:
        """Return how many the whole epoch has that is under way, or else comes next."""
        begin = self.newest.begin if self.newest and self.newest.is_under_way else self.cursor
        order = self.planner.order
        if order is not None and not self.planner.knows(begin.epoch):
            # Asked on one rank alone, say for a progress bar, it must not end an epoch.
            begin = begin.at_epoch(order.epoch)
        return self.planner.num_microbatches(begin, self.rank)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood; at the end of an epoch, with the next."""
        cursor = self.planner.load_state_dict(state, self._workers)
        is_at_end = cursor.num_steps == self.planner.plan(cursor).num_steps
        self.cursor = cursor.at_epoch(cursor.epoch + 1) if is_at_end else cursor
        self.newest = None
        self._choice.is_made = True

    def use_workers(self, workers: tuple[Worker, ...]) -> None:
        """Plan with these speeds and overheads from now on."""
        self.cursor = replace(self.cursor, workers=workers)
        # A plan made ahead would not know the speeds that the next refit finds.
        self._plans_ahead = False
        self.planner.plan_ahead(self.cursor)

    def use_step_ends(self) -> None:
        """Cut the steps of a padded model by plan where a micro-batch has a price.

        Without one a plan may lose: on a GPU ten small micro-batches can take ten times as long.
        """
        config = self.planner.config
        is_priced = config.microbatch_cost is not None
        if config.padded and is_priced and config.num_microbatches is None:
            state = self.planner.state_dict(self.cursor) if self.is_under_way else None
            self.planner = self.planner.recut("auto")
            if state is not None:
                self.load_state_dict(state)

    def bind(self, run: BatchPass) -> Cursor:
        """Return where `run` begins, now that its first batch is asked for."""
        if run is not self.newest:
            return run.begin
        epoch = self._choice.next(self.cursor.epoch)
        if epoch != self.cursor.epoch:
            self.cursor = self.cursor.at_epoch(epoch)
        self.planner.begin_epoch(epoch)
        return self.cursor

    def on_begin(self, run: BatchPass) -> None:
        """Learn that an epoch is in use; torch's loaders may make two passes and use one."""
        if run is self.newest:
            for call in self.begin_calls:
                call(run)
            self._choice.begin(self.cursor.epoch)
            if self._plans_ahead:
                self.planner.plan_ahead(self.cursor.at_epoch(self.cursor.epoch + 1))

    def on_move(self, run: BatchPass) -> None:
        """Learn that `run` ended a step or the epoch."""
        if run is self.newest:
            self.cursor = run.cursor
            if run.has_ended:
                self.finished = run.begin

    def restore(self, state: Mapping[str, Any], run: BatchPass) -> Cursor:
        """Make `run` the newest pass and return where `state` stands."""
        self.load_state_dict(state)
        self.newest = run
        return self.cursor

    def __getstate__(self) -> dict[str, Any]:
        chosen = replace(self._choice, is_made=True)
        return {**self.__dict__, "newest": None, "begin_calls": [], "_choice": chosen}
