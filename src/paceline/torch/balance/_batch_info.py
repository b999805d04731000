"""How a batch carries what its loss counts, through any loader and its worker processes."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset, default_collate, get_worker_info

from paceline.balance import MicroBatch


class BatchInfo(NamedTuple):
    """What comes with a batch.

    Attributes:
        loss_weight: Factor for the mean loss over the batch: summed over the batches of a step
            and averaged over ranks, the weighted means are the mean over the global batch.
        is_step_end: Whether the batch is the last of its step: time for the optimizer.
    """

    loss_weight: float
    is_step_end: bool


class BatchPlace(NamedTuple):
    """Where a batch comes in what a sampler yields: in which pass, and as which of it."""

    run: int
    number: int


class IndexBatch(list[int]):
    """The indices of one micro-batch, what its loss counts, and where it comes."""

    def __init__(self, batch: MicroBatch, place: BatchPlace) -> None:
        super().__init__(batch.examples.tolist())
        self.info = BatchInfo(batch.loss_weight, batch.is_step_end)
        self.place = place


class _Examples(list[Any]):
    """The examples of one micro-batch, with the info of their indices."""

    def __init__(self, examples: Iterable[Any], info: BatchInfo) -> None:
        super().__init__(examples)
        self.info = info


class InfoDataset(Dataset[Any]):
    """A dataset whose batches of examples keep the info of their indices; else as it was.

    Args:
        dataset: As it was.
        is_in_order: Whether the loader deals its batches to its workers in turn.
    """

    def __init__(self, dataset: Any, *, is_in_order: bool) -> None:
        self.dataset = dataset
        self._is_in_order = is_in_order
        self._last: BatchPlace | None = None

    def __getitem__(self, index: int) -> Any:
        return self.dataset[index]

    def __getitems__(self, indices: Sequence[int]) -> Any:
        """Return the examples of one batch, as torch's loader asks for them."""
        if not isinstance(indices, IndexBatch):
            raise ValueError(
                "a batch that carries its info needs the indices of a BalancedBatchSampler as "
                f"they are, got a {type(indices).__name__}; give the loader that sampler as "
                "batch_sampler"
            )
        self._check_none_is_left_out(indices.place)
        fetch = getattr(self.dataset, "__getitems__", None)
        examples = fetch(indices) if fetch else [self.dataset[index] for index in indices]
        return _Examples(examples, indices.info)

    def _check_none_is_left_out(self, place: BatchPlace) -> None:
        worker = get_worker_info()
        if worker is not None and not self._is_in_order:
            return
        last, self._last = self._last, place
        turn = 1 if worker is None else worker.num_workers
        if last is None or last.run != place.run or place.number - last.number == turn:
            return
        raise RuntimeError(
            f"batch {place.number} of this rank was asked for after batch {last.number}, and what "
            "lies between is left out: something deals out batches that are this rank's already, "
            "as accelerator.prepare(loader) does; use paceline.integrations.accelerate, or leave "
            "the loader out of it"
        )

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        # While a worker process unpickles this, the dataset is not there yet.
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


class InfoCollate:
    """A `collate_fn` that puts the info into what another one makes."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        self._collate_fn = collate_fn

    def __call__(self, examples: list[Any]) -> Any:
        if not isinstance(examples, _Examples):
            raise ValueError(
                "the examples of a batch lost their info on the way; give the loader the dataset "
                "that carry_info returned together with this collate_fn"
            )
        info = examples.info
        batch = self._collate_fn(list(examples))
        if not isinstance(batch, Mapping):
            return batch, info
        taken = [name for name in BatchInfo._fields if name in batch]
        if taken:
            raise ValueError(f"the batch has a key {taken[0]!r} of its own; give it another name")
        if isinstance(batch, MutableMapping):
            batch.update(info._asdict())
            return batch
        return {**batch, **info._asdict()}


def carry_info(
    dataset: Dataset[Any] | Sequence[Any],
    collate_fn: Callable[[list[Any]], Any] | None = None,
    *,
    is_in_order: bool = False,
) -> tuple[InfoDataset, InfoCollate]:
    """Return a dataset and a `collate_fn` with which batches carry their `BatchInfo`.

    For any loader that takes a `BalancedBatchSampler` as its `batch_sampler`; in
    `paceline.DataLoader` it is the option `with_info`. The info travels with the indices, so
    workers, prefetching and pinning cannot part it from its batch.

    A batch that is a mapping gets the keys `"loss_weight"` and `"is_step_end"`, plain values;
    any other batch becomes the pair `(batch, info)`.

    A wrapper that deals out the batches of a rank once more, and so leaves some of them out, is
    an error at the second batch.

    Args:
        dataset: As it would be given to the loader.
        collate_fn: Likewise; unset for torch's default.
        is_in_order: Whether the loader deals its batches to its workers in turn, as torch's does
            with `in_order=True`; then workers notice as well what is left out.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> from paceline.torch import BalancedBatchSampler, Replica
        >>> batches = BalancedBatchSampler(
        ...     [6, 2, 2, 2],
        ...     batch_size=4,
        ...     counts="free",
        ...     shuffle=False,
        ...     process_group=Replica(rank=1, num_replicas=2),
        ... )
        >>> dataset, collate_fn = carry_info([10, 11, 12, 13])
        >>> loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate_fn)
        >>> [(batch.tolist(), info.loss_weight, info.is_step_end) for batch, info in loader]
        [([11, 12, 13], 1.5, True)]
    """
    return InfoDataset(dataset, is_in_order=is_in_order), InfoCollate(collate_fn or default_collate)
