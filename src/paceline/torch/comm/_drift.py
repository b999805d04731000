"""Notice when steps take another time than when their plan was chosen."""

import numpy as np

WINDOW = 50
DRIFT = 1.25


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
