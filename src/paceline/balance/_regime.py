"""Whether balancing can help, and what would where it cannot."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline.balance._config import BalanceConfig, Limits
from paceline.balance._epoch_plan import speeds_and_overheads
from paceline.balance._places import microbatch_overhead
from paceline.balance._plan import plan_epoch
from paceline.balance._quality import mean_and_excess, over_mean_cost, slot_and_step_costs
from paceline.cost import Worker, checked_column

RegimeKind = Literal["balancing helps", "already even", "padding", "expensive examples"]

# Below this gain nobody would notice.
NOTABLE = 1.02
# A sample of so many steps, and of so many examples where batches are large.
MAX_STEPS, MAX_EXAMPLES = 64, 131_072
# The window that is tried where it may help.
WIDER = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Regime:
    """What balancing can do for these costs; `str()` of it says so in plain words.

    All times are simulated from the costs, on a sample of steps, over the summed cost
    per worker, as in `PlanQuality.imbalance`.

    Attributes:
        kind: `"already even"`: the plain shuffle is within 2 % of the plan;
            `"padding"`: equal counts on a padded model, where the longest example sets
            the step; `"expensive examples"`: single examples cost more than the mean load of
            a worker; else `"balancing helps"`.
        plain: Imbalance of the plain shuffle.
        planned: Imbalance of the plan.
        bound: What no plan of the planned steps can fall below.
        expensive_share: Share of steps that one example decides, whatever the plan.
        remedy: The change of the configuration that helps most; None if none does.
        remedied: Imbalance with it.
        num_steps: Steps that were sampled.
    """

    kind: RegimeKind
    plain: float
    planned: float
    bound: float
    expensive_share: float
    remedy: str | None
    remedied: float | None
    num_steps: int

    def __str__(self) -> str:
        steps = f"{self.num_steps} step{'s' if self.num_steps > 1 else ''}"
        way_out = f" {self.remedy} reaches {self.remedied:.3f}." if self.remedy else ""
        return f"{self._finding()}{way_out} (Simulated on {steps}; 1 is perfect.)"

    def _finding(self) -> str:
        numbers = f"{self.plain:.3f} in the plain shuffle, {self.planned:.3f} in this plan"
        match self.kind:
            case "already even":
                return f"Balancing has less than 2 % to gain: imbalance {numbers}."
            case "padding":
                return (
                    "Equal counts cannot balance a padded model, the longest example still sets "
                    f"the step: imbalance {numbers}."
                )
            case "expensive examples":
                return (
                    f"One example alone costs more than a worker's mean load in "
                    f"{self.expensive_share:.0%} of the steps, so that no plan of these steps gets "
                    f"below {self.bound:.3f}: imbalance {numbers}."
                )
            case _:
                gain = self.plain / self.planned
                return f"Balancing helps, {gain:.2f} times: imbalance {numbers}."


def regime_of(
    costs: ArrayLike, config: BalanceConfig, *, workers: tuple[Worker, ...] | None = None
) -> Regime:
    """Tell whether balancing can help, from the first epoch's shuffle.

    Plans a sample of up to 64 steps as configured and with more freedom (free counts,
    a window of at least 16, both), and compares with the plain shuffle. Limits are
    left out of account. Takes O(n) time for n examples, plus that of the sample.

    Args:
        costs: As for `plan_epoch`.
        config: What the plan would be made with.
        workers: As for `plan_epoch`.

    Raises:
        ValueError: As `plan_epoch`, and if costs are too large to add up.

    Examples:
        >>> config = BalanceConfig(batch_size=4, num_workers=2)
        >>> regime_of([1.0] * 64, config).kind
        'already even'
        >>> regime_of([1.0] * 63 + [64.0], config).kind
        'expensive examples'
    """
    cost = checked_column("costs", costs)
    config = replace(config.with_window(len(cost)), limits=Limits(), tail="zero-weight")
    sample = _sample(len(cost), config)
    plan = plan_epoch(cost, config, workers=workers, remaining=sample)
    slot_cost, step_cost = slot_and_step_costs(plan, cost)
    total = float(step_cost.sum())
    over_mean = partial(over_mean_cost, total=total, num_workers=plan.num_workers)
    mean, excess = mean_and_excess(plan, slot_cost, step_cost, replace(config, window=1))
    remedy, remedied = _remedy(cost, config, workers, sample, plan.makespan())
    steps = np.resize(sample, (plan.num_steps, config.batch_size))
    each = microbatch_overhead(cost, config)
    found = Regime(
        kind="balancing helps",
        plain=over_mean(_plain_makespan(cost[steps], config, plan.workers, each)),
        planned=over_mean(plan.makespan()),
        bound=over_mean(mean + float(excess.sum())),
        expensive_share=float((excess > 0).mean()),
        remedy=remedy,
        remedied=over_mean(remedied) if remedy else None,
        num_steps=plan.num_steps,
    )
    return replace(found, kind=_kind(found, config, over_mean(mean)))


def _kind(found: Regime, config: BalanceConfig, mean: float) -> RegimeKind:
    if found.plain < NOTABLE * mean:
        return "already even"
    if config.padded and config.counts == "equal":
        return "padding"
    if found.bound > NOTABLE * mean:
        return "expensive examples"
    return "already even" if found.plain < NOTABLE * found.planned else "balancing helps"


def _sample(num_examples: int, config: BalanceConfig) -> NDArray[np.int64]:
    """Return the examples of some full steps; all that there are if they make no step.

    Without a shuffle these are runs of steps, evenly spread over the epoch.
    """
    num_steps = num_examples // config.batch_size
    most = min(max(MAX_EXAMPLES // config.batch_size, 1), MAX_STEPS)
    num_sampled = min(num_steps, most) * config.batch_size or num_examples
    if config.shuffle:
        return np.random.default_rng([config.seed, 0]).permutation(num_examples)[:num_sampled]
    run = min(max(config.window, WIDER), most, max(num_steps, 1)) * config.batch_size
    first = np.linspace(0, max(num_examples - run, 0), max(num_sampled // run, 1))
    first -= first % config.batch_size
    examples = first.astype(np.int64)[:, None] + np.arange(min(run, num_examples))
    return examples.ravel()


def _plain_makespan(
    step_costs: NDArray[np.float64],
    config: BalanceConfig,
    workers: tuple[Worker, ...],
    each: float,
) -> float:
    """Return the makespan when each worker takes the next examples of the shuffle.

    A micro-batch costs `each` besides its examples.
    """
    num_steps, batch_size = step_costs.shape
    num_parts = config.num_workers * config.least_microbatches
    bounds = np.arange(num_parts + 1) * batch_size // num_parts
    if config.padded:
        part = np.maximum.reduceat(step_costs, bounds[:-1], axis=1) * np.diff(bounds)
    else:
        part = np.add.reduceat(step_costs, bounds[:-1], axis=1)
    load = (part + each).reshape(num_steps, config.num_workers, -1).sum(axis=2)
    speed, overhead = speeds_and_overheads(workers)
    return float((overhead + load / speed).max(axis=1).sum())


def _remedy(
    cost: NDArray[np.float64],
    config: BalanceConfig,
    workers: tuple[Worker, ...] | None,
    sample: NDArray[np.int64],
    makespan: float,
) -> tuple[str | None, float]:
    """Return the least change that helps about as much as any, and the makespan with it."""
    window = max(WIDER, 4 * config.window)
    can_free = config.counts == "equal"
    can_widen = config.num_workers > 1 and window * config.batch_size <= len(sample)
    candidates = [
        ("counts='free'", can_free, replace(config, counts="free")),
        (f"window={window}", can_widen, replace(config, window=window)),
        (
            f"counts='free' with window={window}",
            can_free and can_widen,
            replace(config, counts="free", window=window),
        ),
    ]
    tried = [
        (name, plan_epoch(cost, changed, workers=workers, remaining=sample).makespan())
        for name, is_open, changed in candidates
        if is_open
    ]
    best = min((reached for _, reached in tried), default=makespan)
    if makespan <= NOTABLE * best:
        return None, makespan
    return next((name, reached) for name, reached in tried if reached <= NOTABLE * best)
