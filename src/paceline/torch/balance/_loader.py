"""A loader that knows what it delivered, and what that counts in the loss."""

from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset

from paceline.balance import Cursor, MicroBatch, micro_batches_of
from paceline.torch.balance._batch_pass import BatchPass
from paceline.torch.balance._batch_sampler import BalancedBatchSampler

T = TypeVar("T", covariant=True)


class DataLoader(TorchDataLoader[T]):
    """A `torch.utils.data.DataLoader` for a `BalancedBatchSampler`.

    Multiply each batch's mean loss by `loss_weight`; then the gradient, summed over the
    micro-batches of a step and averaged over ranks, is that of the mean over the global
    batch, however unevenly the examples are spread. Repeats that fill up a last step
    with `tail="zero-weight"` are not delivered, except to a rank that would have nothing
    else: it gets one of them, with a weight of 0.

    What a worker process has prefetched does not count as delivered: `state_dict` counts
    the steps whose last micro-batch the training loop received.

    Args:
        dataset: As long as the sampler's sizes.
        batch_sampler: What yields the indices.
        num_workers: As in torch's loader, like all that follow.
        collate_fn: Turns a list of examples into a batch.
        pin_memory: Whether batches are copied into pinned memory.
        timeout: Seconds to wait for a worker.
        worker_init_fn: Called in each worker process.
        multiprocessing_context: How workers are started.
        generator: Seeds the workers.
        prefetch_factor: Batches loaded ahead per worker.
        persistent_workers: Whether workers live on between epochs.

    Raises:
        ValueError: If the dataset and the sampler's sizes differ in length.

    Examples:
        >>> from paceline.torch import Replica
        >>> last_of_two = Replica(rank=1, num_replicas=2)
        >>> batches = BalancedBatchSampler(
        ...     [6, 2, 2, 2], batch_size=4, counts="free", shuffle=False, process_group=last_of_two
        ... )
        >>> loader = DataLoader(torch.arange(4.0), batch_sampler=batches)
        >>> [(batch.tolist(), loader.loss_weight, loader.is_step_end) for batch in loader]
        [([1.0, 2.0, 3.0], 1.5, True)]
    """

    def __init__(
        self,
        dataset: Dataset[T],
        *,
        batch_sampler: BalancedBatchSampler,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
    ) -> None:
        num_planned = len(batch_sampler.planner.costs)
        if isinstance(dataset, Sized) and len(dataset) != num_planned:
            raise ValueError(
                f"the dataset must be as long as the sampler's sizes ({num_planned}), got "
                f"{len(dataset)} examples; make the sizes with example_sizes(dataset)"
            )
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            num_workers=num_workers,
            collate_fn=collate_fn,
            pin_memory=pin_memory,
            timeout=timeout,
            worker_init_fn=worker_init_fn,
            multiprocessing_context=multiprocessing_context,
            generator=generator,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
        )
        self._balanced = batch_sampler
        self._delivered: MicroBatch | None = None
        self._pass: BatchPass | None = None

    @property
    def loss_weight(self) -> float:
        """Factor for the mean loss over the batch that was delivered last.

        Raises:
            RuntimeError: Before the first batch.
        """
        return self._newest.loss_weight

    @property
    def is_step_end(self) -> bool:
        """Whether that batch is the last of its step: time for the optimizer.

        Raises:
            RuntimeError: Before the first batch.
        """
        return self._newest.is_step_end

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its own class
        loaded = super().__iter__()
        begun = self._balanced.newest_pass
        assert begun is not None, "torch's loader makes an iterator of its sampler"
        self._pass, self._delivered = begun, None
        return self._deliver(loaded, begun)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampler."""
        self._balanced.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what was delivered, in whole steps.

        Plain values, equal on all ranks, safe to save as JSON.
        """
        return self._balanced.planner.state_dict(self.cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood, also on another number of ranks.

        Holds from the next iteration on. See `BalancedBatchSampler.load_state_dict`.
        """
        self._balanced.load_state_dict(state)

    @property
    def _newest(self) -> MicroBatch:
        if self._delivered is None:
            raise RuntimeError("no batch was delivered yet; read this inside the loop")
        return self._delivered

    @property
    def cursor(self) -> Cursor:
        """Where the loop stands; where the sampler does, if its position was set since."""
        run, delivered = self._pass, self._delivered
        if run is None or run is not self._balanced.newest_pass:
            return self._balanced.cursor
        if delivered is None:
            return run.begin
        return replace(run.begin, num_steps=delivered.step + delivered.is_step_end)

    def _deliver(self, loaded: Iterator[Any], run: BatchPass) -> Iterator[Any]:
        rank = self._balanced.rank
        planned = micro_batches_of(run.plan, rank, first_step=run.begin.num_steps)
        for batch, self._delivered in zip(loaded, planned, strict=True):
            yield batch
        self._pass = None
