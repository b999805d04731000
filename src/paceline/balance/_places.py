"""Where each example of a step goes: which worker, and which of its micro-batches."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.balance._compose import EXPENSIVE_SHARE
from paceline.balance._config import BalanceConfig
from paceline.balance._micro import split_micro_batches
from paceline.balance._shards import Shards, partition_shards
from paceline.balance.split import (
    TOLERANCE,
    WINDOW_TOLERANCE,
    MicroBatchCosts,
    Pace,
    partition_steps,
    plan_padded_micro_batches,
    split_padded_steps,
)


class Places(NamedTuple):
    """The place of each example of some steps.

    Attributes:
        worker: Shape `(num_steps, batch_size)`.
        micro: Micro-batch within that worker, same shape.
        num_parts: Micro-batches of each worker, shape `(num_steps, num_workers)`.
        microbatch_cost: What each costs besides its examples.
    """

    worker: NDArray[np.int64]
    micro: NDArray[np.int64]
    num_parts: NDArray[np.int64]
    microbatch_cost: float = 0.0


def place_examples(
    amounts: NDArray[np.float64],
    steps: NDArray[np.int64],
    config: BalanceConfig,
    pace: Pace,
    shards: Shards | None,
) -> Places:
    """Give the examples of each step to workers, and cut each worker's share.

    Args:
        amounts: Cost, tokens and bytes of each example of the dataset, shape `(3, num_examples)`.
        steps: Examples, shape `(num_steps, batch_size)`.
        config: What fixes the plan.
        pace: Speed of each worker.
        shards: Who can read which example; None for everyone everything.
    """
    if config.cuts_to_cost and config.counts == "free":
        return _cut_to_cost(amounts, steps, config, pace)
    owner = _owners(amounts[0], steps, config, pace, shards)
    if config.cuts_to_cost:
        return _cut_shares(amounts, steps, owner, config)
    if config.least_microbatches == 1 and config.limits.is_unlimited:
        num_parts = np.ones((len(steps), config.num_workers), dtype=np.int64)
        return Places(owner, np.zeros_like(owner), num_parts)
    micro, num_parts = split_micro_batches(steps, owner, amounts, config)
    return Places(owner, micro, np.repeat(num_parts[:, None], config.num_workers, axis=1))


def _cut_to_cost(
    amounts: NDArray[np.float64], steps: NDArray[np.int64], config: BalanceConfig, pace: Pace
) -> Places:
    costs = _microbatch_costs(amounts[0], config, pace)
    return Places(*plan_padded_micro_batches(amounts[:, steps], costs), costs.overhead)


def _cut_shares(
    amounts: NDArray[np.float64],
    steps: NDArray[np.int64],
    owner: NDArray[np.int64],
    config: BalanceConfig,
) -> Places:
    """Cut the share of each worker where that costs least; shares are equally large."""
    num_workers = config.num_workers
    by_worker = np.argsort(owner, axis=1, kind="stable")
    shares = np.take_along_axis(steps, by_worker, axis=1).reshape(len(steps) * num_workers, -1)
    costs = _microbatch_costs(amounts[0], config, Pace(np.ones(1), np.zeros(1)))
    _, parts, num_parts = plan_padded_micro_batches(amounts[:, shares], costs)
    micro = np.empty_like(owner)
    np.put_along_axis(micro, by_worker, parts.reshape(owner.shape), axis=1)
    return Places(owner, micro, num_parts.reshape(-1, num_workers), costs.overhead)


def microbatch_overhead(cost: NDArray[np.float64], config: BalanceConfig) -> float:
    """Return what a micro-batch costs besides its examples; 0 where steps are not cut to cost."""
    if not config.cuts_to_cost:
        return 0.0
    own = config.microbatch_cost
    return float(cost.mean()) if own is None else own


def _microbatch_costs(
    cost: NDArray[np.float64], config: BalanceConfig, pace: Pace
) -> MicroBatchCosts:
    limits = config.limits
    most = (limits.max_cost, limits.max_tokens, limits.max_bytes, limits.max_examples)
    overhead = microbatch_overhead(cost, config)
    return MicroBatchCosts(overhead, pace.rate, pace.start, np.array(most, dtype=np.float64))


def _owners(
    cost: NDArray[np.float64],
    steps: NDArray[np.int64],
    config: BalanceConfig,
    pace: Pace,
    shards: Shards | None,
) -> NDArray[np.int64]:
    if shards is not None:
        allowed = shards.can_read(config.num_workers)
        return partition_shards(cost[steps], shards.shard[steps], allowed, pace)
    if config.padded:
        return split_padded_steps(cost[steps], config.counts, pace)
    step_costs = cost[steps]
    return partition_steps(step_costs, config.counts, pace, _tolerance(step_costs, config))


def _tolerance(step_costs: NDArray[np.float64], config: BalanceConfig) -> float:
    """Return how near its bound a step must be: less where expensive examples were moved."""
    if config.window == 1 or not step_costs.size:
        return TOLERANCE
    mean_load = step_costs.sum() / (len(step_costs) * config.num_workers)
    return WINDOW_TOLERANCE if step_costs.max() > EXPENSIVE_SHARE * mean_load else TOLERANCE
