"""Where the examples of a step go: which worker, which of its micro-batches, in which order."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.balance._compose import EXPENSIVE_SHARE
from paceline.balance._config import BalanceConfig
from paceline.balance._micro import split_micro_batches
from paceline.balance._shards import Shards, check_readable, partition_shards
from paceline.balance.split import (
    TOLERANCE,
    WINDOW_TOLERANCE,
    MicroBatchCosts,
    Pace,
    group_rows,
    partition_steps,
    plan_padded_micro_batches,
    split_padded_steps,
)


class Rules(NamedTuple):
    """What says where examples go, besides the examples.

    Attributes:
        config: What fixes the plan.
        pace: Speed of each worker.
        shards: Who can read which example; None for everyone everything.
        microbatch_cost: What each micro-batch costs besides its examples.
        tolerance: How near its bound a step must be.
    """

    config: BalanceConfig
    pace: Pace
    shards: Shards | None
    microbatch_cost: float
    tolerance: float


class Places(NamedTuple):
    """The place of each example of some steps.

    Attributes:
        worker: Shape `(num_steps, batch_size)`.
        micro: Micro-batch within that worker, same shape.
        num_parts: Micro-batches of each worker, shape `(num_steps, num_workers)`.
    """

    worker: NDArray[np.int64]
    micro: NDArray[np.int64]
    num_parts: NDArray[np.int64]


class Arranged(NamedTuple):
    """Some steps of a plan.

    Attributes:
        slots: Flat index of each slot's example in the steps, by step, worker and micro-batch.
        micro_sizes: Examples of each micro-batch, in that order.
        num_parts: Micro-batches of each worker, shape `(num_steps, num_workers)`.
        load: Cost, padding and micro-batches' own cost included, same shape.
    """

    slots: NDArray[np.int64]
    micro_sizes: NDArray[np.int64]
    num_parts: NDArray[np.int64]
    load: NDArray[np.float64]


def rules_of(
    cost: NDArray[np.float64],
    steps: NDArray[np.int64],
    config: BalanceConfig,
    pace: Pace,
    shards: Shards | None,
) -> Rules:
    """Return what holds for all steps of an epoch.

    Args:
        cost: Cost of each example of the dataset.
        steps: Examples of all steps, shape `(num_steps, batch_size)`.
        config: What fixes the plan.
        pace: Speed of each worker.
        shards: Who can read which example.
    """
    overhead, tolerance = microbatch_overhead(cost, config), _tolerance(cost, steps, config)
    return Rules(config, pace, shards, overhead, tolerance)


def arrange_steps(
    columns: Sequence[NDArray[np.float64]], steps: NDArray[np.int64], rules: Rules, first_step: int
) -> Arranged:
    """Give the examples of each step to workers, cut each worker's share, and sort the slots.

    Args:
        columns: Cost, tokens and bytes of each example of the dataset.
        steps: Examples, shape `(num_steps, batch_size)`.
        rules: Of the epoch.
        first_step: What an error calls the first of the steps.
    """
    amounts = np.stack([column[steps] for column in columns])
    places = _place(amounts, steps, rules, first_step)
    if rules.shards is not None:
        num_workers = rules.config.num_workers
        check_readable(rules.shards, steps, places.worker, num_workers, first_step)
    first = np.cumsum(places.num_parts, axis=1) - places.num_parts
    place = np.take_along_axis(first, places.worker, axis=1) + places.micro
    slots = np.empty_like(place)
    micro_sizes = group_rows(place, places.num_parts.sum(axis=1), slots)
    slots = slots.ravel()
    load = _loads(amounts[0].ravel()[slots], micro_sizes, places.num_parts, rules)
    return Arranged(slots, micro_sizes, places.num_parts, load)


def microbatch_overhead(cost: NDArray[np.float64], config: BalanceConfig) -> float:
    """Return what a micro-batch costs besides its examples; 0 where steps are not cut to cost."""
    if not config.cuts_to_cost:
        return 0.0
    own = config.microbatch_cost
    return float(cost.mean()) if own is None else own


def _tolerance(cost: NDArray[np.float64], steps: NDArray[np.int64], config: BalanceConfig) -> float:
    """Return how near its bound a step must be: less where expensive examples were moved."""
    if config.window == 1 or config.padded or not steps.size:
        return TOLERANCE
    step_costs = cost[steps]
    mean_load = step_costs.sum() / (len(step_costs) * config.num_workers)
    return WINDOW_TOLERANCE if step_costs.max() > EXPENSIVE_SHARE * mean_load else TOLERANCE


def _place(
    amounts: NDArray[np.float64], steps: NDArray[np.int64], rules: Rules, first_step: int
) -> Places:
    config = rules.config
    if config.cuts_to_cost and config.counts == "free":
        if _is_one_each_best(amounts[0], rules):
            return _one_each(amounts[0], rules)
        return Places(*plan_padded_micro_batches(amounts, _microbatch_costs(rules, rules.pace)))
    owner = _owners(amounts[0], steps, rules, first_step)
    if config.cuts_to_cost:
        return _cut_shares(amounts, owner, rules)
    if config.least_microbatches == 1 and config.limits.is_unlimited:
        num_parts = np.ones((len(steps), config.num_workers), dtype=np.int64)
        return Places(owner, np.zeros_like(owner), num_parts)
    micro, num_parts = split_micro_batches(amounts, owner, config, first_step)
    return Places(owner, micro, np.repeat(num_parts[:, None], config.num_workers, axis=1))


def _is_one_each_best(costs: NDArray[np.float64], rules: Rules) -> bool:
    """Whether a further micro-batch costs more than all padding that it could save."""
    padding = costs.max(axis=1) * costs.shape[1] - costs.sum(axis=1)
    is_expensive = padding.max(initial=0.0) <= rules.microbatch_cost
    return bool(is_expensive) and rules.config.limits.is_unlimited


def _one_each(costs: NDArray[np.float64], rules: Rules) -> Places:
    """Give each worker one micro-batch, without trying cuts."""
    pace = rules.pace
    begun = Pace(pace.rate, pace.start + rules.microbatch_cost * pace.rate)
    owner = split_padded_steps(costs, "free", begun)
    num_parts = np.ones((len(costs), rules.config.num_workers), dtype=np.int64)
    return Places(owner, np.zeros_like(owner), num_parts)


def _cut_shares(amounts: NDArray[np.float64], owner: NDArray[np.int64], rules: Rules) -> Places:
    """Cut the share of each worker where that costs least; shares are equally large."""
    num_workers = rules.config.num_workers
    by_worker = np.argsort(owner, axis=1, kind="stable")
    shares = np.take_along_axis(amounts, by_worker[None], axis=2)
    shares = shares.reshape(3, len(owner) * num_workers, -1)
    costs = _microbatch_costs(rules, Pace(np.ones(1), np.zeros(1)))
    _, parts, num_parts = plan_padded_micro_batches(shares, costs)
    micro = np.empty_like(owner)
    np.put_along_axis(micro, by_worker, parts.reshape(owner.shape), axis=1)
    return Places(owner, micro, num_parts.reshape(-1, num_workers))


def _microbatch_costs(rules: Rules, pace: Pace) -> MicroBatchCosts:
    limits = rules.config.limits
    most = (limits.max_cost, limits.max_tokens, limits.max_bytes, limits.max_examples)
    most_array = np.array(most, dtype=np.float64)
    return MicroBatchCosts(rules.microbatch_cost, pace.rate, pace.start, most_array)


def _owners(
    costs: NDArray[np.float64], steps: NDArray[np.int64], rules: Rules, first_step: int
) -> NDArray[np.int64]:
    config, pace, shards = rules.config, rules.pace, rules.shards
    if shards is not None:
        allowed = shards.can_read(config.num_workers)
        return partition_shards(costs, shards.shard[steps], allowed, pace, first_step)
    if config.padded:
        return split_padded_steps(costs, config.counts, pace)
    return partition_steps(costs, config.counts, pace, rules.tolerance)


def _loads(
    slot_costs: NDArray[np.float64],
    micro_sizes: NDArray[np.int64],
    num_parts: NDArray[np.int64],
    rules: Rules,
) -> NDArray[np.float64]:
    """Return the cost per (step, worker), padding and micro-batches' own cost included."""
    first = np.cumsum(micro_sizes) - micro_sizes
    if rules.config.padded:
        part_cost = np.maximum.reduceat(slot_costs, first) * micro_sizes
    else:
        part_cost = np.add.reduceat(slot_costs, first)
    worker = np.repeat(np.arange(num_parts.size), num_parts.ravel())
    load = np.bincount(worker, part_cost + rules.microbatch_cost)
    return load.astype(np.float64).reshape(num_parts.shape)
