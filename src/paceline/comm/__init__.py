"""Which gradient block is sent when."""

from paceline.comm._advice import BUCKET_CAPS_MB, BucketAdvice, advise_buckets
from paceline.comm._baselines import (
    plan_bytescheduler,
    plan_ddp,
    plan_ddp_cap,
    plan_dear,
    plan_merged,
    plan_p3,
    plan_prophet,
    plan_wait_free,
)
from paceline.comm._blocks import BlockPlan
from paceline.comm._buckets import ddp_buckets
from paceline.comm._cut import cut_blocks
from paceline.comm._fluid import fluid_bound_s
from paceline.comm._judge import step_time_s
from paceline.comm._problem import WireProblem
from paceline.comm._rows import Head, RowUse, rows_first
from paceline.comm._wire_graph import wire_graph
from paceline.comm.search import baseline_plans, plan_blocks

__all__ = [
    "BUCKET_CAPS_MB",
    "BlockPlan",
    "BucketAdvice",
    "Head",
    "RowUse",
    "WireProblem",
    "advise_buckets",
    "baseline_plans",
    "cut_blocks",
    "ddp_buckets",
    "fluid_bound_s",
    "plan_blocks",
    "plan_bytescheduler",
    "plan_ddp",
    "plan_ddp_cap",
    "plan_dear",
    "plan_merged",
    "plan_p3",
    "plan_prophet",
    "plan_wait_free",
    "rows_first",
    "step_time_s",
    "wire_graph",
]
