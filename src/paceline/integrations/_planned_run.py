"""Where one process stands in planned epochs, for frameworks that are not torch."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.balance import BalanceConfig, Cursor, EpochPlanner, MicroBatch, micro_batches_of
from paceline.cost import ExampleCost, LinearCost, Worker, checked_column, example_costs
from paceline.errors import PlanMismatchError

T = TypeVar("T")
Record = dict[str, Any]


class Source(Protocol):
    """Examples by index; each is a mapping from names to arrays or numbers."""

    def __len__(self) -> int:
        """Return how many there are."""

    def __getitem__(self, index: int, /) -> Mapping[str, Any]:
        """Return one."""


class PlannedRun:
    """The micro-batches of one process, epoch after epoch, and how many were delivered.

    Args:
        sizes: Size of each example, shape `(num_examples,)`.
        config: What fixes who gets which example; its `num_workers` is filled in.
        rank: Of this process.
        num_processes: How many there are.
        cost: Cost of an example by its size; unset for the size.

    Raises:
        ValueError: If a value is bad or values do not fit together.
    """

    def __init__(
        self,
        sizes: ArrayLike,
        config: BalanceConfig,
        *,
        rank: int,
        num_processes: int,
        cost: ExampleCost | None = None,
    ) -> None:
        if not 0 <= rank < num_processes:
            raise ValueError(f"rank must lie in [0, {num_processes}), got {rank}")
        size = checked_column("sizes", sizes)
        self.planner = EpochPlanner(
            example_costs(cost or LinearCost(), size),
            replace(config, num_workers=num_processes),
            sizes=size if config.limits.max_tokens < inf else None,
        )
        self._rank, self._workers = rank, (Worker(),) * num_processes
        self.cursor = Cursor(workers=self._workers)

    def rest_of_epoch(self) -> list[MicroBatch]:
        """Return what is left of the epoch for this process."""
        cursor = self.cursor
        plan = self.planner.plan(cursor)
        return list(micro_batches_of(plan, self._rank, first_step=cursor.num_steps))

    def count(self, planned: Sequence[MicroBatch], received: Iterable[T]) -> Iterator[T]:
        """Yield what the training loop receives, and move on by each step that is whole."""
        begin = self.cursor
        for batch, one in zip(planned, received, strict=True):
            if batch.is_step_end:
                self.cursor = replace(begin, num_steps=batch.step + 1)
            yield one
        self.cursor = begin.at_epoch(begin.epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return what was delivered, in whole steps; plain values, equal on all processes."""
        return self.planner.state_dict(self.cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood, also on another number of processes."""
        cursor = self.planner.load_state_dict(state, self._workers)
        is_at_end = cursor.num_steps == self.planner.plan(cursor).num_steps
        self.cursor = cursor.at_epoch(cursor.epoch + 1) if is_at_end else cursor

    def check_digests(self, gather: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]) -> None:
        """Raise an error on every process if they plan differently.

        Args:
            gather: Returns what all processes pass, one row each.

        Raises:
            PlanMismatchError: Names the processes that differ from the first.
        """
        own = np.frombuffer(self.planner.digest(self.cursor).encode(), dtype=np.uint8)
        rows = gather(own)
        odd = np.flatnonzero((rows != rows[0]).any(axis=1)).tolist()
        if odd:
            raise PlanMismatchError(
                f"processes {odd} plan another epoch than process 0; give all of them the same "
                "sizes, cost, config and saved state"
            )


def padded_record(
    source: Source, batch: MicroBatch, round_up: Callable[[int], int] = int
) -> Record:
    """Return one planned micro-batch as arrays that are as long as `round_up` says.

    Arrays of an example are padded with zeros along their first axis, to the longest one. Examples
    that fill up the batch are repeats with a weight of 0, so that no loss divides by an empty one.
    The weights of a step, averaged over processes, add up to 1: the sum of weight times loss over
    a batch gives the mean over the global batch.

    Args:
        source: Where examples are read.
        batch: Which ones, and what they count.
        round_up: Turns a number of examples or a length into one that is at least as large.

    Examples:
        >>> words = [{"x": np.array([1, 2, 3])}, {"x": np.array([4])}]
        >>> both = MicroBatch(
        ...     step=0, examples=np.array([0, 1]), loss_weight=1.0, is_step_end=True
        ... )
        >>> found = padded_record(words, both, round_up=lambda n: n + 1)
        >>> found["x"].tolist(), found["weight"].tolist()
        ([[1, 2, 3, 0], [4, 0, 0, 0], [1, 2, 3, 0]], [0.5, 0.5, 0.0])
        >>> found["size"].tolist(), found["example"].tolist(), found["is_step_end"]
        ([3, 1, 3], [0, 1, 0], True)
    """
    examples = batch.examples.tolist()
    num_real, num_rows = len(examples), round_up(len(examples))
    examples += examples[:1] * (num_rows - num_real)
    items = [source[example] for example in examples]
    weight = np.zeros(num_rows)
    weight[:num_real] = batch.loss_weight / num_real
    columns = {
        name: _stacked([np.asarray(item[name]) for item in items], round_up) for name in items[0]
    }
    arrays = next((name for name, column in columns.items() if column.ndim > 1), None)
    if arrays is not None:
        columns["size"] = np.array([len(item[arrays]) for item in items])
    own = {"example": np.array(examples), "weight": weight, "is_step_end": batch.is_step_end}
    return {**columns, **own}


def _stacked(rows: list[NDArray[Any]], round_up: Callable[[int], int]) -> NDArray[Any]:
    """Return rows as one array, padded with zeros along their first axis."""
    if not rows[0].ndim:
        return np.stack(rows)
    length = round_up(max(len(row) for row in rows))
    found = np.zeros((len(rows), length, *rows[0].shape[1:]), dtype=rows[0].dtype)
    for row, into in zip(rows, found, strict=True):
        into[: len(row)] = row
    return found
