"""What each rank of the demo does: train the same model in both ways, in turn."""

import time
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from paceline.demo._config import DemoConfig
from paceline.demo._corpus import Corpus
from paceline.demo._data import (
    Share,
    TextDataset,
    global_batches,
    paced_loader,
    paced_plan,
    plain_loader,
)
from paceline.demo._model import ByteTransformer
from paceline.demo._price import measured_job, new_optimizer, predicted_step_s, train_step
from paceline.demo._result import DemoResult, Turn, result_of
from paceline.timeline import Timeline
from paceline.torch import watch

STEPS_PER_ROUND = 3
MIN_ROUNDS = 3


@dataclass(slots=True)
class Way:
    """One of the two ways to train: its replica, its feed, and what it did so far."""

    name: str
    model: DistributedDataParallel
    optimizer: torch.optim.Optimizer
    batches: Iterator[list[Share]]
    turns: list[Turn]

    def run(self, num_steps: int) -> None:
        """Train `num_steps` steps and add them as one turn."""
        losses, counts = [], torch.zeros(2, dtype=torch.int64)
        dist.barrier()
        with watch(self.model, self.optimizer) as recorder:
            for _ in range(num_steps):
                shares = next(self.batches)
                losses.append(train_step(self.model, self.optimizer, shares))
                for batch, _ in shares:
                    counts += torch.tensor([int(batch.lengths.sum()), batch.num_padded])
        mean_losses = torch.stack(losses)
        dist.all_reduce(mean_losses)
        dist.all_reduce(counts)
        timeline = replace(recorder.gather(), lanes=(self.name,))
        mean = tuple((mean_losses / dist.get_world_size()).tolist())
        self.turns.append(Turn(timeline, mean, int(counts[0]), int(counts[1])))


def train_both_ways(
    rank: int, config: DemoConfig, corpus: Path, end_s: float, progress: "Synchronized[float]"
) -> None:
    """Train until the monotonic clock reads about `end_s`; rank 0 writes the result."""
    torch.manual_seed(config.seed)
    begin_s = time.monotonic()
    dataset = TextDataset(Corpus.load(corpus))
    model = ByteTransformer()
    batches = global_batches(dataset, num_ranks=config.num_ranks, seed=config.seed)
    job, microbatch_s = measured_job(model, config.num_ranks)
    where = {"rank": rank, "num_ranks": config.num_ranks, "seed": config.seed}
    feeds = {
        "plain": plain_loader(dataset, **where),
        "paced": paced_loader(
            dataset, paced_plan(dataset, batches, job.cost, microbatch_s), rank=rank
        ),
    }
    ways = []
    for name, feed in feeds.items():
        replica = DistributedDataParallel(deepcopy(model))
        ways.append(Way(name, replica, new_optimizer(replica), feed, []))
    num_rounds, last_s = 0, 0.0
    while _go_on(num_rounds, end_s - last_s, len(batches)):
        round_begin_s = time.monotonic()
        for way in ways:
            way.run(STEPS_PER_ROUND)
        num_rounds += 1
        last_s = time.monotonic() - round_begin_s
        progress.value = min(1.0, (time.monotonic() - begin_s) / (end_s - begin_s))
    if rank == 0:
        done = batches[STEPS_PER_ROUND : num_rounds * STEPS_PER_ROUND]
        plain, paced = ways
        predicted_s = predicted_step_s(job, microbatch_s, dataset, done)
        result = result_of(plain.turns, paced.turns, predicted_s, config)
        _write(result, [*plain.turns, *paced.turns], config.output)


def _go_on(num_rounds: int, end_s: float, num_batches: int) -> bool:
    """Let rank 0 decide for all whether another round fits."""
    fits = num_rounds < MIN_ROUNDS or time.monotonic() < end_s
    decision = torch.tensor(fits and (num_rounds + 1) * STEPS_PER_ROUND <= num_batches)
    dist.broadcast(decision, src=0)
    return bool(decision)


def _write(result: DemoResult, turns: list[Turn], output: Path) -> None:
    """Write the trace of all turns, each with steps and collectives of its own."""
    parts = []
    for index, turn in enumerate(turns):
        part, shift = turn.timeline, index * STEPS_PER_ROUND
        collective = part.collective + shift * (part.collective >= 0)
        parts.append(replace(part, step=part.step + shift, collective=collective))
    Timeline.merge(parts).to_chrome_trace(output / "trace.json")
    result.save(output / "summary.json")
