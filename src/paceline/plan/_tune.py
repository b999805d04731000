"""Decide for all rooms at once: every candidate is a whole step, priced by the one simulator."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.balance import BalanceConfig
from paceline.cost import Job
from paceline.overlap import LanePlan
from paceline.plan._graph import StepParts, step_graph
from paceline.plan._schedule import CHANGES, Change, Schedule
from paceline.plan._sendings import Sending, other_sendings, plain_sending
from paceline.plan._splits import (
    Examples,
    Split,
    balanced_configs,
    balanced_split,
    examples_of,
    plain_split,
    unknown_split,
)
from paceline.timeline import Timeline, simulate

# A smaller gain is within what a simulation misses; then what asks less stays.
LEAST_GAIN = 0.01
SHUFFLE = "shuffle"
NUM_STEPS = 64


class Priced(NamedTuple):
    """A candidate and its simulated steps."""

    schedule: Schedule
    step_times_s: NDArray[np.float64]


def tune(
    job: Job,
    config: BalanceConfig | None = None,
    *,
    seconds_per_cost: float | None = None,
    order: str = SHUFFLE,
    may_change: Change = "nothing",
    lanes: LanePlan | None = None,
    num_steps: int = NUM_STEPS,
) -> Schedule:
    """Return the schedule with the least simulated step time, the plain one if none wins.

    Every way to divide the examples is simulated with every way to send the gradients, on the same
    steps of the first epoch's shuffle. Plain data parallel training (DistributedSampler,
    DistributedDataParallel with buckets of 25 MB) is one of the candidates. Another one is taken if
    it saves 1 % of the step, and of those within 1 % of the best one the first that was tried,
    which asks least of the training loop. Deterministic, so equal on all ranks for an equal job.

    Args:
        job: Layers, link, workers; its sizes and its cost, if `config` is given. The layers are
            those of a mean step of a worker.
        config: What fixes the global batches: `batch_size`, `padded`, `microbatch_cost` in the unit
            of `job.cost`, `limits`, `seed`. Counts, window and micro-batches are tried. Unset,
            nothing is balanced. Its `num_workers` is the job's.
        seconds_per_cost: 1 if `job.cost` is in seconds; unset to let a mean step take as long as
            the job's layers.
        order: An order that samplers know by name. It fixes what is in a global batch, so no wider
            window is tried, and balance who computes it. Simulated as the shuffle, since it is
            learnt later.
        may_change: "nothing" tries what leaves the gradients of every step as they are, "order of
            data" wider windows too, "numerics" gradients in 16 bits as well.
        lanes: What of the backward pass runs on a lane of its own, as `choose_way` planned it;
            its own simulation says by how much that shortens the passes.
        num_steps: Steps to simulate, at most.

    Raises:
        ValueError: If an argument is bad, the job has several workers and no link, or the batch
            size cannot be divided among them.

    Examples:
        >>> from paceline.cost import LayerCost, Link, Worker
        >>> job = Job(
        ...     source="predicted",
        ...     layers=(LayerCost(name="0", forward_s=1.0, backward_s=2.0, gradient_bytes=8),),
        ...     link=Link(alpha_s=0.0, bytes_per_s=80.0),
        ...     workers=(Worker(), Worker()),
        ...     sizes=np.array([1.0, 1.0, 1.0, 5.0] * 16),
        ... )
        >>> schedule = tune(job, BalanceConfig(batch_size=8))
        >>> schedule.is_balanced, schedule.step_s < schedule.plain_step_s
        (True, True)
        >>> simulate_schedule(job, schedule, num_steps=4).source
        'simulated'
    """
    return best_of(
        list(
            candidates(
                job,
                config,
                seconds_per_cost=seconds_per_cost,
                order=order,
                may_change=may_change,
                lanes=lanes,
                num_steps=num_steps,
            )
        )
    ).schedule


def simulate_schedule(
    job: Job,
    schedule: Schedule,
    *,
    num_steps: int = NUM_STEPS,
    seconds_per_cost: float | None = None,
    lanes: LanePlan | None = None,
) -> Timeline:
    """Return what happens when in the first steps of `job` under `schedule`, simulated.

    Its name says what it takes: `paceline.simulate` runs any graph of tasks.

    Args:
        job: What the schedule is for, with its sizes if the schedule has a config.
        schedule: What was decided.
        num_steps: Steps to simulate, at most as many as the first epoch has.
        seconds_per_cost: As for `tune`.
        lanes: As for `tune`, if the schedule defers anything.

    Raises:
        ValueError: As `tune`, or if the blocks are of a job with other layers.
    """
    _check_blocks(job, schedule)
    if schedule.config is None:
        return _simulated(job, unknown_split(job, num_steps), schedule, lanes)
    config = replace(schedule.config, num_workers=len(job.workers))
    examples = examples_of(job, config, num_steps=num_steps, seconds_per_cost=seconds_per_cost)
    make = balanced_split if schedule.is_balanced else plain_split
    return _simulated(job, make(job, config, examples), schedule, lanes)


def candidates(
    job: Job,
    config: BalanceConfig | None = None,
    *,
    seconds_per_cost: float | None = None,
    order: str = SHUFFLE,
    may_change: Change = "nothing",
    lanes: LanePlan | None = None,
    num_steps: int = NUM_STEPS,
) -> Iterator[Priced]:
    """Yield all candidates of `tune` with their simulated steps, the plain one first."""
    if may_change not in CHANGES or num_steps < 1:
        raise ValueError(
            f"may_change must be one of {', '.join(CHANGES)} and num_steps at least 1, got "
            f"{may_change!r} and {num_steps}"
        )
    allowed = CHANGES.index(may_change)
    examples = None
    if config is not None:
        config = replace(config, num_workers=len(job.workers))
        examples = examples_of(job, config, num_steps=num_steps, seconds_per_cost=seconds_per_cost)
    splits = list(
        _splits(job, config, examples, num_steps, may_reorder=allowed > 0 and order == SHUFFLE)
    )
    sendings = [plain_sending(job), *other_sendings(job, may_compress=allowed > 1)]
    defers = [None, lanes] if lanes is not None and lanes.defers else [None]
    plain_s = 0.0
    for split in splits:
        for sending in sendings:
            for lane_plan in defers:
                schedule = _schedule_of(split, sending, lane_plan, order)
                times_s = _simulated(job, split, schedule, lane_plan).summary().step_times_s
                plain_s = plain_s or float(times_s.mean())
                priced = replace(schedule, step_s=float(times_s.mean()), plain_step_s=plain_s)
                yield Priced(priced, times_s)


def best_of(priced: list[Priced]) -> Priced:
    """Return the one that is kept; the first is the plain one."""
    plain, *others = priced
    # A sampler that knows the order is needed to keep it, whatever the time.
    needs_order = others and others[-1].schedule.order != SHUFFLE
    open_to = [one for one in others if one.schedule.is_balanced] if needs_order else priced
    best_s = min(one.schedule.step_s for one in open_to)
    if not needs_order and best_s > (1 - LEAST_GAIN) * plain.schedule.step_s:
        return plain
    return next(one for one in open_to if one.schedule.step_s * (1 - LEAST_GAIN) <= best_s)


def _splits(
    job: Job,
    config: BalanceConfig | None,
    examples: Examples | None,
    num_steps: int,
    *,
    may_reorder: bool,
) -> Iterator[Split]:
    if config is None or examples is None:
        yield unknown_split(job, num_steps)
        return
    yield plain_split(job, config, examples)
    for each in balanced_configs(config, may_reorder=may_reorder):
        yield balanced_split(job, each, examples)


def _schedule_of(split: Split, sending: Sending, lanes: LanePlan | None, order: str) -> Schedule:
    return Schedule(
        config=split.config,
        is_balanced=split.is_balanced,
        order=order if split.is_balanced else SHUFFLE,
        **sending._asdict(),
        deferred=lanes.deferred if lanes is not None else (),
        changes="numerics" if sending.compression else split.changes,
    )


def _simulated(job: Job, split: Split, schedule: Schedule, lanes: LanePlan | None) -> Timeline:
    shorter = lanes.predicted_s / lanes.plain_s if lanes is not None and schedule.deferred else 1.0
    parts = StepParts.of_blocks(
        job, schedule.blocks, waits_for_all=schedule.bucket_cap_mb is not None
    )
    return simulate(step_graph(job, split.compute_s * shorter, parts))


def _check_blocks(job: Job, schedule: Schedule) -> None:
    layers = {part.layer for block in schedule.blocks for part in block}
    if layers and max(layers) >= len(job.layers):
        raise ValueError(
            f"the schedule sends gradients of layer {max(layers)}, but the job has "
            f"{len(job.layers)} layers; tune it for this job"
        )
