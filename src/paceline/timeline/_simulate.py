"""A discrete-event simulator: tasks on lanes of ranks, with dependencies and collectives."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    return next(simulate_steps(graph, [graph.duration_s]))


def simulate_steps(graph: TaskGraph, durations: Iterable[ArrayLike]) -> Iterator[Timeline]:
    """Run the graph of one step again and again; yield what happens in each run.

    Each `(rank, lane)` goes on where it stood after the run before, as if the tasks of all runs
    stood in one graph: with the same results, in the memory of one. The graph is prepared
    once; a run then takes O(n) time.

    Args:
        graph: Tasks of one step. What one step waits for in another is the order of its lanes.
        durations: Seconds of each task, shape `(num_tasks,)`, for one run after the other.

    Raises:
        ValueError: If durations have another shape, or one is negative or not finite.
        GraphError: As `simulate`.

    Examples:
        >>> graph = TaskGraph.from_columns([1.0, 2.0], rank=[0, 1], collective=[0, 0])
        >>> runs = simulate_steps(graph, [[1.0, 2.0], [3.0, 1.0]])
        >>> [(run.start_s + run.duration_s).tolist() for run in runs]
        [[2.0, 2.0], [5.0, 5.0]]
    """
    links = _Links.of(graph)
    kept = ("rank", "lane", "kind", "name", "step", "collective", "lanes", "names")
    columns = {name: getattr(graph, name) for name in kept}
    arrival_s = np.zeros(len(graph))
    for given in durations:
        duration_s = _checked_duration(given, len(graph))
        end_s, num_done = _run(duration_s, links, arrival_s)
        if num_done < len(graph):
            raise GraphError(_deadlock_message(graph, end_s))
        taken_s = end_s - arrival_s
        yield Timeline(source="simulated", start_s=arrival_s, duration_s=taken_s, **columns)
        arrival_s = np.zeros(len(graph))
        arrival_s[links.first_in_lane] = end_s[links.last_in_lane]


class _Links(NamedTuple):
    """What waits for what, in arrays that the loop runs through.

    Attributes:
        group: What each task starts together with: its collective, or itself alone.
        group_offset: Where each group's tasks begin in `members`, and the end.
        members: Tasks, group after group.
        next_offset: Where the tasks that wait for each task begin in `next_tasks`, and the end.
        next_tasks: Those tasks.
        num_before: How many tasks each one waits for.
        first_in_lane: First task of each lane of each rank.
        last_in_lane: The last ones.
    """

    group: NDArray[np.int64]
    group_offset: NDArray[np.int64]
    members: NDArray[np.int64]
    next_offset: NDArray[np.int64]
    next_tasks: NDArray[np.int64]
    num_before: NDArray[np.int64]
    first_in_lane: NDArray[np.int64]
    last_in_lane: NDArray[np.int64]

    @classmethod
    def of(cls, graph: TaskGraph) -> "_Links":
        lane_of_rank = graph.rank.astype(np.int64) * len(graph.lanes) + graph.lane
        in_lane_order = np.argsort(lane_of_rank, kind="stable")
        is_same = np.diff(lane_of_rank[in_lane_order]) == 0
        before = np.concatenate([graph.before, in_lane_order[:-1][is_same]])
        after = np.concatenate([graph.after, in_lane_order[1:][is_same]])
        group, num_groups = _groups(graph.collective)
        edge = np.full(min(len(graph), 1), True)
        return cls(
            group=group,
            group_offset=_offsets(group, num_groups),
            members=np.argsort(group, kind="stable"),
            next_offset=_offsets(before, len(graph)),
            next_tasks=after[np.argsort(before, kind="stable")],
            num_before=np.bincount(after, minlength=len(graph)),
            first_in_lane=in_lane_order[np.concatenate([edge, ~is_same])],
            last_in_lane=in_lane_order[np.concatenate([~is_same, edge])],
        )


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


def _checked_duration(given: ArrayLike, num_tasks: int) -> NDArray[np.float64]:
    duration_s = np.asarray(given, dtype=np.float64)
    if duration_s.shape != (num_tasks,):
        raise ValueError(
            f"durations must have one entry for each of {num_tasks} tasks, got shape "
            f"{duration_s.shape}"
        )
    bad = np.flatnonzero(~(np.isfinite(duration_s) & (duration_s >= 0)))
    if bad.size:
        raise ValueError(
            f"durations must be finite and not negative, got {duration_s[bad[0]]} for task {bad[0]}"
        )
    return duration_s


@compiled_beyond(100_000)
def _run(
    duration_s: NDArray[np.float64], links: _Links, arrival_s: NDArray[np.float64]
) -> tuple[NDArray[np.float64], int]:
    """Release groups as their members become ready; the order of release does not matter.

    Fills in when each task's turn comes, in `arrival_s`; it holds what a first task waits for.
    """
    num_tasks = len(duration_s)
    end_s = np.full(num_tasks, -1.0)
    num_missing = links.num_before.copy()
    absent = np.diff(links.group_offset)
    ready = np.empty(len(absent), dtype=np.int64)
    num_ready = 0
    for task in range(num_tasks):
        if num_missing[task] == 0:
            absent[links.group[task]] -= 1
            if absent[links.group[task]] == 0:
                ready[num_ready] = links.group[task]
                num_ready += 1
    num_done = 0
    while num_ready > 0:
        num_ready -= 1
        first, end = links.group_offset[ready[num_ready]], links.group_offset[ready[num_ready] + 1]
        start, longest = 0.0, 0.0
        for task in links.members[first:end]:
            start = max(start, arrival_s[task])
            longest = max(longest, duration_s[task])
        for task in links.members[first:end]:
            end_s[task] = start + longest
            num_done += 1
            for later in links.next_tasks[links.next_offset[task] : links.next_offset[task + 1]]:
                arrival_s[later] = max(arrival_s[later], end_s[task])
                num_missing[later] -= 1
                if num_missing[later] == 0:
                    absent[links.group[later]] -= 1
                    if absent[links.group[later]] == 0:
                        ready[num_ready] = links.group[later]
                        num_ready += 1
    return end_s, num_done


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
