"""Which gradient block travels when."""

from paceline.comm._baselines import (
    plan_bytescheduler,
    plan_ddp,
    plan_dear,
    plan_merged,
    plan_p3,
    plan_prophet,
    plan_wait_free,
)
from paceline.comm._blocks import BlockPlan
from paceline.comm._buckets import ddp_buckets
from paceline.comm._fluid import fluid_bound_s
from paceline.comm._judge import step_time_s, wire_graph
from paceline.comm._problem import WireProblem
from paceline.comm._search import baseline_plans, plan_blocks

__all__ = [
    "BlockPlan",
    "WireProblem",
    "baseline_plans",
    "ddp_buckets",
    "fluid_bound_s",
    "plan_blocks",
    "plan_bytescheduler",
    "plan_ddp",
    "plan_dear",
    "plan_merged",
    "plan_p3",
    "plan_prophet",
    "plan_wait_free",
    "step_time_s",
    "wire_graph",
]
