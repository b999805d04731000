"""One line in the terminal that says how long a training loop still takes."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from paceline.predict.remaining._time import RemainingTime


class LiveLine:
    """Times the steps of any loop and keeps one line up to date.

    Call it at the end of each step; frameworks that take callbacks may be given the object itself,
    arguments are ignored. In a terminal the line is rewritten in place, elsewhere (a log file) a
    new one is written each time. On a GPU a step ends for the host before it ends on the device;
    the pace over many steps is right all the same, as the host cannot run ahead for long.

    Args:
        remaining: Holds the steps and the price.
        every_s: Seconds between two lines, at least.
        stream: Where the line goes; standard error if unset.
        clock: Seconds that only go up; for tests.

    Examples:
        >>> ticks = iter(range(100))
        >>> line = LiveLine(RemainingTime(8), stream=sys.stdout, clock=lambda: float(next(ticks)))
        >>> for _ in range(8):
        ...     line()
        step 1/8, 0.6 s to 13 s left
        step 6/8, 2.0 s left
        step 8/8, 0.0 s left
    """

    def __init__(
        self,
        remaining: RemainingTime,
        *,
        every_s: float = 5.0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        if not every_s >= 0:
            raise ValueError(f"every_s must not be negative, got {every_s}")
        self.remaining = remaining
        self._every_s = every_s
        self._stream = stream or sys.stderr
        self._clock = clock
        self._shown_s: float | None = None
        self._last_s = clock()

    def __call__(self, *_: object, **__: object) -> None:
        """One more step has ended."""
        now_s = self._clock()
        self.remaining.update(now_s - self._last_s)
        self._last_s = now_s
        due = self._shown_s is None or now_s - self._shown_s >= self._every_s
        if due or self.remaining.is_done:
            self._shown_s = now_s
            self._show()

    def pause(self) -> None:
        """Leave out the time since the last step: call it after validation or a checkpoint."""
        self._last_s = self._clock()

    def state_dict(self) -> dict[str, Any]:
        """Plain values, safe to save as JSON."""
        return self.remaining.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; the time between is not counted."""
        self.remaining.load_state_dict(state)
        self._last_s = self._clock()

    def _show(self) -> None:
        line = self.remaining.line()
        if self._stream.isatty():
            self._stream.write(f"\r\x1b[K{line}" + ("\n" if self.remaining.is_done else ""))
        else:
            self._stream.write(line + "\n")
        self._stream.flush()
