"""A discrete-event simulator: tasks on lanes of ranks, with dependencies and collectives."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from paceline._compile import compiled_beyond
from paceline.errors import GraphError
from paceline.timeline._columns import Kind, check_columns, columns_of
from paceline.timeline._timeline import Timeline


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class TaskGraph:
    """What is to be run: tasks in columns, in plan order.

    Each `(rank, lane)` runs its tasks one at a time, in the order of their indices. A task starts
    when the one before it on its lane and all its dependencies have ended; a collective when that
    holds for all its parts on all ranks. It then takes as long as its longest part, on every rank.

    Attributes:
        duration_s: Seconds of each task, not negative. Shape `(num_tasks,)`, like all columns.
        rank: Process that runs it, not negative.
        lane: Index into `lanes`.
        kind: A `Kind`.
        name: Index into `names`.
        step: Optimizer update.
        collective: Tasks that share a number of 0 or more start together, one per lane; else -1.
        before: First task of each dependency. Shape `(num_edges,)`.
        after: Second task of each dependency: it starts when `before` has ended.
        lanes: Lane names.
        names: Task names.

    Raises:
        ValueError: If a column has another shape, a duration is bad, or an index points nowhere.
    """

    duration_s: NDArray[np.float64]
    rank: NDArray[np.int32]
    lane: NDArray[np.int32]
    kind: NDArray[np.int8]
    name: NDArray[np.int32]
    step: NDArray[np.int32]
    collective: NDArray[np.int64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    lanes: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def from_columns(
        cls,
        duration_s: ArrayLike,
        *,
        edges: ArrayLike = (),
        rank: ArrayLike = 0,
        lane: ArrayLike = 0,
        kind: ArrayLike = Kind.COMPUTE,
        name: ArrayLike = 0,
        step: ArrayLike = 0,
        collective: ArrayLike = -1,
        lanes: Sequence[str] = ("main",),
        names: Sequence[str] = ("",),
    ) -> "TaskGraph":
        """Build a graph from the columns of the class; a scalar stands for every task.

        `edges` are pairs `(before, after)` of task indices, shape `(num_edges, 2)`.

        Examples:
            >>> graph = TaskGraph.from_columns([1.0, 2.0, 0.5], rank=[0, 1, 1], edges=[(0, 2)])
            >>> simulate(graph).start_s.tolist()
            [0.0, 0.0, 2.0]
        """
        columns = columns_of(
            start_s=np.zeros(np.shape(duration_s)),
            duration_s=duration_s,
            rank=rank,
            lane=lane,
            kind=kind,
            name=name,
            step=step,
            collective=collective,
        )
        check_columns(columns, lanes, names)
        pairs = _checked_pairs(edges, len(columns.rank))
        if columns.rank.min(initial=0) < 0:
            raise ValueError(f"rank must not be negative, got {columns.rank.min()}")
        given = columns._asdict()
        del given["start_s"]
        before, after = pairs[:, 0], pairs[:, 1]
        return cls(before=before, after=after, lanes=tuple(lanes), names=tuple(names), **given)

    def __len__(self) -> int:
        return len(self.duration_s)


def simulate(graph: TaskGraph) -> Timeline:
    """Run `graph` on a clock of its own and return what happens when.

    Span `i` of the result is task `i`. A part of a collective spans from the arrival of its rank to
    the common end, as measured ones do. Deterministic; O(n log n) for n tasks and dependencies.

    Raises:
        GraphError: If some tasks can never start because they wait for each other.
    """
    lane_of_rank = graph.rank.astype(np.int64) * len(graph.lanes) + graph.lane
    in_lane_order = np.argsort(lane_of_rank, kind="stable")
    same_lane = np.diff(lane_of_rank[in_lane_order]) == 0
    before = np.concatenate([graph.before, in_lane_order[:-1][same_lane]])
    after = np.concatenate([graph.after, in_lane_order[1:][same_lane]])
    group, num_groups = _groups(graph.collective)
    by_group = np.argsort(group, kind="stable")
    by_before = np.argsort(before, kind="stable")
    arrival_s, end_s, num_done = _run(
        graph.duration_s,
        group,
        _offsets(group, num_groups),
        by_group,
        _offsets(before, len(graph)),
        after[by_before],
        np.bincount(after, minlength=len(graph)),
    )
    if num_done < len(graph):
        raise GraphError(_deadlock_message(graph, end_s))
    kept = ("rank", "lane", "kind", "name", "step", "collective", "lanes", "names")
    columns = {name: getattr(graph, name) for name in kept}
    return Timeline(source="simulated", start_s=arrival_s, duration_s=end_s - arrival_s, **columns)


def _groups(collective: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Number the things that start together: each collective, and each other task."""
    alone = collective < 0
    group = np.empty(len(collective), dtype=np.int64)
    numbers, group[~alone] = np.unique(collective[~alone], return_inverse=True)
    num_groups = len(numbers) + int(alone.sum())
    group[alone] = np.arange(len(numbers), num_groups)
    return group, num_groups


def _offsets(key: NDArray[np.int64], num_keys: int) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.bincount(key, minlength=num_keys))]).astype(np.int64)


@compiled_beyond(100_000)
def _run(
    duration_s: NDArray[np.float64],
    group: NDArray[np.int64],
    group_offset: NDArray[np.int64],
    group_members: NDArray[np.int64],
    next_offset: NDArray[np.int64],
    next_tasks: NDArray[np.int64],
    num_missing: NDArray[np.int64],
) -> tuple[NDArray[np.float64], NDArray[np.float64], int]:
    """Release groups as their members become ready; the order of release does not matter."""
    num_tasks = len(duration_s)
    arrival_s = np.zeros(num_tasks)
    end_s = np.full(num_tasks, -1.0)
    absent = np.diff(group_offset)
    ready = np.empty(len(absent), dtype=np.int64)
    num_ready = 0
    for task in range(num_tasks):
        if num_missing[task] == 0:
            absent[group[task]] -= 1
            if absent[group[task]] == 0:
                ready[num_ready] = group[task]
                num_ready += 1
    num_done = 0
    while num_ready > 0:
        num_ready -= 1
        members = group_members[group_offset[ready[num_ready]] : group_offset[ready[num_ready] + 1]]
        start, longest = 0.0, 0.0
        for task in members:
            start = max(start, arrival_s[task])
            longest = max(longest, duration_s[task])
        for task in members:
            end_s[task] = start + longest
            num_done += 1
            for later in next_tasks[next_offset[task] : next_offset[task + 1]]:
                arrival_s[later] = max(arrival_s[later], end_s[task])
                num_missing[later] -= 1
                if num_missing[later] == 0:
                    absent[group[later]] -= 1
                    if absent[group[later]] == 0:
                        ready[num_ready] = group[later]
                        num_ready += 1
    return arrival_s, end_s, num_done


def _checked_pairs(edges: ArrayLike, num_tasks: int) -> NDArray[np.int64]:
    pairs = np.asarray(edges)
    if pairs.size == 0:
        return np.zeros((0, 2), dtype=np.int64)
    if pairs.ndim != 2 or pairs.shape[1] != 2 or pairs.dtype.kind not in "iu":
        raise ValueError(
            "edges must be pairs of task indices, integers of shape (num_edges, 2), "
            f"got {pairs.dtype} of shape {pairs.shape}"
        )
    bad = np.flatnonzero(((pairs < 0) | (pairs >= num_tasks)).any(axis=1))
    if bad.size:
        raise ValueError(
            f"edges must join tasks in [0, {num_tasks}), but edges[{bad[0]}] is "
            f"{tuple(pairs[bad[0]].tolist())}"
        )
    return pairs.astype(np.int64)


def _deadlock_message(graph: TaskGraph, end_s: NDArray[np.float64]) -> str:
    stuck = np.flatnonzero(end_s < 0)
    first = [
        f"task {task} {graph.names[graph.name[task]]!r} "
        f"(rank {graph.rank[task]}, lane {graph.lanes[graph.lane[task]]})"
        for task in stuck[:3].tolist()
    ]
    return (
        f"{len(stuck)} of {len(graph)} tasks wait for each other and can never start, among them "
        f"{'; '.join(first)}. Look for a cycle of dependencies, for a lane whose order "
        "contradicts them, or for collectives that ranks enter in different orders."
    )
