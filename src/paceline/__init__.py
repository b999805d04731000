"""Paceline keeps every worker of a distributed training job moving at the same pace.

The names of the first tutorial, loaded when they are first used: `import paceline`
imports neither torch nor anything that draws.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paceline.cost import Job, LayerCost, LinearCost, Link, QuadraticCost, Worker
    from paceline.plan import Schedule, simulate_schedule, tune
    from paceline.timeline import Summary, Timeline, simulate
    from paceline.torch import (
        BalancedBatchSampler,
        BalancedSampler,
        Checkpoint,
        DataLoader,
        ScheduledDataParallel,
        advise,
        measure_job,
        split_backward,
        watch,
    )

__version__ = "0.1.0"

_HOME = {
    "BalancedBatchSampler": "paceline.torch",
    "BalancedSampler": "paceline.torch",
    "Checkpoint": "paceline.torch",
    "DataLoader": "paceline.torch",
    "Job": "paceline.cost",
    "LayerCost": "paceline.cost",
    "LinearCost": "paceline.cost",
    "Link": "paceline.cost",
    "QuadraticCost": "paceline.cost",
    "Schedule": "paceline.plan",
    "ScheduledDataParallel": "paceline.torch",
    "Summary": "paceline.timeline",
    "Timeline": "paceline.timeline",
    "Worker": "paceline.cost",
    "advise": "paceline.torch",
    "measure_job": "paceline.torch",
    "simulate": "paceline.timeline",
    "simulate_schedule": "paceline.plan",
    "split_backward": "paceline.torch",
    "tune": "paceline.plan",
    "watch": "paceline.torch",
}

__all__ = [
    "BalancedBatchSampler",
    "BalancedSampler",
    "Checkpoint",
    "DataLoader",
    "Job",
    "LayerCost",
    "LinearCost",
    "Link",
    "QuadraticCost",
    "Schedule",
    "ScheduledDataParallel",
    "Summary",
    "Timeline",
    "Worker",
    "advise",
    "measure_job",
    "simulate",
    "simulate_schedule",
    "split_backward",
    "tune",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'paceline' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
