"""How long steps took, before and after a plan was chosen."""

from collections import deque
from time import perf_counter

NUM_TIMES = 50


class StepTimes:
    """Seconds from the end of one step to the end of the next.

    Attributes:
        first_s: Of the steps that were measured.
        kept_s: Of the last 50 steps with the plan that is kept.
    """

    def __init__(self) -> None:
        self._last_s = perf_counter()
        self.restart()

    def restart(self) -> None:
        """Forget all times."""
        self.first_s: list[float] = []
        self.kept_s: deque[float] = deque(maxlen=NUM_TIMES)

    def end_step(self) -> float:
        """Return the time of the step that ends now."""
        before_s, self._last_s = self._last_s, perf_counter()
        return self._last_s - before_s
