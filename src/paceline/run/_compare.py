"""Two runs held against each other: faster or slower beyond noise, and by what."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from paceline.run.causes import CLASSES, Grid
from paceline.timeline import interval_of, resampled_sums

Array = NDArray[np.float64]
# Two runs of the same thing differ by this much from one start to the next.
LEAST_CHANGE = 0.01
SAME_BATCH = 0.01
MEANING = {
    "data": "waiting for the loader",
    "between": "what the loop does between steps",
    "forward": "the forward pass",
    "loss": "the loss",
    "backward": "the backward pass",
    "waiting": "waiting for the last rank",
    "wire": "exposed communication",
    "after": "what follows the backward pass",
    "optimizer": "the update",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How a second run differs from a first one; everything is measured.

    Attributes:
        unit: What is compared: seconds per "step", or per "example" where the runs have global
            batches of different size.
        before_s: Mean seconds per unit of the first run, after warm-up.
        after_s: The same of the second run.
        change: `after_s / before_s - 1`: below 0, the second run is faster.
        low: Low end of the 95 % interval of `change`, from resampled stretches of steps that are
            paired by their number.
        high: High end.
        by_class: Seconds per unit that the second run spends more in each class of rank time;
            they add up to `after_s - before_s`.
    """

    unit: Literal["step", "example"]
    before_s: float
    after_s: float
    change: float
    low: float
    high: float
    by_class: dict[str, float]

    @property
    def outcome(self) -> Literal["faster", "slower", "same"]:
        """Whether the second run is faster or slower beyond noise, or neither."""
        if self.high < -LEAST_CHANGE:
            return "faster"
        return "slower" if self.low > LEAST_CHANGE else "same"

    @property
    def cause(self) -> str | None:
        """The class that accounts for most of the difference; None if there is none."""
        if self.outcome == "same":
            return None
        sign = np.sign(self.change)
        return max(self.by_class, key=lambda name: sign * self.by_class[name])

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, safe to save as JSON."""
        return {
            "source": "measured",
            "outcome": self.outcome,
            "cause": self.cause,
            "unit": self.unit,
            "before_s": self.before_s,
            "after_s": self.after_s,
            "change": self.change,
            "interval": [self.low, self.high],
            "by_class_s": self.by_class,
        }

    def __str__(self) -> str:
        interval = f"95 % interval {self.low:+.1%} to {self.high:+.1%}"
        times = f"{1e3 * self.before_s:.4g} ms to {1e3 * self.after_s:.4g} ms per {self.unit}"
        if self.outcome == "same":
            return f"no difference beyond noise: {times} ({self.change:+.1%}, {interval}; measured)"
        rows = [f"{self.outcome}: {times} ({self.change:+.1%}, {interval}; measured)"]
        largest = sorted(self.by_class, key=lambda name: -abs(self.by_class[name]))[:3]
        whole_s = self.after_s - self.before_s
        for name in largest:
            more_s = self.by_class[name]
            rows.append(
                f"  {1e3 * more_s:+9.3f} ms ({more_s / whole_s:4.0%} of it) in {MEANING[name]}"
            )
        return "\n".join(rows)


def compare_grids(before: Grid, after: Grid) -> Comparison:
    """Compare rank time per step, or per example if the global batches differ in size."""
    unit, per_before, per_after = _unit(before, after)
    num = min(before.num_steps, after.num_steps)
    first = [before.step_s[:num], per_before[:num]]
    second = [after.step_s[:num], per_after[:num]]
    sums = resampled_sums(*first, *second)
    ratios = (sums[2] / sums[3]) / (sums[0] / sums[1]) - 1
    low, high = interval_of(ratios)
    before_s, after_s = (float(steps.sum() / per.sum()) for steps, per in (first, second))
    more = _seconds_per_unit(after, per_after, num)
    less = _seconds_per_unit(before, per_before, num)
    return Comparison(
        unit=unit,
        before_s=before_s,
        after_s=after_s,
        change=after_s / before_s - 1,
        low=low,
        high=high,
        by_class={name: more[name] - less[name] for name in CLASSES},
    )


def _unit(before: Grid, after: Grid) -> tuple[Literal["step", "example"], Array, Array]:
    """Return the unit of comparison, and how many of it each step holds."""
    counts = [grid.num_examples.sum(axis=0) for grid in (before, after)]
    known = all(np.isfinite(count).all() and count.sum() > 0 for count in counts)
    if known and abs(counts[0].mean() / counts[1].mean() - 1) > SAME_BATCH:
        return "example", counts[0], counts[1]
    return "step", np.ones(before.num_steps), np.ones(after.num_steps)


def _seconds_per_unit(grid: Grid, per_step: Array, num: int) -> dict[str, float]:
    units = float(per_step[:num].sum()) * grid.num_ranks
    return {name: float(spent[:, :num].sum()) / units for name, spent in grid.seconds.items()}
