"""How well the time of the run was known while it ran: forecasts, and the truth."""

from typing import Any, NamedTuple

import numpy as np
from bokeh.models import ColumnDataSource, Range1d, Span
from numpy.typing import NDArray

from paceline.predict.remaining import RemainingTime
from paceline.report.charts._axes import hover, new_figure
from paceline.report.charts._chart import Chart
from paceline.report.charts._colours import BLUE, VERMILION
from paceline.report.charts._step_axis import LABEL, StepAxis
from paceline.report.markup import time_text
from paceline.report.tables import bucket_starts

LEAST_STEPS = 20
# Each update looks at up to 256 steps, so longer runs are followed in groups of steps.
MAX_UPDATES = 2000
NUM_FORECASTS = 200
# What the first steps say is so wide that nothing else would be seen.
SKIPPED = 0.02
LEAST_REACH = 1.0  # %


class Forecasts(NamedTuple):
    """What the whole run was expected to take, at some of its steps; shape `(num_forecasts,)` each.

    Attributes:
        step: Steps that had ended.
        low_s: Low end of the range for the whole run.
        median_s: Its middle.
        high_s: High end.
    """

    step: NDArray[np.float64]
    low_s: NDArray[np.float64]
    median_s: NDArray[np.float64]
    high_s: NDArray[np.float64]

    def share_held(self, total_s: float) -> float:
        """Return the share of the ranges that hold `total_s`."""
        return float(((self.low_s <= total_s) & (total_s <= self.high_s)).mean())


def forecasts_of(step_s: NDArray[np.float64]) -> Forecasts:
    """Follow a run step by step; each forecast knows the steps before it alone.

    Examples:
        >>> found = forecasts_of(np.full(100, 0.5))
        >>> round(float(found.median_s[-1]), 6), found.share_held(50.0)
        (50.0, 1.0)
    """
    starts = bucket_starts(len(step_s), MAX_UPDATES)
    groups_s = np.add.reduceat(step_s, starts)
    left = RemainingTime(len(groups_s))
    first = max(int(SKIPPED * len(groups_s)), 5)
    wanted = set(np.linspace(first, len(groups_s) - 1, NUM_FORECASTS).astype(np.int64).tolist())
    rows = []
    for done, group_s in enumerate(groups_s.tolist(), start=1):
        left.update(group_s)
        if done in wanted:
            estimate = left.remaining()
            rows.append((starts[done], estimate.low, estimate.median, estimate.high))
    step, *ends_s = np.array(rows, dtype=np.float64).T
    spent_s = np.cumsum(step_s)[step.astype(np.int64) - 1]
    return Forecasts(step, *(end_s + spent_s for end_s in ends_s))


def forecast_chart(step_s: NDArray[np.float64], axis: StepAxis) -> Chart | None:
    """Draw forecasts of the whole run's time against what it took; None for very short runs."""
    if len(step_s) < LEAST_STEPS:
        return None
    found, total_s = forecasts_of(step_s), float(step_s.sum())
    return Chart(
        name="forecast",
        title="Prediction",
        sources=["predicted", "measured"],
        caption=(
            "The time of the whole run, predicted after each step from those before alone, against "
            f"the {time_text(total_s)} that it took, measured. "
            f"{found.share_held(total_s):.0%} of {len(found.step)} ranges hold that."
        ),
        figures=[_figure(found, total_s, axis)],
        legend=[("predicted, with its range", BLUE), ("measured", VERMILION)],
        zoom="steps",
        is_half=True,
    )


def _figure(found: Forecasts, total_s: float, axis: StepAxis) -> Any:
    error = {
        name: 100 * (ends_s / total_s - 1)
        for name, ends_s in zip(("low", "middle", "high"), found[1:], strict=True)
    }
    # A few wide ranges at the begin would flatten all others.
    reach = max(float(np.quantile(np.abs([error["low"], error["high"]]), 0.95)), LEAST_REACH)
    drawing = new_figure(
        "forecast",
        x_range=axis.range,
        y_range=Range1d(-1.2 * reach, 1.2 * reach),
        x_label=LABEL,
        y_label="error in %",
        zooms=True,
    )
    data = ColumnDataSource({"x": found.step, **error})
    drawing.varea(x="x", y1="low", y2="high", source=data, fill_color=BLUE, fill_alpha=0.22)
    line = drawing.line(x="x", y="middle", source=data, line_color=BLUE, line_width=1.5)
    truth = {"line_color": VERMILION, "line_width": 1.5, "line_dash": "dashed"}
    drawing.add_layout(Span(location=0, dimension="width", **truth))
    words = "@middle{0.0}%, from @low{0.0}% to @high{0.0}%, predicted"
    hover(drawing, [line], [("", f"after step @x{{0}}: {words}")])
    return drawing
