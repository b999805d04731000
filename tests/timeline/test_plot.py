"""One figure of a timeline: a row for each lane of each rank, its units, its source."""

import subprocess
import sys

import numpy as np

from paceline.timeline import Kind, Timeline

RUN = Timeline.from_columns(
    "simulated",
    start_s=[5.0, 6.0, 5.5, 6.0],
    duration_s=[1.0, 1.0, 0.5, 1.0],
    rank=[0, 0, 3, 3],
    lane=[0, 1, 0, 1],
    kind=[Kind.FORWARD, Kind.COLLECTIVE] * 2,
    collective=[-1, 0, -1, 0],
    lanes=("main", "comm"),
    names=("",),
)


def test_a_figure_has_a_row_for_each_lane_of_each_rank() -> None:
    (axes,) = RUN.plot().axes
    rows = ["rank 0 main", "rank 0 comm", "rank 3 main", "rank 3 comm"]
    assert [label.get_text() for label in axes.get_yticklabels()] == rows
    assert axes.get_xlabel() == "simulated time in s"
    bars = np.concatenate(
        [path.vertices for drawn in axes.collections for path in drawn.get_paths()]
    )
    assert (bars[:, 0].min(), bars[:, 0].max()) == (0.0, 2.0)


def test_a_timeline_without_spans_is_a_figure_without_rows() -> None:
    (axes,) = Timeline.from_spans("measured", []).plot().axes
    assert list(axes.get_yticks()) == []


def test_without_matplotlib_the_way_to_get_it_is_told() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from paceline.timeline import Timeline\n"
        "try: Timeline.from_spans('measured', []).plot()\n"
        "except ImportError as error: print(type(error).__name__, error)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.startswith("MissingExtraError plot() needs matplotlib; install it with: ")
