from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.timeline import Kind, Source, Span, Timeline


def collective(rank: int, start_s: float, end_s: float, number: int = 0) -> Span:
    return Span(
        rank, "comm", Kind.COLLECTIVE, "all-reduce", start_s, end_s - start_s, collective=number
    )


def work(rank: int, start_s: float, end_s: float) -> Span:
    return Span(rank, "main", Kind.FORWARD, "forward", start_s, end_s - start_s)


@given(run=st.from_type(Timeline))
def test_spans_come_back_as_they_went_in(run: Timeline) -> None:
    rows = list(run)
    again = Timeline.from_spans(run.source, rows)
    assert list(again) == rows
    assert len(again) == len(rows)


def test_a_scalar_stands_for_every_span() -> None:
    run = Timeline.from_columns("measured", start_s=[0.0, 2.0], duration_s=1.5, rank=3)
    assert [span.rank for span in run] == [3, 3]
    assert run.end_s.tolist() == [1.5, 3.5]
    assert run.lanes == ("main",)


def test_makespan_goes_from_the_first_begin_to_the_last_end() -> None:
    assert Timeline.from_spans("measured", [work(0, 5, 9), work(1, 3, 7)]).makespan_s == 6.0


def test_a_timeline_without_spans_takes_no_time() -> None:
    assert Timeline.from_spans("measured", []).makespan_s == 0.0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"duration_s": [1.0, -0.5]}, "span 1 has start_s=1.0, duration_s=-0.5"),
        ({"duration_s": [1.0, np.nan]}, "span 1"),
        ({"duration_s": [np.inf, 1.0]}, "span 0"),
        ({"start_s": [0.0, np.nan]}, "span 1"),
        ({"start_s": [-np.inf, 0.0]}, "span 0"),
        ({"start_s": np.zeros((2, 2))}, r"`rank` has \(2, 2\)"),
        ({"duration_s": [1.0]}, r"`duration_s` has \(1,\)"),
        ({"rank": [0, 1, 2]}, "all columns must have shape"),
        ({"lane": 1}, r"`lane` must lie in \[0, 1\), but span 0 has 1"),
        ({"lane": [0, -1]}, "span 1 has -1"),
        ({"name": [0, 7]}, "`name` must lie in"),
        ({"kind": 7}, "`kind` must lie in"),
        ({"kind": 256}, "fit int8, got 256"),
        ({"kind": np.array([0, 256])}, "fit int8, got 256"),
        ({"rank": [0.5, 1]}, "must be whole and fit int32, got 0.5"),
        ({"step": [0, np.nan]}, "must be whole"),
    ],
)
def test_bad_columns_are_refused(columns: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"start_s": [0.0, 1.0], "duration_s": [1.0, 1.0]}
    with pytest.raises(ValueError, match=message):
        Timeline.from_columns("measured", **good | columns)


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(ValueError, match=r"source must be one of measured, .*got 'guessed'"):
        Timeline.from_columns("guessed", start_s=[0.0], duration_s=[1.0])


def test_select_keeps_the_picked_spans() -> None:
    run = Timeline.from_spans("measured", [work(0, 0, 1), work(1, 0, 2), work(0, 1, 3)])
    assert list(run.select(run.rank == 0)) == [run[0], run[2]]
    assert list(run.select(np.array([2, 0]))) == [run[2], run[0]]


def test_merge_keeps_every_span_though_the_tables_differ() -> None:
    first = Timeline.from_spans("measured", [work(0, 0, 1), collective(0, 1, 2)])
    second = Timeline.from_spans("measured", [collective(1, 0, 2), work(1, 2, 3)])
    merged = Timeline.merge([first, second])
    assert list(merged) == [*first, *second]
    assert merged.lanes == ("main", "comm")
    assert merged.names == ("forward", "all-reduce")


@given(runs=st.lists(st.from_type(Timeline), min_size=1, max_size=3))
def test_merge_joins_any_timelines(runs: list[Timeline]) -> None:
    assert list(Timeline.merge(runs)) == [span for run in runs for span in run]


@pytest.mark.parametrize(
    ("sources", "message"),
    [([], "got none"), (["measured", "simulated"], "measured.*simulated")],
)
def test_merge_refuses_nothing_and_mixed_sources(sources: list[Source], message: str) -> None:
    parts = [Timeline.from_spans(source, []) for source in sources]
    with pytest.raises(ValueError, match=message):
        Timeline.merge(parts)


def test_aligned_moves_a_rank_so_that_collectives_end_together() -> None:
    run = Timeline.from_spans(
        "measured", [work(0, 0, 4), collective(0, 4, 8), work(1, 100, 106), collective(1, 106, 108)]
    )
    assert run.aligned().start_s.tolist() == [0.0, 4.0, 0.0, 6.0]


def test_aligned_takes_the_median_over_collectives() -> None:
    ends = [(10.0, 13.0), (20.0, 23.0), (30.0, 50.0)]
    rows = [
        collective(rank, end - 1, end, number)
        for number, pair in enumerate(ends)
        for rank, end in enumerate(pair)
    ]
    assert Timeline.from_spans("measured", rows).aligned().end_s[1::2].tolist() == [10, 20, 47]


def test_aligned_counts_the_last_part_of_a_collective_in_pieces() -> None:
    rows = [collective(0, 4, 8), collective(1, 17, 18), collective(1, 15, 17)]
    assert Timeline.from_spans("measured", rows).aligned().end_s.tolist() == [8.0, 8.0, 7.0]


def test_aligned_leaves_a_rank_without_common_collectives_where_it_is() -> None:
    run = Timeline.from_spans("measured", [collective(0, 0, 1), work(1, 50, 51)])
    assert list(run.aligned()) == list(run)


@given(offset_s=st.integers(-1000, 1000), numbers=st.lists(st.integers(0, 9), min_size=1))
def test_aligned_undoes_a_wrong_clock(offset_s: int, numbers: list[int]) -> None:
    rows = [collective(rank, n, n + 1, n) for n in set(numbers) for rank in (0, 1)]
    right = Timeline.from_spans("measured", rows)
    wrong = [row._replace(start_s=row.start_s + offset_s * row.rank) for row in rows]
    assert list(Timeline.from_spans("measured", wrong).aligned()) == list(right)


def test_a_timeline_prints_as_three_lines() -> None:
    run = Timeline.from_spans("measured", [work(0, 1, 3), work(1, 1, 2), collective(0, 3, 5)])
    headline = "measured: 3 spans on 2 ranks, 4 s starting at 1 s"
    assert repr(run) == f"<Timeline {headline}>"
    assert str(run).splitlines() == [
        headline,
        f"steps 0 to 0 on lanes {', '.join(run.lanes)}",
        "forward 3 s, collective 2 s",
    ]


def test_a_timeline_without_spans_prints_as_one_line() -> None:
    run = Timeline.from_spans("simulated", [])
    assert str(run) == "simulated: 0 spans on 0 ranks, 0 s starting at 0 s"
