"""How a batch carries what its loss counts, through any loader and its worker processes."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import Dataset, default_collate

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


class IndexBatch(list[int]):
    """The indices of one micro-batch, and what its loss counts."""

    def __init__(self, batch: MicroBatch) -> None:
        super().__init__(batch.examples.tolist())
        self.info = BatchInfo(batch.loss_weight, batch.is_step_end)


class _Examples(list[Any]):
    """The examples of one micro-batch, with the info of their indices."""

    def __init__(self, examples: Iterable[Any], info: BatchInfo) -> None:
        super().__init__(examples)
        self.info = info


class InfoDataset(Dataset[Any]):
    """A dataset whose batches of examples keep the info of their indices; else as it was."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

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
        fetch = getattr(self.dataset, "__getitems__", None)
        examples = fetch(indices) if fetch else [self.dataset[index] for index in indices]
        return _Examples(examples, indices.info)

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
) -> tuple[InfoDataset, InfoCollate]:
    """Return a dataset and a `collate_fn` with which batches carry their `BatchInfo`.

    For any loader that takes a `BalancedBatchSampler` as its `batch_sampler`; in
    `paceline.DataLoader` it is the option `with_info`. The info travels with the indices, so
    workers, prefetching and pinning cannot part it from its batch.

    A batch that is a mapping gets the keys `"loss_weight"` and `"is_step_end"`, plain values;
    any other batch becomes the pair `(batch, info)`.

    Args:
        dataset: As it would be given to the loader.
        collate_fn: Likewise; unset for torch's default.

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
    return InfoDataset(dataset), InfoCollate(collate_fn or default_collate)
