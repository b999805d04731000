"""The section that says who waited for whom: a heat map of ranks and steps."""

import numpy as np
from bokeh.models import LinearColorMapper, Range1d
from numpy.typing import NDArray

from paceline.report._axes import hover, name_rows, new_figure
from paceline.report._buckets import means
from paceline.report._chart import Chart
from paceline.report._colours import VERMILION
from paceline.report._html import table
from paceline.report._step_axis import StepAxis
from paceline.report._steps_table import WAITING, StepsTable
from paceline.report._units import time_text, unit_for

MAX_RANKS = 64
SHADES = [f"{VERMILION}{level:02x}" for level in range(256)]
BRIGHTEST = 0.995  # Quantile of the waits that gets the full colour.
SHADE = "a shade is the mean of a bucket"
# A rank that comes last this often, against its turn, is slow; else it is another one each time.
OFTEN = 1.5


def waiting_chart(run: StepsTable, axis: StepAxis) -> Chart:
    """Draw a heat map: how long each rank waited in each step."""
    ranks = _chosen_ranks(run.num_ranks)
    waits = means(run.seconds[WAITING][ranks], axis.starts)
    brightest = float(np.quantile(waits, BRIGHTEST)) or float(waits.max()) or 1.0
    unit = unit_for(brightest)
    drawing = new_figure(
        "waiting",
        x_range=axis.range,
        y_range=Range1d(0, len(ranks)),
        x_label="step",
        height=int(np.clip(len(ranks) * 22, 60, 420)) + 58,
        zooms=True,
    )
    name_rows(drawing, [f"rank {rank}" for rank in ranks])
    # Row 0 of an image is its lowest.
    image = drawing.image(
        image=[np.ascontiguousarray(waits[::-1] * unit.per_s, dtype=np.float32)],
        x=0,
        y=0,
        dw=run.num_steps,
        dh=len(ranks),
        color_mapper=LinearColorMapper(SHADES, low=0.0, high=brightest * unit.per_s),
    )
    hover(drawing, [image], [("", f"step $x{{0}}: @image{{0.00}} {unit.name} waited, measured")])
    wait_s = run.seconds[WAITING][:, run.num_warmup :]
    last = _last_counts(wait_s)
    rows = [
        (f"rank {rank}", time_text(wait_s[rank].mean()), f"{last[rank] / wait_s.shape[1]:.0%}")
        for rank in ranks
    ]
    return Chart(
        name="waiting",
        title="Who waited for whom",
        sources=["measured"],
        caption=_waiting_words(last, wait_s) + axis.note(SHADE),
        figures=[drawing],
        legend=[("no wait", f"{VERMILION}18"), (f"{time_text(brightest)} or more", VERMILION)],
        numbers=table(("", "mean wait per step", "steps in which it came last"), rows),
        zoom="steps",
    )


def _chosen_ranks(num_ranks: int) -> NDArray[np.int64]:
    """Choose ranks evenly, lowest and highest included, if there are too many to draw."""
    return np.linspace(0, num_ranks - 1, min(num_ranks, MAX_RANKS)).astype(np.int64)


def _last_counts(wait_s: NDArray[np.float32]) -> NDArray[np.int64]:
    """Count the steps in which each rank came last; ties go to the lower rank."""
    waited = wait_s.any(axis=0)
    return np.bincount(wait_s[:, waited].argmin(axis=0), minlength=len(wait_s))


def _waiting_words(last: NDArray[np.int64], wait_s: NDArray[np.float32]) -> str:
    num_ranks, num_steps = wait_s.shape
    if not last.sum():
        return "No rank waited for another."
    worst = int(last.argmax())
    share = last[worst] / num_steps
    text = "Each row is a rank: the darker, the longer it waited in that step for the last one. "
    if share > OFTEN / num_ranks:
        return text + f"Rank {worst} came last in {share:.0%} of the steps."
    return text + "It is another rank each time that comes last."
