"""Paceline on a live PyTorch job: recorders, probes and executors."""

from paceline.torch import _installed as _installed  # Says that PyTorch is missing.
from paceline.torch.balance import (
    BalancedBatchSampler,
    BalancedSampler,
    BatchInfo,
    DataLoader,
    Packed,
    carry_info,
    example_sizes,
    pack,
    packed_attention,
)
from paceline.torch.checkpoint import AsyncCheckpoint, Checkpoint, PendingCheckpoint
from paceline.torch.comm import ScheduledDataParallel
from paceline.torch.comm.ddp import BucketTimes, BucketWatch, DDPAdvice, watch_buckets
from paceline.torch.guard import Guard, guard
from paceline.torch.measure import Watch, measure_job, measure_link, watch
from paceline.torch.order import GradientOrder, GradientSketch
from paceline.torch.overlap import Handle, LaneOptimizer, Lanes, Prefetch
from paceline.torch.overlap.split import SplitBackward, split_backward
from paceline.torch.predict import calibrate_cpu, trace_workload
from paceline.torch.ranks import Replica, gather_timeline

__all__ = [
    "AsyncCheckpoint",
    "BalancedBatchSampler",
    "BalancedSampler",
    "BatchInfo",
    "BucketTimes",
    "BucketWatch",
    "Checkpoint",
    "DDPAdvice",
    "DataLoader",
    "GradientOrder",
    "GradientSketch",
    "Guard",
    "Handle",
    "LaneOptimizer",
    "Lanes",
    "Packed",
    "PendingCheckpoint",
    "Prefetch",
    "Replica",
    "ScheduledDataParallel",
    "SplitBackward",
    "Watch",
    "calibrate_cpu",
    "carry_info",
    "example_sizes",
    "gather_timeline",
    "guard",
    "measure_job",
    "measure_link",
    "pack",
    "packed_attention",
    "split_backward",
    "trace_workload",
    "watch",
    "watch_buckets",
]
