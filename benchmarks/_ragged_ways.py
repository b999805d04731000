"""Ways to feed ragged examples to ranks: those of peers, and plans with and without padding."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

import numpy as np
import torch
from _balance_peers import as_plan
from _ragged_peers import PEERS, PER_RANK, Steps, StepsOfEpoch, peer_steps
from torch import distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from paceline.balance import BalanceConfig, measure_quality, micro_batches_of, plan_epoch
from paceline.cost import QuadraticCost, example_costs
from paceline.demo import (
    ByteTransformer,
    Share,
    TextDataset,
    example_losses,
    measured_job,
    padded_batch,
)
from paceline.torch import Packed, pack, packed_attention

MODEL = {"dim": 64, "num_layers": 2, "num_heads": 4}
WINDOW = 16
# Ours, with what each changes in the configuration.
OURS: dict[str, dict[str, Any]] = {
    "stable": {},
    "window": {"window": WINDOW},
    "packed": {"padded": False},
    "packed_window": {"padded": False, "window": WINDOW},
}
WAYS = (*PEERS, *OURS)


class RaggedModel(torch.nn.Module):
    """A byte transformer that returns the mean loss of a padded or a packed micro-batch."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ByteTransformer(**MODEL)

    def forward(self, batch: Any) -> torch.Tensor:
        """Return the mean over examples of each example's mean loss."""
        if isinstance(batch, Packed):
            return self._packed_loss(batch)
        return example_losses(self.inner(batch.text), batch.text, batch.lengths).mean()

    def _packed_loss(self, packed: Packed) -> torch.Tensor:
        x = self.inner.embed(packed.values) + self.inner.position(packed.position_ids)
        for block in cast("Iterator[Any]", self.inner.blocks):
            qkv = block.qkv(block.norm_attention(x)).view(len(x), 3, block.num_heads, -1)
            query, key, value = qkv.unbind(1)
            mixed = packed_attention(query, key, value, packed, is_causal=True)
            x = x + block.project(mixed.flatten(1))
            x = x + block.mlp(block.norm_mlp(x))
        logits = self.inner.head(self.inner.norm(x))
        # Each token but an example's last predicts the next.
        has_next = torch.ones(len(x), dtype=torch.bool)
        has_next[packed.offsets[1:].long() - 1] = False
        source = has_next.nonzero().squeeze(1)
        losses = cross_entropy(logits[source], packed.values[source + 1], reduction="none")
        num_predicted = (packed.offsets.diff() - 1)[packed.example_ids[source]]
        return (losses / num_predicted).sum() / len(packed.lengths)


@dataclass(frozen=True)
class Costs:
    """What examples and micro-batches cost here, in seconds, measured alike on every rank."""

    example: QuadraticCost
    microbatch_s: float


def measured_costs(num_ranks: int) -> Costs:
    """Measure the model's costs on all ranks at once."""
    job, microbatch_s = measured_job(ByteTransformer(**MODEL), num_ranks)
    assert isinstance(job.cost, QuadraticCost)
    return Costs(job.cost, microbatch_s)


def config_of(name: str, num_ranks: int, microbatch_s: float, seed: int = 0) -> BalanceConfig:
    """Return how one of our ways plans."""
    settings: dict[str, Any] = {"padded": True, "num_microbatches": "auto"} | OURS[name]
    return BalanceConfig(
        batch_size=PER_RANK * num_ranks,
        num_workers=num_ranks,
        counts="free",
        microbatch_cost=microbatch_s,
        tail="drop",
        seed=seed,
        **settings,
    )


def steps_of(
    name: str, sizes: np.ndarray[Any, Any], costs: Costs, rank: int, num_ranks: int, seed: int = 0
) -> StepsOfEpoch:
    """Return what a way gives `rank` in an epoch."""
    if name in PEERS:
        return peer_steps(name, sizes.tolist(), rank, num_ranks)
    config = config_of(name, num_ranks, costs.microbatch_s, seed)
    example_s = example_costs(costs.example, sizes)

    def steps(epoch: int) -> Steps:
        planned = micro_batches_of(plan_epoch(example_s, config, epoch=epoch), rank)
        return [
            [(part.examples.tolist(), part.loss_weight) for part in step]
            for _, step in groupby(planned, key=lambda part: part.step)
        ]

    return steps


class Way:
    """One way to feed the ranks, with a replica and an optimizer of its own."""

    def __init__(self, name: str, steps: StepsOfEpoch, *, lr: float = 1e-3, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.steps = steps
        self.collate: Callable[[Sequence[torch.Tensor]], Any] = (
            pack if name.startswith("packed") else padded_batch
        )
        self.model = DistributedDataParallel(RaggedModel())
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr)

    def batches(self, dataset: TextDataset, steps: Steps) -> list[list[Share]]:
        """Return the collated micro-batches of steps."""
        return [
            [Share(self.collate([dataset[i] for i in ids]), weight) for ids, weight in step]
            for step in steps
        ]

    def train_chunks(self, dataset: TextDataset, steps: Steps, size: int) -> Iterator[float]:
        """Train `size` steps at a time; yield the seconds of each chunk, collation included."""
        for first in range(0, len(steps), size):
            begin_s = time.perf_counter()
            self.train(self.batches(dataset, steps[first : first + size]))
            yield time.perf_counter() - begin_s

    def train(self, steps: list[list[Share]]) -> float:
        """Train the steps; return the seconds that they took."""
        dist.barrier()
        begin_s = time.perf_counter()
        for step in steps:
            self._train_step(step)
        dist.barrier()
        return time.perf_counter() - begin_s

    def _train_step(self, step: list[Share]) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for part in step:
            with nullcontext() if part is step[-1] else self.model.no_sync():
                (part.loss_weight * self.model(part.batch)).backward()
        self.optimizer.step()


def tokens_of(steps: list[list[Share]]) -> tuple[int, int]:
    """Return how many tokens steps hold over all ranks, and how many positions are padding."""
    counts = torch.zeros(2, dtype=torch.int64)
    for batch, _ in (part for step in steps for part in step):
        if isinstance(batch, Packed):
            counts[0] += sum(batch.lengths)
        else:
            counts += torch.tensor([int(batch.lengths.sum()), batch.num_padded])
    dist.all_reduce(counts)
    return int(counts[0]), int(counts[1])


def reunion_of(ranks: list[StepsOfEpoch], num_examples: int) -> float:
    """Return how many times likelier than by chance a step's examples share one again.

    Args:
        ranks: What each rank gets in an epoch.
        num_examples: Of the dataset.
    """
    costs = np.ones(num_examples)
    one, other = (
        as_plan([_whole_steps(steps(epoch)) for steps in ranks], costs, padded=False)
        for epoch in (0, 1)
    )
    config = BalanceConfig(batch_size=PER_RANK * len(ranks), num_workers=len(ranks))
    return measure_quality(one, costs, config, other).reunion or 0.0


def _whole_steps(steps: Steps) -> list[list[int]]:
    return [[index for ids, _ in step for index in ids] for step in steps]
