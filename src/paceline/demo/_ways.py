"""The ways to train that the demo compares, from what was measured before."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.cost import Job
from paceline.demo._data import (
    Share,
    TextDataset,
    global_batches,
    paced_loader,
    paced_plan,
    plain_loader,
    whole_loader,
)
from paceline.demo._price import predicted_steps_s, whole_batch_s
from paceline.demo._result import WINDOW
from paceline.demo._tuned import length_grouped_batches


class Price(NamedTuple):
    """What was measured before: a job, and the seconds that a micro-batch costs by itself."""

    job: Job
    microbatch_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How one way feeds a rank, and what was predicted for it.

    Attributes:
        name: One of `WAYS`.
        batches: Step by step, the micro-batches of this rank.
        predicted_s: Simulated seconds of each step. Shape `(num_steps,)`.
        tokens_per_s: Predicted for the whole epoch.
        bucket_mb: DDP's bucket size; None for its default.
    """

    name: str
    batches: Iterator[list[Share]]
    predicted_s: NDArray[np.float64]
    tokens_per_s: float
    bucket_mb: float | None


def ways_of(
    dataset: TextDataset, price: Price, tuned_bucket_mb: float, *, rank: int, seed: int
) -> list[Way]:
    """Return all ways, in the order of `WAYS`, for one rank; predicts each for all its steps."""
    job, microbatch_s = price
    num_ranks = len(job.workers)
    plain = global_batches(dataset, num_ranks=num_ranks, seed=seed)
    tuned = length_grouped_batches(dataset.sizes, num_ranks=num_ranks, seed=seed)
    stable = paced_plan(dataset, plain, job.cost, microbatch_s)
    window = paced_plan(dataset, plain, job.cost, microbatch_s, window=WINDOW)
    fed = {
        "plain": plain_loader(dataset, rank=rank, num_ranks=num_ranks, seed=seed),
        "tuned": whole_loader(dataset, tuned, rank=rank),
        "paced": paced_loader(dataset, stable, rank=rank),
        "window": paced_loader(dataset, window, rank=rank),
    }
    compute_s = {
        "plain": whole_batch_s(job, microbatch_s, dataset, plain),
        "tuned": whole_batch_s(job, microbatch_s, dataset, tuned),
        "paced": stable.load,
        "window": window.load,
    }
    ways = []
    for name, batches in fed.items():
        predicted_s = predicted_steps_s(job, compute_s[name])
        num_tokens = dataset.sizes[tuned if name == "tuned" else plain].sum()
        ways.append(
            Way(
                name=name,
                batches=batches,
                predicted_s=predicted_s,
                tokens_per_s=float(num_tokens / predicted_s.sum()),
                bucket_mb=tuned_bucket_mb if name == "tuned" else None,
            )
        )
    return ways
