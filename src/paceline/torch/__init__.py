"""Paceline on a live PyTorch job: recorders, probes and executors."""

from paceline.torch.balance import BalancedBatchSampler, BalancedSampler, DataLoader, example_sizes
from paceline.torch.checkpoint import AsyncCheckpoint, Checkpoint, PendingCheckpoint
from paceline.torch.comm import ScheduledDataParallel
from paceline.torch.comm.ddp import BucketTimes, CommHookState, DDPAdvice, scheduled_comm_hook
from paceline.torch.measure import Watch, measure_job, measure_link, watch
from paceline.torch.order import GradientOrder, GradientSketch
from paceline.torch.overlap import Handle, LaneOptimizer, Lanes, Prefetch
from paceline.torch.overlap.split import SplitBackward, split_backward
from paceline.torch.predict import calibrate_cpu, trace_workload
from paceline.torch.ranks import gather_timeline

__all__ = [
    "AsyncCheckpoint",
    "BalancedBatchSampler",
    "BalancedSampler",
    "BucketTimes",
    "Checkpoint",
    "CommHookState",
    "DDPAdvice",
    "DataLoader",
    "GradientOrder",
    "GradientSketch",
    "Handle",
    "LaneOptimizer",
    "Lanes",
    "PendingCheckpoint",
    "Prefetch",
    "ScheduledDataParallel",
    "SplitBackward",
    "Watch",
    "calibrate_cpu",
    "example_sizes",
    "gather_timeline",
    "measure_job",
    "measure_link",
    "scheduled_comm_hook",
    "split_backward",
    "trace_workload",
    "watch",
]
