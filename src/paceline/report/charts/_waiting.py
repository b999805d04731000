"""The section that says who waited for whom: a heat map of ranks and steps."""

from typing import NamedTuple

import numpy as np
from bokeh.models import LinearColorMapper, Range1d
from numpy.typing import NDArray

from paceline.report.charts._axes import hover, name_rows, new_figure
from paceline.report.charts._chart import Chart
from paceline.report.charts._colours import VERMILION
from paceline.report.charts._step_axis import LABEL, StepAxis
from paceline.report.markup import Html, table, time_text, unit_for
from paceline.report.tables import WAITING, StepsTable, bucket_starts, means

MAX_RANKS = 64
MAX_COLUMNS = 240
SHADES = [f"{VERMILION}{level:02x}" for level in range(256)]
BRIGHTEST = 0.99  # Quantile of the waits that gets the full colour.
ROW_PIXELS, LEAST_PIXELS, MOST_PIXELS = 26, 60, 420
# A rank that comes last this much oftener than its turn is slow; else it is another one each time.
OFTEN = 1.5


class Waits(NamedTuple):
    """Who waited, and who was waited for.

    Attributes:
        mean_s: Mean wait per step of each rank. Shape `(num_ranks,)`.
        last: Share of the steps in which each rank came last. Shape `(num_ranks,)`.
    """

    mean_s: NDArray[np.float64]
    last: NDArray[np.float64]

    @property
    def words(self) -> str:
        """Who is waited for, in a sentence."""
        worst = int(self.last.argmax())
        if not self.last.any():
            return "No rank waited for another."
        if self.last[worst] > OFTEN / len(self.last):
            return f"Rank {worst} came last in {self.last[worst]:.0%} of the steps."
        return "It is another rank each time that comes last."


def waits_of(wait_s: NDArray[np.float64]) -> Waits:
    """Sum up waits of shape `(num_ranks, num_steps)`; ties go to the lower rank.

    Examples:
        >>> waits_of(np.array([[2.0, 1.0], [0.0, 0.0]])).words
        'Rank 1 came last in 100% of the steps.'
    """
    waited = wait_s.any(axis=0)
    counts = np.bincount(wait_s[:, waited].argmin(axis=0), minlength=len(wait_s))
    return Waits(wait_s.mean(axis=1), counts / wait_s.shape[1])


def waiting_chart(run: StepsTable, axis: StepAxis) -> Chart:
    """Draw how long each rank waited in each step."""
    ranks = _chosen_ranks(run.num_ranks)
    starts = bucket_starts(run.num_steps, MAX_COLUMNS)
    shades_s = means(run.seconds[WAITING][ranks], starts)
    full_s = float(np.quantile(shades_s, BRIGHTEST)) or float(shades_s.max()) or 1.0
    drawing = _heat_map(shades_s, full_s, [f"rank {rank}" for rank in ranks], axis)
    waits = waits_of(run.seconds[WAITING])
    text = (
        "Each row is a rank: the stronger the colour, the longer it waited in that step for the "
        f"last one. {waits.words}"
    )
    if len(starts) < run.num_steps:
        text += f" A shade is the mean of {run.num_steps / len(starts):.0f} steps."
    if len(ranks) < run.num_ranks:
        text += f" {len(ranks)} of the {run.num_ranks} ranks are drawn."
    return Chart(
        name="waiting",
        title="Who waited for whom",
        sources=["measured"],
        caption=text,
        figures=[drawing],
        legend=[("no wait", f"{VERMILION}18"), (f"{time_text(full_s)} or more", VERMILION)],
        numbers=_table(waits, ranks),
        zoom="steps",
    )


def _chosen_ranks(num_ranks: int) -> NDArray[np.int64]:
    """Choose ranks evenly, lowest and highest included, if there are too many to draw."""
    return np.linspace(0, num_ranks - 1, min(num_ranks, MAX_RANKS)).astype(np.int64)


def _heat_map(
    shades_s: NDArray[np.float64], full_s: float, names: list[str], axis: StepAxis
) -> object:
    unit = unit_for(full_s)
    pixels = min(max(len(names) * ROW_PIXELS, LEAST_PIXELS), MOST_PIXELS)
    drawing = new_figure(
        "waiting",
        x_range=axis.range,
        y_range=Range1d(0, len(names)),
        x_label=LABEL,
        height=pixels + 58,
        zooms=True,
    )
    name_rows(drawing, names)
    # Row 0 of an image is its lowest.
    image = drawing.image(
        image=[np.ascontiguousarray(shades_s[::-1] * unit.per_s, dtype=np.float32)],
        x=0,
        y=0,
        dw=axis.num_steps,
        dh=len(names),
        color_mapper=LinearColorMapper(SHADES, low=0.0, high=full_s * unit.per_s),
    )
    hover(drawing, [image], [("", f"step $x{{0}}: waited @image{{0.00}} {unit.name}, measured")])
    return drawing


def _table(waits: Waits, ranks: NDArray[np.int64]) -> Html:
    rows = [
        (f"rank {rank}", time_text(waits.mean_s[rank]), f"{waits.last[rank]:.0%}") for rank in ranks
    ]
    return table(("measured", "mean wait per step", "steps in which it came last"), rows)
