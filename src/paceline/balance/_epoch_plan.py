"""A planned epoch: which worker gets which example, in which step and micro-batch."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from paceline.cost import Worker

Entry = TypeVar("Entry", bound=np.generic)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class EpochPlan:
    """Which worker gets which example; plain data, equal on every rank.

    A *slot* is one example in one place of the plan. Slots are sorted by step, worker
    and micro-batch; a worker's slots of one micro-batch keep the order of the shuffle.

    Attributes:
        num_workers: Number of workers.
        examples: Example of each slot. Shape `(num_slots,)`.
        is_repeat: Whether the slot repeats an example to fill the last step. Shape
            `(num_slots,)`.
        weighs_repeats: Whether repeats count in the loss.
        micro_offsets: Where each micro-batch begins, and the end; micro-batches are
            numbered like slots are sorted. Shape `(num_micro_batches + 1,)`.
        worker_offsets: First micro-batch of each worker in each step, and the end. Shape
            `(num_steps * num_workers + 1,)`.
        load: Predicted cost of each worker in each step, padding included, in the unit
            of the costs. Shape `(num_steps, num_workers)`.
        workers: Speed and overhead of each worker that the plan assumes.
    """

    num_workers: int
    examples: NDArray[np.int64]
    is_repeat: NDArray[np.bool_]
    weighs_repeats: bool
    micro_offsets: NDArray[np.int64]
    worker_offsets: NDArray[np.int64]
    load: NDArray[np.float64]
    workers: tuple[Worker, ...]

    @property
    def num_steps(self) -> int:
        """Optimizer steps, equally many for every worker."""
        return len(self.load)

    @property
    def step_offsets(self) -> NDArray[np.int64]:
        """First micro-batch of each step, and the end, shape `(num_steps + 1,)`."""
        return self.worker_offsets[:: self.num_workers]

    @property
    def num_microbatches(self) -> NDArray[np.int64]:
        """Micro-batches of each worker in each step, shape `(num_steps, num_workers)`."""
        return np.diff(self.worker_offsets).reshape(-1, self.num_workers)

    def micro_batches(self, step: int, worker: int) -> list[NDArray[np.int64]]:
        """Return the slots of each micro-batch of `worker` in `step`.

        Index `examples` and `is_repeat` with them.
        """
        here = step * self.num_workers + worker
        first, end = self.worker_offsets[here : here + 2]
        bounds = self.micro_offsets[first : end + 1].tolist()
        return [np.arange(a, b) for a, b in pairwise(bounds)]

    def step_examples(self, step: int, worker: int) -> NDArray[np.int64]:
        """Return all examples of `worker` in `step`, micro-batch after micro-batch."""
        slots = self._step_slots(step, worker)
        return self.examples[slots]

    def loss_weight(self, step: int, worker: int) -> float:
        """Return the factor that makes the mean over ragged workers exact.

        A worker's loss is its mean over its examples; data-parallel training averages
        over workers. Weighted, that average is the mean over the examples of the step:
        the number of examples that count here, over the mean number per worker.
        """
        mine = self._num_counting(self._step_slots(step, worker))
        bounds = self.micro_offsets[self.step_offsets[[step, step + 1]]]
        everyone = self._num_counting(slice(int(bounds[0]), int(bounds[1])))
        return mine * self.num_workers / everyone

    def finish_times(self) -> NDArray[np.float64]:
        """Return when each worker ends each step, shape `(num_steps, num_workers)`.

        In the unit of the costs, with the speeds and overheads of `workers`.
        """
        speed, overhead = speeds_and_overheads(self.workers)
        return np.asarray(overhead + self.load / speed)

    def makespan(self) -> float:
        """Return the sum over steps of when the latest worker is done."""
        return float(self.finish_times().max(axis=1).sum())

    def _step_slots(self, step: int, worker: int) -> slice:
        here = step * self.num_workers + worker
        bounds = self.micro_offsets[self.worker_offsets[here : here + 2]]
        return slice(int(bounds[0]), int(bounds[1]))

    def _num_counting(self, slots: slice) -> int:
        repeats = self.is_repeat[slots]
        return len(repeats) if self.weighs_repeats else int((~repeats).sum())


def speeds_and_overheads(
    workers: tuple[Worker, ...],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the speed and the overhead of each worker."""
    speeds = np.array([worker.speed for worker in workers])
    return speeds, np.array([worker.overhead_s for worker in workers])


def longest_first(plan: EpochPlan) -> EpochPlan:
    """Move the step that takes longest to the front; the others keep their order."""
    step = int(plan.finish_times().max(axis=1).argmax())
    first, last = plan.step_offsets[[step, step + 1]].tolist()
    begin, end = plan.micro_offsets[[first, last]].tolist()
    micro_sizes = _to_front(np.diff(plan.micro_offsets), first, last)
    num_micro = _to_front(plan.num_microbatches, step, step + 1)
    return replace(
        plan,
        examples=_to_front(plan.examples, begin, end),
        is_repeat=_to_front(plan.is_repeat, begin, end),
        micro_offsets=np.concatenate([[0], np.cumsum(micro_sizes)]),
        worker_offsets=np.concatenate([[0], np.cumsum(num_micro)]),
        load=_to_front(plan.load, step, step + 1),
    )


def _to_front(rows: NDArray[Entry], begin: int, end: int) -> NDArray[Entry]:
    return np.concatenate([rows[begin:end], rows[:begin], rows[end:]])
