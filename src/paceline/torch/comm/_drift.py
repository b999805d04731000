"""How long steps take, and whether that differs from when their plan was chosen."""

from collections import deque
from time import perf_counter

import numpy as np

WINDOW = 50
DRIFT = 1.25
NUM_TIMES = 50


class StepTimes:
    """Seconds from the end of one step to the end of the next.

    Attributes:
        first_s: Of the steps that were measured.
        kept_s: Of the last 50 steps with the plan that is kept.
        monitor: Watches those for drift.
    """

    def __init__(self) -> None:
        self.monitor = DriftMonitor()
        self._last_s = perf_counter()
        self.restart()

    def restart(self) -> None:
        """Forget all times; the windows of the monitor stay as long as they have become."""
        self.first_s: list[float] = []
        self.kept_s: deque[float] = deque(maxlen=NUM_TIMES)

    def end_step(self) -> float:
        """Return the time of the step that ends now."""
        before_s, self._last_s = self._last_s, perf_counter()
        return self._last_s - before_s


class DriftMonitor:
    """Compares the median step of each 50 with that of the first 50.

    Readiness and bandwidth are what a plan was made from; where one of them drifts and
    matters, the step time does. Each time that it has drifted, the windows double, so
    a job whose steps never settle is not always measuring.
    """

    def __init__(self) -> None:
        self._window = WINDOW
        self.restart()

    def restart(self) -> None:
        """Take the next steps as what is to be expected."""
        self._times_s: list[float] = []
        self._expected_s: float | None = None

    def note(self, step_s: float) -> float | None:
        """Take the time of one step; return the median of a window when it is full."""
        self._times_s.append(step_s)
        if len(self._times_s) < self._window:
            return None
        median_s, self._times_s = float(np.median(self._times_s)), []
        return median_s

    def has_drifted(self, median_s: float) -> bool:
        """Judge a full window by a median that is the same on all ranks."""
        if self._expected_s is None:
            self._expected_s = median_s
            return False
        drifted = not 1 / DRIFT <= median_s / self._expected_s <= DRIFT
        if drifted:
            self._window *= 2
            self.restart()
        return drifted
