"""Task graphs whose dependencies follow from what the tasks read and write."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from itertools import combinations, pairwise

from paceline.errors import GraphError
from paceline.timeline import Kind, TaskGraph

Edge = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One piece of work and the tensors it touches, by name.

    Attributes:
        name: What a person would call it.
        lane: Queue that it runs on.
        duration_s: How long it takes, in seconds.
        kind: What sort of work it is.
        reads: Tensors whose values it needs.
        writes: Tensors that it makes or changes.
        after: Names of tasks that must end first, whatever they touch.
        rank: Process that runs it.
        step: Optimizer update that it belongs to.
        collective: Tasks that share a number of 0 or more start together; -1 for none.
    """

    name: str
    lane: str
    duration_s: float = 0.0
    kind: Kind = Kind.COMPUTE
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    rank: int = 0
    step: int = 0
    collective: int = -1


def lane_graph(
    *programs: Sequence[Task], lanes: Sequence[str], max_pending: Mapping[str, int] | None = None
) -> TaskGraph:
    """Turn tasks into a graph that `simulate` can run.

    A program is what one thread submits, in that order, so the order settles what depends on what:
    a task waits for the last writer of what it reads (read after write), and before it writes, for
    all who read or wrote that tensor since (write after read, write after write). Programs run side
    by side: a tensor that only one of them writes is read by the others after its last writer;
    writers in different programs must be ordered by `after` or by other tensors.

    Takes O(tasks + dependencies), and O(tasks²/64) where several programs write a tensor.

    Args:
        *programs: Tasks in submission order, one sequence per submitting thread.
        lanes: The lanes that exist; the first is the one that submits.
        max_pending: Lane to the number of its tasks that may be submitted and not finished:
            the submitting lane goes on only when there are fewer.

    Raises:
        ValueError: If a task names a lane or task that does not exist, or an ambiguous one.
        GraphError: If tasks wait for each other, or unordered ones write a tensor; names them.

    Examples:
        >>> from paceline.timeline import simulate
        >>> tasks = [
        ...     Task(name="dX 1", lane="main", duration_s=1.0, writes=("g1",)),
        ...     Task(name="dW 1", lane="assist", duration_s=2.0, reads=("g1",)),
        ...     Task(name="dX 0", lane="main", duration_s=1.0, reads=("g1",), writes=("g0",)),
        ... ]
        >>> simulate(lane_graph(tasks, lanes=("main", "assist"))).makespan_s
        3.0
    """
    tasks = [task for program in programs for task in program]
    _check_lanes(tasks, max_pending or {}, lanes)
    edges = _named_edges(tasks)
    first = 0
    for program in programs:
        edges |= {(a + first, b + first) for a, b in _hazards(program)}
        edges |= {(a + first, b + first) for a, b in _bounds(program, lanes[0], max_pending or {})}
        first += len(program)
    owner = [number for number, program in enumerate(programs) for _ in program]
    edges |= _foreign_reads(tasks, owner)
    _check_acyclic(tasks, edges | _lane_order(tasks, [0] * len(tasks)))
    _check_writers(tasks, owner, edges)
    return _to_graph(tasks, sorted(edges), lanes)


def _check_lanes(tasks: Sequence[Task], bounded: Iterable[str], lanes: Sequence[str]) -> None:
    for lane in bounded:
        if lane not in lanes:
            raise ValueError(f"max_pending names lane {lane!r}; the lanes are {', '.join(lanes)}")
    for task in tasks:
        if task.lane not in lanes:
            raise ValueError(
                f"task {task.name!r} is for lane {task.lane!r}, which does not exist; the lanes "
                f"are {', '.join(lanes)}"
            )


def _named_edges(tasks: Sequence[Task]) -> set[Edge]:
    places: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        places.setdefault(task.name, []).append(index)
    edges = set()
    for index, task in enumerate(tasks):
        for name in task.after:
            found = places.get(name, [])
            if len(found) != 1:
                raise ValueError(
                    f"task {task.name!r} comes after {name!r}, which must name one task, but "
                    f"{len(found)} have that name"
                )
            edges.add((found[0], index))
    return edges


def _hazards(program: Sequence[Task]) -> set[Edge]:
    """Order readers and writers of each tensor by the order of submission."""
    writer: dict[str, int] = {}
    readers: dict[str, list[int]] = {}
    edges = set()
    for index, task in enumerate(program):
        for tensor in task.reads:
            if tensor in writer:
                edges.add((writer[tensor], index))
        for tensor in task.writes:
            edges |= {(reader, index) for reader in readers.pop(tensor, [])}
            if tensor in writer:
                edges.add((writer[tensor], index))
            writer[tensor] = index
        for tensor in set(task.reads) - set(task.writes):
            readers.setdefault(tensor, []).append(index)
    return edges


def _bounds(program: Sequence[Task], main: str, max_pending: Mapping[str, int]) -> set[Edge]:
    """Hold the submitting lane back while a lane has as many tasks as it may have."""
    edges: set[Edge] = set()
    owed: list[int] = []
    submitted: dict[str, list[int]] = {lane: [] for lane in max_pending}
    for index, task in enumerate(program):
        if task.lane == main:
            edges |= {(earlier, index) for earlier in owed}
            owed = []
        elif task.lane in submitted:
            queue = submitted[task.lane]
            queue.append(index)
            if len(queue) > max_pending[task.lane]:
                owed.append(queue[-1 - max_pending[task.lane]])
    return edges


def _foreign_reads(tasks: Sequence[Task], owner: Sequence[int]) -> set[Edge]:
    """Let a program read what exactly one other program writes, after its last writer."""
    last: dict[str, dict[int, int]] = {}
    for index, task in enumerate(tasks):
        for tensor in task.writes:
            last.setdefault(tensor, {})[owner[index]] = index
    return {
        (writer, index)
        for index, task in enumerate(tasks)
        for tensor in task.reads
        if len(last.get(tensor, ())) == 1
        for program, writer in last[tensor].items()
        if program != owner[index]
    }


def _lane_order(tasks: Sequence[Task], owner: Sequence[int]) -> set[Edge]:
    """Keep the tasks of one owner on a lane in order; those of several meet there in any order."""
    members: dict[tuple[int, int, str], list[int]] = {}
    for index, (task, number) in enumerate(zip(tasks, owner, strict=True)):
        members.setdefault((number, task.rank, task.lane), []).append(index)
    return {edge for indices in members.values() for edge in pairwise(indices)}


def _check_acyclic(tasks: Sequence[Task], edges: Iterable[Edge]) -> None:
    try:
        _sorter(len(tasks), edges).prepare()
    except CycleError as error:
        # Each names the one that waits for it; a person reads what it waits for.
        chain = " waits for ".join(repr(tasks[index].name) for index in reversed(error.args[1]))
        raise GraphError(
            f"tasks wait for each other and can never start: {chain}. Break the cycle: change what "
            "one of them reads, comes after, or its place on its lane"
        ) from None


def _sorter(num_tasks: int, edges: Iterable[Edge]) -> "TopologicalSorter[int]":
    sorter = TopologicalSorter[int]({index: () for index in range(num_tasks)})
    for first, second in edges:
        sorter.add(second, first)
    return sorter


def _check_writers(tasks: Sequence[Task], owner: Sequence[int], edges: Iterable[Edge]) -> None:
    writers: dict[str, list[int]] = {}
    for index, task in enumerate(tasks):
        for tensor in dict.fromkeys(task.writes):
            writers.setdefault(tensor, []).append(index)
    shared = {t: w for t, w in writers.items() if len({owner[index] for index in w}) > 1}
    if not shared:
        return
    earlier = _earlier(len(tasks), {*edges, *_lane_order(tasks, owner)})
    for tensor, indices in shared.items():
        for a, b in combinations(indices, 2):
            if not (earlier[a] >> b & 1 or earlier[b] >> a & 1):
                raise GraphError(
                    f"{tensor!r} is written by {tasks[a].name!r} and by {tasks[b].name!r}, and "
                    "nothing orders them; let one come `after` the other"
                )


def _earlier(num_tasks: int, edges: Collection[Edge]) -> list[int]:
    """Return, per task, a bit for each task that must end before it."""
    after: list[list[int]] = [[] for _ in range(num_tasks)]
    for first, second in edges:
        after[first].append(second)
    bits = [0] * num_tasks
    for index in _sorter(num_tasks, edges).static_order():
        for later in after[index]:
            bits[later] |= bits[index] | 1 << index
    return bits


def _to_graph(tasks: Sequence[Task], edges: Sequence[Edge], lanes: Sequence[str]) -> TaskGraph:
    names = {name: code for code, name in enumerate(dict.fromkeys(task.name for task in tasks))}
    return TaskGraph.from_columns(
        [task.duration_s for task in tasks],
        edges=edges,
        rank=[task.rank for task in tasks],
        lane=[lanes.index(task.lane) for task in tasks],
        kind=[task.kind for task in tasks],
        name=[names[task.name] for task in tasks],
        step=[task.step for task in tasks],
        collective=[task.collective for task in tasks],
        lanes=tuple(lanes),
        names=tuple(names),
    )
