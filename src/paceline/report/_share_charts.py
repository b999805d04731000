"""Sections about the run as a whole: where time went, and how step times are distributed."""

from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, Range1d, Span

from paceline.report._axes import hover, name_rows, new_figure, range_from_zero
from paceline.report._chart import Chart
from paceline.report._colours import BLUE, CLASS_COLOURS, MEANINGS, VERMILION
from paceline.report._html import Html, table
from paceline.report._steps_table import CLASSES, StepsTable
from paceline.report._units import number_text, time_text, unit_for

MAX_RANKS = 32
MAX_BINS = 60


def shares_chart(run: StepsTable) -> Chart:
    """Draw how each rank spent its time, the warm-up left out."""
    ranks = np.linspace(0, run.num_ranks - 1, min(run.num_ranks, MAX_RANKS)).astype(np.int64)
    percent = 100 * run.steady_shares[:, ranks]
    names = [f"rank {rank}" for rank in ranks]
    drawing = new_figure(
        "shares",
        x_range=Range1d(0, 100),
        y_range=Range1d(0, len(ranks)),
        x_label="% of the rank's time",
        height=len(ranks) * 30 + 58,
    )
    name_rows(drawing, names)
    left = np.zeros(len(ranks))
    bars = []
    for name, row in zip(CLASSES, percent, strict=True):
        bars.append(_share_bars(drawing, name, left, row, names))
        left = left + row
    hover(drawing, bars, [("", "@rank: @share{0.0} % @what, measured")])
    warm = f", without the first {run.num_warmup} steps" if run.num_warmup else ""
    return Chart(
        name="shares",
        title="Where the time went",
        sources=["measured"],
        caption=f"Each rank's time by what it did{warm}. A rank computes in the first three or four "
        "classes and is idle in the others.",
        figures=[drawing],
        legend=[(MEANINGS[name], CLASS_COLOURS[name]) for name in CLASSES],
        numbers=_share_table(names, percent),
    )


def _share_bars(drawing: Any, name: str, left: Any, share: Any, names: list[str]) -> Any:
    middle = len(names) - 0.5 - np.arange(len(names))
    columns = {"left": left, "right": left + share, "y": middle, "share": share, "rank": names}
    source = ColumnDataSource(columns | {"what": [MEANINGS[name]] * len(names)})
    return drawing.hbar(
        y="y",
        left="left",
        right="right",
        height=0.7,
        fill_color=CLASS_COLOURS[name],
        line_color=None,
        source=source,
    )


def _share_table(names: list[str], percent: Any) -> Html:
    rows = [
        (name, *(f"{value:.1f}" for value in column))
        for name, column in zip(names, percent.T.tolist(), strict=True)
    ]
    return table(("% of time", *(MEANINGS[name] for name in CLASSES)), rows)


def distribution_chart(run: StepsTable) -> Chart:
    """Draw a histogram of step times after the warm-up."""
    steady = run.steady_step_s
    slowest = float(steady.max())
    # A few extreme steps go into the last bar, or all others would share the first.
    end = min(slowest, 3 * float(np.quantile(steady, 0.99)))
    unit = unit_for(end)
    num_bins = int(np.clip(np.sqrt(len(steady)), 5, MAX_BINS))
    low = float(steady.min())
    edges = np.linspace(low, max(end, low * 1.001, 1e-9), num_bins + 1)
    counts = np.histogram(np.minimum(steady, edges[-1]), edges)[0]
    drawing = new_figure(
        "distribution",
        x_range=Range1d(edges[0] * unit.per_s, edges[-1] * unit.per_s),
        y_range=range_from_zero(float(counts.max())),
        x_label=f"step time in {unit.name}",
        y_label="steps",
    )
    columns = {
        "left": edges[:-1] * unit.per_s,
        "right": edges[1:] * unit.per_s,
        "top": counts,
    }
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
    hover(drawing, [bars], [("", f"@top steps of @left{{0.00}} to @right{{0.00}} {unit.name}")])
    marks = np.quantile(steady, [0.5, 0.95])
    for mark, dash in zip(marks, ("solid", "dashed"), strict=True):
        line = {"line_color": VERMILION, "line_width": 2, "line_dash": dash}
        drawing.add_layout(Span(location=mark * unit.per_s, dimension="height", **line))
    last = " Slower ones are in the last bar." if slowest > end else ""
    quantiles = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
    values = np.quantile(steady, quantiles)
    rows = [(_quantile_name(q), time_text(v)) for q, v in zip(quantiles, values, strict=True)]
    return Chart(
        name="distribution",
        title="Distribution of step times",
        sources=["measured"],
        caption=f"{number_text(len(steady))} steps after the warm-up. Solid line: median, "
        f"{time_text(marks[0])}. Dashed: 95 % of steps are faster than {time_text(marks[1])}.{last}",
        figures=[drawing],
        numbers=table(("steps, from the fastest", "step time"), rows),
        is_half=True,
    )


def _quantile_name(quantile: float) -> str:
    return {0.0: "fastest", 0.5: "median", 1.0: "slowest"}.get(quantile, f"{quantile:.0%}")
