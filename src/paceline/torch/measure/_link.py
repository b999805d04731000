"""Measure the link between the ranks."""

import numpy as np
import torch
from torch import distributed as dist

from paceline.cost import Link
from paceline.torch.model import clock_of
from paceline.torch.ranks import Group, device_of, from_rank_0, process_group_of

LINK_PROBE_BYTES = (1 << 12, 1 << 22)
NUM_SMALL, NUM_LARGE = 9, 4


def measure_link(process_group: Group | None = None) -> Link:
    """Time all-reduces of 4 KiB and 4 MiB and fit the link; every rank must call it.

    Links with a token bucket, as in clouds, let the first bytes after a pause through at
    once. So one large all-reduce goes first to empty the bucket, and the four that are
    timed follow without a pause. The latency is the lower quartile of nine small ones,
    each after a barrier: whatever disturbs them only makes them longer. All ranks
    return rank 0's numbers. `process_group` may be one axis of a device mesh; unset for the
    default group.
    """
    group = process_group_of(process_group)
    device = device_of(group)
    clock = clock_of(torch.nn.ParameterList([torch.zeros(0, device=device)]))
    small, large = (torch.zeros(size // 4, device=device) for size in LINK_PROBE_BYTES)

    def seconds_of(payload: torch.Tensor, num_repeats: int) -> float:
        begin = clock.mark()
        for _ in range(num_repeats):
            dist.all_reduce(payload, group=group)
        start_s, end_s = clock.seconds([begin, clock.mark()])
        return (end_s - start_s) / num_repeats

    latencies_s = []
    for _ in range(NUM_SMALL):
        dist.barrier(group)
        latencies_s.append(seconds_of(small, 1))
    seconds_of(large, 1)
    times_s = np.array([np.quantile(latencies_s, 0.25), seconds_of(large, NUM_LARGE)])
    return Link.fit(LINK_PROBE_BYTES, from_rank_0(times_s, group))
