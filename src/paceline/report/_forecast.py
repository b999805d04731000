"""How well the time of the run was known while it ran: forecasts, and the truth."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.predict.remaining import RemainingTime
from paceline.report._axes import hover, new_figure, range_from_zero
from paceline.report._buckets import bucket_starts
from paceline.report._chart import Chart
from paceline.report._colours import BLUE, VERMILION
from paceline.report._step_axis import LABEL, StepAxis
from paceline.report._units import number_text, time_text, unit_for

LEAST_STEPS = 20
# Each update looks at up to 256 steps, so longer runs are followed in groups of steps.
MAX_UPDATES = 2000
NUM_FORECASTS = 200
# What the first steps say is so wide that nothing else would be seen.
SKIPPED = 0.02


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
    unit = unit_for(total_s)
    top = max(total_s, float(np.quantile(found.high_s, 0.98)))
    drawing = new_figure(
        "forecast",
        x_range=axis.range,
        y_range=range_from_zero(top * unit.per_s),
        x_label=LABEL,
        y_label=f"whole run in {unit.name}",
        zooms=True,
    )
    columns = {"x": found.step, "low": found.low_s, "middle": found.median_s, "high": found.high_s}
    scaled = {name: c * (1 if name == "x" else unit.per_s) for name, c in columns.items()}
    drawing.varea(x="x", y1="low", y2="high", source=scaled, fill_color=BLUE, fill_alpha=0.22)
    line = drawing.line(x="x", y="middle", source=scaled, line_color=BLUE, line_width=1.5)
    whole = [total_s * unit.per_s] * 2
    drawing.line([0, len(step_s)], whole, line_color=VERMILION, line_width=1.5, line_dash="dashed")
    words = f"@middle{{0.00}} {unit.name}, from @low{{0.00}} to @high{{0.00}}, predicted"
    hover(drawing, [line], [("", f"after step @x{{0}}: {words}")])
    return Chart(
        name="forecast",
        title="Predicted against measured",
        sources=["predicted", "measured"],
        caption=(
            "The time of all steps, as it is predicted after each of them from those before alone. "
            f"They took {time_text(total_s)}; {found.share_held(total_s):.0%} of the "
            f"{number_text(len(found.step))} ranges hold that."
        ),
        figures=[drawing],
        legend=[("predicted, with its range", BLUE), ("measured", VERMILION)],
        zoom="steps",
        is_half=True,
    )
