"""How good a plan is: balance, the bound on it, mixing, and how the costs of steps vary."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.balance._compose import lag_1_autocorrelation
from paceline.balance._config import BalanceConfig
from paceline.balance._epoch_plan import EpochPlan, speeds_and_overheads
from paceline.cost import checked_column


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanQuality:
    """What a plan promises, simulated from the costs that it was made for.

    Attributes:
        imbalance: Epoch makespan, the sum over steps of when the latest worker is done,
            over the summed cost of all slots (without padding, repeats included) per
            worker. 1 is perfect for workers of speed 1 without overheads.
        lower_bound: What no plan of these steps can fall below, in the same unit; for
            windows above 1, what no composition of the steps can.
        reunion: How many times likelier than by chance two examples that share a step
            share one again in the next epoch; 1 is a perfect shuffle. None without a
            next epoch.
        cost_autocorrelation: Correlation of the cost of a step with that of the next.
        num_steps: Optimizer steps.
        num_examples: Examples that are planned, repeats not counted.
    """

    imbalance: float
    lower_bound: float
    reunion: float | None
    cost_autocorrelation: float
    num_steps: int
    num_examples: int


def measure_quality(
    plan: EpochPlan,
    costs: ArrayLike,
    config: BalanceConfig,
    next_plan: EpochPlan | None = None,
) -> PlanQuality:
    """Say how well a plan balances and mixes.

    The bound of a step is the larger of the mean time of all workers, and the time of
    its most expensive example on the worker that ends it first, with equal counts together
    with the cheapest examples that fill that worker up. In a padded micro-batch these cost
    as much as the most expensive one. Windows above 1 may compose steps anew, so there the
    bound of the epoch is used: the mean over all steps, raised by what the most expensive
    example adds even if the next most expensive share its step. It is loose between 1 and
    a whole epoch, and for padded models with free counts.

    Takes O(n log n) time and O(n) memory for n slots.

    Args:
        plan: The plan, from `plan_epoch` or built from what another system plans.
        costs: The costs that it was made for, shape `(num_examples,)`.
        config: What fixed it; batch size, counts, padding and window decide the bound.
        next_plan: The plan of the next epoch, for `reunion`.

    Raises:
        ValueError: If a cost is bad, they are too large to add up, or there are fewer
            than the plan has examples.

    Examples:
        >>> from paceline.balance import plan_epoch
        >>> config = BalanceConfig(batch_size=2, num_workers=2, shuffle=False)
        >>> costs = [3.0, 1.0, 2.0, 2.0]
        >>> quality = measure_quality(plan_epoch(costs, config), costs, config)
        >>> quality.imbalance, quality.lower_bound
        (1.25, 1.25)
    """
    slot_cost, step_cost = slot_and_step_costs(plan, costs)
    config = config.with_window(len(checked_column("costs", costs)))
    total = float(step_cost.sum())
    mean, excess = mean_and_excess(plan, slot_cost, step_cost, config)
    return PlanQuality(
        imbalance=over_mean_cost(plan.makespan(), total, plan.num_workers),
        lower_bound=over_mean_cost(mean + float(excess.sum()), total, plan.num_workers),
        reunion=None if next_plan is None else reunion(plan, next_plan),
        cost_autocorrelation=float(lag_1_autocorrelation(step_cost)),
        num_steps=plan.num_steps,
        num_examples=int((~plan.is_repeat).sum()),
    )


def over_mean_cost(makespan: float, total: float, num_workers: int) -> float:
    """Return `makespan` over the mean cost per worker; 1 where nothing costs anything."""
    return makespan / total * num_workers if total > 0 else 1.0


def slot_and_step_costs(
    plan: EpochPlan, costs: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the cost of each slot and of each step, without padding."""
    cost = checked_column("costs", costs)
    num_needed = int(plan.examples.max(initial=-1)) + 1
    if len(cost) < num_needed:
        raise ValueError(f"costs must have at least {num_needed} entries, got {len(cost)}")
    slot_cost = cost[plan.examples]
    with np.errstate(over="ignore"):
        step_cost = np.bincount(_step_of_slot(plan), slot_cost, minlength=plan.num_steps)
        most = step_cost.sum() + plan.load.sum()
    if not np.isfinite(most):
        raise ValueError("costs are too large to add up; use a larger unit")
    return slot_cost, step_cost.astype(np.float64)


def _step_of_slot(plan: EpochPlan) -> NDArray[np.int64]:
    num_slots = np.diff(plan.micro_offsets[plan.step_offsets])
    return np.repeat(np.arange(plan.num_steps), num_slots)


def mean_and_excess(
    plan: EpochPlan,
    slot_cost: NDArray[np.float64],
    step_cost: NDArray[np.float64],
    config: BalanceConfig,
) -> tuple[float, NDArray[np.float64]]:
    """Return two parts of a makespan that no plan can fall below; see `measure_quality`.

    Args:
        plan: Its steps, workers and number of slots.
        slot_cost: Cost of each slot, shape `(num_slots,)`.
        step_cost: Cost of each step, shape `(num_steps,)`.
        config: Counts, padding, window and, for windows above 1, the batch size.

    Returns:
        The mean time of all workers, summed over steps; and by how much the most expensive
        example exceeds it, shape `(num_steps,)` for a window of 1, else `(1,)`.
    """
    speed, overhead = speeds_and_overheads(plan.workers)
    all_speed, all_overhead = speed.sum(), overhead @ speed
    if config.window == 1:
        forced, carried = _forced_by_step(plan, slot_cost, config), step_cost
    else:
        forced, carried = _forced_by_epoch(slot_cost, config)
    soonest = (overhead + forced[:, None] / speed).min(axis=1)
    excess = np.maximum(soonest - (carried + all_overhead) / all_speed, 0.0)
    return float((step_cost.sum() + plan.num_steps * all_overhead) / all_speed), excess


def _forced_by_step(
    plan: EpochPlan, slot_cost: NDArray[np.float64], config: BalanceConfig
) -> NDArray[np.float64]:
    """Return what the worker with the most expensive example of each step does at least."""
    sizes = np.diff(plan.micro_offsets[plan.step_offsets])
    ends = np.cumsum(sizes)
    ascending = slot_cost[np.lexsort((slot_cost, _step_of_slot(plan)))]
    highest: NDArray[np.float64] = ascending[ends - 1]
    if config.counts == "free":
        return highest
    capacity = np.maximum(sizes // plan.num_workers, 1)
    if _is_padded_to_the_longest(config):
        return np.asarray(highest * capacity, dtype=np.float64)
    running = np.concatenate([[0.0], np.cumsum(ascending)])
    first = ends - sizes
    fillers = running[first + capacity - 1] - running[first]
    return np.asarray(highest + fillers, dtype=np.float64)


def _forced_by_epoch(
    slot_cost: NDArray[np.float64], config: BalanceConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the most expensive example forces upon its worker, and what its step may carry.

    However steps are composed, the step of the most expensive example holds at most
    the `batch_size` most expensive slots, so at least the rest is left to the other steps.
    """
    if not len(slot_cost):
        return np.zeros(0), np.zeros(0)
    ascending = np.sort(slot_cost)
    carried = ascending[-config.batch_size :].sum()
    forced = ascending[-1]
    if config.counts == "equal":
        capacity = config.batch_size // config.num_workers
        is_padded = _is_padded_to_the_longest(config)
        forced = forced * capacity if is_padded else forced + ascending[: capacity - 1].sum()
    return np.array([forced]), np.array([carried])


def _is_padded_to_the_longest(config: BalanceConfig) -> bool:
    """Whether all examples of a worker and step cost as much as its most expensive."""
    return config.padded and config.microbatches == 1 and config.limits.is_unlimited


def reunion(plan: EpochPlan, next_plan: EpochPlan) -> float:
    """Return how many times likelier than by chance examples of one step meet again.

    Counts pairs of examples that share a step in both plans, over the number that two
    independent shuffles with steps as long would have on average. Repeats, and examples
    that one of the plans leaves out, do not count; without any pair the answer is 1.

    Takes O(n log n) time and O(n) memory.

    Examples:
        >>> from paceline.balance import plan_epoch
        >>> config = BalanceConfig(batch_size=2, num_workers=2, shuffle=False)
        >>> plan = plan_epoch([1.0, 1.0, 1.0, 1.0], config)
        >>> reunion(plan, plan)
        3.0
    """
    num_examples = int(max(each.examples.max(initial=-1) for each in (plan, next_plan))) + 1
    before, after = (_step_of_example(each, num_examples) for each in (plan, next_plan))
    is_common = (before >= 0) & (after >= 0)
    before, after = before[is_common], after[is_common]
    num_pairs = len(before) * (len(before) - 1) / 2
    by_chance = _num_pairs(before) * _num_pairs(after)
    again = _num_pairs(before * next_plan.num_steps + after)
    return again * num_pairs / by_chance if by_chance > 0 else 1.0


def _step_of_example(plan: EpochPlan, num_examples: int) -> NDArray[np.int64]:
    """Return the step of each example, -1 for those that are not planned."""
    step = np.full(num_examples, -1, dtype=np.int64)
    step[plan.examples[~plan.is_repeat]] = _step_of_slot(plan)[~plan.is_repeat]
    return step


def _num_pairs(groups: NDArray[np.int64]) -> float:
    """Return how many pairs of entries are equal."""
    count = np.unique(groups, return_counts=True)[1].astype(np.float64)
    return float((count * (count - 1) / 2).sum())
