"""Runs with causes planted: steps as a recorder would have written them."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.run import UNKNOWN, Run, Steps

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Loop:
    """A data-parallel loop: what it computes, and what is wrong with it."""

    num_ranks: int = 2
    num_steps: int = 200
    accumulate: int = 1
    noise: float = 0.07
    shared_noise: float = 0.0
    num_examples: int = 16
    length: float = 200.0
    microbatch_s: float = 1.5e-3
    element_s: float = 12e-6
    wire_s: float = 1e-3
    data_s: float = 0.5e-3
    update_s: float = 2e-3
    length_spread: float = 0.0
    padding: float = 0.0
    slow_factor: float = 1.0
    slow_extra_s: float = 0.0
    slow_outside_s: float = 0.0
    slow_data_s: float = 0.0
    num_workers: int = 0
    host_s: float | None = None
    knows_sizes: bool = True


PLANTS: dict[str, dict[str, Any]] = {
    "imbalance": {"length_spread": 0.5},
    "padding": {"padding": 0.4},
    "loader": {"data_s": 20e-3},
    "slow-rank": {"slow_factor": 1.5},
    "communication": {"wire_s": 25e-3},
    "small-batch": {"num_examples": 1, "length": 60.0, "data_s": 1e-4, "host_s": 1.5e-3},
}


def planted_run(loop: Loop, seed: int) -> Run:
    """Return the run that a recorder would have seen."""
    ranks = planted_steps(loop, seed)
    facts = {
        "sampler": "DistributedSampler",
        "batch_sampler": "BatchSampler",
        "dataset": "Text",
        "num_workers": loop.num_workers,
        "parallel": "DistributedDataParallel",
        "gradient_bytes": 40_000_000,
        "bucket_cap_mb": None,
        "host_s": loop.host_s,
    }
    info = {"script": "train.py", "state": "ended", "num_ranks": loop.num_ranks}
    return Run.of(ranks, info=info, facts=[facts] * loop.num_ranks)


def with_causes(loop: Loop, *causes: str) -> Loop:
    """Plant causes; a slow loader stays slow when batches are small, so those come first."""
    for cause in sorted(causes, key="small-batch".__ne__):
        loop = replace(loop, **PLANTS[cause])
    return loop


def planted_steps(loop: Loop, seed: int) -> list[Steps]:
    random = np.random.default_rng(seed)
    shape = (loop.num_ranks, loop.num_steps, loop.accumulate)
    last = np.arange(loop.num_ranks) == loop.num_ranks - 1
    length = loop.length * np.exp(loop.length_spread * random.standard_normal(shape))
    elements = np.maximum(loop.num_examples * length, 1.0).round()
    cost_s = loop.microbatch_s + loop.element_s * elements
    passes_s = _noisy(random, loop.noise, cost_s).sum(axis=2)
    if loop.shared_noise:
        passes_s *= np.exp(loop.shared_noise * random.standard_normal(loop.num_steps))
    passes_s *= np.where(last, loop.slow_factor, 1.0)[:, None]
    passes_s += np.where(last, loop.slow_extra_s, 0.0)[:, None]
    flat = np.ones(shape[:2])
    data_s = _noisy(random, loop.noise, (loop.data_s + loop.slow_data_s * last)[:, None] * flat)
    between_s = _noisy(random, loop.noise, (3e-4 + loop.slow_outside_s * last)[:, None] * flat)
    wire_s = _noisy(random, loop.noise, loop.wire_s * flat[0])
    update_s = _noisy(random, loop.noise, loop.update_s * flat)
    after_s = np.full(shape[:2], 1e-4)
    begin_s, arrival_s, collective_s = _meet(
        data_s + between_s + passes_s, wire_s, after_s + update_s
    )
    total = elements.sum(axis=2).astype(np.int64)
    known = total if loop.knows_sizes else np.full_like(total, UNKNOWN)
    offset_s = 100.0 * np.arange(loop.num_ranks)  # Each rank has a clock of its own.
    return [
        Steps(
            begin_s=begin_s[rank] + offset_s[rank],
            arrival_s=arrival_s[rank] + offset_s[rank],
            data_s=data_s[rank].astype("f4"),
            between_s=between_s[rank].astype("f4"),
            forward_s=(0.3 * passes_s[rank]).astype("f4"),
            loss_s=(0.05 * passes_s[rank]).astype("f4"),
            backward_s=(0.65 * passes_s[rank]).astype("f4"),
            collective_s=collective_s[rank].astype("f4"),
            after_s=after_s[rank].astype("f4"),
            optimizer_s=update_s[rank].astype("f4"),
            num_microbatches=np.full(loop.num_steps, loop.accumulate, dtype="i4"),
            num_examples=np.full(loop.num_steps, loop.accumulate * loop.num_examples, dtype="i8"),
            num_elements=known[rank],
            num_padding=(loop.padding * total[rank]).astype("i8")
            if loop.knows_sizes
            else known[rank],
        )
        for rank in range(loop.num_ranks)
    ]


def _noisy(random: np.random.Generator, noise: float, values: Array) -> Array:
    return np.asarray(values * np.exp(noise * random.standard_normal(values.shape)))


def _meet(before_s: Array, wire_s: Array, after_s: Array) -> tuple[Array, Array, Array]:
    """Let the ranks of each step wait for the last one."""
    begin_s, arrival_s, collective_s = (np.zeros_like(before_s) for _ in range(3))
    now_s = np.zeros(len(before_s))
    for step in range(before_s.shape[1]):
        begin_s[:, step] = now_s
        arrival_s[:, step] = now_s + before_s[:, step]
        end_s = arrival_s[:, step].max() + wire_s[step]
        collective_s[:, step] = end_s - arrival_s[:, step]
        now_s = end_s + after_s[:, step]
    return begin_s, arrival_s, collective_s
