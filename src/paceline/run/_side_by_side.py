"""From the steps of each rank to columns of all ranks, and to spans."""

from collections.abc import Sequence

import numpy as np

from paceline.run._steps import STEP_SPANS, UNKNOWN, Steps
from paceline.run.causes import CLASSES, Grid
from paceline.timeline import Kind, Timeline


def grid_of(ranks: Sequence[Steps]) -> Grid:
    """Lay the equally long steps of all ranks side by side."""
    stacked = {
        name: np.stack([getattr(steps, name) for steps in ranks]).astype(np.float64)
        for name in Steps._fields
    }
    arrived = np.isfinite(stacked["arrival_s"]).all(axis=0)
    # A step without a collective, as one that a gradient scaler skipped, is no other loop yet.
    is_joint = len(ranks) > 1 and bool(arrived.any()) and float(arrived.mean()) > 0.5
    collective_s = stacked["collective_s"]
    wire_s = collective_s
    if is_joint:
        wire_s = np.repeat(collective_s.min(axis=0)[None], len(ranks), axis=0)
    seconds = {name: stacked[f"{name}_s"] for name in CLASSES if f"{name}_s" in stacked}
    seconds |= {"waiting": collective_s - wire_s, "wire": wire_s}
    counts = {
        name: np.where(stacked[name] == UNKNOWN, np.nan, stacked[name])
        for name in ("num_examples", "num_elements", "num_padding")
    }
    return Grid(
        seconds={name: seconds[name] for name in CLASSES},
        num_microbatches=stacked["num_microbatches"],
        is_joint=is_joint,
        **counts,
    )


def timeline_of(ranks: Sequence[Steps], first_step: int) -> Timeline:
    """Return the spans of steps; the micro-batches of a step are drawn as one.

    The clocks of the ranks are shifted so that their collectives end together.
    """
    parts = [_spans(rank, steps, first_step) for rank, steps in enumerate(ranks)]
    return Timeline.merge(parts).aligned()


def _spans(rank: int, steps: Steps, first_step: int) -> Timeline:
    seconds = np.stack([getattr(steps, name) for name in STEP_SPANS], axis=1).astype(np.float64)
    ends_s = steps.begin_s[:, None] + np.cumsum(seconds, axis=1)
    kinds = np.array([kind for _, kind in STEP_SPANS.values()])
    step, name = np.divmod(np.arange(seconds.size).reshape(seconds.shape), len(STEP_SPANS))
    is_wire = kinds[name] == Kind.COLLECTIVE
    number = np.where(is_wire & np.isfinite(steps.arrival_s)[:, None], step + first_step, -1)
    there = (seconds > 0) | (number >= 0)
    return Timeline.from_columns(
        "measured",
        rank=rank,
        start_s=(ends_s - seconds)[there],
        duration_s=seconds[there],
        kind=np.broadcast_to(kinds, seconds.shape)[there],
        name=name[there],
        step=(step + first_step)[there],
        collective=number[there],
        names=tuple(name for name, _ in STEP_SPANS.values()),
    )
