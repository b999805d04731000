"""Ways to feed the ranks: whole batches, or planned micro-batches of the same examples."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from paceline.balance import BalanceConfig, EpochPlan, micro_batches_of, plan_epoch
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


class Share(NamedTuple):
    """A micro-batch, and what its mean loss counts in the step."""

    batch: Batch
    loss_weight: float


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


def plain_loader(
    dataset: TextDataset, *, rank: int, num_ranks: int, seed: int
) -> Iterator[list[Share]]:
    """Feed one rank the plain way: equal counts in the sampler's order, one batch a step."""
    sampler = plain_sampler(dataset, rank=rank, num_ranks=num_ranks, seed=seed)
    loader = DataLoader(dataset, EXAMPLES_PER_RANK, sampler=sampler, collate_fn=padded_batch)
    return ([Share(batch, 1.0)] for batch in loader)


def whole_loader(
    dataset: TextDataset, batches: NDArray[np.int64], *, rank: int
) -> Iterator[list[Share]]:
    """Feed one rank its part of `batches`, shape `(num_steps, num_ranks, per_rank)`, unsplit."""
    indices = batches[:, rank].tolist()
    loader = DataLoader(dataset, batch_sampler=indices, collate_fn=padded_batch)
    return ([Share(batch, 1.0)] for batch in loader)


def paced_loader(dataset: TextDataset, plan: EpochPlan, *, rank: int) -> Iterator[list[Share]]:
    """Feed one rank the Paceline way: step by step the micro-batches that `plan` gives it."""
    planned = list(micro_batches_of(plan, rank))
    indices = [part.examples.tolist() for part in planned]
    loader = DataLoader(dataset, batch_sampler=indices, collate_fn=padded_batch)
    shares = zip(loader, planned, strict=True)
    for _, step in groupby(shares, key=lambda share: share[1].step):
        yield [Share(batch, part.loss_weight) for batch, part in step]


def paced_plan(
    dataset: TextDataset,
    batches: NDArray[np.int64],
    cost: ExampleCost,
    microbatch_s: float,
    *,
    window: int = 1,
) -> EpochPlan:
    """Plan the global batches that `global_batches` returns; examples may move `window` steps."""
    _, num_ranks, per_rank = batches.shape
    config = BalanceConfig(
        batch_size=num_ranks * per_rank,
        num_workers=num_ranks,
        counts="free",
        padded=True,
        window=window,
        num_microbatches="auto",
        microbatch_cost=microbatch_s,
    )
    costs = example_costs(cost, dataset.sizes)
    return plan_epoch(costs, config, remaining=batches.ravel())
