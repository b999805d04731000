"""One pass over the rest of an epoch, and what it tells the sampler that made it."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Protocol

from paceline.balance import Cursor, EpochPlanner, micro_batches_of


class PassOwner(Protocol):
    """What a pass needs of its sampler."""

    planner: EpochPlanner
    rank: int

    def _on_begin(self, run: "BatchPass") -> None:
        """Learn that the first batch of `run` is asked for."""

    def _on_move(self, run: "BatchPass") -> None:
        """Learn that `run` ended a step or the epoch."""

    def _restore(self, state: Mapping[str, Any], run: "BatchPass") -> Cursor:
        """Make `run` the newest pass and return where `state` stands."""


class BatchPass(Iterator[list[int]]):
    """One pass over the rest of an epoch; yields lists of indices.

    Attributes:
        begin: Where it began.
        cursor: Where it stands; at the start of the next epoch once it has ended.
        plan: The plan of its epoch.
        has_begun: Whether it was asked for a batch.
        has_ended: Whether all were yielded.
    """

    def __init__(self, owner: PassOwner, begin: Cursor) -> None:
        self._owner = owner
        self._start(begin)

    def _start(self, begin: Cursor) -> None:
        self.begin = self.cursor = begin
        self.plan = self._owner.planner.plan(begin)
        self.has_begun = self.has_ended = False
        self._batches = micro_batches_of(self.plan, self._owner.rank, first_step=begin.num_steps)

    @property
    def is_under_way(self) -> bool:
        """Whether it was asked for a batch and is not at its end."""
        return self.has_begun and not self.has_ended

    def __next__(self) -> list[int]:
        if not self.has_begun:
            self.has_begun = True
            self._owner._on_begin(self)
        batch = next(self._batches, None)
        if batch is None:
            self._end()
            raise StopIteration
        if batch.is_step_end:
            self.cursor = replace(self.cursor, num_steps=batch.step + 1)
            self._owner._on_move(self)
        indices: list[int] = batch.examples.tolist()
        return indices

    def _end(self) -> None:
        if not self.has_ended:
            self.has_ended = True
            self.cursor = self.begin.at_epoch(self.begin.epoch + 1)
            self._owner._on_move(self)

    def state_dict(self) -> dict[str, Any]:
        """Return where this iterator stands; like the sampler's."""
        return self._owner.planner.state_dict(self.cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`, and bring the sampler along."""
        self._start(self._owner._restore(state, self))
