"""What a run cost, and why: who was busy, who waited for whom, what set the pace."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline.timeline._columns import BUSY_KINDS, Columns, Kind, Source
from paceline.timeline._critical_path import critical_path
from paceline.timeline._words import next_step, share_rows


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Summary:
    """What a timeline says, in numbers.

    Per rank, `busy_s + exposed_comm_s + waiting_s + data_s + other_idle_s` is the
    makespan: each instant counts once, under the first of these that is true.

    Attributes:
        source: Whether the times were measured, emulated, simulated or predicted.
        ranks: Rank numbers, ascending. Shape `(num_ranks,)`.
        step_times_s: Seconds from the end of the step before (at first: from the first begin) to
            the end of each step, over all ranks. Shape `(num_steps,)`.
        busy_s: Per rank, seconds in which at least one lane computes.
        exposed_comm_s: Per rank, seconds in which it only waits for the wire: all ranks arrived.
        waiting_s: Per rank, seconds in which it only waits for a later rank.
        data_s: Per rank, seconds in which it only waits for data.
        other_idle_s: Per rank, the remaining idle seconds.
        waited_for_s: `waited_for_s[i, j]`: seconds that rank `ranks[i]` stood at collectives until
            `ranks[j]`, the last, arrived. Shape `(num_ranks, num_ranks)`. Ties go to the lower
            rank. Waits under a compute span or in two collectives at once count in full.
        imbalance: Busy seconds per step, slowest rank over mean, weighted by it: 1.0 is perfect.
        critical_path: Indices of the spans that set the makespan, first to last.
        critical_s: Its seconds per `(rank, kind)`, most expensive first, without unexplained time.
        steady_shares: Busy, exposed, waiting, data and other share of each rank's time, after the
            first step if the run was no simulation: that one warms up. Shape `(5, num_ranks)`.
    """

    source: Source
    ranks: NDArray[np.int32]
    step_times_s: NDArray[np.float64]
    busy_s: NDArray[np.float64]
    exposed_comm_s: NDArray[np.float64]
    waiting_s: NDArray[np.float64]
    data_s: NDArray[np.float64]
    other_idle_s: NDArray[np.float64]
    waited_for_s: NDArray[np.float64]
    imbalance: float
    critical_path: NDArray[np.int64]
    critical_s: dict[tuple[int, Kind], float]
    steady_shares: NDArray[np.float64]

    @property
    def makespan_s(self) -> float:
        """Seconds from the first begin to the last end."""
        return float(self.step_times_s.sum())

    @property
    def step_time_s(self) -> float:
        """Median seconds per step."""
        return float(np.median(self.step_times_s)) if self.step_times_s.size else 0.0

    @property
    def idle_s(self) -> NDArray[np.float64]:
        """Per rank, seconds in which no lane computes."""
        return self.exposed_comm_s + self.waiting_s + self.data_s + self.other_idle_s

    @property
    def idle_share(self) -> NDArray[np.float64]:
        """Per rank, `idle_s` over the makespan."""
        return self.idle_s / self.makespan_s if self.makespan_s else np.zeros(len(self.ranks))

    @property
    def slowest_rank(self) -> int | None:
        """The rank that the others waited for most; None if nobody waited."""
        total = self.waited_for_s.sum(axis=0)
        return int(self.ranks[total.argmax()]) if total.any() else None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, safe to save as JSON; units are in the keys."""
        return {
            "source": self.source,
            "ranks": self.ranks.tolist(),
            "num_steps": len(self.step_times_s),
            "step_time_s": self.step_time_s,
            "makespan_s": self.makespan_s,
            "busy_s": self.busy_s.tolist(),
            "idle_s": self.idle_s.tolist(),
            "exposed_comm_s": self.exposed_comm_s.tolist(),
            "waiting_s": self.waiting_s.tolist(),
            "data_s": self.data_s.tolist(),
            "imbalance": self.imbalance,
            "waited_for_s": self.waited_for_s.tolist(),
            "slowest_rank": self.slowest_rank,
            "critical_s": {
                f"rank {rank} {kind.name.lower()}": seconds
                for (rank, kind), seconds in self.critical_s.items()
            },
        }

    def __str__(self) -> str:
        steps_s = self.step_times_s
        headline = f"{self.source}: {len(steps_s)} steps, median {self.step_time_s:.4g} s, "
        rows = [f"{headline}imbalance {self.imbalance:.3f} (slowest rank over mean)"]
        if _has_warm_up(self.source, len(steps_s)):
            rows.append(f"warm-up: the first step took {steps_s[0]:.4g} s; left out of the shares")
        rows += share_rows(self.ranks, self.steady_shares)
        if self.slowest_rank is not None:
            most_s = self.waited_for_s.sum(axis=0).max()
            rows.append(f"the others waited {most_s:.4g} s for rank {self.slowest_rank}")
        return "\n".join([*rows, next_step(self.steady_shares)] if len(self.ranks) else rows)


def summarize(source: Source, run: Columns) -> Summary:
    """Return what spans of ranks on one clock say.

    Takes O(n log n) time for n spans and O(num_ranks²) memory for `waited_for_s`.
    """
    ranks, row = np.unique(run.rank, return_inverse=True)
    last = _last_to_arrive(run.rank, run.collective, run.start_s)
    last_arrival_s = run.start_s[last]
    shares = _exclusive_seconds(run, row, len(ranks), last_arrival_s)
    path = critical_path(run, last)
    return Summary(
        source=source,
        ranks=ranks,
        step_times_s=_step_times(run),
        busy_s=shares[0],
        exposed_comm_s=shares[1],
        waiting_s=shares[2],
        data_s=shares[3],
        other_idle_s=np.maximum(run.makespan_s - shares.sum(axis=0), 0.0),
        waited_for_s=_waited_for(run, row, len(ranks), last_arrival_s, row[last]),
        imbalance=_imbalance(run, row, len(ranks)),
        critical_path=path,
        critical_s=_critical_seconds(run, path),
        steady_shares=_steady_shares(source, run, row, len(ranks), last_arrival_s),
    )


def _has_warm_up(source: Source, num_steps: int) -> bool:
    """Whether the first step is apart: simulated ones cost what all cost."""
    return source in ("measured", "emulated") and num_steps > 1


def _steady_shares(
    source: Source,
    run: Columns,
    row: NDArray[np.int64],
    num_ranks: int,
    last_arrival_s: NDArray[np.float64],
) -> NDArray[np.float64]:
    later = np.ones(len(run.step), dtype=bool)
    if later.size and _has_warm_up(source, int(run.step.max() - run.step.min()) + 1):
        later = run.step > run.step.min()
    steady = Columns._make(column[later] for column in run)
    seconds = _exclusive_seconds(steady, row[later], num_ranks, last_arrival_s[later])
    total_s = steady.makespan_s
    shares = seconds / total_s if total_s else seconds
    other = np.maximum(float(total_s > 0) - shares.sum(axis=0), 0.0)
    return np.concatenate([shares, other[None]])


def _last_to_arrive(
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


def _exclusive_seconds(
    run: Columns, row: NDArray[np.int64], num_ranks: int, last_arrival_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Seconds per (class, rank): busy, exposed, waiting, data; the first true one counts."""
    is_joint = run.kind == Kind.COLLECTIVE
    # A clock that was moved by a median can put an end before the last arrival.
    wire_from = np.minimum(last_arrival_s, run.end_s)
    intervals = (
        (np.isin(run.kind, BUSY_KINDS), run.start_s, run.end_s),
        (is_joint, wire_from, run.end_s),
        (is_joint, run.start_s, wire_from),
        (run.kind == Kind.DATA, run.start_s, run.end_s),
    )
    times = np.concatenate([np.concatenate([a[m], b[m]]) for m, a, b in intervals])
    rows = np.concatenate([np.tile(row[m], 2) for m, _, _ in intervals])
    classes = np.repeat(np.arange(4), [2 * int(m.sum()) for m, _, _ in intervals])
    opens = np.concatenate([np.repeat([1, -1], int(m.sum())) for m, _, _ in intervals])
    order = np.lexsort((times, rows))
    times, rows = times[order], rows[order]
    # Each rank closes what it opens, so one running sum serves all ranks.
    active = np.stack([np.cumsum(np.where(classes == c, opens, 0)[order]) > 0 for c in range(4)])
    length_s = np.diff(times, append=0.0)
    length_s[np.append(np.diff(rows) != 0, True)[: len(rows)]] = 0.0
    seconds = np.zeros((4, num_ranks))
    for index in range(4):
        first = active[index] & ~active[:index].any(axis=0)
        seconds[index] = np.bincount(rows[first], length_s[first], minlength=num_ranks)
    return seconds


def _waited_for(
    run: Columns,
    row: NDArray[np.int64],
    num_ranks: int,
    last_arrival_s: NDArray[np.float64],
    last_row: NDArray[np.int64],
) -> NDArray[np.float64]:
    pair = row * num_ranks + last_row
    waited = np.bincount(pair, last_arrival_s - run.start_s, minlength=num_ranks**2)
    matrix = np.asarray(waited, dtype=np.float64).reshape(num_ranks, num_ranks)
    # A rank with several parts in one collective does not wait for itself.
    np.fill_diagonal(matrix, 0.0)
    return matrix


def _step_times(run: Columns) -> NDArray[np.float64]:
    if not len(run.rank):
        return np.zeros(0)
    _, step = np.unique(run.step, return_inverse=True)
    end_s = np.full(step.max() + 1, -np.inf)
    np.maximum.at(end_s, step, run.end_s)
    # With overlap a later step may end before an earlier one's last transfer.
    return np.diff(np.maximum.accumulate(end_s), prepend=run.start_s.min())


def _imbalance(run: Columns, row: NDArray[np.int64], num_ranks: int) -> float:
    busy = np.isin(run.kind, BUSY_KINDS)
    if not busy.any():
        return 1.0
    _, step = np.unique(run.step[busy], return_inverse=True)
    load = np.bincount(step * num_ranks + row[busy], run.duration_s[busy])
    load = np.pad(load, (0, -len(load) % num_ranks)).reshape(-1, num_ranks)
    mean = load.mean(axis=1).sum()
    return float(load.max(axis=1).sum() / mean) if mean else 1.0


def _critical_seconds(run: Columns, path: NDArray[np.int64]) -> dict[tuple[int, Kind], float]:
    seconds: dict[tuple[int, Kind], float] = {}
    # A collective is on the path with the part that arrived last: all wire, no waiting.
    for rank, kind, value in zip(run.rank[path], run.kind[path], run.duration_s[path], strict=True):
        key = int(rank), Kind(int(kind))
        seconds[key] = seconds.get(key, 0.0) + float(value)
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
