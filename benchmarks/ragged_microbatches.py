"""Claim: planned micro-batches train faster than length-grouped batches, on plain global batches.

Real text on gloo ranks with one thread each; the ways take turns, and each trains the same model
from the same start:

- `default`: torch's DistributedSampler, padded.
- `group_by_length`: transformers' DistributedLengthGroupedSampler.
- `batch_rebalance`: transformers' BatchRebalanceSampler.
- `one_batch`: the plain shuffle's global batches, split by padded cost, one batch per rank.
- `stable`: the same global batches, cut into planned micro-batches.
- `window`: the same with examples moved within 16 steps.
"""

import json
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import finish, parser, spread
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler, TensorDataset

from paceline.balance import BalanceConfig, measure_quality, micro_batches_of, plan_epoch
from paceline.cost import example_costs
from paceline.demo import (
    ByteTransformer,
    Corpus,
    Share,
    TextDataset,
    measured_job,
    padded_batch,
    standard_library_functions,
    train_step,
)
from paceline.testing import run_ranks

NUM_EXAMPLES, PER_RANK, NUM_STEPS = 960, 16, 16
MODEL = {"dim": 64, "num_layers": 2, "num_heads": 4}
PEERS = ("default", "group_by_length", "batch_rebalance")
# The examples of each micro-batch of this rank, and what their mean loss counts, step by step.
Steps = list[list[tuple[list[int], float]]]


def hf_samplers() -> Any:
    """Import what holds the samplers of transformers, a peer that only this benchmark needs."""
    return import_module("transformers.trainer_pt_utils")


def peer_steps(name: str, sizes: list[int], rank: int, num_ranks: int) -> Callable[[int], Steps]:
    """Return what a peer gives this rank in an epoch, one micro-batch a step."""

    def steps(epoch: int) -> Steps:
        sampler: Any
        if name == "default":
            sampler = DistributedSampler(
                TensorDataset(torch.tensor(sizes)), num_ranks, rank, drop_last=True
            )
        elif name == "group_by_length":
            sampler = hf_samplers().DistributedLengthGroupedSampler(
                PER_RANK, num_replicas=num_ranks, rank=rank, lengths=sizes
            )
        else:
            sampler = hf_samplers().BatchRebalanceSampler(
                sizes, PER_RANK * num_ranks, dp_size=num_ranks, grad_accum=1, rank=rank
            )
        sampler.set_epoch(epoch)
        if name == "batch_rebalance":
            return [[(list(ids), len(ids) / PER_RANK)] for ids in sampler]
        ids = list(sampler)
        whole = len(ids) - len(ids) % PER_RANK
        return [[(ids[i : i + PER_RANK], 1.0)] for i in range(0, whole, PER_RANK)]

    return steps


def config_of(name: str, num_ranks: int, microbatch_s: float) -> BalanceConfig:
    """Return how one of our ways plans."""
    return BalanceConfig(
        batch_size=PER_RANK * num_ranks,
        num_workers=num_ranks,
        counts="free",
        padded=True,
        window=16 if name == "window" else 1,
        num_microbatches=1 if name == "one_batch" else "auto",
        microbatch_cost=microbatch_s,
        tail="drop",
    )


def planned_steps(costs: Any, config: BalanceConfig, rank: int) -> Callable[[int], Steps]:
    """Return what a plan of ours gives this rank in an epoch."""

    def steps(epoch: int) -> Steps:
        planned = micro_batches_of(plan_epoch(costs, config, epoch=epoch), rank)
        return [
            [(part.examples.tolist(), part.loss_weight) for part in step]
            for _, step in groupby(planned, key=lambda part: part.step)
        ]

    return steps


class Way:
    """One way to feed the ranks, with a replica of its own."""

    def __init__(self, steps: Callable[[int], Steps]) -> None:
        torch.manual_seed(0)
        self.steps = steps
        self.model = DistributedDataParallel(ByteTransformer(**MODEL))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)

    def run(self, dataset: TextDataset, epoch: int) -> dict[str, float]:
        """Train the first steps of `epoch`; batches are made before the clock starts."""
        steps = [
            [Share(padded_batch([dataset[i] for i in ids]), weight) for ids, weight in step]
            for step in self.steps(epoch)[:NUM_STEPS]
        ]
        batches = [share.batch for step in steps for share in step]
        counts = torch.tensor(
            [sum(int(b.lengths.sum()) for b in batches), sum(b.num_padded for b in batches)]
        )
        dist.barrier()
        begin_s = time.perf_counter()
        for step in steps:
            train_step(self.model, self.optimizer, step)
        dist.barrier()
        seconds = time.perf_counter() - begin_s
        dist.all_reduce(counts)
        tokens, padded = counts.tolist()
        return {"tokens_per_s": tokens / seconds, "padding": padded / (tokens + padded)}


def train(rank: int, num_ranks: int, num_rounds: int, corpus: Path, output: Path) -> None:
    """Run all ways in turn; rank 0 writes what they did."""
    dataset = TextDataset(Corpus.load(corpus))
    job, microbatch_s = measured_job(ByteTransformer(**MODEL), num_ranks)
    costs = example_costs(job.cost, dataset.sizes)
    sizes = dataset.sizes.tolist()
    ways = {name: Way(peer_steps(name, sizes, rank, num_ranks)) for name in PEERS}
    configs = {n: config_of(n, num_ranks, microbatch_s) for n in ("one_batch", "stable", "window")}
    ways |= {name: Way(planned_steps(costs, one, rank)) for name, one in configs.items()}
    rounds = []
    for epoch in range(num_rounds + 1):  # The first warms up.
        order = random.Random(epoch).sample(list(ways), len(ways))
        found = {name: ways[name].run(dataset, epoch) for name in order}
        rounds.append({name: found[name] for name in ways})
    if rank == 0:
        reunion = {
            name: measure_quality(
                plan_epoch(costs, one, epoch=0), costs, one, plan_epoch(costs, one, epoch=1)
            ).reunion
            for name, one in configs.items()
        }
        result = {"rounds": rounds[1:], "reunion": reunion, "microbatch_s": microbatch_s}
        output.write_text(json.dumps(result), encoding="utf-8")


def compared(rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Return medians and quartiles, and ratios round by round."""
    rates = {way: np.array([one[way]["tokens_per_s"] for one in rounds]) for way in rounds[0]}
    return {
        way: {
            "tokens_per_s": spread(rate),
            "over_default": spread(rate / rates["default"]),
            "over_group_by_length": spread(rate / rates["group_by_length"]),
            "padding": float(np.median([one[way]["padding"] for one in rounds])),
        }
        for way, rate in rates.items()
    }


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    flags.add_argument("--rounds", type=int, default=7)
    options = flags.parse_args()
    result: dict[str, Any] = {"times": "measured", "examples_per_rank": PER_RANK, "model": MODEL}
    with tempfile.TemporaryDirectory() as folder:
        corpus, output = Path(folder) / "corpus.npz", Path(folder) / "rounds.json"
        whole = standard_library_functions(budget_s=10.0)
        offsets = whole.offsets[: NUM_EXAMPLES + 1]
        replace(whole, text=whole.text[: offsets[-1]], offsets=offsets).save(corpus)
        for num_ranks in options.ranks:
            run_ranks(train, num_ranks, num_ranks, options.rounds, corpus, output, timeout_s=900.0)
            found = json.loads(output.read_text(encoding="utf-8"))
            ways = compared(found.pop("rounds"))
            result[f"{num_ranks}_ranks"] = {"ways": ways, **found}
    finish("ragged_microbatches", options, result, "torch", "transformers")


if __name__ == "__main__":
    main()
