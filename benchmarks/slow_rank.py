"""Claim: balanced batches keep two real gloo ranks busy on ragged text, also if one is slow.

Ways, each on the same examples with the same model: `random` (DistributedSampler, equal
counts), `stable` (the same global batches, split by padded cost with free counts),
`guided` (examples move within 16 steps), and, with rank 1 slowed threefold by real work,
`slowed_random`, `slowed_static` (as stable) and `slowed_dynamic` (refitted each epoch).
"""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _record import finish, parser, spread
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from paceline import BalancedBatchSampler, DataLoader, watch
from paceline.balance import BalanceConfig
from paceline.cost import ExampleCost, QuadraticCost
from paceline.demo import (
    ByteTransformer,
    Corpus,
    Share,
    TextDataset,
    measured_job,
    new_optimizer,
    padded_batch,
    standard_library_functions,
    train_step,
)
from paceline.testing import run_ranks
from paceline.timeline import Summary
from paceline.torch import Replica

NUM_RANKS, BATCH_SIZE, NUM_EPOCHS, SLOWDOWN = 2, 32, 4, 3
MODEL = {"dim": 64, "num_layers": 2, "num_heads": 4}
WAYS: dict[str, dict[str, Any]] = {
    "random": {},
    "stable": {"counts": "free", "padded": True},
    "guided": {"counts": "free", "padded": True, "window": 16},
    "slowed_random": {},
    "slowed_static": {"counts": "free", "padded": True},
    "slowed_dynamic": {"counts": "free", "padded": True},
}


class Repeated(torch.nn.Module):
    """The same function and gradient, at `times` the work: a worker that is that slow."""

    def __init__(self, model: torch.nn.Module, times: int) -> None:
        super().__init__()
        self.model, self.times = model, times

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        """Return the mean of `times` equal results."""
        return torch.stack([self.model(text) for _ in range(self.times)]).mean(dim=0)


class Way:
    """One way to feed the ranks, with a replica of its own."""

    def __init__(self, name: str, dataset: TextDataset, cost: ExampleCost, rank: int) -> None:
        torch.manual_seed(0)
        self.name = name
        self.is_dynamic = name == "slowed_dynamic"
        slowdown = SLOWDOWN if name.startswith("slowed") and rank == 1 else 1
        model = ByteTransformer(**MODEL)
        self.model = DistributedDataParallel(Repeated(model, slowdown))
        self.optimizer = new_optimizer(self.model)
        options = WAYS[name]
        is_random = not options
        # Without cost there is nothing to tell examples apart: the shuffle is split evenly.
        self.batches = BalancedBatchSampler(
            dataset.sizes,
            BalanceConfig(batch_size=BATCH_SIZE, tail="drop", **options),
            cost=np.ones_like if is_random else cost,
            process_group=Replica(rank=rank, num_replicas=NUM_RANKS),
        )
        self.loader: DataLoader[Any] = DataLoader(
            dataset, batch_sampler=self.batches, collate_fn=padded_batch
        )
        self.epochs: list[dict[str, Any]] = []

    def run_epoch(self, epoch: int) -> None:
        """Train one epoch and add its record."""
        self.batches.set_epoch(epoch)
        tokens = torch.zeros(1, dtype=torch.int64)
        dist.barrier()
        with watch(self.model, self.optimizer) as run:
            for batch in self.loader:
                tokens += batch.lengths.sum()
                train_step(self.model, self.optimizer, [Share(batch, self.loader.loss_weight)])
        timeline = run.gather()
        dist.all_reduce(tokens)
        self.epochs.append(_epoch_record(timeline.summary(), int(tokens)))
        if self.is_dynamic:
            self.batches.refit(timeline)


def _epoch_record(summary: Summary, tokens: int) -> dict[str, Any]:
    # Ranks that wait for each other at the all-reduce: with two, the earlier one.
    return {
        "tokens_per_s": tokens / summary.makespan_s,
        "step_p50_s": summary.step_time_s,
        "idle_share": summary.idle_share.tolist(),
        "largest_idle_share": float(summary.idle_share.max()),
        "waiting_share": (summary.waiting_s / summary.makespan_s).tolist(),
        "exposed_comm_share": (summary.exposed_comm_s / summary.makespan_s).tolist(),
        "data_share": (summary.data_s / summary.makespan_s).tolist(),
    }


def _train(rank: int, corpus: Path, output: Path) -> None:
    dataset = TextDataset(Corpus.load(corpus))
    torch.manual_seed(0)
    job, _ = measured_job(ByteTransformer(**MODEL), NUM_RANKS)
    assert isinstance(job.cost, QuadraticCost)
    ways = [Way(name, dataset, job.cost, rank) for name in WAYS]
    for epoch in range(NUM_EPOCHS):
        for way in ways:
            way.run_epoch(epoch)
    if rank == 0:
        output.write_text(json.dumps({way.name: way.epochs for way in ways}), encoding="utf-8")


def _first(corpus: Corpus, num_examples: int) -> Corpus:
    offsets = corpus.offsets[: num_examples + 1]
    return Corpus(text=corpus.text[: offsets[-1]], offsets=offsets)


def _summed_up(epochs: dict[str, list[dict[str, Any]]]) -> Iterator[tuple[str, Any]]:
    for name, records in epochs.items():
        # The first epoch warms up; dynamic learns in it.
        later = [record["tokens_per_s"] for record in records[1:]]
        yield name, {"tokens_per_s": spread(later), "epochs": records}


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--examples", type=int, default=320)
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus, output = Path(folder) / "corpus.npz", Path(folder) / "epochs.json"
        _first(standard_library_functions(budget_s=10.0), options.examples).save(corpus)
        run_ranks(_train, NUM_RANKS, corpus, output, timeout_s=600.0)
        epochs = json.loads(output.read_text(encoding="utf-8"))
    ways = dict(_summed_up(epochs))
    base = [record["tokens_per_s"] for record in epochs["random"][1:]]
    slow = [record["tokens_per_s"] for record in epochs["slowed_random"][1:]]
    for name, way in ways.items():
        peer = slow if name.startswith("slowed") else base
        rates = [record["tokens_per_s"] for record in epochs[name][1:]]
        way["speedup_over_random"] = spread(np.array(rates) / np.array(peer))
    dynamic = [record["largest_idle_share"] for record in epochs["slowed_dynamic"]]
    result = {
        "times": "measured",
        "num_examples": options.examples,
        "batch_size": BATCH_SIZE,
        "model": MODEL,
        "num_ranks": NUM_RANKS,
        "slowdown_of_rank_1": SLOWDOWN,
        "ways": ways,
        "dynamic_idle_share_by_epoch": dynamic,
    }
    finish("slow_rank", options, result, "torch")


if __name__ == "__main__":
    main()
