"""How long the steps that are left will take, from the steps that have been."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from paceline._files import shown
from paceline.cost import check_number, checked_column
from paceline.errors import StateMismatchError
from paceline.predict._conformal import Estimate

WINDOW = 256
WARMUP_STEPS = 3
RECENT = 8  # steps that must agree on a new pace before the old one is forgotten
LEAST_CHANGE = 0.04
CHANGE_DEVIATIONS = 5.0
HICCUP = 6.0  # robust deviations above the median, of at least
LEAST_SCATTER = 0.02  # of it
HICCUP_FREE_STEPS = 10
FLOOR = 0.01  # relative; a pace is never known better than that
DEVIATIONS = 1.8  # 90 % of a normal spread, and a little for its heavy tail


class RemainingTime:
    """Predicts the seconds that are left, ever more closely as steps end.

    The pace is the mean of recent steps, with hiccups counted at a cautious rate. The first three
    steps (allocation, compilation, cold caches) count only while there is nothing else, and when
    the last eight steps differ clearly from those before, the older ones are forgotten. The range
    covers the uncertainty of the pace, allowing for steps that are alike their neighbours, and the
    scatter of the steps to come. It does not cover what has not shown itself yet: a validation
    pass, a checkpoint, a slower second epoch.

    Args:
        num_steps: Steps of the whole run.
        price_per_hour: What an hour of the machines costs, if it is to be shown.

    Raises:
        ValueError: If `num_steps` is below 1 or the price is negative or not finite.

    Examples:
        >>> left = RemainingTime(1000, price_per_hour=2.0)
        >>> for _ in range(100):
        ...     left.update(0.05)
        >>> left.line()
        'step 100/1000, 45 s left, $0.03'
    """

    def __init__(self, num_steps: int, *, price_per_hour: float | None = None) -> None:
        if num_steps < 1:
            raise ValueError(f"num_steps must be at least 1, got {num_steps}")
        if price_per_hour is not None and not (
            math.isfinite(price_per_hour) and price_per_hour >= 0
        ):
            raise ValueError(
                f"price_per_hour must be finite and not negative, got {price_per_hour}; "
                "leave it unset where there is no price"
            )
        self._num_steps = num_steps
        self._price_per_hour = price_per_hour
        self._done = 0
        self._spent_s = 0.0
        self._recent_s: list[float] = []

    @property
    def num_done(self) -> int:
        """Steps that have ended."""
        return self._done

    @property
    def is_done(self) -> bool:
        """Whether no step is left."""
        return self._done >= self._num_steps

    def update(self, step_s: float) -> None:
        """Tell how long one more step took, waiting for data included.

        Raises:
            ValueError: If the time is negative or not finite.
        """
        if not (math.isfinite(step_s) and step_s >= 0):
            raise ValueError(f"step_s must be finite and not negative, got {step_s}")
        self._done += 1
        self._spent_s += step_s
        if self._done == WARMUP_STEPS + 1:
            self._recent_s = []
        self._recent_s = [*self._recent_s, float(step_s)][-WINDOW:]
        if _has_changed(np.array(self._recent_s)):
            self._recent_s = self._recent_s[-RECENT:]

    def remaining(self, num_steps: int | None = None) -> Estimate:
        """Seconds that the next `num_steps` steps take; unset, all that are left.

        Raises:
            ValueError: If no step has ended yet, or `num_steps` is negative.
        """
        ahead = max(self._num_steps - self._done, 0) if num_steps is None else num_steps
        if ahead < 0:
            raise ValueError(f"num_steps must not be negative, got {ahead}")
        if not self._done:
            raise ValueError("no step has ended yet; call update() with the time of the first")
        if not ahead:
            return Estimate(0.0, 0.0, 0.0)
        ordinary, excess = _split(np.array(self._recent_s))
        # One hiccup in ten steps may be the only one: its rate is shrunk towards none.
        seen = len(self._recent_s) + HICCUP_FREE_STEPS
        pace = float(ordinary.mean()) + float(excess.sum()) / seen
        total = ahead * pace
        hiccups = math.sqrt(float(excess @ excess) * ahead / seen * (ahead / seen + 1))
        scatter = math.hypot(_deviation(ordinary, ahead), hiccups)
        error = ahead * pace * FLOOR + DEVIATIONS * scatter
        return Estimate(total, max(total - error, 0.0), total + error)

    def line(self) -> str:
        """Where the run stands, for a terminal; the money is that of the whole run."""
        text = f"step {self._done}/{self._num_steps}"
        if not self._done:
            return text
        left = self.remaining()
        low, high = shown_time(left.low), shown_time(left.high)
        text += f", {low} left" if low == high else f", {low} to {high} left"
        if self._price_per_hour is None:
            return text
        return f"{text}, ${(self._spent_s + left.median) / 3600 * self._price_per_hour:.2f}"

    def state_dict(self) -> dict[str, Any]:
        """Plain values, safe to save as JSON."""
        return {
            "version": 1,
            "num_steps": self._num_steps,
            "done": self._done,
            "spent_s": self._spent_s,
            "recent_s": list(self._recent_s),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`, which is left unchanged.

        The pace of the machine before counts until the steps here differ from it.

        Raises:
            StateMismatchError: If it was saved for another number of steps, or is damaged.
        """
        if not isinstance(state, Mapping):
            raise StateMismatchError(f"this is no state: {shown(state)}")
        if state.get("version") != 1 or state.get("num_steps") != self._num_steps:
            raise StateMismatchError(
                f"the state is for {shown(state.get('num_steps'))} steps, this run has "
                f"{self._num_steps}; make RemainingTime with the same number"
            )
        try:
            check_number("done", state["done"])
            check_number("spent_s", state["spent_s"])
            recent_s = checked_column("recent_s", state["recent_s"]).tolist()
            if bool(state["done"]) != bool(recent_s):
                raise ValueError(f"{shown(state['done'])} steps with {len(recent_s)} times")
        except (KeyError, ValueError) as error:
            raise StateMismatchError(f"the state is damaged: {shown(error)}") from None
        self._done, self._spent_s = int(state["done"]), float(state["spent_s"])
        self._recent_s = recent_s[-WINDOW:]


def shown_time(seconds: float) -> str:
    """Seconds as people say them, to about two digits."""
    for limit, size, unit in ((120.0, 1.0, "s"), (7200.0, 60.0, "min"), (172800.0, 3600.0, "h")):
        if seconds < limit:
            value = seconds / size
            return f"{value:.0f} {unit}" if value >= 9.95 else f"{value:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def _split(steps: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The ordinary steps, and by how much each of the others (hiccups) exceeds them."""
    middle = float(np.median(steps))
    limit = middle + HICCUP * max(_robust_deviation(steps), LEAST_SCATTER * middle)
    return steps[steps <= limit], steps[steps > limit] - middle


def _robust_deviation(steps: NDArray[np.float64]) -> float:
    """1.4826 times the median absolute deviation: the deviation, if the steps were normal."""
    return 1.4826 * float(np.median(np.abs(steps - np.median(steps))))


def _deviation(steps: NDArray[np.float64], ahead: int) -> float:
    """Standard deviation of the error of `ahead` times the pace."""
    count = steps.size
    if count < 2:
        return ahead * float(steps[0]) / 2
    scatter = max(
        _robust_deviation(steps), float(np.quantile(np.abs(steps - np.median(steps)), 0.7))
    )
    centred = np.clip(steps - np.median(steps), -3 * scatter, 3 * scatter)
    power = float(centred @ centred)
    alike = float(centred[1:] @ centred[:-1]) / power if power else 0.0
    alike = min(max(alike, 0.0), 0.9)
    longer = (1 + alike) / (1 - alike)
    # Few steps say little about their own scatter.
    small = 1 + 2 / (count - 1)
    return small * scatter * math.sqrt(longer * (ahead**2 / count + ahead))


def _has_changed(steps: NDArray[np.float64]) -> bool:
    """Whether the last steps, taken together, keep another pace than those before."""
    if steps.size < 2 * RECENT:
        return False
    before, after = steps[:-RECENT], steps[-RECENT:]
    old, new = float(np.median(before)), float(np.median(after))
    scatter = max(_robust_deviation(before), _robust_deviation(after))
    error = 1.25 * scatter * math.sqrt(1 / RECENT + 1 / before.size)
    if abs(new - old) <= max(CHANGE_DEVIATIONS * error, LEAST_CHANGE * old):
        return False
    middle = (old + new) / 2
    # Every one of them: a step of the old pace among those kept would spoil the new one.
    return bool((after > middle).all() if new > old else (after < middle).all())
