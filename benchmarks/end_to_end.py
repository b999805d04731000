"""Claim: planned micro-batches reach a validation loss sooner than tuned length-grouped batches.

Two gloo ranks train a byte transformer on real text, in the ways of `ragged_training.py`. Each way
takes the learning rate that reaches the target first with a seed that is not scored, then trains
with the scored seeds, all ways in turn. The target is what default training reaches at the end
with its own best learning rate. Times are those of the training loop with planning and collation,
without validation.
"""

import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _ragged_data import ragged_corpus
from _ragged_peers import PER_RANK
from _ragged_ways import MODEL, OURS, Costs, Way, measured_costs, steps_of
from _record import finish, parser, spread
from torch import distributed as dist

from paceline.demo import Corpus, TextDataset
from paceline.testing import run_ranks
from paceline.torch import pack

NUM_RANKS, NUM_TRAINED, NUM_VALIDATED, CHUNK_STEPS = 2, 960, 96, 10
PEERS = ("group_by_length", "batch_rebalance", "token_buckets")
WAYS = ("default", *PEERS, *OURS)
LEARNING_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
TUNING_SEED, EPOCHS_OF_A_SEED = 99, 1000
# Seconds of training, and the validation loss after them.
Curve = list[tuple[float, float]]


class Job:
    """What all runs share on one rank."""

    def __init__(self, rank: int, corpus: Path, num_epochs: int) -> None:
        self.rank, self.num_epochs = rank, num_epochs
        self.dataset = TextDataset(Corpus.load(corpus))
        self.costs: Costs = measured_costs(NUM_RANKS)
        mine = range(NUM_TRAINED + rank, NUM_TRAINED + NUM_VALIDATED, NUM_RANKS)
        self.validated = pack([self.dataset[index] for index in mine])

    def curve(self, name: str, lr: float, seed: int) -> Curve:
        """Train one way; return its curve, equal on all ranks but for the seconds."""
        sizes = self.dataset.sizes[:NUM_TRAINED]
        steps = steps_of(name, sizes, self.costs, self.rank, NUM_RANKS)
        way, seconds = Way(name, steps, lr=lr, seed=seed), 0.0
        curve: Curve = []
        for epoch in range(self.num_epochs):
            begin_s = time.perf_counter()
            planned = way.steps(epoch + EPOCHS_OF_A_SEED * seed)
            seconds += time.perf_counter() - begin_s
            for took_s in way.train_chunks(self.dataset, planned, CHUNK_STEPS):
                seconds += took_s
                curve.append((seconds, self.validation_loss(way.model)))
        return curve

    @torch.no_grad()
    def validation_loss(self, model: torch.nn.Module) -> float:
        """Return the mean loss over the held-out examples of all ranks."""
        loss = model(self.validated)
        dist.all_reduce(loss)
        return float(loss) / NUM_RANKS


def time_to(curve: Curve, target: float) -> float:
    """Return when a curve first is at `target`, between its points; infinite if it never is."""
    before_s, before = 0.0, np.inf
    for seconds, loss in curve:
        if loss <= target:
            share = (before - target) / (before - loss) if np.isfinite(before) else 1.0
            return before_s + share * (seconds - before_s)
        before_s, before = seconds, loss
    return float("inf")


def train(rank: int, num_epochs: int, num_seeds: int, corpus: Path, output: Path) -> None:
    """Choose learning rates, then train all ways in turn; rank 0 writes the curves."""
    job = Job(rank, corpus, num_epochs)
    tuning = {
        name: {lr: job.curve(name, lr, TUNING_SEED) for lr in LEARNING_RATES} for name in WAYS
    }
    target = min(curve[-1][1] for curve in tuning["default"].values())
    chosen = {name: best_rate(curves, target) for name, curves in tuning.items()}
    shared: list[Any] = [chosen]
    dist.broadcast_object_list(shared)
    runs = []
    for seed in range(num_seeds):
        order = random.Random(seed).sample(WAYS, len(WAYS))
        found = {name: job.curve(name, shared[0][name], seed) for name in order}
        runs.append({name: found[name] for name in WAYS})
    if rank == 0:
        result = {"target": target, "learning_rates": chosen, "curves": runs}
        output.write_text(json.dumps(result), encoding="utf-8")


def best_rate(curves: dict[float, Curve], target: float) -> float:
    """Return the learning rate that is at the target first, or else ends lowest."""
    return min(curves, key=lambda lr: (time_to(curves[lr], target), curves[lr][-1][1]))


def scored(found: dict[str, Any], target: float) -> dict[str, Any]:
    """Return times to the target, relative to those of the same seed, and last losses."""
    times = {
        name: np.array([time_to(run[name], target) for run in found["curves"]]) for name in WAYS
    }
    reached = {name: np.isfinite(of_way) for name, of_way in times.items()}
    best_peer = min(PEERS, key=lambda name: np.median(times[name]))
    return {
        name: {
            "learning_rate": found["learning_rates"][name],
            "seeds_at_target": int(reached[name].sum()),
            "time_to_target_s": spread(times[name][reached[name]]) if reached[name].any() else None,
            "over_default": relative(times[name], times["default"]),
            "over_best_peer": relative(times[name], times[best_peer]),
            "last_loss": spread([run[name][-1][1] for run in found["curves"]]),
        }
        for name in WAYS
    }


def relative(times: np.ndarray, others: np.ndarray) -> dict[str, float] | None:
    """Return the ratios of the seeds with which both are at the target."""
    both = np.isfinite(times) & np.isfinite(others)
    return spread(times[both] / others[both]) if both.any() else None


def main() -> None:
    flags = parser(__doc__ or "")
    flags.add_argument("--epochs", type=int, default=3)
    flags.add_argument("--seeds", type=int, default=5)
    options = flags.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        corpus, output = Path(folder) / "corpus.npz", Path(folder) / "curves.json"
        ragged_corpus("text", NUM_TRAINED + NUM_VALIDATED).save(corpus)
        run_ranks(train, NUM_RANKS, options.epochs, options.seeds, corpus, output, timeout_s=3600.0)
        found = json.loads(output.read_text(encoding="utf-8"))
    ends = [run["default"][-1][1] for run in found["curves"]]
    # A seed of default training that ends above the tuned seed's loss would never be there.
    target = max(found["target"], *ends)
    result = {
        "times": "measured",
        "examples_per_rank": PER_RANK,
        "num_ranks": NUM_RANKS,
        "model": MODEL,
        "target_loss": target,
        "ways": scored(found, target),
    }
    finish("end_to_end", options, result, "torch", "transformers", "lhotse")


if __name__ == "__main__":
    main()
