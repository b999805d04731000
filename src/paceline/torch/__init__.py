"""Paceline on a live PyTorch job: recorders, probes and executors.

Rooms are loaded when a name of them is first used: `import paceline.torch` takes little more than
`import torch`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from paceline.torch import _installed as _installed  # Says that PyTorch is missing.

# At once, because the function has the name of its room, which Python would set otherwise.
from paceline.torch.guard import Guard, guard

if TYPE_CHECKING:
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
    from paceline.torch.measure import (
        MeasuredCost,
        Watch,
        measure_cost,
        measure_job,
        measure_link,
        measure_slowdown,
        watch,
    )
    from paceline.torch.order import GradientOrder, GradientSketch
    from paceline.torch.overlap import Handle, LaneOptimizer, Lanes, Prefetch
    from paceline.torch.overlap.split import SplitBackward, split_backward
    from paceline.torch.plan import advise
    from paceline.torch.predict import calibrate_cpu, trace_workload
    from paceline.torch.ranks import Replica, gather_timeline

_HOME = {
    "AsyncCheckpoint": "checkpoint",
    "BalancedBatchSampler": "balance",
    "BalancedSampler": "balance",
    "BatchInfo": "balance",
    "BucketTimes": "comm.ddp",
    "BucketWatch": "comm.ddp",
    "Checkpoint": "checkpoint",
    "DDPAdvice": "comm.ddp",
    "DataLoader": "balance",
    "GradientOrder": "order",
    "GradientSketch": "order",
    "Handle": "overlap",
    "LaneOptimizer": "overlap",
    "Lanes": "overlap",
    "MeasuredCost": "measure",
    "Packed": "balance",
    "PendingCheckpoint": "checkpoint",
    "Prefetch": "overlap",
    "Replica": "ranks",
    "ScheduledDataParallel": "comm",
    "SplitBackward": "overlap.split",
    "Watch": "measure",
    "advise": "plan",
    "calibrate_cpu": "predict",
    "carry_info": "balance",
    "example_sizes": "balance",
    "gather_timeline": "ranks",
    "measure_cost": "measure",
    "measure_job": "measure",
    "measure_link": "measure",
    "measure_slowdown": "measure",
    "pack": "balance",
    "packed_attention": "balance",
    "split_backward": "overlap.split",
    "trace_workload": "predict",
    "watch": "measure",
    "watch_buckets": "comm.ddp",
}

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
    "MeasuredCost",
    "Packed",
    "PendingCheckpoint",
    "Prefetch",
    "Replica",
    "ScheduledDataParallel",
    "SplitBackward",
    "Watch",
    "advise",
    "calibrate_cpu",
    "carry_info",
    "example_sizes",
    "gather_timeline",
    "guard",
    "measure_cost",
    "measure_job",
    "measure_link",
    "measure_slowdown",
    "pack",
    "packed_attention",
    "split_backward",
    "trace_workload",
    "watch",
    "watch_buckets",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'paceline.torch' has no attribute {name!r}")
    return getattr(import_module(f"paceline.torch.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
