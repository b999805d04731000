"""What a measured epoch says about each worker, agreed on by all ranks."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from torch import distributed as dist

from paceline.balance import MIN_REFIT_STEPS, Cursor, EpochPlan, refit_workers
from paceline.cost import Worker
from paceline.timeline import BUSY_KINDS, Timeline
from paceline.torch.ranks import from_rank_0, meet


def busy_seconds(timeline: Timeline, num_ranks: int, num_steps: int) -> NDArray[np.float64]:
    """Return the seconds that each rank computed in each of the last `num_steps` steps.

    Args:
        timeline: Spans of all ranks.
        num_ranks: Ranks that must be there, from 0 up.
        num_steps: Steps of the epoch.

    Returns:
        Shape `(num_steps, num_ranks)`.

    Raises:
        ValueError: If the timeline was not measured, or lacks ranks or steps.
    """
    if timeline.source not in ("measured", "emulated"):
        raise ValueError(f"refit needs a measured timeline, got a {timeline.source} one")
    ranks = np.unique(timeline.rank).tolist()
    if ranks != list(range(num_ranks)):
        raise ValueError(
            f"refit needs the spans of ranks 0 to {num_ranks - 1}, got those of {ranks}; pass "
            "run.gather(), and the sampler's process_group to watch()"
        )
    busy = timeline.select(np.isin(timeline.kind, BUSY_KINDS))
    steps, row = np.unique(busy.step, return_inverse=True)
    if len(steps) < num_steps:
        raise ValueError(
            f"refit needs every step of the epoch, and the timeline holds {len(steps)} of "
            f"{num_steps}; watch the whole epoch"
        )
    cell = row * num_ranks + busy.rank
    seconds = np.bincount(cell, busy.duration_s, minlength=len(steps) * num_ranks)
    return np.asarray(seconds.reshape(-1, num_ranks)[len(steps) - num_steps :], dtype=np.float64)


def checked_finished(finished: Cursor | None, epoch: int, *, is_under_way: bool) -> Cursor:
    """Return where the last epoch began; raise a `ValueError` if none has just ended."""
    if finished is None or is_under_way:
        raise ValueError(
            f"refit needs an epoch that has just ended, and epoch {epoch} "
            f"{'is under way' if is_under_way else 'has nothing before it'}; call it after the "
            "loop over the loader"
        )
    return finished


def refitted(
    timeline: Timeline, plan: EpochPlan, first_step: int, group: dist.ProcessGroup | None
) -> tuple[Worker, ...]:
    """Return the speed and overhead of each worker that `timeline` says; on all ranks alike.

    Args:
        timeline: Spans of all ranks; its last steps are those of the plan.
        plan: Of the epoch.
        first_step: Steps of the plan that were not delivered in this epoch's pass.
        group: Where the ranks talk; None if they cannot.

    Raises:
        ValueError: As `busy_seconds`.
        RankStalledError: If a rank does not call it.
    """
    num_steps = plan.num_steps - first_step
    if num_steps < MIN_REFIT_STEPS:
        return plan.workers
    if group is not None:
        meet("refit", group)
    seconds = busy_seconds(timeline, plan.num_workers, num_steps)
    return _from_rank_0(refit_workers(plan.load[first_step:], seconds, plan.workers), group)


def _from_rank_0(
    workers: tuple[Worker, ...], group: dist.ProcessGroup | None
) -> tuple[Worker, ...]:
    """Return rank 0's speeds and overheads, so that all ranks plan the same."""
    if group is None:
        return workers
    pace = from_rank_0(np.array([(one.speed, one.overhead_s) for one in workers]), group)
    return tuple(
        replace(worker, speed=speed, overhead_s=overhead_s)
        for worker, (speed, overhead_s) in zip(workers, pace.tolist(), strict=True)
    )
