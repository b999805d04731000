"""What each rank of the demo does: train the same model in every way, in turn."""

import time
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from paceline.demo._config import DemoConfig
from paceline.demo._corpus import Corpus
from paceline.demo._data import TextDataset
from paceline.demo._model import ByteTransformer
from paceline.demo._price import measured_job, new_optimizer, train_step
from paceline.demo._progress import Notes
from paceline.demo._record import RunRecord, counted
from paceline.demo._result import LABELS, DemoResult, Turn, result_of
from paceline.demo._tuned import best_bucket_mb
from paceline.demo._ways import Price, Way, ways_of
from paceline.timeline import Timeline
from paceline.torch import watch

STEPS_PER_ROUND = 3
MIN_ROUNDS = 2  # The first warms up.


class Trainee:
    """The replica of one way, and what it did so far."""

    def __init__(self, way: Way, model: ByteTransformer) -> None:
        self.way = way
        self.model = DistributedDataParallel(deepcopy(model), bucket_cap_mb=way.bucket_mb)
        self.optimizer = new_optimizer(self.model)
        self.turns: list[Turn] = []
        self.record = RunRecord()

    def run(self, num_steps: int) -> None:
        """Train `num_steps` steps and add them as one turn."""
        losses, rows = [], []
        dist.barrier()
        with watch(self.model, self.optimizer) as recorder:
            for _ in range(num_steps):
                begin_s = time.perf_counter()
                shares = next(self.way.batches)
                rows.append(counted(shares, time.perf_counter() - begin_s))
                losses.append(train_step(self.model, self.optimizer, shares))
        padded = sum(row.num_padding for row in rows)
        counts = torch.tensor([sum(row.num_elements for row in rows) - padded, padded])
        mean_losses = torch.stack(losses)
        dist.all_reduce(mean_losses)
        dist.all_reduce(counts)
        timeline = replace(recorder.gather(), lanes=(self.way.name,))
        self.record.add(recorder.timeline(), rows, timeline.makespan_s)
        mean = tuple((mean_losses / dist.get_world_size()).tolist())
        self.turns.append(Turn(timeline, mean, int(counts[0]), int(counts[1])))


def train_all_ways(rank: int, config: DemoConfig, corpus: Path, notes: Notes, end_s: float) -> None:
    """Train until the monotonic clock reads about `end_s`; rank 0 notes progress and writes."""
    say = notes.add if rank == 0 else lambda line: None
    torch.manual_seed(config.seed)
    dataset = TextDataset(Corpus.load(corpus))
    model = ByteTransformer()
    say(f"measuring what a step costs on {config.num_ranks} ranks")
    price = Price(*measured_job(model, config.num_ranks))
    bucket_mb = best_bucket_mb(model)
    say(f"tuned: bucket_cap_mb={bucket_mb:g} was fastest; predicting all ways")
    ways = ways_of(dataset, price, bucket_mb, rank=rank, seed=config.seed)
    rates = ", ".join(f"{LABELS[way.name]} {way.tokens_per_s:,.0f}" for way in ways)
    say(f"predicted tokens/s: {rates}")
    trainees = [Trainee(way, model) for way in ways]
    num_rounds, last_s = 0, 0.0
    while _go_on(num_rounds, end_s - last_s, len(ways[0].predicted_s)):
        say(f"training, round {num_rounds}" if num_rounds else "training, warm-up")
        begin_s = time.monotonic()
        # Each round begins with another way, so that none always follows the same one.
        first = num_rounds % len(trainees)
        for trainee in (*trainees[first:], *trainees[:first]):
            trainee.run(STEPS_PER_ROUND)
        num_rounds += 1
        last_s = time.monotonic() - begin_s
    for trainee in trainees:
        folder = config.output / trainee.way.name
        trainee.record.write(folder, rank, trainee.model, config.num_ranks)
    if rank == 0:
        done = slice(STEPS_PER_ROUND, num_rounds * STEPS_PER_ROUND)
        predicted_s = {way.name: float(way.predicted_s[done].mean()) for way in ways}
        turns = {trainee.way.name: trainee.turns for trainee in trainees}
        result = result_of(turns, predicted_s, config, tuned_bucket_mb=bucket_mb)
        _write(result, [turn for way in turns.values() for turn in way], config.output)


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
