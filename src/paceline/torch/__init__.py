"""Paceline on a live PyTorch job: recorders, probes and executors.

`AsyncCheckpoint` is loaded when it is first used: torch.distributed.checkpoint, which it
writes with, takes longer to import than all else here, on every rank.
"""

from typing import TYPE_CHECKING, Any

from paceline.torch.balance import BalancedBatchSampler, BalancedSampler, DataLoader, example_sizes
from paceline.torch.comm import ScheduledDataParallel
from paceline.torch.comm.ddp import BucketTimes, BucketWatch, DDPAdvice, watch_buckets
from paceline.torch.measure import Watch, measure_job, measure_link, watch
from paceline.torch.order import GradientOrder, GradientSketch
from paceline.torch.overlap import Handle, LaneOptimizer, Lanes, Prefetch
from paceline.torch.overlap.split import SplitBackward, split_backward
from paceline.torch.predict import calibrate_cpu, trace_workload
from paceline.torch.ranks import Replica, gather_timeline

if TYPE_CHECKING:
    from paceline.torch.overlap.async_checkpoint import AsyncCheckpoint

__all__ = [
    "AsyncCheckpoint",
    "BalancedBatchSampler",
    "BalancedSampler",
    "BucketTimes",
    "BucketWatch",
    "DDPAdvice",
    "DataLoader",
    "GradientOrder",
    "GradientSketch",
    "Handle",
    "LaneOptimizer",
    "Lanes",
    "Prefetch",
    "Replica",
    "ScheduledDataParallel",
    "SplitBackward",
    "Watch",
    "calibrate_cpu",
    "example_sizes",
    "gather_timeline",
    "measure_job",
    "measure_link",
    "split_backward",
    "trace_workload",
    "watch",
    "watch_buckets",
]


def __getattr__(name: str) -> Any:
    if name != "AsyncCheckpoint":
        raise AttributeError(f"module 'paceline.torch' has no attribute {name!r}")
    from paceline.torch.overlap.async_checkpoint import AsyncCheckpoint

    return AsyncCheckpoint
