import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from paceline.timeline import Kind, Span, TaskGraph, Timeline, simulate


def path_of(*rows: tuple[int, float, float, int]) -> list[int]:
    """Return the critical path of spans `(rank, start_s, end_s, collective)`."""
    spans = [
        Span(rank, "main", Kind.COMPUTE, "", start, end - start, collective=number)
        for rank, start, end, number in rows
    ]
    return Timeline.from_spans("measured", spans).summary().critical_path.tolist()


def free_of_length() -> TaskGraph:
    """After 5 s of work on rank 1 everything takes no time."""
    return TaskGraph.from_columns([5.0, 0, 0, 0], rank=[1, 0, 1, 1], collective=[-1, 0, 0, -1])


def woken_from_afar() -> TaskGraph:
    """Rank 1 does nothing but join a collective of no length, after work of rank 0."""
    return TaskGraph.from_columns(
        [5.0, 0, 0],
        rank=[0, 1, 0],
        lane=[0, 0, 1],
        collective=[-1, 0, 0],
        edges=[(0, 1)],
        lanes=("main", "comm"),
    )


@given(graph=st.from_type(TaskGraph), factor=st.sampled_from([1.0, 0.1, 1e-4, np.pi]))
@example(graph=free_of_length(), factor=1.0)
@example(graph=woken_from_afar(), factor=1.0)
def test_the_path_of_a_simulated_run_is_a_chain_without_gaps(
    graph: TaskGraph, factor: float
) -> None:
    run = simulate(graph)
    run = Timeline.merge([run.select(run.rank == rank) for rank in (2, 0, 1)])
    run = Timeline.from_columns(
        "simulated",
        start_s=run.start_s * factor,
        duration_s=run.duration_s * factor,
        rank=run.rank,
        lane=run.lane,
        collective=run.collective,
        lanes=run.lanes,
    )
    path = run.summary().critical_path
    assert len(set(path.tolist())) == len(path)
    begins = run.start_s[path]
    # The path holds the part of a collective that came last, so no waiting is on it.
    np.testing.assert_allclose(begins[1:], run.end_s[path[:-1]], atol=1e-9)
    if len(run):
        assert begins[0] == 0
        assert run.end_s[path[-1]] == pytest.approx(run.makespan_s)


@given(graph=st.from_type(TaskGraph))
def test_the_seconds_of_the_path_of_a_simulated_run_are_the_makespan(graph: TaskGraph) -> None:
    summary = simulate(graph).summary()
    assert sum(summary.critical_s.values()) == pytest.approx(summary.makespan_s)


@given(run=st.from_type(Timeline))
def test_the_path_of_any_run_holds_a_span_once_and_ends_with_the_last(run: Timeline) -> None:
    path = run.summary().critical_path.tolist()
    assert len(set(path)) == len(path)
    assert bool(path) == bool(len(run))


def test_a_run_without_spans_has_no_path() -> None:
    assert path_of() == []


def test_a_collective_leads_to_the_rank_that_came_last() -> None:
    assert path_of((0, 0, 2, -1), (1, 0, 5, -1), (0, 2, 6, 0), (1, 5, 6, 0)) == [1, 3]


def test_a_gap_leads_to_the_span_elsewhere_that_ended_at_that_moment() -> None:
    assert path_of((0, 0, 1, -1), (1, 0, 4, -1), (0, 4, 6, -1)) == [1, 2]


def test_a_gap_that_nothing_explains_leads_back_on_the_same_rank() -> None:
    assert path_of((0, 0, 1, -1), (1, 0, 3, -1), (0, 4, 6, -1)) == [0, 2]


@pytest.mark.parametrize(
    ("offset_s", "path"), [(-2e-9, [1, 2]), (-5e-10, [0, 2]), (5e-10, [0, 2]), (2e-9, [1, 2])]
)
def test_ends_within_a_nanosecond_of_the_begin_count_as_that_moment(
    offset_s: float, path: list[int]
) -> None:
    assert path_of((0, 0, 1 + offset_s, -1), (1, 0, 1, -1), (0, 1, 2, -1)) == path


def test_a_span_that_still_runs_is_not_what_the_next_one_waited_for() -> None:
    assert path_of((0, 0, 2, -1), (0, 1, 5, -1), (0, 2, 9, -1)) == [0, 2]


def test_spans_of_no_length_at_one_moment_are_all_on_the_path() -> None:
    assert path_of((0, 0, 3, -1), (0, 3, 3, -1), (0, 3, 3, -1), (0, 3, 4, -1)) == [0, 1, 2, 3]


def test_ranks_on_other_clocks_do_not_hide_the_path() -> None:
    rows = ((0, 0, 2, -1), (1, 90, 95, -1), (0, 2, 6, 0), (1, 95, 96, 0), (1, 96, 97, -1))
    assert path_of(*rows) == [1, 3, 4]


def test_many_spans_of_no_length_take_no_longer_than_others() -> None:
    run = Timeline.from_columns("measured", start_s=np.zeros(200_000), duration_s=0.0)
    assert len(run.summary().critical_path) == 200_000
