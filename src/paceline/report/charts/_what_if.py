"""The section about other numbers of ranks: what a step would take, and what limits it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from bokeh.models import ColumnDataSource, FixedTicker, Range1d

from paceline.report.charts._axes import hover, new_figure, range_from_zero
from paceline.report.charts._chart import Chart
from paceline.report.charts._colours import BLUE, CLASS_COLOURS, GREEN, ORANGE, PURPLE, VERMILION
from paceline.report.markup import (
    Html,
    Unit,
    element,
    joined,
    number_text,
    table,
    time_text,
    unit_for,
)
from paceline.run import Curve, Run, powers_of_two

MOST_RANKS = 1024
LIMIT_COLOURS: dict[str, str] = {
    "compute": BLUE,
    "small batch": GREEN,
    "loop": CLASS_COLOURS["other"],
    "loader": ORANGE,
    "straggler": VERMILION,
    "wire": PURPLE,
}
MEANINGS: dict[str, str] = {
    "compute": "compute",
    "small batch": "fixed cost of a micro-batch",
    "loop": "loop and optimizer",
    "loader": "waiting for data",
    "straggler": "waiting for a slower rank",
    "wire": "exposed communication",
}
# Beside each other at each number of ranks: where their bars begin, in numbers of places.
LEFT, RIGHT, WIDTH = -0.4, 0.02, 0.38
TITLE = "What if it ran on more ranks"


class Scaling(NamedTuple):
    """The run on other numbers of ranks.

    Attributes:
        curves: As it is, and with even batches; none if it cannot be simulated.
        reason: Why not.
    """

    curves: tuple[Curve, ...]
    reason: str = ""

    @property
    def wire_s(self) -> float | None:
        """Seconds of communication per step, hidden or not, simulated; None if not known."""
        wire = self.curves[0].wire if self.curves else None
        if wire is None:
            return None
        # With no pass to hide it, all of it is exposed.
        none = np.zeros(1)
        return float(wire.exposed_s(self.curves[0].num_ranks, none, none, "overlapped")[0])


def scaling_of(run: Run) -> Scaling:
    """Simulate the run on 1 to 1,024 ranks, as it is and with even batches."""
    workers = powers_of_two(1, MOST_RANKS)
    try:
        return Scaling((run.what_if(workers), run.what_if(workers, balance="window")))
    except ValueError as error:
        # A run of one rank, for example, says nothing of the wire between two.
        return Scaling((), str(error))


def what_if_chart(scaling: Scaling) -> Chart:
    """Draw what a step takes on other numbers of ranks, and what it consists of."""
    curves = scaling.curves
    if not curves:
        caption = f"This run cannot be simulated on other numbers of ranks: {scaling.reason}."
        return Chart(
            name="what-if", title=TITLE, sources=["simulated"], caption=caption, is_half=True
        )
    return Chart(
        name="what-if",
        title=TITLE,
        sources=["simulated"],
        caption=_caption(curves),
        figures=[_figure(curves)],
        legend=[(MEANINGS[name], colour) for name, colour in LIMIT_COLOURS.items()],
        numbers=_table(curves),
        is_half=True,
    )


def _caption(curves: Sequence[Curve]) -> str:
    plain = curves[0]
    error = plain.replayed_step_s / plain.measured_step_s - 1
    return (
        "Left bars: as it is. Right: each step's expected cost divided evenly. Every rank keeps "
        f"its work per step. The run itself, simulated, takes {time_text(plain.replayed_step_s)} "
        f"per step, {error:+.1%} against measured."
    )


def _figure(curves: Sequence[Curve]) -> Any:
    points = curves[0].points
    longest_s = max(point.step_s for curve in curves for point in curve.points)
    unit = unit_for(longest_s)
    drawing = new_figure(
        "what-if",
        x_range=Range1d(-0.6, len(points) - 0.4),
        y_range=range_from_zero(longest_s * unit.per_s),
        x_label="ranks",
        y_label=f"step time in {unit.name}",
    )
    places = range(len(points))
    drawing.xaxis.ticker = FixedTicker(ticks=list(places))
    names = {place: str(point.num_workers) for place, point in zip(places, points, strict=True)}
    drawing.xaxis.major_label_overrides = names
    for curve, left in zip(curves, (LEFT, RIGHT), strict=True):
        _draw_curve(drawing, curve, left, unit)
    return drawing


def _draw_curve(drawing: Any, curve: Curve, left: float, unit: Unit) -> None:
    """Stack what a step is made of, from the compute up."""
    places = np.arange(len(curve.points)) + left
    bottom = np.zeros(len(places))
    for name, colour in LIMIT_COLOURS.items():
        parts = ({str(limit): s for limit, s in point.parts_s.items()} for point in curve.points)
        part = np.array([seconds[name] for seconds in parts]) * unit.per_s
        columns = {"left": places, "right": places + WIDTH, "bottom": bottom, "part": part}
        columns |= {"top": bottom + part}
        columns |= {"ranks": np.array([point.num_workers for point in curve.points])}
        bars = drawing.quad(
            left="left",
            right="right",
            bottom="bottom",
            top="top",
            source=ColumnDataSource(columns),
            fill_color=colour,
            line_color=None,
        )
        words = f"@ranks ranks: @part{{0.00}} {unit.name} {MEANINGS[name]}, simulated"
        hover(drawing, [bars], [("", words)])
        bottom = bottom + part


def _table(curves: Sequence[Curve]) -> Html:
    header = ("ranks, simulated", "step time", "examples/s", "limit", "step time, even batches")
    rows = []
    for plain, even in zip(*(curve.points for curve in curves), strict=True):
        rate = "not known" if plain.examples_per_s is None else number_text(plain.examples_per_s)
        limit = MEANINGS[plain.limit]
        steps = time_text(plain.step_s), time_text(even.step_s)
        rows.append((str(plain.num_workers), steps[0], rate, limit, steps[1]))
    notes = " ".join(f"{note}." for note in curves[0].notes)
    return joined([table(header, rows), element("p", notes)])
