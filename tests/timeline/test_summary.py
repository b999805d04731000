import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.timeline import BUSY_KINDS, Kind, Span, Summary, TaskGraph, Timeline, simulate

CLASSES = ("busy_s", "exposed_comm_s", "waiting_s", "data_s", "other_idle_s")
CELL_S = 0.5


def span(
    rank: int, kind: Kind, start_s: float, end_s: float, step: int = 0, collective: int = -1
) -> Span:
    lane = "comm" if kind == Kind.COLLECTIVE else "main"
    return Span(rank, lane, kind, kind.name, start_s, end_s - start_s, step, collective)


def two_ranks() -> Timeline:
    """One step, in which rank 1 comes two seconds late to the collective."""
    return Timeline.from_spans(
        "measured",
        [
            span(0, Kind.DATA, 0, 1),
            span(0, Kind.FORWARD, 1, 2),
            span(0, Kind.BACKWARD, 2, 4),
            span(0, Kind.COLLECTIVE, 4, 8, collective=0),
            span(0, Kind.OPTIMIZER, 8, 9),
            span(1, Kind.DATA, 0, 1),
            span(1, Kind.FORWARD, 1, 3),
            span(1, Kind.BACKWARD, 3, 6),
            span(1, Kind.COLLECTIVE, 6, 8, collective=0),
            span(1, Kind.OPTIMIZER, 8.5, 9.5),
        ],
    )


def on_another_clock(run: Timeline, *, rank: int, offset_s: float) -> Timeline:
    rows = [row._replace(start_s=row.start_s + offset_s * (row.rank == rank)) for row in run]
    return Timeline.from_spans(run.source, rows)


def total_s(summary: Summary) -> np.ndarray:
    return np.sum([getattr(summary, name) for name in CLASSES], axis=0)


@pytest.mark.parametrize("offset_s", [0.0, 1000.0, -3.5])
def test_two_ranks_give_the_numbers_found_by_hand_on_any_clock(offset_s: float) -> None:
    summary = on_another_clock(two_ranks(), rank=1, offset_s=offset_s).summary()
    assert summary.ranks.tolist() == [0, 1]
    assert summary.makespan_s == 9.5
    assert summary.busy_s.tolist() == [4.0, 6.0]
    assert summary.waiting_s.tolist() == [2.0, 0.0]
    assert summary.exposed_comm_s.tolist() == [2.0, 2.0]
    assert summary.data_s.tolist() == [1.0, 1.0]
    assert summary.other_idle_s.tolist() == [0.5, 0.5]
    assert summary.idle_s.tolist() == [5.5, 3.5]
    assert summary.idle_share.tolist() == [5.5 / 9.5, 3.5 / 9.5]
    assert summary.waited_for_s.tolist() == [[0.0, 2.0], [0.0, 0.0]]
    assert summary.slowest_rank == 1
    assert summary.imbalance == 6.0 / 5.0
    assert summary.critical_path.tolist() == [5, 6, 7, 8, 9]
    assert summary.critical_s == {
        (1, Kind.BACKWARD): 3.0,
        (1, Kind.FORWARD): 2.0,
        (1, Kind.COLLECTIVE): 2.0,
        (1, Kind.DATA): 1.0,
        (1, Kind.OPTIMIZER): 1.0,
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(Kind.COMPUTE, 0, 4), (Kind.COLLECTIVE, 1, 3)], (4, 0, 0, 0, 0)),
        ([(Kind.COMPUTE, 0, 2), (Kind.COLLECTIVE, 1, 3)], (2, 1, 0, 0, 0)),
        ([(Kind.COMPUTE, 0, 2), (Kind.FORWARD, 1, 3)], (3, 0, 0, 0, 0)),
        ([(Kind.DATA, 0, 4), (Kind.COLLECTIVE, 1, 2)], (0, 1, 0, 3, 0)),
        ([(Kind.DATA, 0, 4), (Kind.BACKWARD, 3, 5)], (2, 0, 0, 3, 0)),
        ([(Kind.COPY, 0, 3)], (0, 0, 0, 0, 3)),
        ([(Kind.OPTIMIZER, 0, 1), (Kind.OPTIMIZER, 3, 4)], (2, 0, 0, 0, 2)),
    ],
    ids=["overlapped", "half overlapped", "two lanes", "wire first", "work first", "copy", "gap"],
)
def test_each_instant_counts_once(
    rows: list[tuple[Kind, float, float]], expected: tuple[float, ...]
) -> None:
    summary = Timeline.from_spans("measured", [span(0, *row) for row in rows]).summary()
    assert tuple(getattr(summary, name)[0] for name in CLASSES) == expected


def test_a_wait_under_compute_is_not_idle_but_counts_as_waited_for() -> None:
    run = Timeline.from_spans(
        "measured",
        [
            span(0, Kind.COLLECTIVE, 0, 5, collective=0),
            span(0, Kind.BACKWARD, 0, 3),
            span(1, Kind.COLLECTIVE, 4, 5, collective=0),
        ],
    )
    assert run.summary().waiting_s.tolist() == [1.0, 0.0]
    assert run.summary().waited_for_s.tolist() == [[0.0, 4.0], [0.0, 0.0]]


def test_a_tie_at_a_collective_makes_nobody_slow() -> None:
    rows = [span(rank, Kind.COLLECTIVE, 1, 2, collective=0) for rank in (3, 1)]
    summary = Timeline.from_spans("measured", rows).summary()
    assert summary.ranks.tolist() == [1, 3]
    assert summary.slowest_rank is None


def test_the_slowest_rank_goes_by_its_number_not_by_its_place() -> None:
    rows = [span(rank, Kind.COLLECTIVE, rank, 9, collective=0) for rank in (2, 7, 4)]
    summary = Timeline.from_spans("measured", rows).summary()
    assert summary.slowest_rank == 7
    assert summary.waited_for_s.tolist() == [[0, 0, 5], [0, 0, 3], [0, 0, 0]]


@pytest.mark.parametrize("ranks", [(0, 1, 2), (2, 1, 0)])
def test_of_two_ranks_that_come_last_together_the_lower_is_waited_for(
    ranks: tuple[int, ...],
) -> None:
    rows = [span(rank, Kind.COLLECTIVE, min(rank, 1), 9, collective=0) for rank in ranks]
    summary = Timeline.from_spans("measured", rows).summary()
    assert summary.waited_for_s.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0]]


def test_steps_are_timed_from_end_to_end() -> None:
    ends = [(0, 0.0, 4.0), (0, 1.0, 3.0), (2, 4.0, 5.5), (5, 5.0, 9.0)]
    rows = [span(0, Kind.COMPUTE, start, end, step) for step, start, end in ends]
    summary = Timeline.from_spans("measured", rows).summary()
    assert summary.step_times_s.tolist() == [4.0, 1.5, 3.5]
    assert summary.step_time_s == 3.5


def test_a_step_that_ends_before_the_one_before_it_takes_no_time() -> None:
    rows = [span(0, Kind.COLLECTIVE, 1, 6, step=0), span(0, Kind.FORWARD, 2, 4, step=1)]
    assert Timeline.from_spans("measured", rows).summary().step_times_s.tolist() == [5.0, 0.0]


def test_imbalance_is_weighted_by_the_work_of_each_step() -> None:
    loads = {(0, 0): 1, (0, 1): 3, (1, 0): 8, (1, 1): 8}
    rows = [span(rank, Kind.COMPUTE, 0, s, step) for (step, rank), s in loads.items()]
    assert Timeline.from_spans("measured", rows).summary().imbalance == (3 + 8) / (2 + 8)


def test_imbalance_counts_a_rank_that_does_nothing_in_the_last_step() -> None:
    rows = [span(0, Kind.COMPUTE, 0, 2, 0), span(1, Kind.COMPUTE, 0, 2, 0)]
    rows.append(span(0, Kind.COMPUTE, 2, 4, 1))
    assert Timeline.from_spans("measured", rows).summary().imbalance == (2 + 2) / (2 + 1)


@pytest.mark.parametrize("rows", [[], [span(0, Kind.DATA, 0, 0)]], ids=["no spans", "no length"])
def test_a_run_of_nothing_has_a_summary(rows: list[Span]) -> None:
    summary = Timeline.from_spans("measured", rows).summary()
    assert summary.makespan_s == 0.0
    assert summary.step_time_s == 0.0
    assert summary.imbalance == 1.0
    assert summary.slowest_rank is None
    assert summary.idle_share.tolist() == [0.0] * len(rows)


def test_the_dictionary_survives_json_and_says_its_units() -> None:
    values = two_ranks().summary().to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values == {
        "source": "measured",
        "ranks": [0, 1],
        "num_steps": 1,
        "step_time_s": 9.5,
        "makespan_s": 9.5,
        "busy_s": [4.0, 6.0],
        "idle_s": [5.5, 3.5],
        "exposed_comm_s": [2.0, 2.0],
        "waiting_s": [2.0, 0.0],
        "data_s": [1.0, 1.0],
        "imbalance": 1.2,
        "waited_for_s": [[0.0, 2.0], [0.0, 0.0]],
        "slowest_rank": 1,
        "critical_s": {
            "rank 1 backward": 3.0,
            "rank 1 forward": 2.0,
            "rank 1 collective": 2.0,
            "rank 1 data": 1.0,
            "rank 1 optimizer": 1.0,
        },
    }
    assert list(values["critical_s"].values()) == [3.0, 2.0, 2.0, 1.0, 1.0]


def test_the_text_has_shares_per_rank_and_names_the_slowest() -> None:
    lines = str(two_ranks().summary()).splitlines()
    assert lines[0] == "measured: 1 steps, median 9.5 s, imbalance 1.200 (slowest rank over mean)"
    assert lines[1].split()[:6] == ["rank", "busy", "waiting", "exposed", "data", "other"]
    assert lines[2].split() == ["0", "42.1", "21.1", "21.1", "10.5", "5.3"]
    assert lines[3].split() == ["1", "63.2", "0.0", "21.1", "10.5", "5.3"]
    assert all(f"{word}: " in lines[4] for word in lines[1].split()[1:6])
    assert lines[5] == "the others waited 2 s for rank 1"
    assert lines[6].startswith("next: 21% of rank time is waiting for the wire")
    assert len(lines) == 7


def later_by(run: Timeline, seconds: float, step: int) -> list[Span]:
    return [
        row._replace(
            start_s=row.start_s + seconds,
            step=step,
            collective=row.collective + step if row.collective >= 0 else -1,
        )
        for row in run
    ]


@pytest.mark.parametrize("source", ["measured", "simulated"])
def test_shares_leave_the_warm_up_out(source: str) -> None:
    warm_up = [span(rank, Kind.FORWARD, -90.5, 0) for rank in (0, 1)]
    rows = [*warm_up, *later_by(two_ranks(), 0.0, 1), *later_by(two_ranks(), 9.5, 2)]
    summary = Timeline.from_spans(source, rows).summary()
    assert summary.step_times_s.tolist() == [90.5, 9.5, 9.5]
    busy = summary.steady_shares[0].tolist()
    if source == "measured":
        assert busy == [8.0 / 19, 12.0 / 19]
        assert "warm-up: the first step took 90.5 s; left out of the shares" in str(summary)
    else:
        assert busy == [98.5 / 109.5, 102.5 / 109.5]
        assert "warm-up" not in str(summary)
    assert summary.steady_shares.sum(axis=0).tolist() == pytest.approx([1.0, 1.0])


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        (
            Kind.COLLECTIVE,
            "48% of rank time is waiting for the most loaded rank: balance by length",
        ),
        (Kind.DATA, "98% of rank time is between steps, mostly waiting for data"),
        (Kind.FORWARD, "next: 100% of rank time is computing; no wait is worth a change"),
    ],
)
def test_the_last_line_says_what_to_do_next(kind: Kind, advice: str) -> None:
    joint = 0 if kind == Kind.COLLECTIVE else -1
    rows = [span(rank, Kind.FORWARD, 0, 0.2) for rank in (0, 1)]
    late_s = 9.8 if kind == Kind.COLLECTIVE else 0.2
    rows += [span(0, kind, 0.2, 10, collective=joint), span(1, kind, late_s, 10, collective=joint)]
    rows += [span(1, Kind.FORWARD, 0.2, late_s)] if late_s > 0.2 else []
    assert advice in str(Timeline.from_spans("measured", rows).summary()).splitlines()[-1]


def naive_classes(run: Timeline, rank: int) -> dict[str, float]:
    """Go through `run`, whose times are multiples of half a second, cell by cell."""
    arrival = {
        number: run.start_s[run.collective == number].max() for number in run.collective.tolist()
    }
    seconds = dict.fromkeys(CLASSES, 0.0)
    begin_s, num_cells = run.start_s.min(), round(run.makespan_s / CELL_S)
    for middle in begin_s + (np.arange(num_cells) + 0.5) * CELL_S:
        found = {"other_idle_s"}
        for row in run:
            if row.rank == rank and row.start_s < middle < row.start_s + row.duration_s:
                alone = row.collective < 0
                if row.kind in BUSY_KINDS:
                    found.add("busy_s")
                elif row.kind == Kind.COLLECTIVE:
                    on_wire = alone or middle > arrival[row.collective]
                    found.add("exposed_comm_s" if on_wire else "waiting_s")
                elif row.kind == Kind.DATA:
                    found.add("data_s")
        seconds[next(name for name in CLASSES if name in found)] += CELL_S
    return seconds


@given(run=st.from_type(Timeline).filter(len))
def test_the_classes_equal_a_count_of_all_instants(run: Timeline) -> None:
    summary = run.summary()
    for index, rank in enumerate(summary.ranks.tolist()):
        found = {name: getattr(summary, name)[index] for name in CLASSES}
        assert found == naive_classes(run.aligned(), rank)


@given(graph=st.from_type(TaskGraph), factor=st.sampled_from([1.0, 1e-6, np.pi]))
def test_the_classes_of_each_rank_add_up_to_the_makespan(graph: TaskGraph, factor: float) -> None:
    run = simulate(graph)
    rows = [r._replace(start_s=r.start_s * factor, duration_s=r.duration_s * factor) for r in run]
    summary = Timeline.from_spans("simulated", rows).summary()
    np.testing.assert_allclose(total_s(summary), summary.makespan_s)


@given(run=st.from_type(Timeline))
def test_every_number_is_finite_and_not_negative(run: Timeline) -> None:
    summary = run.summary()
    columns = [getattr(summary, name) for name in CLASSES]
    values = np.concatenate([*columns, summary.step_times_s, summary.waited_for_s.ravel()])
    assert np.isfinite(values).all()
    assert (values >= 0).all()
    assert summary.imbalance >= 1.0 - 1e-12
    assert all(math.isfinite(seconds) for seconds in summary.critical_s.values())
    assert summary.makespan_s == pytest.approx(run.aligned().makespan_s)
