"""Steps of both kinds, timed as they come; decides whether what was applied is faster."""

import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

TRIAL_STEPS = 16
# Neighbours in time differ least, so the ways take turns: A B B A.
TURNS = (True, False, False, True)
LEAST_GAIN = 1.02


def is_turn(step: int) -> bool:
    """Return whether the plan has the turn in this step of the trial; after it, always."""
    return step >= TRIAL_STEPS or TURNS[step % len(TURNS)]


class Trial:
    """Seconds of steps, over what they are expected to take as they were dealt.

    That takes out which examples happened to be drawn.

    Args:
        plain: The same of steps before the trial.
        clock: Seconds that only go up.
    """

    def __init__(self, plain: list[float], clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._ratios: dict[bool, list[float]] = {False: plain, True: []}
        self._seconds: list[float] = []
        self._begin_s: float | None = None
        self.num_steps = 0

    def end_step(self, plain_s: float, *, is_divided: bool) -> None:
        """A step has ended, for which the plain way is expected to take `plain_s`."""
        now_s = self._clock()
        if self._begin_s is not None and np.isfinite(plain_s):
            self._ratios[is_divided].append((now_s - self._begin_s) / plain_s)
            self.num_steps += 1
        self._begin_s = now_s

    @property
    def gain(self) -> float:
        """Times that the plan is faster, measured; of medians."""
        if not self._ratios[True] or not self._ratios[False]:
            return float("nan")
        return float(np.median(self._ratios[False]) / np.median(self._ratios[True]))

    @property
    def is_won(self) -> bool:
        """Whether the plan is faster, and not only by the noise of single steps."""
        if not np.isfinite(self.gain):
            return False
        plain, divided = (_noise_of_median(np.log(self._ratios[way])) for way in (False, True))
        is_clear = float(np.log(self.gain)) > float(np.hypot(plain, divided))
        return is_clear and self.gain >= LEAST_GAIN

    @property
    def counts(self) -> tuple[int, int]:
        """Steps that were plain, and divided."""
        return len(self._ratios[False]), len(self._ratios[True])


def _noise_of_median(values: NDArray[np.float64]) -> float:
    """Return the standard error of the median, from the median deviation."""
    deviation = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return 1.2533 * deviation / float(np.sqrt(len(values)))
