"""Choose the plans that are worth a trial for a measured step."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from paceline.comm import (
    BlockPlan,
    WireProblem,
    baseline_plans,
    cut_blocks,
    plan_blocks,
    plan_ddp,
    plan_ddp_cap,
    step_time_s,
)
from paceline.cost import Link

Planner = Callable[[WireProblem], BlockPlan]
# A smaller gain is not worth leaving the plain way for.
LEAST_GAIN = 0.01
# Host time of one block, from launch to landing. It depends on the machine, so plans are made
# for a little and for much of it, and the trial tells which were right. It also tells in how
# short blocks those in flight hold each other up the least.
HOST_COSTS_S = (1e-4, 3e-4, 1e-3)
BUCKET_MEBIBYTES = (1, 2, 4, 8, 16, 25, 50, 100)
MOST_WAITING = 4
# Of those that wait, none that is predicted to be this much slower than the best is tried.
HOPELESS = 1.5


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A plan and its simulated seconds per step.

    Attributes:
        plan: Which gradients are sent when.
        predicted_s: Simulated.
        bucket_mb: Bucket size in MiB with which DistributedDataParallel does the same;
            None if it cannot.
    """

    plan: BlockPlan
    predicted_s: float
    bucket_mb: int | None = None

    @property
    def overlaps(self) -> bool:
        """Whether communication overlaps the next forward pass, too."""
        return not self.plan.waits_for_all


def candidates(problem: WireProblem, planner: Planner | None) -> list[Candidate]:
    """Return the plans to try, alike on all ranks because the problem is.

    First those of ours that are predicted to win by 1 % over DDP's best bucket size, then
    the best of DDP's sizes. With `planner` first its plan, and then only the best of
    DDP's sizes, to fall back on. Half collectives, as in DeAR, run as all-reduces of
    half the bytes here, and are left out.
    """
    charged = [replace(problem, block_cost_s=cost_s) for cost_s in HOST_COSTS_S]
    waiting = sorted(_buckets(charged[0]), key=lambda one: one.predicted_s)
    if planner is not None:
        return [_priced(charged[0], planner(problem)), waiting[0]]
    limit_s = (1 - LEAST_GAIN) * waiting[0].predicted_s
    ours = {plan.digest(): plan for plan in map(_best_overlapping, charged)}
    promising = [_priced(charged[0], plan) for plan in ours.values()]
    hopeful = [one for one in waiting if one.predicted_s < HOPELESS * waiting[0].predicted_s]
    return [one for one in promising if one.predicted_s < limit_s] + hopeful[:MOST_WAITING]


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


def _buckets(problem: WireProblem) -> list[Candidate]:
    plans = {size: plan_ddp_cap(problem, size) for size in BUCKET_MEBIBYTES}
    # Of sizes that make the same buckets, the smallest.
    distinct = {plan.digest(): size for size, plan in reversed(plans.items())}
    return [
        Candidate(plans[size], step_time_s(problem, plans[size]), size)
        for size in distinct.values()
    ]


def _best_overlapping(problem: WireProblem) -> BlockPlan:
    plans = [plan_blocks(problem, in_halves=False), *baseline_plans(problem)]
    best = min(
        (plan for plan in plans if not plan.in_halves),
        key=lambda plan: (plan.waits_for_all, step_time_s(problem, plan), plan.num_blocks),
    )
    return cut_blocks(problem, best)


def _priced(problem: WireProblem, plan: BlockPlan) -> Candidate:
    return Candidate(plan, step_time_s(problem, plan))
