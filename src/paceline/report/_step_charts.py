"""Sections over steps: their times, imbalance, padding, communication."""

import numpy as np

from paceline.report._chart import Chart
from paceline.report._colours import BLUE, MEANINGS, ORANGE, PURPLE, VERMILION
from paceline.report._step_axis import StepAxis, draw_band, over_steps
from paceline.report._steps_table import WAITING, WIRE, StepsTable
from paceline.report._units import number_text, time_text, unit_for

# A figure reaches this often as high as 99 % of the steps do: a few extreme ones would flatten it.
HEADROOM = 3.0


def figure_top(values: "np.ndarray[tuple[int], np.dtype[np.float64]]") -> float:
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
        drawing = over_steps("padding", axis, "% of positions", float(np.nanmax(padding)))
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


def communication_chart(run: StepsTable, axis: StepAxis, hidden: str) -> Chart:
    """Draw the communication that no compute hides; `hidden` says what is known of the rest."""
    wire_s, waiting_s = run.seconds[WIRE].mean(axis=0), run.seconds[WAITING].mean(axis=0)
    top_s = max(figure_top(wire_s), figure_top(waiting_s))
    unit = unit_for(top_s)
    drawing = over_steps("communication", axis, f"{unit.name} per step", top_s * unit.per_s)
    shown = f"{{0.00}} {unit.name}"
    for column_s, colour in ((waiting_s, VERMILION), (wire_s, PURPLE)):
        draw_band(
            drawing, axis, column_s * unit.per_s, colour=colour, shown=shown, source="measured"
        )
    text = (
        f"Exposed: {time_text(wire_s.mean())} per step in which all ranks are there and none "
        f"computes. Waiting for the last rank: {time_text(waiting_s.mean())}. "
    )
    return Chart(
        name="communication",
        title="Communication",
        sources=["measured"],
        caption=text + hidden,
        figures=[drawing],
        legend=[(MEANINGS["waiting"], VERMILION), ("exposed communication", PURPLE)],
        zoom="steps",
        is_half=True,
    )
