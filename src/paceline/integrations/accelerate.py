"""Balanced batches in Accelerate: through `prepare()`, with its accumulation and checkpoints."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Sampler

from paceline.balance import Cursor, MicroBatch, micro_batches_of
from paceline.errors import MissingExtraError
from paceline.integrations._exact_steps import (
    check_place,
    checked_sampler,
    require_micro_batches,
    scaled,
)
from paceline.torch.balance import BalancedBatchSampler, BatchPass, DataLoader

try:
    from accelerate import Accelerator
except ModuleNotFoundError as error:
    if error.name != "accelerate":
        raise
    raise MissingExtraError(
        "paceline.integrations.accelerate needs Accelerate; install it with: "
        "pip install 'paceline[accelerate]'"
    ) from None


class GlobalBatchSampler(Sampler[list[int]]):
    """The micro-batches of all processes in turn, as `accelerator.prepare()` takes them apart.

    `prepare()` gives each of n processes every n-th batch of a batch sampler. This one yields
    the first micro-batch of process 0, of process 1, and so on; so each process ends up with
    its own, of whatever size, with `even_batches` on or off.

    Args:
        sampler: The one of this process.
        accelerator: Whose `prepare()` is used.

    Raises:
        ValueError: If batches would be split or dispatched, or the sampler is of another process.
    """

    def __init__(self, sampler: BalancedBatchSampler, accelerator: Accelerator) -> None:
        for mode in ("split_batches", "dispatch_batches"):
            if getattr(accelerator, mode):
                raise ValueError(
                    f"{mode}=True cuts batches into equal parts, and balanced ones are not equal; "
                    f"leave it out of the DataLoaderConfiguration"
                )
        check_place(
            sampler,
            rank=accelerator.process_index,
            num_replicas=accelerator.num_processes,
            framework="Accelerate",
            way_out="make the sampler after the Accelerator",
        )
        self._sampler = sampler
        require_micro_batches(
            sampler, lambda: accelerator.gradient_accumulation_steps, "gradient_accumulation_steps"
        )

    def __len__(self) -> int:
        return len(self._sampler) * self._sampler.num_replicas

    def __iter__(self) -> Iterator[list[int]]:
        run = iter(self._sampler)
        everyones: list[Iterator[MicroBatch]] = []
        for own in run:
            everyones = everyones or [
                micro_batches_of(run.plan, rank, first_step=run.begin.num_steps)
                for rank in range(self._sampler.num_replicas)
            ]
            for rank, theirs in enumerate(everyones):
                batch = next(theirs)
                yield own if rank == self._sampler.rank else batch.examples.tolist()


class BalancedLoader:
    """A loader that went through `accelerator.prepare()`, and knows what it delivered.

    Each batch carries its weight: `accelerator.backward` gets the mean loss over the batch times
    `batch["loss_weight"]`. The weight makes up for Accelerate's division by
    `gradient_accumulation_steps`, so the gradient of a step is that of the mean over the global
    batch. Give it to `accelerator.register_for_checkpointing`: `save_state` then saves the place
    in the data, and a run that goes on from there, on any number of processes, gets each example
    that is left once. It takes the place of `skip_first_batches`.

    Args:
        accelerator: Its `prepare()` is called here; leave the loader out of your own call.
        loader: With `with_info=True`. The `num_microbatches` of its sampler must be
            `gradient_accumulation_steps`.

    Raises:
        ValueError: If the loader, its sampler or the modes of the accelerator do not fit.
    """

    def __init__(self, accelerator: Accelerator, loader: DataLoader[Any]) -> None:
        self._accelerator = accelerator
        self._sampler = checked_sampler(loader)
        everyones = GlobalBatchSampler(self._sampler, accelerator)
        self._prepared = accelerator.prepare(_twin(loader, everyones))
        self._run: BatchPass | None = None
        self._delivered: MicroBatch | None = None

    def __len__(self) -> int:
        return len(self._sampler)

    def __iter__(self) -> Iterator[Any]:
        factor = self._accelerator.gradient_accumulation_steps
        planned: Iterator[MicroBatch] = iter(())
        self._run = self._delivered = None
        for batch in self._prepared:
            if self._run is None:
                self._run = self._sampler.newest_pass
                assert self._run is not None, "a batch comes from a pass of the sampler"
                planned = self._run.micro_batches()
            self._delivered = next(planned)
            yield scaled(batch, factor)
        self._run = None

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the sampler, before each epoch."""
        self._sampler.set_epoch(epoch)

    @property
    def _cursor(self) -> Cursor:
        run = self._run
        if run is None or run is not self._sampler.newest_pass:
            return self._sampler.cursor
        return run.cursor_after(self._delivered)

    def state_dict(self) -> dict[str, Any]:
        """Return what was delivered; plain values, equal on all processes.

        Raises:
            RuntimeError: Inside a step, whose gradients are in no checkpoint.
        """
        if self._run is not None and self._delivered and not self._delivered.is_step_end:
            raise RuntimeError(
                "a checkpoint inside a step would lose the gradients of its first micro-batches; "
                "call save_state where accelerator.sync_gradients"
            )
        return self._sampler.planner.state_dict(self._cursor)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another run stood; see `BalancedBatchSampler.load_state_dict`."""
        self._sampler.load_state_dict(state)


def _twin(loader: DataLoader[Any], batch_sampler: GlobalBatchSampler) -> TorchDataLoader[Any]:
    """Return torch's loader of the same data, with another sampler."""
    return TorchDataLoader(
        loader.dataset,
        batch_sampler=batch_sampler,
        collate_fn=loader.collate_fn,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )
