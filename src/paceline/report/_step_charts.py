"""Sections over steps: their times, imbalance, padding, communication."""

import numpy as np

from paceline.report._chart import Chart
from paceline.report._colours import BLUE, ORANGE, PURPLE, VERMILION
from paceline.report._step_axis import BAND, StepAxis, draw_band, over_steps
from paceline.report._steps_table import WAITING, WIRE, StepsTable
from paceline.report._units import time_text, unit_for


def step_time_chart(run: StepsTable, axis: StepAxis) -> Chart:
    """Draw how long each step took."""
    unit = unit_for(float(run.step_s.max()))
    steady = run.steady_step_s
    # One slow step, often the first, would flatten all others.
    top = min(float(run.step_s.max()), 3 * float(np.quantile(steady, 0.99)))
    drawing = over_steps("step-time", axis, f"step time in {unit.name}", top * unit.per_s)
    draw_band(drawing, axis, axis.band(run.step_s * unit.per_s), BLUE, f"{{0.00}} {unit.name}")
    middle, slow = np.quantile(steady, [0.5, 0.95])
    over = int((run.step_s > top).sum())
    text = f"Median {time_text(middle)}, one step in twenty takes {time_text(slow)} or more."
    if over:
        text += f" {over} slower than the figure is high, up to {time_text(run.step_s.max())}."
    return Chart(
        name="step-times",
        title="Step time over the run",
        sources=["measured"],
        caption=text + axis.note(BAND),
        figures=[drawing],
        zoom="steps",
    )


def imbalance_chart(run: StepsTable, axis: StepAxis) -> Chart:
    """Draw how uneven the ranks' compute was, and what share of the inputs was padding."""
    imbalance = over_steps("imbalance", axis, "slowest / mean", float(run.imbalance.max()))
    imbalance.y_range.start = 1.0
    draw_band(imbalance, axis, axis.band(run.imbalance), VERMILION, "{0.00}")
    drawings = [imbalance]
    text = (
        "Compute of the slowest rank over that of the mean rank: 1 is perfect, "
        f"the mean here is {run.imbalance[run.num_warmup :].mean():.2f}."
    )
    padding = run.padding_share
    if np.isfinite(padding).any():
        drawing = over_steps("padding", axis, "padding in %", 100 * float(np.nanmax(padding)))
        draw_band(drawing, axis, axis.band(100 * padding), ORANGE, "{0.0} %")
        drawings.append(drawing)
        text += f" Padding is {np.nanmean(padding):.0%} of all positions of the inputs."
    else:
        text += " The inputs do not tell what is padding."
    return Chart(
        name="imbalance",
        title="Imbalance and padding",
        sources=["measured"],
        caption=text + axis.note(BAND),
        figures=drawings,
        legend=[("imbalance", VERMILION), ("padding", ORANGE)][: len(drawings)],
        zoom="steps",
        is_half=True,
    )


def communication_chart(run: StepsTable, axis: StepAxis, hidden: str) -> Chart:
    """Draw the communication that no compute hides; `hidden` says what is known of the rest."""
    wire_s = run.seconds[WIRE].mean(axis=0, dtype=np.float64)
    waiting_s = run.seconds[WAITING].mean(axis=0, dtype=np.float64)
    steady = slice(run.num_warmup, None)
    largest = max(float(np.quantile(c[steady], 0.995)) for c in (wire_s, waiting_s))
    unit = unit_for(largest)
    drawing = over_steps("communication", axis, f"{unit.name} per step", largest * unit.per_s)
    for column, colour in ((waiting_s, VERMILION), (wire_s, PURPLE)):
        draw_band(drawing, axis, axis.band(column * unit.per_s), colour, f"{{0.00}} {unit.name}")
    text = (
        f"Exposed communication is {time_text(wire_s[steady].mean())} per step: all ranks are "
        f"there, none computes. Waiting for the last rank is {time_text(waiting_s[steady].mean())}. "
    )
    return Chart(
        name="communication",
        title="Communication, hidden and exposed",
        sources=["measured"],
        caption=text + hidden + axis.note(BAND),
        figures=[drawing],
        legend=[("waiting for a slower rank", VERMILION), ("exposed communication", PURPLE)],
        zoom="steps",
        is_half=True,
    )
