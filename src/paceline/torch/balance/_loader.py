"""A loader that knows what it delivered, and what that counts in the loss."""

from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Dataset

from paceline.balance import Cursor, MicroBatch
from paceline.torch.balance._batch_info import carry_info
from paceline.torch.balance._batch_sampler import BalancedBatchSampler
from paceline.torch.balance._epoch_walk import BatchPass
from paceline.torch.balance._reads import Reads

T = TypeVar("T", covariant=True)
# What torch's loader takes and the sampler decides here.
OF_THE_SAMPLER = ("batch_size", "shuffle", "sampler", "drop_last")


class DataLoader(TorchDataLoader[T]):
    """A `torch.utils.data.DataLoader` for a `BalancedBatchSampler`.

    Multiply each batch's mean loss by its `loss_weight`; then the gradient, summed over the
    micro-batches of a step and averaged over ranks, is that of the mean over the global
    batch, however unevenly the examples are spread. Repeats that fill up a last step
    with `tail="zero-weight"` are not delivered, except to a rank that would have nothing
    else: it gets one of them, with a weight of 0.

    With `with_info=True` each batch brings its weight along, so it may be moved, queued or fetched
    ahead: a mapping gets the keys `"loss_weight"` and `"is_step_end"`, any other batch comes as
    the pair `(batch, info)` with a `BatchInfo`; see `carry_info`. Without it, read `loss_weight`
    and `is_step_end` off the loader before asking for the next batch. A loop that needs them and
    does not read them is warned once, and one that may mean another batch gets an error.

    What a worker process has prefetched does not count as delivered: `state_dict` counts
    the steps whose last micro-batch the training loop received.

    Args:
        dataset: As long as the sampler's sizes.
        batch_sampler: What yields the indices.
        with_info: Whether each batch carries its weight and whether it ends its step. Then
            micro-batches of a padded model are cut by plan if its config has a `microbatch_cost`.
        num_workers: As in torch's loader, like all that follow.
        collate_fn: Turns a list of examples into a batch.
        pin_memory: Whether batches are copied into pinned memory.
        timeout: Seconds to wait for a worker.
        worker_init_fn: Called in each worker process.
        multiprocessing_context: How workers are started.
        generator: Seeds the workers.
        prefetch_factor: Batches loaded ahead per worker.
        persistent_workers: Whether workers live on between epochs.

    Attributes:
        balanced: The `batch_sampler`, by its own type.
        with_info: As it was given.

    Raises:
        ValueError: If the dataset and the sampler's sizes differ in length, or an argument is one
            that the sampler decides.

    Examples:
        >>> from paceline.torch import Replica
        >>> last_of_two = Replica(rank=1, num_replicas=2)
        >>> batches = BalancedBatchSampler(
        ...     [6, 2, 2, 2], batch_size=4, counts="free", shuffle=False, process_group=last_of_two
        ... )
        >>> loader = DataLoader(torch.arange(4.0), batch_sampler=batches, with_info=True)
        >>> [(batch.tolist(), info.loss_weight, info.is_step_end) for batch, info in loader]
        [([1.0, 2.0, 3.0], 1.5, True)]
    """

    def __init__(
        self,
        dataset: Dataset[T],
        *,
        batch_sampler: BalancedBatchSampler | None = None,
        with_info: bool = False,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: Any = None,
        generator: torch.Generator | None = None,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        **others: Any,
    ) -> None:
        sampler = _checked_sampler(dataset, batch_sampler, others)
        if with_info:
            dataset, collate_fn = carry_info(dataset, collate_fn, is_in_order=True)
            sampler.use_step_ends()
        super().__init__(
            dataset,
            batch_sampler=sampler,
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
        self.with_info = with_info
        self.balanced = sampler
        self._delivered: MicroBatch | None = None
        self._pass: BatchPass | None = None
        names = ("loss_weight", "is_step_end")
        self._reads = {name: Reads(name, sampler.rank, warns=not with_info) for name in names}

    @property
    def loss_weight(self) -> float:
        """Factor for the mean loss over the batch that was delivered last.

        Raises:
            RuntimeError: Before the first batch, or where batches are fetched ahead.
        """
        weight: float = self._reads["loss_weight"].read()
        return weight

    @property
    def is_step_end(self) -> bool:
        """Whether that batch is the last of its step: time for the optimizer.

        Raises:
            RuntimeError: As `loss_weight`.
        """
        is_step_end: bool = self._reads["is_step_end"].read()
        return is_step_end

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # torch names its own class
        # Workers fetch as soon as torch's iterator is made; until a batch is asked for, another
        # epoch may be set.
        loaded = super().__iter__()
        run = self.balanced.newest_pass
        assert run is not None, "torch's loader makes an iterator of its sampler"
        self._pass, self._delivered, planned = run, None, None
        for read in self._reads.values():
            read.begin()
        for batch in loaded:
            planned = planned or run.micro_batches()
            self._receive(next(planned))
            yield batch
        for read in self._reads.values():
            read.end()
        self._pass = None

    def _receive(self, delivered: MicroBatch) -> None:
        self._delivered = delivered
        self._reads["loss_weight"].deliver(delivered.loss_weight)
        self._reads["is_step_end"].deliver(delivered.is_step_end)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampler."""
        self.balanced.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return what was delivered, in whole steps.

        Plain values, equal on all ranks, safe to save as JSON.
        """
        return self.balanced.planner.state_dict(self.cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood, also on another number of ranks.

        Holds from the next iteration on. See `BalancedBatchSampler.load_state_dict`.
        """
        self.balanced.load_state_dict(state)

    @property
    def cursor(self) -> Cursor:
        """Where the loop stands; where the sampler does, if its position was set since."""
        run = self._pass
        if run is None or run is not self.balanced.newest_pass:
            return self.balanced.cursor
        return run.cursor_after(self._delivered)


def _checked_sampler(
    dataset: Any, sampler: BalancedBatchSampler | None, others: Mapping[str, Any]
) -> BalancedBatchSampler:
    """Return the sampler; raise a `ValueError` if it or another argument does not belong here."""
    for name, value in others.items():
        if name not in OF_THE_SAMPLER:
            raise TypeError(f"paceline.DataLoader has no argument {name!r}")
        raise ValueError(
            f"the sampler decides {name}, got {name}={value!r}; leave it out, and make "
            "batch_sampler=BalancedBatchSampler(sizes, batch_size=...) with the global batch size"
        )
    if not isinstance(sampler, BalancedBatchSampler):
        raise ValueError(
            "batch_sampler must be a paceline.BalancedBatchSampler, got a "
            f"{type(sampler).__name__}; for other samplers use torch.utils.data.DataLoader"
        )
    num_planned = len(sampler.planner.costs)
    if isinstance(dataset, Sized) and len(dataset) != num_planned:
        raise ValueError(
            f"the dataset must be as long as the sampler's sizes ({num_planned}), got "
            f"{len(dataset)} examples; make the sizes with example_sizes(dataset)"
        )
    return sampler
