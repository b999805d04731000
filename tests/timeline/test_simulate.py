from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.errors import GraphError
from paceline.timeline import TaskGraph, Timeline, simulate, simulate_steps


@dataclass
class NaiveRun:
    """What a loop over everything, again and again until nothing moves, finds."""

    start_s: dict[int, float]
    end_s: dict[int, float]


def edges_of(graph: TaskGraph) -> list[tuple[int, int]]:
    """Dependencies, and in each lane those from one task to the next."""
    edges = list(zip(graph.before.tolist(), graph.after.tolist(), strict=True))
    for task in range(len(graph)):
        place = graph.rank[task], graph.lane[task]
        earlier = [t for t in range(task) if (graph.rank[t], graph.lane[t]) == place]
        edges += [(earlier[-1], task)] if earlier else []
    return edges


def parts_of(graph: TaskGraph, task: int) -> list[int]:
    number = graph.collective[task]
    return [task] if number < 0 else np.flatnonzero(graph.collective == number).tolist()


def naive_run(graph: TaskGraph) -> NaiveRun:
    run, edges = NaiveRun({}, {}), edges_of(graph)
    moved = True
    while moved:
        moved = False
        for task in set(range(len(graph))) - run.end_s.keys():
            parts = parts_of(graph, task)
            needed = {part: [a for a, b in edges if b == part] for part in parts}
            if all(a in run.end_s for tasks in needed.values() for a in tasks):
                for part in parts:
                    run.start_s[part] = max([0.0, *(run.end_s[a] for a in needed[part])])
                begin = max(run.start_s[part] for part in parts)
                end = begin + max(float(graph.duration_s[part]) for part in parts)
                run.end_s |= dict.fromkeys(parts, end)
                moved = True
    return run


@st.composite
def any_graphs(draw: st.DrawFn) -> TaskGraph:
    """Graphs that may well wait for themselves."""
    num_tasks = draw(st.integers(1, 6))
    task = st.integers(0, num_tasks - 1)

    def column(values: st.SearchStrategy[int]) -> list[int]:
        return draw(st.lists(values, min_size=num_tasks, max_size=num_tasks))

    return TaskGraph.from_columns(
        column(st.integers(0, 3)),
        rank=column(st.integers(0, 2)),
        collective=column(st.integers(-1, 1)),
        edges=draw(st.lists(st.tuples(task, task), max_size=4)),
        names=("work",),
    )


@given(graph=st.from_type(TaskGraph))
def test_the_run_equals_a_naive_one(graph: TaskGraph) -> None:
    run, naive = simulate(graph), naive_run(graph)
    assert dict(enumerate(run.start_s.tolist())) == naive.start_s
    assert dict(enumerate(run.end_s.tolist())) == naive.end_s


@given(graph=any_graphs())
def test_a_graph_is_refused_exactly_when_a_naive_run_gets_stuck(graph: TaskGraph) -> None:
    naive = naive_run(graph)
    stuck = sorted(set(range(len(graph))) - naive.end_s.keys())
    if stuck:
        with pytest.raises(GraphError, match=rf"^{len(stuck)} of .* task {stuck[0]} 'work'"):
            simulate(graph)
    else:
        assert dict(enumerate(simulate(graph).end_s.tolist())) == naive.end_s


@given(graph=st.from_type(TaskGraph))
def test_no_two_spans_overlap_on_a_lane(graph: TaskGraph) -> None:
    run = simulate(graph)
    for rank, lane in {(rank, lane) for rank, lane in zip(run.rank, run.lane, strict=True)}:
        rows = np.flatnonzero((run.rank == rank) & (run.lane == lane))
        assert (run.start_s[rows[1:]] >= run.end_s[rows[:-1]]).all()


@given(graph=st.from_type(TaskGraph))
def test_dependencies_hold_and_collectives_end_together(graph: TaskGraph) -> None:
    run = simulate(graph)
    assert (run.start_s[graph.after] >= run.end_s[graph.before]).all()
    for number in set(graph.collective[graph.collective >= 0]):
        parts = graph.collective == number
        assert set(run.end_s[parts]) == {
            run.start_s[parts].max() + graph.duration_s[parts].max(),
        }


@given(graph=st.from_type(TaskGraph))
def test_no_run_beats_its_busiest_lane_or_its_longest_chain(graph: TaskGraph) -> None:
    work_s: dict[tuple[int, int], float] = {}
    for rank, lane, seconds in zip(graph.rank, graph.lane, graph.duration_s, strict=True):
        work_s[rank, lane] = work_s.get((rank, lane), 0.0) + float(seconds)
    chain_s = graph.duration_s.copy()
    for _ in range(len(graph)):
        for before, after in zip(graph.before, graph.after, strict=True):
            chain_s[after] = max(chain_s[after], chain_s[before] + graph.duration_s[after])
    assert simulate(graph).makespan_s >= max([0.0, *work_s.values(), *chain_s])


@given(graph=st.from_type(TaskGraph))
def test_the_same_graph_gives_the_same_run(graph: TaskGraph) -> None:
    assert list(simulate(graph)) == list(simulate(graph))


@given(graph=st.from_type(TaskGraph), factor=st.sampled_from([0.1, 1e-6, 1e6, np.pi]))
def test_the_unit_of_time_does_not_matter(graph: TaskGraph, factor: float) -> None:
    columns = {name: getattr(graph, name) for name in ("rank", "lane", "collective", "lanes")}
    edges = np.stack([graph.before, graph.after], axis=1)
    scaled = TaskGraph.from_columns(graph.duration_s * factor, edges=edges, **columns)
    np.testing.assert_allclose(simulate(scaled).end_s, simulate(graph).end_s * factor)


def repeated(graph: TaskGraph, durations: list[np.ndarray[Any, Any]]) -> TaskGraph:
    """Return one graph of as many copies, each with its own durations and collectives."""
    num_tasks, num_collectives = len(graph), int(graph.collective.max(initial=-1)) + 1
    copy = np.repeat(np.arange(len(durations)), num_tasks)
    collective = np.tile(graph.collective, len(durations))
    edges = np.stack([graph.before, graph.after], axis=1)
    return TaskGraph.from_columns(
        np.concatenate(durations),
        edges=np.concatenate([edges + n * num_tasks for n in range(len(durations))]),
        rank=np.tile(graph.rank, len(durations)),
        lane=np.tile(graph.lane, len(durations)),
        collective=np.where(collective < 0, -1, collective + copy * num_collectives),
        lanes=graph.lanes,
    )


@given(graph=st.from_type(TaskGraph), seed=st.integers(0, 100))
def test_steps_one_by_one_are_those_of_one_graph(graph: TaskGraph, seed: int) -> None:
    factors = np.random.default_rng(seed).uniform(0.0, 2.0, (3, len(graph)))
    durations = [graph.duration_s * factor for factor in factors]
    whole = simulate(repeated(graph, durations))
    one_by_one = list(simulate_steps(graph, durations))
    for column in ("start_s", "end_s"):
        parts = [getattr(step, column) for step in one_by_one]
        np.testing.assert_array_equal(np.concatenate(parts), getattr(whole, column))


@pytest.mark.parametrize(
    ("duration_s", "message"),
    [
        ([1.0], r"one entry for each of 2 tasks, got shape \(1,\)"),
        ([1.0, -1.0], "not negative, got -1.0 for task 1"),
        ([np.inf, 1.0], "finite and not negative, got inf for task 0"),
    ],
)
def test_bad_durations_of_a_step_are_refused(duration_s: list[float], message: str) -> None:
    steps = simulate_steps(TaskGraph.from_columns([1.0, 1.0]), [[1.0, 1.0], duration_s])
    assert next(steps).makespan_s == 2.0
    with pytest.raises(ValueError, match=message):
        next(steps)


def test_a_lane_runs_in_the_order_of_indices_even_if_a_later_task_is_ready() -> None:
    graph = TaskGraph.from_columns([5.0, 1.0, 1.0], rank=[0, 1, 1], edges=[(0, 1)])
    assert simulate(graph).start_s.tolist() == [0.0, 5.0, 6.0]


def test_a_collective_begins_with_its_last_part_and_takes_as_long_as_its_longest() -> None:
    graph = TaskGraph.from_columns(
        [1.0, 4.0, 0.5, 2.0, 1.0], rank=[0, 1, 0, 1, 0], collective=[-1, -1, 0, 0, -1]
    )
    run = simulate(graph)
    assert run.start_s.tolist() == [0.0, 0.0, 1.0, 4.0, 6.0]
    assert run.end_s.tolist() == [1.0, 4.0, 6.0, 6.0, 7.0]


def test_lanes_of_one_rank_run_side_by_side() -> None:
    graph = TaskGraph.from_columns([3.0, 2.0, 1.0], lane=[0, 1, 0], lanes=("main", "comm"))
    assert simulate(graph).start_s.tolist() == [0.0, 0.0, 3.0]


def test_the_run_carries_what_the_graph_says_of_each_task() -> None:
    graph = TaskGraph.from_columns(
        [1.0, 1.0], kind=[1, 2], name=[1, 0], step=[0, 3], names=("backward", "forward")
    )
    run = simulate(graph)
    assert run.source == "simulated"
    assert [(span.kind, span.name, span.step) for span in run] == [
        (1, "forward", 0),
        (2, "backward", 3),
    ]


def test_a_graph_without_tasks_gives_a_timeline_without_spans() -> None:
    run = simulate(TaskGraph.from_columns([]))
    assert isinstance(run, Timeline)
    assert len(run) == 0


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        ({"edges": [(0, 0)]}, "task 0 'a'"),
        ({"rank": [0, 1, 2, 3], "edges": [(1, 2), (2, 3), (3, 1)]}, "task 1 'b'"),
        ({"edges": [(2, 1)]}, "task 1 'b'"),  # the lane runs 1 before 2
        ({"rank": [0, 0, 1, 1], "collective": [0, 1, 1, 0]}, "task 0 'a'"),
        ({"collective": [-1, 0, 0, -1]}, "task 1 'b'"),  # two parts on one lane
        ({"rank": [0, 1, 2, 3], "collective": [0, 0, -1, -1], "edges": [(0, 1)]}, "task 0 'a'"),
    ],
    ids=["self", "cycle", "against the lane", "crossing", "twice on a lane", "inside a collective"],
)
def test_tasks_that_wait_for_each_other_are_named(columns: dict[str, Any], first: str) -> None:
    graph = TaskGraph.from_columns([1.0] * 4, name=[0, 1, 2, 3], names=tuple("abcd"), **columns)
    with pytest.raises(GraphError, match=rf"among them {first} \(rank \d, lane main\)"):
        simulate(graph)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"duration_s": [1.0, np.nan]}, "span 1"),
        ({"duration_s": [1.0, -1.0]}, "duration_s=-1.0"),
        ({"duration_s": [np.inf, 1.0]}, "span 0"),
        ({"edges": [(0, 1), (0, 2)]}, r"edges\[1\] is \(0, 2\)"),
        ({"edges": [(-1, 0)]}, r"edges\[0\] is \(-1, 0\)"),
        ({"edges": [(0.5, 1)]}, "integers of shape"),
        ({"edges": [(np.nan, 1)]}, "integers of shape"),
        ({"edges": [0, 1]}, r"of shape \(2,\)"),
        ({"edges": [(0, 1, 0), (1, 0, 1)]}, r"of shape \(2, 3\)"),
        ({"rank": [0, -1]}, "rank must not be negative, got -1"),
        ({"lane": 1}, "`lane` must lie in"),
        ({"rank": [0]}, "all columns must have shape"),
    ],
)
def test_bad_columns_are_refused(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TaskGraph.from_columns(**{"duration_s": [1.0, 1.0]} | columns)
