"""Ranks wait for their loader."""

import numpy as np
from numpy.typing import NDArray

from paceline.run.causes._cause import Cause
from paceline.run.causes._evidence import Evidence
from paceline.timeline import gain_interval

# Steps in which an epoch begins are few; a loader that stalls there alone starts anew each time.
FEW_STEPS, MOST_OF_IT = 0.02, 0.5
ONE_RANK = 2.0


def loader(evidence: Evidence) -> Cause:
    """Price a loader that works beside the passes.

    At best nothing is waited for. At least, where nothing loads ahead now, one worker does, and
    hides what the step has room for; else twice as many workers load twice as fast.
    """
    grid, replay = evidence.grid, evidence.replay
    data_s, before_s = grid.seconds["data"], replay.steps_s()
    best_s = replay.steps_s(without_s=data_s)
    loading_s = before_s / 2 if evidence.fact("num_workers") else data_s.max(axis=0)
    low, _ = gain_interval(before_s, np.minimum(np.maximum(best_s, loading_s), before_s))
    _, high = gain_interval(before_s, best_s)
    share = evidence.shares["data"] + max(evidence.waits["data"], 0.0)
    return Cause(
        cause="loader",
        share=share,
        gain_low=max(low, 0.0),
        gain_high=max(high, 0.0),
        what=f"{share:.0%} of rank time is waiting for the loader{_where(data_s)}"
        f"{_of_others(evidence)}",
        why=_why(evidence),
        next=_next(evidence),
    )


def _where(data_s: NDArray[np.float64]) -> str:
    level = data_s.mean(axis=1)
    rank = int(level.argmax())
    others = np.delete(level, rank)
    is_one = others.size and level[rank] > ONE_RANK * np.median(others)
    return f" of rank {rank}" if is_one else ""


def _of_others(evidence: Evidence) -> str:
    waiting = evidence.waits["data"]
    return f", {waiting:.0%} of it for that of another rank" if waiting > 0.01 else ""


def _is_at_epochs(evidence: Evidence) -> bool:
    spent_s = np.sort(evidence.grid.seconds["data"].max(axis=0))[::-1]
    few = max(int(FEW_STEPS * len(spent_s)), 1)
    return float(spent_s[:few].sum()) > MOST_OF_IT * float(spent_s.sum())


def _why(evidence: Evidence) -> str:
    dataset = evidence.fact("dataset") or "the dataset"
    workers = evidence.fact("num_workers")
    if _is_at_epochs(evidence):
        return f"most of it is in few steps, as where the loader of {dataset} starts an epoch"
    if workers:
        return f"{workers} loader processes of {dataset} are slower than the passes"
    return f"{dataset} is read between the steps, num_workers={workers or 0}"


def _next(evidence: Evidence) -> str:
    workers = evidence.fact("num_workers") or 0
    more = workers if _is_at_epochs(evidence) and workers else max(2 * workers, 2)
    return f"DataLoader(..., num_workers={more}, persistent_workers=True)"
