"""Three bundled examples as they train, and the ways to train each of them."""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DistributedSampler

from paceline.balance import BalanceConfig, micro_batches_of, plan_epoch
from paceline.cost import example_costs
from paceline.torch import MeasuredCost

EXAMPLES = Path(__file__).parents[1] / "examples"
# Files of an example import each other by their bare names. Of the two that are called `train`, the
# first folder's is found.
sys.path += [str(EXAMPLES / name) for name in ("ragged_text", "gpt2", "ordering")]
# A micro-batch: its examples, and what its mean loss counts in the step.
Share = tuple[list[int], float]


class Example(NamedTuple):
    """What is trained.

    Attributes:
        model: With its first weights.
        loss: Of the model on a batch.
        batch: Turns examples into a batch.
        sizes: Size of each example.
        per_rank: Examples of a rank and step.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], torch.Tensor]
    batch: Callable[[Sequence[int]], Any]
    sizes: NDArray[np.float64]
    per_rank: int

    @property
    def is_ragged(self) -> bool:
        """Whether examples differ in size."""
        return bool(np.ptp(self.sizes) > 0)


def ragged_text() -> Example:
    """`examples/ragged_text`, as it comes."""
    train = import_module("train")
    dataset = train.Functions(400, 1024)
    return Example(
        train.ByteTransformer(32, 2, 1024),
        train.loss_of,
        lambda ids: train.collate([dataset[index] for index in ids]),
        np.array([len(dataset[index]) for index in range(len(dataset))], dtype=np.float64),
        4,
    )


def gpt2() -> Example:
    """The small model of `examples/gpt2` on random tokens, two sequences of 128 a rank."""
    found = import_module("model")
    tokens = torch.randint(512, (256, 129), generator=torch.Generator().manual_seed(0))
    return Example(
        found.GPT2(found.SIZES["1m"], vocab_size=512, context=128),
        lambda model, batch: model(batch[:, :-1], batch[:, 1:]) / batch[:, 1:].numel(),
        lambda ids: tokens[list(ids)],
        np.full(len(tokens), 128.0),
        2,
    )


def ordering() -> Example:
    """LeNet of `examples/ordering` on random images, 64 a rank."""
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.randn(2048, 1, 28, 28, generator=generator), torch.arange(2048) % 10
    return Example(
        import_module("lenet").lenet(),
        lambda model, batch: cross_entropy(model(batch[0]), batch[1]),
        lambda ids: (images[list(ids)], labels[list(ids)]),
        np.ones(len(images)),
        64,
    )


def dealt_steps(example: Example, num_ranks: int, num_steps: int) -> list[list[list[Share]]]:
    """Return what DistributedSampler gives each rank in each step."""
    ranks = []
    for rank in range(num_ranks):
        dataset: Any = range(len(example.sizes))
        mine = np.array(list(DistributedSampler(dataset, num_ranks, rank)))
        whole = np.resize(mine, num_steps * example.per_rank).reshape(num_steps, -1).tolist()
        ranks.append([[(ids, 1.0)] for ids in whole])
    return ranks


def paced_steps(
    example: Example, num_ranks: int, num_steps: int, cost: MeasuredCost
) -> list[list[list[Share]]]:
    """Return what a plan gives each rank in each step, of the same shuffle."""
    config = BalanceConfig(
        batch_size=num_ranks * example.per_rank,
        num_workers=num_ranks,
        counts="free",
        padded=True,
        num_microbatches="auto",
        microbatch_cost=cost.microbatch,
    )
    dealt = dealt_steps(example, num_ranks, num_steps)
    rows = [[index for rank in dealt for index in rank[step][0][0]] for step in range(num_steps)]
    plan = plan_epoch(
        example_costs(cost.example, example.sizes), config, remaining=np.concatenate(rows)
    )
    return [
        [
            [(part.examples.tolist(), part.loss_weight) for part in step]
            for _, step in groupby(micro_batches_of(plan, rank), key=lambda part: part.step)
        ]
        for rank in range(num_ranks)
    ]


def compute_s(
    example: Example, cost: MeasuredCost, ranks: list[list[list[Share]]]
) -> NDArray[np.float64]:
    """Return what the passes of each step cost, shape `(num_steps, num_ranks)`."""
    each_s = example_costs(cost.example, example.sizes)
    return np.array(
        [
            [
                sum(len(ids) * each_s[ids].max() + cost.microbatch for ids, _ in step)
                for step in rank
            ]
            for rank in ranks
        ]
    ).T
