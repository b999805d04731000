"""Cut each worker's share of a step into micro-batches, light to heavy, within limits."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline._compile import compiled, compiled_beyond
from paceline.balance._config import BalanceConfig, Limits
from paceline.balance.split import sort_order

NUM_BISECTIONS = 30


class Rules(NamedTuple):
    """What compiled code knows of the micro-batches besides their examples.

    Attributes:
        num_workers: Number of workers.
        least_parts: Least number of micro-batches per worker and step.
        is_padded: Whether a micro-batch is padded to its longest example.
        most: Cost, tokens, bytes and examples that one micro-batch may hold.
    """

    num_workers: int
    least_parts: int
    is_padded: bool
    most: NDArray[np.float64]


def check_limits(amounts: Sequence[NDArray[np.float64]], limits: Limits) -> None:
    """Raise a `ValueError` that names the first example that alone is over a limit.

    Args:
        amounts: Cost, tokens and bytes of each example, each of shape `(num_examples,)`.
        limits: What one micro-batch may hold.
    """
    rules = (
        ("max_cost", "cost", limits.max_cost),
        ("max_tokens", "size", limits.max_tokens),
        ("max_bytes", "bytes", limits.max_bytes),
    )
    for (name, what, most), values in zip(rules, amounts, strict=True):
        over = np.flatnonzero(values > most)
        if over.size:
            raise ValueError(
                f"{name} is {most:g}, but the {what} of example {over[0]} alone is "
                f"{values[over[0]]:g} ({over.size} examples are over); raise {name}, or shorten or "
                "leave out these examples"
            )
    if limits.max_examples < 1:
        raise ValueError(f"max_examples must be at least 1, got {limits.max_examples:g}")


def split_micro_batches(
    amounts: NDArray[np.float64],
    owner: NDArray[np.int64],
    config: BalanceConfig,
    first_step: int = 0,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the micro-batch of each example within its worker, and how many each step has.

    Each worker's examples, sorted by cost, are cut into as few contiguous parts as
    the limits allow, but no fewer than `config.num_microbatches`, and all workers of a
    step into equally many, so that the most expensive part is cheap. Micro-batch 0 is the
    lightest. A worker with too few examples for that takes the cheapest of the
    worker with the most: `owner` is changed.

    Args:
        amounts: Cost, tokens and bytes of each example, shape `(3, num_steps, batch_size)`; none
            alone is over a limit.
        owner: Worker of each, shape `(num_steps, batch_size)`.
        config: Limits and the least number.
        first_step: What an error calls the first of the steps.

    Raises:
        ValueError: If a step needs more micro-batches than its examples allow.
    """
    limits = config.limits
    most = np.array([limits.max_cost, limits.max_tokens, limits.max_bytes, limits.max_examples])
    rules = Rules(config.num_workers, config.least_microbatches, config.padded, most)
    micro = np.zeros_like(owner)
    num_parts = np.zeros(len(owner), dtype=np.int64)
    ascending = np.argsort(amounts[0], axis=1, kind="stable")
    _split_steps(amounts, owner, ascending, rules, micro, num_parts)
    too_many = np.flatnonzero(num_parts * config.num_workers > owner.shape[1])
    if too_many.size:
        raise ValueError(
            f"the limits need {num_parts[too_many[0]]} micro-batches per worker in step "
            f"{first_step + too_many[0]}, more than {owner.shape[1]} examples over "
            f"{config.num_workers} workers can fill; raise the limits, or use counts='equal'"
        )
    return micro, num_parts


@compiled_beyond(10_000)
def _split_steps(
    amounts: NDArray[np.float64],
    owner: NDArray[np.int64],
    ascending: NDArray[np.int64],
    rules: Rules,
    micro: NDArray[np.int64],
    num_parts: NDArray[np.int64],
) -> None:
    num_workers = rules.num_workers
    part = np.empty(owner.shape[1], dtype=np.int64)
    for step in range(len(owner)):
        parts = rules.least_parts
        for worker in range(num_workers):
            mine = _slots_of(owner[step], ascending[step], worker)
            values = _amounts_of(amounts[:, step], mine)
            parts = max(parts, _cut(values, rules, np.inf, 0, part))
        num_parts[step] = parts
        if parts * num_workers > owner.shape[1]:
            return
        _level_counts(owner[step], ascending[step], num_workers, parts)
        for worker in range(num_workers):
            mine = _slots_of(owner[step], ascending[step], worker)
            values = _amounts_of(amounts[:, step], mine)
            limit = _least_largest(values, rules, parts, part)
            _cut(values, rules, limit, parts, part)
            rank = _light_to_heavy(values[0], part, rules, parts)
            for position in range(len(mine)):
                micro[step, mine[position]] = rank[parts - 1 - part[position]]


@compiled
def _slots_of(
    owner: NDArray[np.int64], ascending: NDArray[np.int64], worker: int
) -> NDArray[np.int64]:
    mine, num_mine = np.empty_like(ascending), 0
    for slot in ascending:
        if owner[slot] == worker:
            mine[num_mine] = slot
            num_mine += 1
    return mine[:num_mine]


@compiled
def _amounts_of(amounts: NDArray[np.float64], slots: NDArray[np.int64]) -> NDArray[np.float64]:
    values = np.empty((3, len(slots)))
    for row in range(3):
        for position in range(len(slots)):
            values[row, position] = amounts[row, slots[position]]
    return values


@compiled
def _level_counts(
    owner: NDArray[np.int64], ascending: NDArray[np.int64], num_workers: int, least: int
) -> None:
    """Move cheapest examples until every worker has at least `least`."""
    count = np.zeros(num_workers, dtype=np.int64)
    for worker in owner:
        count[worker] += 1
    while True:
        poor, rich = 0, 0
        for worker in range(num_workers):
            poor = worker if count[worker] < count[poor] else poor
            rich = worker if count[worker] > count[rich] else rich
        if count[poor] >= least:
            return
        for slot in ascending:
            if owner[slot] == rich:
                owner[slot] = poor
                break
        count[poor] += 1
        count[rich] -= 1


@compiled
def _cut(
    values: NDArray[np.float64],
    rules: Rules,
    max_cost: float,
    num_parts: int,
    part: NDArray[np.int64],
) -> int:
    """Fill parts greedily from the most expensive example down; return how many it took.

    With `num_parts` of 0 as few as possible; else one example is left for each part that
    is still to come, so that none stays empty.
    """
    is_padded, most = rules.is_padded, rules.most
    current, size = -1, 0
    held = np.zeros(3)  # Sums, or the largest of each if padded.
    for position in range(values.shape[1] - 1, -1, -1):
        is_over = current < 0 or size + 1 > most[3] or position + 1 <= num_parts - 1 - current
        for row in range(3):
            limit = min(most[0], max_cost) if row == 0 else most[row]
            joined = _joined(held[row], values[row, position], is_padded)
            is_over = is_over or joined * (size + 1 if is_padded else 1) > limit
        if is_over:
            current, size = current + 1, 0
            held[:] = 0.0
        for row in range(3):
            held[row] = _joined(held[row], values[row, position], is_padded)
        size += 1
        part[position] = current
    return current + 1


@compiled
def _joined(held: float, value: float, is_padded: bool) -> float:
    if is_padded:
        return held if held > value else value
    return held + value


@compiled
def _light_to_heavy(
    costs: NDArray[np.float64], part: NDArray[np.int64], rules: Rules, num_parts: int
) -> NDArray[np.int64]:
    """Return the place of each part, which are cut from the most expensive down, by its cost."""
    is_padded = rules.is_padded
    cost, size = np.zeros(num_parts), np.zeros(num_parts)
    for position in range(len(costs) - 1, -1, -1):
        here = num_parts - 1 - part[position]
        cost[here] = _joined(cost[here], costs[position], is_padded)
        size[here] += 1
    if is_padded:
        for here in range(num_parts):
            cost[here] *= size[here]
    order, rank = np.empty(num_parts, dtype=np.int64), np.empty(num_parts, dtype=np.int64)
    sort_order(cost, order, rank)
    for place in range(num_parts):
        rank[order[place]] = place
    return rank


@compiled
def _least_largest(
    values: NDArray[np.float64],
    rules: Rules,
    num_parts: int,
    part: NDArray[np.int64],
) -> float:
    """Return the least cost per part, nearly, at which `num_parts` parts hold all."""
    if num_parts == 1:
        return np.inf
    low = float(values[0, -1])  # Sorted by cost.
    high: float = low * values.shape[1]
    for _ in range(NUM_BISECTIONS):
        middle = low + (high - low) / 2
        if _cut(values, rules, middle, num_parts, part) <= num_parts:
            high = middle
        else:
            low = middle
    return high
