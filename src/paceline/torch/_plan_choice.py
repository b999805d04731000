"""Choose the plan for a measured step, and say why."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from paceline.comm import BlockPlan, WireProblem, baseline_plans, plan_blocks, plan_ddp, step_time_s
from paceline.cost import Link

Planner = Callable[[WireProblem], BlockPlan]
# A smaller predicted gain is not worth leaving the plain way for.
LEAST_GAIN = 0.01
SLACK = 0.005


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What was chosen; plans are alike on all ranks, because the problem is.

    Attributes:
        plan: What travels when.
        fallback: The best of DDP's bucket sizes.
        overlaps: Whether the next forward pass hides what is left of the wire.
        predicted_s: Simulated seconds per step of `plan`.
        fallback_s: Simulated seconds per step of `fallback`.
        bound_s: Seconds that no schedule beats, on the same numbers.
    """

    plan: BlockPlan
    fallback: BlockPlan
    overlaps: bool
    predicted_s: float
    fallback_s: float
    bound_s: float


def choose_plan(problem: WireProblem, planner: Planner | None) -> Choice:
    """Take `planner`'s plan; without one, the best that is found if it wins by 1 %.

    Half collectives, as in DeAR, run as all-reduces of half the bytes here, and are priced so.
    """
    baselines = baseline_plans(problem)
    fallback = _best(problem, [plan for plan in baselines if plan.waits_for_all])
    if planner is not None:
        plan = planner(problem)
    else:
        whole = [plan for plan in (plan_blocks(problem), *baselines) if plan.latency_share == 1.0]
        plan = _best(problem, whole)
    price_s, fallback_s = step_time_s(problem, plan), step_time_s(problem, fallback)
    wins = planner is not None or price_s < (1 - LEAST_GAIN) * fallback_s
    overlaps = wins and not plan.waits_for_all
    if not wins:
        plan, price_s = fallback, fallback_s
    return Choice(plan, fallback, overlaps, price_s, fallback_s, problem.bound_s)


def first_plan(num_bytes: list[int]) -> BlockPlan:
    """Return DDP's default buckets, for the steps before anything is measured."""
    problem = WireProblem(
        forward_s=np.zeros(1),
        layer=np.zeros(len(num_bytes), dtype=np.int64),
        num_bytes=np.array(num_bytes, dtype=np.float64),
        ready_s=np.zeros(len(num_bytes)),
        backward_s=0.0,
        link=Link(0.0, 1.0),
    )
    return plan_ddp(problem)


def _best(problem: WireProblem, plans: list[BlockPlan]) -> BlockPlan:
    """Return the plan with the fewest blocks among those within `SLACK` of the fastest.

    A block costs the host time that no plan is charged for.
    """
    prices_s = [step_time_s(problem, plan) for plan in plans]
    limit_s = (1 + SLACK) * min(prices_s)
    good = [plan for plan, price_s in zip(plans, prices_s, strict=True) if price_s <= limit_s]
    return min(good, key=lambda plan: plan.num_blocks)
