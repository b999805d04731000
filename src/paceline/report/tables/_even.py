"""The recorded steps once more, simulated with their compute shared evenly by all ranks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from paceline.run import STEP_SPANS, Steps
from paceline.timeline import TaskGraph, Timeline, simulate

NAMES = tuple(name for name, _ in STEP_SPANS.values())
KINDS = tuple(int(kind) for _, kind in STEP_SPANS.values())
EVEN = [NAMES.index(name) for name in ("forward", "loss", "backward")]
COLLECTIVE = NAMES.index("all-reduce")


def simulate_even(steps: Sequence[Steps], first: int, num_steps: int) -> Timeline:
    """Simulate `num_steps` recorded steps from `first` on with even compute.

    Each pass takes as long on every rank as it took in the mean over ranks, the wire as long as it
    took the rank that came last; all else is as measured. It is the most that balanced batches
    could give, not what a plan achieves.

    Examples:
        >>> def rank(forward_s):
        ...     columns = dict.fromkeys(Steps._fields, np.zeros(2))
        ...     return Steps(**columns | {"forward_s": np.array(forward_s)})
        >>> simulate_even([rank([3.0, 1.0]), rank([1.0, 2.0])], 0, 2).makespan_s
        3.5
    """
    seconds = _part_seconds(steps, first, num_steps)
    ranks, parts = np.arange(len(steps)), np.arange(len(NAMES))
    step = np.arange(first, first + seconds.shape[1])
    step_of, rank_of, part_of = (
        grid.ravel() for grid in np.meshgrid(step, ranks, parts, indexing="ij")
    )
    return simulate(
        TaskGraph.from_columns(
            seconds.transpose(1, 0, 2).ravel(),
            rank=rank_of,
            kind=np.array(KINDS)[part_of],
            name=part_of,
            step=step_of,
            collective=np.where(part_of == COLLECTIVE, step_of, -1),
            names=NAMES,
        )
    )


def _part_seconds(steps: Sequence[Steps], first: int, num_steps: int) -> NDArray[np.float64]:
    """Return seconds per rank, step and part."""
    window = slice(first, first + num_steps)
    seconds = np.stack([_columns(rank, window) for rank in steps]).astype(np.float64)
    seconds[..., EVEN] = seconds[..., EVEN].mean(axis=0)
    # Who comes last stays in the collective for the shortest time: that is the wire.
    seconds[..., COLLECTIVE] = seconds[..., COLLECTIVE].min(axis=0)
    return seconds


def _columns(rank: Steps, window: slice) -> NDArray[np.float32]:
    return np.stack([getattr(rank, name)[window] for name in STEP_SPANS], axis=1)
