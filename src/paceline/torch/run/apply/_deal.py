"""Deals batches of indices in place of a loader's own sampler: as that dealt them, or divided."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

SAMPLERS = (
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)
NUM_AHEAD_PER_WORKER = 2


class Dealt(NamedTuple):
    """One batch of this rank.

    Attributes:
        rows: Indices of its examples.
        dealt_to: The rank whose sampler dealt each of them.
        is_divided: Whether it is another batch than this rank's sampler dealt.
        plain_s: Seconds that its step is expected to take as it was dealt; NaN if unknown.
    """

    rows: list[int]
    dealt_to: NDArray[np.int64] | None = None
    is_divided: bool = False
    plain_s: float = float("nan")

    def undone(self, rows: list[int]) -> "Dealt":
        """Return the batch as it was dealt."""
        return Dealt(rows, plain_s=self.plain_s)


class Deal:
    """Stands in for the batch sampler of a loader; deals what that deals until told otherwise.

    Args:
        loader: Whose.
        own: Its batch sampler.
        begin: Called as each pass begins, with this deal.

    Attributes:
        loader: As given.
        own: What the loader's sampler dealt, of the pass under way.
        batches: What is dealt.
        num_asked: Batches of it that the loop has asked for.
        trains: Whether a backward pass followed one of its batches.
    """

    def __init__(self, loader: Any, own: BatchSampler, begin: Callable[["Deal"], None]) -> None:
        self.loader = loader
        self.own: list[list[int]] = []
        self.batches: list[Dealt] = []
        self.num_asked = 0
        self.trains = False
        self._sampler, self._begin = own, begin
        self._num_drawn = 0

    def __iter__(self) -> Iterator[list[int]]:
        self.num_asked = self._num_drawn = 0
        return self._pass()

    def _pass(self) -> Iterator[list[int]]:
        self.own = [list(rows) for rows in self._sampler]
        self.batches = [Dealt(rows) for rows in self.own]
        self._begin(self)
        while self._num_drawn < len(self.batches):
            self._num_drawn += 1
            yield self.batches[self._num_drawn - 1].rows

    def __len__(self) -> int:
        return len(self._sampler)

    @property
    def newest(self) -> Dealt | None:
        """The batch that was asked for last."""
        return self.batches[self.num_asked - 1] if 0 < self.num_asked <= len(self.batches) else None

    def first_free(self, multiple: int) -> int:
        """Return the first batch that no worker can have been asked for, equal on all ranks.

        Args:
            multiple: Micro-batches of a step; steps are not divided in their middle.
        """
        ahead = self.loader.num_workers * (self.loader.prefetch_factor or NUM_AHEAD_PER_WORKER)
        steps = -(-(ahead + 1) // multiple) if ahead else 0
        return self.num_asked + steps * multiple

    def full(self, first: int) -> NDArray[np.int64]:
        """Return the whole batches from number `first` on, shape `(num_batches, batch_size)`."""
        size = self.loader.batch_size
        rows = self.own[first:]
        num_full = next((at for at, row in enumerate(rows) if len(row) != size), len(rows))
        return np.array(rows[:num_full], dtype=np.int64).reshape(num_full, size)


def why_no_deal(loader: Any) -> str:
    """Return why a loader's batches cannot be dealt by a plan; empty if they can."""
    if isinstance(loader.dataset, IterableDataset):
        return "its dataset is iterable, and a stream cannot be planned"
    kind, sampler = type(loader), type(loader.sampler)
    if kind.__iter__ is not DataLoader.__iter__:
        return f"{kind.__name__} has an __iter__ of its own; see paceline.integrations"
    if loader.batch_sampler is None:
        return "it loads batches that were made before (batch_size=None)"
    if type(loader.batch_sampler) is not BatchSampler:
        return f"its batch sampler is its own ({type(loader.batch_sampler).__name__})"
    return "" if sampler in SAMPLERS else f"its sampler is its own ({sampler.__name__})"
