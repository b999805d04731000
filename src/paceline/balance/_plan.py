"""Plan one epoch: compose its steps, split them over workers, arrange the result."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._compile import in_threads
from paceline.balance._compose import compose_steps
from paceline.balance._config import BalanceConfig, Limits
from paceline.balance._epoch_plan import EpochPlan, longest_first
from paceline.balance._example_order import check_keeps_order
from paceline.balance._micro import check_limits
from paceline.balance._padded_window import compose_padded_steps
from paceline.balance._places import Rules, arrange_steps, rules_of
from paceline.balance._shards import Shards, check_sharded, spread_shards
from paceline.balance._strata import compose_strata
from paceline.balance.split import (
    Pace,
    check_worker_counts,
    checked_costs,
    pace_of,
)
from paceline.cost import Worker, checked_column

# Slots that are arranged at once.
BLOCK_SLOTS = 2**18


def plan_epoch(
    costs: ArrayLike,
    config: BalanceConfig,
    *,
    epoch: int = 0,
    sizes: ArrayLike | None = None,
    example_bytes: ArrayLike | None = None,
    workers: tuple[Worker, ...] | None = None,
    remaining: ArrayLike | None = None,
    order: ArrayLike | None = None,
    shards: Shards | None = None,
) -> EpochPlan:
    """Plan one epoch: a pure function of its arguments.

    Takes O(n log n) time and O(n) memory for n examples.

    Args:
        costs: Cost of each example, finite and non-negative, shape
            `(num_examples,)`. For padded models it must grow with the size.
        config: What fixes the plan.
        epoch: Number of the epoch; part of the seed.
        sizes: Size of each example in tokens, for `max_tokens`; same shape.
        example_bytes: Bytes of each example, for `max_bytes`; same shape.
        workers: Speed and overhead of each worker; unset for equal ones.
        remaining: Plan only these examples, in this order, as the rest of an epoch;
            unset for all, in the order of the shuffle. One that is listed twice is
            planned twice.
        order: All examples, each once, in the order in which they come, instead of the
            shuffle; unset for that of the shuffle. Needs a window of 1, no
            `longest_first`, and no shards.
        shards: Who can read which example; unset for everyone everything. Needs free
            counts, a window of 1, no padding, and `tail="drop"`. See `shard_bound` for
            the balance that is left.

    Raises:
        ValueError: If a value is bad, there are fewer examples than workers, or one
            example alone is over a limit; the message names it.

    Examples:
        >>> config = BalanceConfig(batch_size=4, num_workers=2, shuffle=False)
        >>> plan = plan_epoch([3.0, 1.0, 2.0, 2.0], config)
        >>> plan.num_steps, plan.load.tolist()
        (1, [[4.0, 4.0]])
        >>> plan.step_examples(0, worker=0).tolist(), plan.step_examples(0, worker=1).tolist()
        ([0, 1], [2, 3])
    """
    if not isinstance(config, BalanceConfig):
        raise ValueError(
            f"costs come first, then the BalanceConfig, got a {type(config).__name__} as config"
        )
    cost = checked_costs(costs)
    config = config.with_window(len(cost))
    amounts = _amounts(cost, sizes, example_bytes, config.limits)
    check_worker_counts(config.batch_size, config.num_workers, config.counts, workers)
    if order is not None:
        check_keeps_order(config, shards)
    examples = _order(len(cost), config, epoch, remaining, order)
    pace = pace_of(workers, config.num_workers)
    if shards is not None:
        check_sharded(shards, len(cost), config)
        examples = spread_shards(shards, examples)
    full, tail = _tail(examples, config)
    steps = np.concatenate([_compose(cost, full, config, pace, epoch), tail])
    rules = rules_of(cost, steps, config, pace, shards)
    workers = workers or (Worker(),) * config.num_workers
    plan = _planned(amounts, steps, len(examples), rules, workers)
    return longest_first(plan) if config.longest_first else plan


def _amounts(
    cost: NDArray[np.float64],
    sizes: ArrayLike | None,
    example_bytes: ArrayLike | None,
    limits: Limits,
) -> tuple[NDArray[np.float64], ...]:
    """Return cost, tokens and bytes of each example, none alone over a limit."""
    tokens = _matching("sizes", sizes, len(cost), limits.max_tokens)
    num_bytes = _matching("example_bytes", example_bytes, len(cost), limits.max_bytes)
    check_limits((cost, tokens, num_bytes), limits)
    return cost, tokens, num_bytes


def _order(
    num_examples: int,
    config: BalanceConfig,
    epoch: int,
    remaining: ArrayLike | None,
    order: ArrayLike | None,
) -> NDArray[np.int64]:
    """Return the examples to plan, in the order in which they come."""
    if epoch < 0:
        raise ValueError(f"epoch must not be negative, got {epoch}")
    if remaining is not None and order is not None:
        raise ValueError("remaining has an order of its own; pass it or order, not both")
    if remaining is not None:
        examples = _checked_examples("remaining", remaining, num_examples)
    elif order is not None:
        examples = _checked_order(order, num_examples)
    else:
        examples = _epoch_order(num_examples, config, epoch)
    if not len(examples):
        raise ValueError("there is no example to plan; the dataset, or what remains, is empty")
    if len(examples) < config.num_workers:
        raise ValueError(
            f"{len(examples)} examples are fewer than {config.num_workers} workers; use fewer "
            "workers"
        )
    return examples


def _epoch_order(num_examples: int, config: BalanceConfig, epoch: int) -> NDArray[np.int64]:
    if not config.shuffle:
        return np.arange(num_examples)
    return np.random.default_rng([config.seed, epoch]).permutation(num_examples)


def _checked_order(order: ArrayLike, num_examples: int) -> NDArray[np.int64]:
    examples = _checked_examples("order", order, num_examples)
    times = np.bincount(examples, minlength=num_examples)
    bad = np.flatnonzero(times != 1)
    if bad.size:
        raise ValueError(
            f"order must hold each of {num_examples} examples once, but holds example {bad[0]} "
            f"{times[bad[0]]} times"
        )
    return examples


def _checked_examples(name: str, values: ArrayLike, num_examples: int) -> NDArray[np.int64]:
    examples = np.asarray(values)
    if examples.ndim != 1 or (len(examples) and examples.dtype.kind not in "iu"):
        raise ValueError(
            f"{name} must be a one-dimensional list of examples, got shape "
            f"{examples.shape} of {examples.dtype}"
        )
    bad = np.flatnonzero((examples < 0) | (examples >= num_examples))
    if bad.size:
        raise ValueError(
            f"{name} must lie in [0, {num_examples}), but {name}[{bad[0]}] is "
            f"{examples[bad[0]]}; it belongs to another dataset"
        )
    return examples.astype(np.int64)


def _matching(
    name: str, values: ArrayLike | None, num_examples: int, limit: float
) -> NDArray[np.float64]:
    """Return a checked column, zeros if it is not given and not limited."""
    if values is None:
        if limit < np.inf:
            raise ValueError(f"a limit on {name} of {limit:g} needs {name}, got none")
        return np.broadcast_to(0.0, num_examples)
    return column_like_costs(name, values, num_examples)


def column_like_costs(name: str, values: ArrayLike, num_examples: int) -> NDArray[np.float64]:
    """Return a checked column; raise a `ValueError` if it is not as long as the costs."""
    column = checked_column(name, values)
    if len(column) != num_examples:
        raise ValueError(f"{name} must have {num_examples} entries like costs, got {len(column)}")
    return column


def _tail(
    order: NDArray[np.int64], config: BalanceConfig
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the examples of the full steps, and the last step filled up, if there is one."""
    num_left = len(order) % config.batch_size
    full, left = order[: len(order) - num_left], order[len(order) - num_left :]
    if config.tail == "drop" and not len(full):
        raise ValueError(
            f"tail='drop' leaves nothing of {len(order)} examples at a batch size of "
            f"{config.batch_size}; use a smaller batch or another tail"
        )
    if config.tail == "drop" or not num_left:
        return full, np.zeros((0, config.batch_size), dtype=np.int64)
    source = order if config.tail == "wrap" else left
    return full, np.concatenate([left, np.resize(source, config.batch_size - num_left)])[None]


def _compose(
    cost: NDArray[np.float64],
    full: NDArray[np.int64],
    config: BalanceConfig,
    pace: Pace,
    epoch: int,
) -> NDArray[np.int64]:
    has_gain = config.num_workers > 1 or config.cuts_to_cost
    if config.window == 1 or not has_gain:
        return full.reshape(-1, config.batch_size)
    # A third number keeps these draws apart from those of the shuffle.
    seed = (config.seed, epoch, 1)
    if config.cuts_to_cost:
        return compose_strata(cost, full, config, seed)
    if config.padded:
        return compose_padded_steps(cost, full, config, pace, seed)
    return compose_steps(cost, full, config, seed)


def _planned(
    amounts: Sequence[NDArray[np.float64]],
    steps: NDArray[np.int64],
    num_examples: int,
    rules: Rules,
    workers: tuple[Worker, ...],
) -> EpochPlan:
    """Arrange blocks of steps in place, so that what it takes besides the plan is little."""
    # What fills up the last step stands at its end, before examples go to workers.
    is_repeat = (np.arange(steps.size) >= num_examples).reshape(steps.shape)
    per_block = max(BLOCK_SLOTS // steps.shape[1], 1)

    def arranged(first: int) -> tuple[NDArray[Any], ...]:
        block = slice(first, first + per_block)
        slots, *rest = arrange_steps(amounts, steps[block], rules, first)
        for values in (steps[block], is_repeat[block]):
            values.ravel()[:] = values.ravel()[slots]
        return tuple(rest)

    blocks = in_threads(arranged, range(0, len(steps), per_block))
    micro_sizes, num_parts, load = map(np.concatenate, zip(*blocks, strict=True))
    return EpochPlan(
        num_workers=rules.config.num_workers,
        examples=steps.ravel(),
        is_repeat=is_repeat.ravel(),
        weighs_repeats=rules.config.tail != "zero-weight",
        micro_offsets=np.concatenate([[0], np.cumsum(micro_sizes)]),
        worker_offsets=np.concatenate([[0], np.cumsum(num_parts)]),
        load=load,
        workers=workers,
    )
