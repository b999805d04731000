"""The two ways to feed the ranks: the same global batches, split plainly or by cost."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from paceline.balance import Partition, split_padded
from paceline.cost import ExampleCost, example_costs
from paceline.demo._config import EXAMPLES_PER_RANK
from paceline.demo._corpus import Corpus
from paceline.demo._model import CONTEXT_BYTES


class Batch(NamedTuple):
    """One rank's padded micro-batch."""

    text: torch.Tensor
    lengths: torch.Tensor

    @property
    def num_padded(self) -> int:
        """Positions that hold no text."""
        return self.text.numel() - int(self.lengths.sum())


class TextDataset(Dataset[torch.Tensor]):
    """The corpus, each example cut to the model's context."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self.sizes = np.minimum(corpus.sizes, CONTEXT_BYTES)

    def __len__(self) -> int:
        return len(self._corpus)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._corpus[index][:CONTEXT_BYTES].astype(np.int64))


def padded_batch(examples: Sequence[torch.Tensor]) -> Batch:
    """Pad examples with zeros to the longest of them."""
    lengths = torch.tensor([len(example) for example in examples])
    text = torch.nn.utils.rnn.pad_sequence(list(examples), batch_first=True)
    return Batch(text=text, lengths=lengths)


def plain_sampler(
    dataset: TextDataset, *, rank: int, num_ranks: int, seed: int
) -> DistributedSampler[torch.Tensor]:
    return DistributedSampler(dataset, num_ranks, rank, seed=seed, drop_last=True)


def global_batches(dataset: TextDataset, *, num_ranks: int, seed: int) -> NDArray[np.int64]:
    """Return which examples the plain ranks see in each step.

    Shape `(num_steps, num_ranks, EXAMPLES_PER_RANK)`.
    """
    per_rank = [
        list(plain_sampler(dataset, rank=rank, num_ranks=num_ranks, seed=seed))
        for rank in range(num_ranks)
    ]
    num_steps = len(per_rank[0]) // EXAMPLES_PER_RANK
    order = np.array(per_rank, dtype=np.int64)[:, : num_steps * EXAMPLES_PER_RANK]
    return order.reshape(num_ranks, num_steps, EXAMPLES_PER_RANK).swapaxes(0, 1)


def plain_loader(dataset: TextDataset, *, rank: int, num_ranks: int, seed: int) -> Iterator[Batch]:
    """Feed one rank the plain way: equal counts, in the order of the sampler."""
    sampler = plain_sampler(dataset, rank=rank, num_ranks=num_ranks, seed=seed)
    return iter(DataLoader(dataset, EXAMPLES_PER_RANK, sampler=sampler, collate_fn=padded_batch))


def paced_loader(
    dataset: TextDataset, batches: NDArray[np.int64], *, rank: int, cost: ExampleCost
) -> Iterator[Batch]:
    """Feed one rank the Paceline way: the same global batches, split by padded cost."""
    mine = (
        step.ravel()[paced_split(dataset, step, cost).examples_of(rank)].tolist()
        for step in batches
    )
    return iter(DataLoader(dataset, batch_sampler=mine, collate_fn=padded_batch))


def paced_split(dataset: TextDataset, step: NDArray[np.int64], cost: ExampleCost) -> Partition:
    """Split one global batch, shape `(num_ranks, EXAMPLES_PER_RANK)`, over the ranks."""
    return split_padded(example_costs(cost, dataset.sizes[step.ravel()]), len(step))
