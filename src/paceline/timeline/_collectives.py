"""What collectives tell about the ranks: whose clock is off, and who came last."""

import numpy as np
from numpy.typing import NDArray


def clock_offsets(
    rank: NDArray[np.int32], collective: NDArray[np.int64], end_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the seconds to add to each span's start so that collectives end together.

    A collective with several parts on one rank counts with the last of them.
    """
    offsets = np.zeros(len(rank))
    joint = np.flatnonzero(collective >= 0)
    if not joint.size:
        return offsets
    # Last part of each (rank, collective) pair: sort by time, the later write wins.
    joint = joint[np.argsort(end_s[joint], kind="stable")]
    ranks, row = np.unique(rank[joint], return_inverse=True)
    numbers, column = np.unique(collective[joint], return_inverse=True)
    ends = np.full((len(ranks), len(numbers)), np.nan)
    ends[row, column] = end_s[joint]
    for index in range(1, len(ranks)):
        difference = ends[0] - ends[index]
        shared = np.isfinite(difference)
        if shared.any():
            offsets[rank == ranks[index]] = np.median(difference[shared])
    return offsets


def last_to_arrive(
    rank: NDArray[np.int32], collective: NDArray[np.int64], start_s: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return, per span, the index of the part of its collective that began last.

    A span of one rank alone gets its own index. Ties go to the lower rank.
    """
    last = np.arange(len(rank))
    joint = np.flatnonzero(collective >= 0)
    if joint.size:
        _, group = np.unique(collective[joint], return_inverse=True)
        # Ascending by start, descending by rank among equals: the last write wins.
        order = np.lexsort((-rank[joint], start_s[joint]))
        latest = np.empty(group.max() + 1, dtype=np.int64)
        latest[group[order]] = joint[order]
        last[joint] = latest[group]
    return last
