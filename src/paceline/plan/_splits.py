"""The ways to divide the same examples, and how long each keeps the workers busy."""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.balance import BalanceConfig, plan_epoch
from paceline.cost import Job, example_costs
from paceline.plan._schedule import Change

Array = NDArray[np.float64]
# The window that is tried where the order of data may change.
WIDER = 16


class Split(NamedTuple):
    """Who computes what.

    Attributes:
        config: What fixes it; None where nothing is known of the examples.
        is_balanced: Whether by cost, else as DistributedSampler deals examples.
        changes: What of the training it changes.
        compute_s: Seconds of both passes of each worker, shape `(num_steps, num_workers)`.
    """

    config: BalanceConfig | None
    is_balanced: bool
    changes: Change
    compute_s: Array


class Examples(NamedTuple):
    """The examples of some steps, in the order of the first epoch's shuffle.

    Attributes:
        cost_s: Seconds of each example of the dataset on a worker of speed 1.
        microbatch_s: Seconds of a micro-batch besides its examples.
        steps: Shape `(num_steps, batch_size)`.
    """

    cost_s: Array
    microbatch_s: float
    steps: NDArray[np.int64]


def examples_of(
    job: Job, config: BalanceConfig, *, num_steps: int, seconds_per_cost: float | None
) -> Examples:
    """Price examples in seconds; unset, so that a mean step takes what the job's layers take.

    Raises:
        ValueError: If the job does not know its examples, or has less than a batch of them.
    """
    if len(job.sizes) < config.batch_size:
        raise ValueError(
            f"the job must have sizes of at least one batch of {config.batch_size} examples, got "
            f"{len(job.sizes)}; pass Job(sizes=...), or no config"
        )
    shuffled = np.random.default_rng([config.seed, 0]).permutation(len(job.sizes))
    num_steps = min(num_steps, len(job.sizes) // config.batch_size)
    steps = shuffled[: num_steps * config.batch_size].reshape(num_steps, -1)
    found = Examples(example_costs(job.cost, job.sizes), config.microbatch_cost or 0.0, steps)
    if seconds_per_cost is None:
        mean = float(_dealt(found, config).mean())
        seconds_per_cost = (job.forward_s + job.backward_s) / mean if mean else 0.0
    return found._replace(
        cost_s=found.cost_s * seconds_per_cost, microbatch_s=found.microbatch_s * seconds_per_cost
    )


def plain_split(job: Job, config: BalanceConfig, examples: Examples) -> Split:
    """Return what DistributedSampler does: workers take the examples of the shuffle in turn."""
    speed = np.array([worker.speed for worker in job.workers])
    return Split(config, False, "nothing", _dealt(examples, config) / speed)


def unknown_split(job: Job, num_steps: int) -> Split:
    """Return what is known of a job without sizes: every step takes what its layers take."""
    speed = np.array([worker.speed for worker in job.workers])
    row = (job.forward_s + job.backward_s) / speed
    return Split(None, False, "nothing", np.tile(row, (num_steps, 1)))


def balanced_split(job: Job, config: BalanceConfig, examples: Examples) -> Split:
    """Return what a balanced sampler with `config` does with the same examples."""
    in_seconds = replace(config, microbatch_cost=examples.microbatch_s, tail="drop")
    plan = plan_epoch(
        examples.cost_s, in_seconds, workers=job.workers, remaining=examples.steps.ravel()
    )
    load_s = plan.load
    if not config.cuts_to_cost:  # Else it is in the load.
        load_s = load_s + plan.num_microbatches * examples.microbatch_s
    speed = np.array([worker.speed for worker in job.workers])
    changes: Change = "order of data" if config.window > 1 else "nothing"
    return Split(config, True, changes, load_s / speed)


def balanced_configs(config: BalanceConfig, *, may_reorder: bool) -> Iterator[BalanceConfig]:
    """Yield the configurations to try, those that ask least of the training loop first."""
    windows = sorted({1, config.window, WIDER} if may_reorder else {1})
    can_cut = config.padded and config.microbatch_cost is not None
    for window in windows:
        yield replace(config, counts="equal", window=window, num_microbatches=1)
        yield replace(config, counts="free", window=window, num_microbatches=1)
        if can_cut:
            yield replace(config, counts="free", window=window, num_microbatches="auto")


def _dealt(examples: Examples, config: BalanceConfig) -> Array:
    """Return the load of each worker, shape `(num_steps, num_workers)`."""
    cost = examples.cost_s[examples.steps].reshape(len(examples.steps), -1, config.num_workers)
    load = cost.max(axis=1) * cost.shape[1] if config.padded else cost.sum(axis=1)
    return np.asarray(load + examples.microbatch_s)
