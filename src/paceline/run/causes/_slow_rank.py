"""Ranks wait for one that needs longer for the same work."""

import numpy as np

from paceline.run.causes._cause import Cause
from paceline.run.causes._evidence import Evidence, pace_excess_s
from paceline.timeline import gain_interval

NEXT = (
    "look at rank {rank}'s machine: other processes, clock, memory, cores per rank\n"
    "or give it less: batches.refit(run.gather()) after each epoch, docs/balance.md"
)
OUTSIDE = (
    "look at what rank {rank} alone does between its steps: logging, saving, validation\n"
    "save beside the steps with paceline.Checkpoint, docs/checkpoint.md"
)


def slow_rank(evidence: Evidence) -> Cause:
    """Price each rank at the pace of the others."""
    grid, replay = evidence.grid, evidence.replay
    excess_s = pace_excess_s(grid, evidence.model)
    low, high = gain_interval(replay.steps_s(), replay.steps_s(without_s=excess_s))
    rank = int(excess_s.mean(axis=1).argmax())
    share = max(evidence.waits["pace"], 0.0) if grid.is_joint else 0.0
    why, advice = _why(evidence, rank)
    return Cause(
        cause="slow-rank",
        share=share,
        gain_low=max(low, 0.0),
        gain_high=max(high, 0.0),
        what=f"{share:.0%} of rank time is waiting for rank {rank}, which is slower than the "
        "others at the same work",
        why=why,
        next=advice.format(rank=rank),
    )


def _why(evidence: Evidence, rank: int) -> tuple[str, str]:
    """Say where the rank loses more: in its passes or outside of them."""
    outside_s = evidence.grid.outside_s.mean(axis=1)
    more_s = float(outside_s[rank] - np.median(np.delete(outside_s, rank))) if len(
        outside_s
    ) > 1 else 0.0  # fmt: skip
    pace = evidence.model.pace
    others = np.median(np.delete(pace, rank)) if len(pace) > 1 else pace[rank]
    ratio = float(pace[rank] / max(others, 1e-12))
    slower_s = (1 - 1 / max(ratio, 1e-12)) * float(evidence.grid.compute_s[rank].mean())
    if more_s > slower_s:
        return f"it spends {1e3 * more_s:.1f} ms more of each step outside of its passes", OUTSIDE
    return f"its passes take {ratio:.2f} times as long as the others' for the same elements", NEXT
