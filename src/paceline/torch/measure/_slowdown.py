"""Measure by how much workers that share cores slow each other."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import distributed as dist

from paceline.torch.measure._unchanged import unchanged
from paceline.torch.model import call_model, clock_of, mean_square
from paceline.torch.ranks import Group, from_rank_0, process_group_of

NUM_WARMUP, NUM_REPEATS = 1, 7


def measure_slowdown(
    model: torch.nn.Module,
    batch: Any,
    *,
    loss: Callable[[Any], torch.Tensor] | None = None,
    process_group: Group | None = None,
) -> tuple[float, ...]:
    """Time the same passes while 1, 2, ... ranks compute at once; every rank must call it.

    For `Job.slowdown`, where ranks share the cores of one machine. The others wait meanwhile. Each
    number is the median of seven passes of rank 0, and none is less than the one before. What was
    changed is put back.

    Args:
        model: Bare, as for `measure_job`.
        batch: As for `measure_job`.
        loss: As for `measure_job`.
        process_group: As for `measure_job`.

    Returns:
        Seconds with 1, 2, ... ranks at it, equal on all ranks.
    """
    group = process_group_of(process_group)
    clock, found = clock_of(model), []
    with unchanged(model):
        for num_busy in range(1, dist.get_world_size(group) + 1):
            dist.barrier(group)
            marks = [clock.mark()]
            if dist.get_rank(group) < num_busy:
                for _ in range(NUM_WARMUP + NUM_REPEATS):
                    (loss or mean_square)(call_model(model, batch)).backward()
                    marks.append(clock.mark())
            took_s = np.diff(clock.seconds(marks))[NUM_WARMUP:]
            found.append(float(np.median(took_s)) if len(took_s) else 0.0)
    return tuple(np.maximum.accumulate(from_rank_0(np.array(found), group)).tolist())
