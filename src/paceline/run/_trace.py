"""The spans of a few steps of a run, one of them layer by layer, and the plan beside it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.cost import Job, LayerCost, Link, Worker
from paceline.plan import data_parallel_graph
from paceline.run._folder import RunFolder
from paceline.timeline import BUCKET_LANE, Kind, Timeline, simulate

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Trace:
    """What happened in a few steps, and what the plan says of the one in detail.

    Attributes:
        measured: Spans of all ranks on one clock: lane `main`, and of one step the lanes `layers`
            and `buckets`.
        plan: The same step simulated: DistributedDataParallel's buckets, each sent as soon as it
            is full and the one before is through, over the link that the measured buckets show.
            It begins when that step began. None without buckets.
    """

    measured: Timeline
    plan: Timeline | None

    @classmethod
    def load(cls, folder: str | Path) -> "Trace":
        """Read what `paceline run` recorded.

        Raises:
            ValueError: If the folder holds no run, or no spans of it.
        """
        place = RunFolder(Path(folder))
        place.read_info()
        parts = [place.read_trace(rank) for rank in place.ranks()]
        found = [part for part in parts if part is not None]
        if not found:
            raise ValueError(
                f"{place.path} holds no spans of single steps; they are recorded of step 4 and "
                "those after it, so train for some more"
            )
        measured = Timeline.merge(found).aligned()
        return cls(measured=measured, plan=_plan_of(measured))

    def write(self, path: str | Path) -> Path:
        """Write JSON that Perfetto opens, the plan below what happened; return the path."""
        return self.measured.to_chrome_trace(path, beside=self.plan)


def _plan_of(measured: Timeline) -> Timeline | None:
    """Simulate the step that has buckets, with its own passes and link."""
    if BUCKET_LANE not in measured.lanes:
        return None
    sent = measured.select(measured.lane == measured.lanes.index(BUCKET_LANE))
    codes, number = np.unique(sent.name, return_inverse=True)
    ranks = np.unique(measured.rank)
    if len(ranks) < 2 or len(sent) != len(codes) * len(ranks):
        return None  # A rank has no buckets of its own, or not all of them.
    # A row for each rank, a column for each bucket; DDP sends them in the order of their numbers.
    order = np.lexsort((number, sent.rank))
    start_s, end_s = (
        column[order].reshape(len(ranks), -1) for column in (sent.start_s, sent.end_s)
    )
    names = [measured.names[code] for code in codes]
    own = measured.select((measured.step == sent.step[0]) & (measured.lane == _main(measured)))
    passes = [_passes_of(own, rank) for rank in ranks.tolist()]
    job = _job(names, passes, start_s, end_s)
    buckets = [(layer,) for layer in reversed(range(len(names)))]
    compute_s = [[one.forward_s + one.backward_s for one in passes]]
    planned = simulate(data_parallel_graph(job, compute_s, buckets=buckets))
    shown = {f"bucket {index}": name for index, name in enumerate(names)}
    return replace(
        planned,
        start_s=planned.start_s + min(one.begin_s for one in passes),
        step=np.full_like(planned.step, sent.step[0]),
        lanes=("main", BUCKET_LANE),
        names=tuple(shown.get(name, name) for name in planned.names),
    )


class _Passes(NamedTuple):
    """One rank's step: `forward_s` is all before the backward pass that sends."""

    begin_s: float
    forward_s: float
    backward_s: float
    backward_begin_s: float
    update_s: float


def _main(run: Timeline) -> int:
    return run.lanes.index("main")


def _passes_of(own: Timeline, rank: int) -> _Passes:
    mine = own.select(own.rank == rank)
    passes = mine.select(np.isin(mine.kind, (Kind.FORWARD, Kind.BACKWARD)))
    last = int(np.flatnonzero(passes.kind == Kind.BACKWARD)[-1])
    return _Passes(
        begin_s=float(passes.start_s[0]),
        forward_s=float(passes.duration_s[:last].sum()),
        backward_s=float(passes.duration_s[last]),
        backward_begin_s=float(passes.start_s[last]),
        update_s=float(mine.duration_s[mine.kind == Kind.OPTIMIZER].sum()),
    )


def _job(names: list[str], passes: list[_Passes], start_s: Array, end_s: Array) -> Job:
    """Return a job with a layer for each bucket: the first bucket holds the last layers."""
    num_bytes = [int(name.split()[2].replace(",", "")) for name in names]
    begin_s = np.array([[one.backward_begin_s] for one in passes])
    # What is computed after the last bucket was sent counts to it.
    ready_s = np.maximum(start_s - begin_s, 0.0)
    ready_s[:, -1] = [one.backward_s for one in passes]
    own_s = np.diff(ready_s.mean(axis=0), prepend=0.0)
    forward_s = float(np.mean([one.forward_s for one in passes])) / len(names)
    layers = [
        LayerCost(name=name, forward_s=forward_s, backward_s=max(own, 0.0), gradient_bytes=size)
        for name, own, size in zip(names, own_s.tolist(), num_bytes, strict=True)
    ]
    # A bucket is through when the last rank has it, and waits for the one before it.
    through_s = end_s.max(axis=0)
    free_s = np.concatenate([[-np.inf], through_s[:-1]])
    takes_s = np.maximum(through_s - np.maximum(start_s.max(axis=0), free_s), 0.0).sum()
    return Job(
        source="measured",
        layers=tuple(reversed(layers)),
        # One step's buckets, often of one size, tell one number.
        link=Link(alpha_s=0.0, bytes_per_s=sum(num_bytes) / max(float(takes_s), 1e-9)),
        workers=tuple(Worker(overhead_s=one.update_s) for one in passes),
    )
