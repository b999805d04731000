"""The axis of steps that figures share, and how a value of each step is drawn over it."""

from typing import Any, NamedTuple

import numpy as np
from bokeh.models import ColumnDataSource, Range1d
from numpy.typing import ArrayLike, NDArray

from paceline.report._axes import hover, new_figure, range_from_zero
from paceline.report._buckets import Band, band_of, bucket_starts
from paceline.report._steps_table import StepsTable

BAND = "the line is the mean of a bucket, the band reaches from its lowest to its highest step"


class StepAxis(NamedTuple):
    """What the figures over steps share: their range, and which steps make a bucket."""

    range: Range1d
    starts: NDArray[np.int64]
    centres: NDArray[np.float64]

    def band(self, values: ArrayLike) -> Band:
        return band_of(values, self.starts)

    def note(self, what: str) -> str:
        """Say that steps were put together, if so, and `what` is drawn of each bucket."""
        width = self.range.end / len(self.starts)
        if width <= 1:
            return ""
        return f" Drawn in {len(self.starts)} buckets of about {width:.0f} steps: {what}."


def step_axis(run: StepsTable) -> StepAxis:
    """Return the shared range of all steps, in buckets as narrow as a page can hold."""
    num_steps = run.num_steps
    starts = bucket_starts(num_steps)
    ends = np.append(starts[1:], num_steps)
    shared = Range1d(
        0, num_steps, bounds=(0, num_steps), name="steps", tags=[0, num_steps], min_interval=1
    )
    return StepAxis(shared, starts, (starts + ends) / 2)


def over_steps(name: str, axis: StepAxis, label: str, largest: float) -> Any:
    return new_figure(
        name,
        x_range=axis.range,
        y_range=range_from_zero(largest),
        x_label="step",
        y_label=label,
        zooms=True,
    )


def draw_band(drawing: Any, axis: StepAxis, band: Band, colour: str, shown: str) -> None:
    columns = {"x": axis.centres, "low": band.low, "mean": band.mean, "high": band.high}
    data = ColumnDataSource({name: np.asarray(c, dtype=np.float32) for name, c in columns.items()})
    drawing.varea(x="x", y1="low", y2="high", source=data, fill_color=colour, fill_alpha=0.25)
    line = drawing.line(x="x", y="mean", source=data, line_color=colour, line_width=1.5)
    rows = [("", f"step @x{{0}}: @mean{shown}"), ("", f"@low{shown} to @high{shown}, measured")]
    hover(drawing, [line], rows)
