"""The axis of steps that figures share, and how a value of each step is drawn over it."""

from typing import Any, NamedTuple

import numpy as np
from bokeh.models import ColumnDataSource, Range1d
from numpy.typing import ArrayLike, NDArray

from paceline.report.charts._axes import hover, new_figure, range_from_zero
from paceline.report.tables import Band, band_of, bucket_starts

LABEL = "step after warm-up"


class StepAxis(NamedTuple):
    """What figures over steps share.

    Attributes:
        range: Steps in view; zooming one figure zooms all.
        starts: First step of each bucket that is drawn as one.
        centres: Middle of each bucket.
    """

    range: Range1d
    starts: NDArray[np.int64]
    centres: NDArray[np.float64]

    @property
    def num_steps(self) -> int:
        """Steps of the run after warm-up."""
        return int(self.range.tags[1])

    @property
    def note(self) -> str:
        """How steps were put together; empty if they were not."""
        num_buckets = len(self.starts)
        if num_buckets == self.num_steps:
            return ""
        return (
            f" The {self.num_steps:,} steps are drawn in {num_buckets} buckets of about "
            f"{self.num_steps / num_buckets:.0f}, in all figures over steps: a line is the mean of "
            "a bucket, its band reaches from the lowest to the highest step."
        )


def step_axis(num_steps: int) -> StepAxis:
    """Return the axis of `num_steps` steps, in buckets as narrow as a page can hold."""
    starts = bucket_starts(num_steps)
    ends = np.append(starts[1:], num_steps)
    # The tags keep what is shown at first.
    ends_of_range = (0, num_steps)
    shared = Range1d(
        *ends_of_range, bounds=ends_of_range, name="steps", tags=list(ends_of_range), min_interval=1
    )
    return StepAxis(shared, starts, (starts + ends) / 2)


def over_steps(name: str, axis: StepAxis, label: str, largest: float) -> Any:
    """Return an empty figure over steps whose y axis goes from 0 to `largest`."""
    return new_figure(
        name,
        x_range=axis.range,
        y_range=range_from_zero(largest),
        x_label=LABEL,
        y_label=label,
        zooms=True,
    )


def draw_band(
    drawing: Any, axis: StepAxis, values: ArrayLike, *, colour: str, shown: str, source: str
) -> None:
    """Draw a value of each step; `shown` is its format, `source` where it is from."""
    band: Band = band_of(values, axis.starts)
    columns = {"x": axis.centres, **band._asdict()}
    data = ColumnDataSource({name: np.asarray(c, dtype=np.float32) for name, c in columns.items()})
    if len(axis.starts) < axis.num_steps:
        drawing.varea(x="x", y1="low", y2="high", source=data, fill_color=colour, fill_alpha=0.22)
    line = drawing.line(x="x", y="mean", source=data, line_color=colour, line_width=1.5)
    rows = [
        ("", f"step @x{{0}}: @mean{shown}, {source}"),
        ("", f"from @low{shown} to @high{shown}"),
    ]
    hover(drawing, [line], rows)
