"""Timeline -> the bars of a drawing: one row for each lane of each rank."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.timeline import Kind, Timeline

MAX_BARS = 6000
MAX_RANKS = 32
CLASS_OF_KIND = {
    Kind.COMPUTE: "other",
    Kind.FORWARD: "forward",
    Kind.BACKWARD: "backward",
    Kind.OPTIMIZER: "optimizer",
    Kind.COLLECTIVE: "wire",
    Kind.DATA: "data",
    Kind.COPY: "copy",
}
# Recorders put the rest of a loop's body beside the wait for data; it is none.
BETWEEN = "between steps"


class Bars(NamedTuple):
    """What is drawn of a timeline.

    Attributes:
        row: Index into `rows`. Shape `(num_bars,)`, like the next five.
        start_s: Begin, counted from the first begin of the timeline.
        end_s: End, counted likewise.
        step: Optimizer update.
        label: What it was, as a class of `CLASS_COLOURS`.
        name: What the recorder called it.
        rows: Rank and lane of each row, as text.
        steps: First and last step drawn.
        is_cut: Whether ranks or steps of the timeline are left out.
    """

    row: NDArray[np.int64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    step: NDArray[np.int32]
    label: list[str]
    name: list[str]
    rows: list[str]
    steps: tuple[int, int]
    is_cut: bool


def bars_of(timeline: Timeline) -> Bars:
    """Return the bars of the first steps of a timeline, as many as a page can hold.

    A collective becomes two bars: waiting until the last rank arrives, the wire from there on.
    """
    run = timeline.aligned()
    kept = _kept(run)
    shown = run.select(np.flatnonzero(kept))
    arrival_s = _last_arrivals(shown)
    places = np.unique(np.stack([shown.rank, shown.lane]), axis=1)
    lanes = len(np.unique(shown.lane)) > 1
    keys = shown.rank.astype(np.int64) * len(run.lanes) + shown.lane
    row = np.unique(keys, return_inverse=True)[1]
    joint = shown.kind == Kind.COLLECTIVE
    waits = joint & (arrival_s > shown.start_s)
    # A bar for each span, and one more for the wait in front of each collective.
    index = np.concatenate([np.arange(len(shown)), np.flatnonzero(waits)])
    is_wait = np.arange(len(index)) >= len(shown)
    start_s = np.where(joint[index] & ~is_wait, arrival_s[index], shown.start_s[index])
    end_s = np.where(is_wait, arrival_s[index], shown.end_s[index])
    names = [shown.names[shown.name[i]] for i in index]
    kinds = [Kind(kind) for kind in shown.kind[index].tolist()]
    origin_s = float(run.start_s.min()) if len(run) else 0.0
    steps = shown.step if len(shown) else np.zeros(1, dtype=np.int32)
    return Bars(
        row=row[index],
        start_s=start_s - origin_s,
        end_s=end_s - origin_s,
        step=shown.step[index],
        label=[_class(*bar) for bar in zip(kinds, names, is_wait, strict=True)],
        name=names,
        rows=[f"rank {rank}" + f" {run.lanes[lane]}" * lanes for rank, lane in places.T.tolist()],
        steps=(int(steps.min()), int(steps.max())),
        is_cut=not kept.all(),
    )


def _class(kind: Kind, name: str, is_wait: bool) -> str:
    if is_wait:
        return "waiting"
    return "other" if name == BETWEEN else CLASS_OF_KIND[kind]


def _kept(run: Timeline) -> NDArray[np.bool_]:
    """Choose ranks evenly, lowest and highest included, and the first steps that fit."""
    ranks = np.unique(run.rank)
    if len(ranks) > MAX_RANKS:
        ranks = ranks[np.linspace(0, len(ranks) - 1, MAX_RANKS).astype(np.int64)]
    kept = np.isin(run.rank, ranks)
    steps, counts = np.unique(run.step[kept], return_counts=True)
    fitting = max(1, int(np.searchsorted(np.cumsum(counts), MAX_BARS, side="right")))
    return kept & np.isin(run.step, steps[:fitting])


def _last_arrivals(run: Timeline) -> NDArray[np.float64]:
    """Return per span when the last rank arrived at its collective, its own end at the latest."""
    arrival_s = run.start_s.copy()
    joint = np.flatnonzero(run.collective >= 0)
    if not joint.size:
        return arrival_s
    _, group = np.unique(run.collective[joint], return_inverse=True)
    latest = np.full(group.max() + 1, -np.inf)
    np.maximum.at(latest, group, run.start_s[joint])
    arrival_s[joint] = np.minimum(latest[group], run.end_s[joint])
    return arrival_s
