"""Sections about the run as a whole: where time went, and how step times are distributed."""

from typing import Any, NamedTuple

import numpy as np
from bokeh.models import ColumnDataSource, Range1d, Span
from numpy.typing import NDArray

from paceline.report.charts._axes import hover, name_rows, new_figure, range_from_zero
from paceline.report.charts._chart import Chart
from paceline.report.charts._colours import BLUE, CLASS_COLOURS, MEANINGS, VERMILION
from paceline.report.markup import Html, table, time_text, unit_for
from paceline.report.tables import CLASSES, StepsTable

MAX_RANKS = 32
ROW_PIXELS = 30
BINS = (5, 60)
LAST_BIN = 1.5  # Times what 99 % of the steps take; slower ones are counted there.
QUANTILES = {
    "fastest": 0.0, "5%": 0.05, "25%": 0.25, "median": 0.5, "75%": 0.75, "95%": 0.95,
    "99%": 0.99, "slowest": 1.0,
}  # fmt: skip


def shares_chart(run: StepsTable) -> Chart:
    """Draw how each rank spent its time."""
    ranks = np.linspace(0, run.num_ranks - 1, min(run.num_ranks, MAX_RANKS)).astype(np.int64)
    percent = 100 * run.shares[:, ranks]
    names = [f"rank {rank}" for rank in ranks]
    drawing = new_figure(
        "shares",
        x_range=Range1d(0, 100),
        y_range=Range1d(0, len(ranks)),
        x_label="share of time in %",
        height=len(ranks) * ROW_PIXELS + 58,
    )
    name_rows(drawing, names)
    left = np.cumsum(percent, axis=0) - percent
    bars = [
        _share_bars(drawing, row, left[row], percent[row], names) for row in range(len(percent))
    ]
    hover(drawing, bars, [("", "@rank: @share{0.0}% @what, measured")])
    warm = f" The first {run.num_warm_up} steps, which warm up, are left out." * (
        run.num_warm_up > 0
    )
    return Chart(
        name="shares",
        title="Where the time went",
        sources=["measured"],
        caption=f"What each rank did with its time, in % of it.{warm}",
        figures=[drawing],
        legend=[(MEANINGS[name], CLASS_COLOURS[name]) for name in CLASSES],
        numbers=_share_table(names, percent),
    )


def _share_bars(drawing: Any, row: int, left: Any, share: Any, names: list[str]) -> Any:
    middle = len(names) - 0.5 - np.arange(len(names))
    columns = {"left": left, "right": left + share, "y": middle, "share": share, "rank": names}
    columns["what"] = [MEANINGS[CLASSES[row]]] * len(names)
    return drawing.hbar(
        y="y",
        left="left",
        right="right",
        height=0.66,
        fill_color=CLASS_COLOURS[CLASSES[row]],
        line_color=None,
        source=ColumnDataSource(columns),
    )


def _share_table(names: list[str], percent: Any) -> Html:
    rows = [
        (name, *(f"{value:.1f}" for value in column))
        for name, column in zip(names, percent.T.tolist(), strict=True)
    ]
    return table(("% of time, measured", *(MEANINGS[name] for name in CLASSES)), rows)


class Histogram(NamedTuple):
    """How many steps took how long.

    Attributes:
        edges_s: Of the bins, one more than there are.
        counts: Steps of each bin; slower ones than its end are in the last.
    """

    edges_s: NDArray[np.float64]
    counts: NDArray[np.int64]


def histogram_of(step_s: NDArray[np.float64]) -> Histogram:
    """Count steps by their time; no step is left out.

    Examples:
        >>> histogram_of(np.array([1.0, 1.0, 2.0])).counts.tolist()
        [2, 0, 0, 0, 1]
    """
    low_s = float(step_s.min())
    end_s = min(float(step_s.max()), LAST_BIN * float(np.quantile(step_s, 0.99)))
    num_bins = int(np.clip(np.sqrt(len(step_s)), *BINS))
    edges_s = np.linspace(low_s, max(end_s, low_s * 1.01, 1e-9), num_bins + 1)
    counts = np.histogram(np.minimum(step_s, edges_s[-1]), edges_s)[0]
    return Histogram(edges_s, counts.astype(np.int64))


def distribution_chart(run: StepsTable) -> Chart:
    """Draw how many steps took how long."""
    histogram = histogram_of(run.step_s)
    marks_s = np.quantile(run.step_s, [0.5, 0.95])
    text = (
        f"{run.num_steps:,} steps. Solid line: the median, {time_text(marks_s[0])}. "
        f"Dashed: 95% of the steps are faster than {time_text(marks_s[1])}."
    )
    if run.step_s.max() > histogram.edges_s[-1]:
        text += " Slower ones are in the last bar."
    values = np.quantile(run.step_s, list(QUANTILES.values()))
    rows = [(name, time_text(value)) for name, value in zip(QUANTILES, values, strict=True)]
    return Chart(
        name="distribution",
        title="Distribution of step times",
        sources=["measured"],
        caption=text,
        figures=[_histogram_figure(histogram, marks_s)],
        legend=[("steps", BLUE), ("median and 95%", VERMILION)],
        numbers=table(("steps, fastest first", "step time, measured"), rows),
        is_half=True,
    )


def _histogram_figure(histogram: Histogram, marks_s: NDArray[np.float64]) -> Any:
    unit = unit_for(float(histogram.edges_s[-1]))
    edges = histogram.edges_s * unit.per_s
    drawing = new_figure(
        "distribution",
        x_range=Range1d(edges[0], edges[-1]),
        y_range=range_from_zero(float(histogram.counts.max())),
        x_label=f"step time in {unit.name}",
        y_label="steps",
    )
    columns = {"left": edges[:-1], "right": edges[1:], "top": histogram.counts}
    bars = drawing.quad(
        left="left",
        right="right",
        top="top",
        bottom=0,
        source=ColumnDataSource(columns),
        fill_color=BLUE,
        fill_alpha=0.75,
        line_color=None,
    )
    words = f"@top steps of @left{{0.00}} to @right{{0.00}} {unit.name}, measured"
    hover(drawing, [bars], [("", words)])
    for mark_s, dash in zip(marks_s, ("solid", "dashed"), strict=True):
        line = {"line_color": VERMILION, "line_width": 2, "line_dash": dash}
        drawing.add_layout(Span(location=mark_s * unit.per_s, dimension="height", **line))
    return drawing
