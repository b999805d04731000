"""The section of bars: what each lane of each rank did, measured above, simulated below."""

import math
from typing import Any

import numpy as np
from bokeh.models import ColumnDataSource, Range1d
from numpy.typing import NDArray

from paceline.report.charts._axes import hover, name_rows, new_figure
from paceline.report.charts._chart import Chart, Source
from paceline.report.charts._colours import CLASS_COLOURS, MEANINGS
from paceline.report.markup import Unit, time_text, unit_for
from paceline.report.tables import Bars, bars_of
from paceline.timeline import Timeline

STEPS_IN_VIEW = 8
ROW_PIXELS = (14, 30)
MOST_PIXELS = 560
# Of the height of a row: who is idle is seen without colours, too.
BUSY, IDLE = 0.8, 0.4
IDLE_CLASSES = ("data", "waiting", "wire")
CAPTION = (
    "Steps {first} to {last}, a row for each rank; thin bars are idle time. All rows share one "
    "clock, and both figures one scale."
)
ALONE = "Steps {first} to {last}, a row for each rank, on one clock; thin bars are idle time."
CUT = " Further steps or ranks of this timeline are left out, so that the page stays small."
SIMULATED = (
    " Simulated: the same steps with their compute shared evenly by all ranks, all else as "
    "measured. That is the most that balanced batches could give."
)


def timeline_chart(measured: Timeline, simulated: Timeline | None) -> Chart:
    """Draw the first steps of both timelines, each from its own begin."""
    runs = [bars_of(measured), *([bars_of(simulated)] if simulated is not None else [])]
    end_s = max(float(bars.end_s.max(initial=0.0)) for bars in runs)
    unit = unit_for(end_s)
    shared = _range(runs[0], end_s * unit.per_s)
    sources: list[Source] = ["measured", "simulated"]
    drawings = [
        _figure(bars, source, shared, unit) for bars, source in zip(runs, sources, strict=False)
    ]
    first, last = runs[0].steps
    caption = (CAPTION if len(runs) > 1 else ALONE).format(first=first, last=last)
    caption += _lengths(runs)
    caption += SIMULATED * (len(runs) > 1) + CUT * any(bars.is_cut for bars in runs)
    present = {label for bars in runs for label in bars.label}
    return Chart(
        name="timeline",
        title="Timeline",
        sources=sources[: len(runs)],
        caption=caption,
        figures=drawings,
        legend=[(MEANINGS[c], colour) for c, colour in CLASS_COLOURS.items() if c in present],
        zoom="time",
    )


def _lengths(runs: list[Bars]) -> str:
    took = [time_text(float(bars.end_s.max(initial=0.0))) for bars in runs]
    return f" They took {took[0]} (measured)" + (f", {took[1]} (simulated)." if took[1:] else ".")


def _range(bars: Bars, end: float) -> Range1d:
    """Show a few steps at first; the bounds are where zooming out ends."""
    num_steps = bars.steps[1] - bars.steps[0] + 1
    shown = end * min(1.0, STEPS_IN_VIEW / num_steps)
    return Range1d(0.0, shown, bounds=(0.0, end), name="time", tags=[0.0, shown])


def _figure(bars: Bars, source: Source, shared: Range1d, unit: Unit) -> Any:
    num_rows = len(bars.rows)
    pixels = min(max(MOST_PIXELS / max(num_rows, 1), ROW_PIXELS[0]), ROW_PIXELS[1])
    drawing = new_figure(
        f"timeline-{source}",
        x_range=shared,
        y_range=Range1d(0, num_rows),
        x_label=f"{source} time in {unit.name}",
        height=math.ceil(num_rows * pixels) + 58,
        zooms=True,
    )
    name_rows(drawing, bars.rows)
    for label in CLASS_COLOURS:
        index = np.flatnonzero(np.array(bars.label) == label)
        if index.size:
            _draw_class(drawing, bars, index, label, unit, source)
    return drawing


def _draw_class(
    drawing: Any, bars: Bars, index: NDArray[np.int64], label: str, unit: Unit, source: Source
) -> None:
    middle = len(bars.rows) - 0.5 - bars.row[index]
    half = (IDLE if label in IDLE_CLASSES else BUSY) / 2
    left, right = bars.start_s[index] * unit.per_s, bars.end_s[index] * unit.per_s
    columns = {
        "left": left,
        "right": right,
        "top": (middle + half).astype(np.float32),
        "bottom": (middle - half).astype(np.float32),
        "length": (right - left).astype(np.float32),
        "step": bars.step[index],
        "name": [bars.name[i] for i in index],
        "place": [bars.rows[row] for row in bars.row[index]],
    }
    drawn = drawing.quad(
        left="left",
        right="right",
        top="top",
        bottom="bottom",
        fill_color=CLASS_COLOURS[label],
        line_color=None,
        source=ColumnDataSource(columns),
    )
    rows = [
        ("", f"{MEANINGS[label]} (@name)"),
        ("", "@place, step @step"),
        ("", f"@length{{0.000}} {unit.name}, {source}"),
    ]
    hover(drawing, [drawn], rows)
