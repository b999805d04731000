"""Paceline on a live PyTorch job: recorders, probes and executors.

`AsyncCheckpoint` is loaded when it is first used: torch.distributed.checkpoint, which it
writes with, takes longer to import than all else here, on every rank.
"""

from typing import TYPE_CHECKING, Any

from paceline.torch._balanced_sampler import BalancedSampler
from paceline.torch._bucket_times import BucketTimes, DDPAdvice
from paceline.torch._calibrate import calibrate_cpu
from paceline.torch._comm_hook import CommHookState, scheduled_comm_hook
from paceline.torch._gather import gather_timeline
from paceline.torch._lane_optimizer import LaneOptimizer
from paceline.torch._lane_task import Handle
from paceline.torch._lanes import Lanes
from paceline.torch._loader import DataLoader
from paceline.torch._measure import measure_job, measure_link
from paceline.torch._ordering import GradientOrder
from paceline.torch._prefetch import Prefetch
from paceline.torch._ranks import run_ranks
from paceline.torch._sampler import BalancedBatchSampler
from paceline.torch._scheduled import ScheduledDataParallel
from paceline.torch._sizes import example_sizes
from paceline.torch._sketch import GradientSketch
from paceline.torch._split_backward import SplitBackward, split_backward
from paceline.torch._trace import trace_workload
from paceline.torch._watch import Watch, watch

if TYPE_CHECKING:
    from paceline.torch._async_checkpoint import AsyncCheckpoint

__all__ = [
    "AsyncCheckpoint",
    "BalancedBatchSampler",
    "BalancedSampler",
    "BucketTimes",
    "CommHookState",
    "DDPAdvice",
    "DataLoader",
    "GradientOrder",
    "GradientSketch",
    "Handle",
    "LaneOptimizer",
    "Lanes",
    "Prefetch",
    "ScheduledDataParallel",
    "SplitBackward",
    "Watch",
    "calibrate_cpu",
    "example_sizes",
    "gather_timeline",
    "measure_job",
    "measure_link",
    "run_ranks",
    "scheduled_comm_hook",
    "split_backward",
    "trace_workload",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name != "AsyncCheckpoint":
        raise AttributeError(f"module 'paceline.torch' has no attribute {name!r}")
    from paceline.torch._async_checkpoint import AsyncCheckpoint

    return AsyncCheckpoint
