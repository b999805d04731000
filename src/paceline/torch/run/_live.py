"""The line that rank 0 keeps up to date while a script trains."""

import sys
from typing import NamedTuple, TextIO

import numpy as np

from paceline.run import UNKNOWN, Steps

# Normal quantile of a 90 % interval.
SPREAD = 1.645
TERMINAL_S, FILE_S = 1.0, 10.0
SECONDS_PER_H = 3600


class Progress(NamedTuple):
    """What the line says of the steps since the last one; all of it measured on rank 0.

    Attributes:
        num_steps: Optimizer steps so far.
        steps: Those since the last line.
        num_left: Batches left in this pass over the loader, if known.
        elapsed_s: Since the script was started.
    """

    num_steps: int
    steps: Steps
    num_left: int | None
    elapsed_s: float


class LiveLine:
    """Rewrites one line in a terminal; writes a new one every 10 s elsewhere.

    Args:
        stream: Where it goes; standard error if unset.
        dollars_per_h: What all ranks together cost; None if not known.
    """

    def __init__(self, stream: TextIO | None = None, dollars_per_h: float | None = None) -> None:
        self._dollars_per_h = dollars_per_h
        self._stream = stream or sys.stderr
        self._write = self._stream.write
        self._in_place = self._stream.isatty()
        self._is_shown = False
        self.every_s = TERMINAL_S if self._in_place else FILE_S

    def make_way_for(self, stream: TextIO) -> None:
        """Clear the line before anything is written to `stream`, which gets what it is given."""
        own = stream.write

        def write(text: str) -> int:
            self.clear()
            return own(text)

        if self._in_place:
            stream.write = write  # type: ignore[method-assign]

    def show(self, progress: Progress) -> None:
        """Write the line."""
        if len(progress.steps.begin_s):
            text = line_of(progress, self._dollars_per_h)
            self._write(f"\r\x1b[K{text}\r" if self._in_place else f"{text}\n")
            self._stream.flush()
            self._is_shown = True

    def clear(self) -> None:
        """Leave an empty line behind."""
        if self._in_place and self._is_shown:
            self._write("\r\x1b[K")
            self._stream.flush()
            self._is_shown = False


def line_of(progress: Progress, dollars_per_h: float | None = None) -> str:
    """Return the line."""
    steps = progress.steps
    seconds = _step_seconds(steps)
    idle = float((steps.data_s.astype(float) + steps.collective_s).sum() / max(seconds.sum(), 1e-9))
    parts = [
        f"paceline: step {progress.num_steps}",
        _per_step(float(seconds.mean())),
        *_rates(steps, float(seconds.sum())),
        f"{idle:.0%} of the time waiting",
        _time_left(progress, seconds),
    ]
    if dollars_per_h is not None:
        parts.append(f"${dollars_per_h * progress.elapsed_s / SECONDS_PER_H:,.2f} so far")
    return ", ".join(parts)


def _step_seconds(steps: Steps) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    parts = (column for name, column in steps._asdict().items() if name.endswith("_s"))
    _begin, _arrival, *durations = parts
    total: np.ndarray[tuple[int], np.dtype[np.float64]] = np.sum(durations, axis=0, dtype=float)
    return total


def _per_step(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms per step" if seconds < 1 else f"{seconds:.3g} s per step"


def _rates(steps: Steps, seconds: float) -> list[str]:
    rates = []
    if (steps.num_examples != UNKNOWN).all() and seconds:
        rate = float(steps.num_examples.sum()) / seconds
        rates.append(f"{rate:{',.0f' if rate >= 100 else '.3g'}} examples/s on rank 0")
    return rates


def _time_left(progress: Progress, seconds: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    per_step = float(progress.steps.num_microbatches.mean())
    if progress.num_left is None or not per_step:
        return f"{words(progress.elapsed_s)} so far"
    # Of the sum of the steps to come: each varies, and so does the mean they are told by.
    num_left, num_seen = progress.num_left / per_step, len(seconds)
    spread_s = SPREAD * float(seconds.std()) * (num_left + num_left**2 / num_seen) ** 0.5
    left_s = num_left * float(seconds.mean())
    least, most = words(max(left_s - spread_s, 0.0)), words(left_s + spread_s)
    return f"{least if least == most else f'{least} to {most}'} left in this epoch"


def words(seconds: float) -> str:
    """Return a length of time for a person.

    Examples:
        >>> words(7.4), words(75), words(7300)
        ('7 s', '1 min 15 s', '2 h 1 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
