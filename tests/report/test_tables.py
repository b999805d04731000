"""What figures show, by value; no figure is drawn."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.report.markup._html import element
from paceline.report.markup._units import time_text
from paceline.report.tables._buckets import band_of, bucket_starts, means
from paceline.report.tables._even import simulate_even
from paceline.report.tables._spans import MAX_BARS, MAX_RANKS, bars_of
from paceline.report.tables._steps_table import CLASSES, WAITING, WIRE, steps_table
from paceline.run import Run
from paceline.timeline import Kind, Timeline

MakeRun = Callable[..., Run]


def test_seconds_of_all_classes_add_up_to_the_steps(make_run: MakeRun) -> None:
    run = make_run(4, 100)
    table = steps_table(run)
    assert (table.num_ranks, table.num_steps, table.num_warm_up) == (4, 97, 3)
    np.testing.assert_allclose(table.seconds.sum(axis=0).mean(axis=0), run.step_times_s)
    np.testing.assert_allclose(table.shares.sum(axis=0), 1.0)
    np.testing.assert_allclose(table.seconds[WIRE], 0.004, rtol=1e-3)
    # In each step somebody came last, and did not wait.
    np.testing.assert_allclose(table.seconds[WAITING].min(axis=0), 0.0, atol=1e-6)
    sizes = np.stack([steps.num_elements for steps in run.steps])
    np.testing.assert_allclose(table.imbalance, sizes.max(axis=0) / sizes.mean(axis=0), rtol=1e-3)
    assert table.padding_share == pytest.approx(0.25, abs=0.01)


def test_padding_that_nobody_knows_is_nan(make_run: MakeRun) -> None:
    assert np.isnan(steps_table(make_run(2, 20, knows_padding=False)).padding_share).all()


@given(values=st.lists(st.floats(0, 1e6), min_size=1, max_size=300), max_buckets=st.integers(1, 50))
def test_buckets_keep_the_extremes_and_the_sum(values: list[float], max_buckets: int) -> None:
    starts = bucket_starts(len(values), max_buckets)
    counts = np.diff(starts, append=len(values))
    assert len(starts) == min(len(values), max_buckets)
    assert counts.max() - counts.min() <= 1
    band = band_of(values, starts)
    assert (band.low.min(), band.high.max()) == (min(values), max(values))
    assert (band.low <= band.mean * (1 + 1e-12)).all()
    assert (band.mean <= band.high * (1 + 1e-12)).all()
    assert band.mean @ counts == pytest.approx(sum(values), abs=1e-6)
    np.testing.assert_allclose(means(np.array([values]), starts)[0], band.mean)


def test_even_compute_is_never_slower_and_changes_nothing_else(make_run: MakeRun) -> None:
    run = make_run(4, 60)
    measured = run.timeline(first=10, num=20)
    even = simulate_even(run.steps, 10, 20)
    assert (even.source, even.step.min(), even.step.max()) == ("simulated", 10, 29)
    assert even.makespan_s < 0.9 * measured.makespan_s
    for kind in (Kind.FORWARD, Kind.BACKWARD, Kind.OPTIMIZER):
        spent = [run.duration_s[run.kind == kind].sum() for run in (measured, even)]
        assert spent[0] == pytest.approx(spent[1], rel=1e-6)
    summary = even.summary()
    assert summary.waiting_s == pytest.approx(0.0, abs=1e-5)
    assert summary.exposed_comm_s == pytest.approx(20 * 0.004, rel=1e-3)


def test_a_few_steps_of_a_run_are_one_figure(make_run: MakeRun) -> None:
    run = make_run(3, 40)
    for first, num in ((0, 5), (30, 100)):
        (axes,) = run.plot(first=first, num=num).axes
        assert len(axes.get_yticks()) == 3
        measured = run.timeline(first=first, num=min(num, run.num_steps - first))
        drawn = [path.vertices[:, 0] for bars in axes.collections for path in bars.get_paths()]
        assert np.concatenate(drawn).max() == pytest.approx(measured.makespan_s)


def test_a_collective_becomes_the_wait_and_the_wire() -> None:
    run = Timeline.from_columns(
        "measured",
        start_s=[0.0, 2.0, 0.0, 1.0],
        duration_s=[2.0, 1.0, 1.0, 2.0],
        rank=[0, 0, 1, 1],
        kind=[Kind.BACKWARD, Kind.COLLECTIVE] * 2,
        collective=[-1, 0, -1, 0],
        names=("pass",),
    )
    bars = bars_of(run)
    drawn = sorted(zip(bars.row, bars.label, bars.start_s, bars.end_s, strict=True))
    assert drawn == [
        (0, "backward", 0.0, 2.0),
        (0, "wire", 2.0, 3.0),
        (1, "backward", 0.0, 1.0),
        (1, "waiting", 1.0, 2.0),
        (1, "wire", 2.0, 3.0),
    ]
    assert (bars.rows, bars.steps, bars.is_cut) == (["rank 0", "rank 1"], (0, 0), False)


def test_a_large_timeline_is_cut_to_what_a_page_can_hold(make_run: MakeRun) -> None:
    bars = bars_of(make_run(MAX_RANKS + 8, 200).timeline())
    assert bars.is_cut
    assert len(bars.rows) == MAX_RANKS
    assert bars.rows[-1] == f"rank {MAX_RANKS + 7}"
    assert len(bars.row) < 2 * MAX_BARS
    assert bars.steps[0] == 0


def test_shares_are_stacked_in_the_order_of_the_classes() -> None:
    assert CLASSES == ("forward", "backward", "optimizer", "other", "data", "waiting", "wire")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0 s"), (2e-7, "0.20 µs"), (0.0123, "12.3 ms"), (5000.0, "5,000 s")]
)
def test_times_have_units(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


@given(text=st.text())
def test_text_cannot_become_markup(text: str) -> None:
    made = element("p", text, title=text)
    assert made.count("<") == 2
    assert made.count('"') == 2
