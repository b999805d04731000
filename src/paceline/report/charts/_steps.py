"""Sections over steps: their times, imbalance, padding, communication."""

import numpy as np
from bokeh.models import Span

from paceline.report.charts._chart import Chart, Source
from paceline.report.charts._colours import BLUE, GREEN, MEANINGS, ORANGE, PURPLE, VERMILION
from paceline.report.charts._step_axis import StepAxis, draw_band, over_steps
from paceline.report.markup import number_text, time_text, unit_for
from paceline.report.tables import WAITING, WIRE, Array, StepsTable

# A figure reaches this often as high as 99 % of the steps do: a few extreme ones would flatten it.
HEADROOM = 3.0


def figure_top(values: Array) -> float:
    """Return how high a figure of `values` reaches.

    Examples:
        >>> figure_top(np.append(np.ones(999), 50.0)), figure_top(np.array([1.0, 2.0]))
        (3.0, 2.0)
    """
    return min(float(values.max()), HEADROOM * float(np.quantile(values, 0.99)))


def step_time_chart(run: StepsTable, axis: StepAxis) -> Chart:
    """Draw how long each step took."""
    top_s = figure_top(run.step_s)
    unit = unit_for(top_s)
    drawing = over_steps("step-time", axis, f"step time in {unit.name}", top_s * unit.per_s)
    shown = f"{{0.00}} {unit.name}"
    draw_band(drawing, axis, run.step_s * unit.per_s, colour=BLUE, shown=shown, source="measured")
    middle_s, slow_s = np.quantile(run.step_s, [0.5, 0.95])
    text = f"Median {time_text(middle_s)}; one step in twenty takes {time_text(slow_s)} or more."
    num_over = int((run.step_s > top_s).sum())
    if num_over:
        text += (
            f" {number_text(num_over)} took longer than the figure is high, up to "
            f"{time_text(run.step_s.max())}."
        )
    return Chart(
        name="step-times",
        title="Step time over the run",
        sources=["measured"],
        caption=text + axis.note,
        figures=[drawing],
        zoom="steps",
    )


def imbalance_chart(run: StepsTable, axis: StepAxis) -> Chart:
    """Draw how uneven the ranks' compute was."""
    top = figure_top(run.imbalance)
    drawing = over_steps("imbalance", axis, "slowest / mean", top)
    drawing.y_range.start, drawing.y_range.end = 1.0, max(top + 0.05 * (top - 1), 1.1)
    draw_band(drawing, axis, run.imbalance, colour=VERMILION, shown="{0.00}", source="measured")
    return Chart(
        name="imbalance",
        title="Imbalance",
        sources=["measured"],
        caption="Compute of the slowest rank over that of the mean rank: 1 is perfect, the mean "
        f"step has {run.imbalance.mean():.2f}.",
        figures=[drawing],
        zoom="steps",
        is_half=True,
    )


def padding_chart(run: StepsTable, axis: StepAxis) -> Chart:
    """Draw what share of the inputs was padding, if the inputs told."""
    padding = 100 * run.padding_share
    is_known = bool(np.isfinite(padding).any())
    text = "The inputs do not tell which of their positions hold padding."
    drawings = []
    if is_known:
        drawing = over_steps("padding", axis, "padding in %", float(np.nanmax(padding)))
        draw_band(drawing, axis, padding, colour=ORANGE, shown="{0.0}%", source="measured")
        drawings = [drawing]
        text = (
            f"Positions of the inputs that hold padding: {np.nanmean(padding):.0f}% in the mean "
            "step, and computed like all others."
        )
    return Chart(
        name="padding",
        title="Padding",
        sources=["measured"],
        caption=text,
        figures=drawings,
        zoom="steps" if is_known else "",
        is_half=True,
    )


def communication_chart(run: StepsTable, axis: StepAxis, whole_s: float | None) -> Chart:
    """Draw the communication that no compute hides, and what the backward pass does hide.

    `whole_s` is the simulated time of all of it per step; None if it is not known.
    """
    exposed_s, waiting_s = run.seconds[WIRE].mean(axis=0), run.seconds[WAITING].mean(axis=0)
    hidden_s = None if whole_s is None else max(whole_s - float(exposed_s.mean()), 0.0)
    top_s = max(figure_top(exposed_s), figure_top(waiting_s), hidden_s or 0.0)
    unit = unit_for(top_s)
    drawing = over_steps("communication", axis, f"{unit.name} per step", top_s * unit.per_s)
    shown = f"{{0.00}} {unit.name}"
    for column_s, colour in ((waiting_s, VERMILION), (exposed_s, PURPLE)):
        draw_band(
            drawing, axis, column_s * unit.per_s, colour=colour, shown=shown, source="measured"
        )
    legend = [(MEANINGS["waiting"], VERMILION), ("exposed communication", PURPLE)]
    sources: list[Source] = ["measured"]
    if hidden_s is not None:
        line = {"line_color": GREEN, "line_width": 1.5, "line_dash": "dashed"}
        drawing.add_layout(Span(location=hidden_s * unit.per_s, dimension="width", **line))
        legend.append(("hidden communication, simulated", GREEN))
        sources.append("simulated")
    return Chart(
        name="communication",
        title="Communication",
        sources=sources,
        caption=_communication_words(exposed_s, waiting_s, hidden_s),
        figures=[drawing],
        legend=legend,
        zoom="steps",
        is_half=True,
    )


def _communication_words(exposed_s: Array, waiting_s: Array, hidden_s: float | None) -> str:
    text = (
        f"Exposed, all ranks there and none computing: {time_text(exposed_s.mean())} per step. "
        f"Waiting for the last rank: {time_text(waiting_s.mean())}. "
    )
    if hidden_s is None:
        return text + "What the backward pass hides was not recorded."
    return text + f"Hidden by the backward pass: about {time_text(hidden_s)}, simulated."
