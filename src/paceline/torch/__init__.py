"""Paceline on a live PyTorch job: recorders, probes and executors.

`AsyncCheckpoint` is loaded when it is first used: torch.distributed.checkpoint, which it
writes with, takes longer to import than all else here, on every rank.
"""

from typing import TYPE_CHECKING, Any

from paceline.torch.balance import BalancedBatchSampler, BalancedSampler, DataLoader, example_sizes
from paceline.torch.comm import ScheduledDataParallel
from paceline.torch.comm.ddp import BucketTimes, CommHookState, DDPAdvice, scheduled_comm_hook
from paceline.torch.guard import Guard, guard
from paceline.torch.measure import Watch, measure_job, measure_link, watch
from paceline.torch.order import GradientOrder, GradientSketch
from paceline.torch.overlap import Handle, LaneOptimizer, Lanes, Prefetch
from paceline.torch.overlap.split import SplitBackward, split_backward
from paceline.torch.predict import calibrate_cpu, trace_workload
from paceline.torch.ranks import gather_timeline

if TYPE_CHECKING:
    from paceline.torch.overlap.async_checkpoint import AsyncCheckpoint

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
    "Guard",
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
    "guard",
    "measure_job",
    "measure_link",
    "scheduled_comm_hook",
    "split_backward",
    "trace_workload",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name != "AsyncCheckpoint":
        raise AttributeError(f"module 'paceline.torch' has no attribute {name!r}")
    from paceline.torch.overlap.async_checkpoint import AsyncCheckpoint

    return AsyncCheckpoint
