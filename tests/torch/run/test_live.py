"""The line that rank 0 shows while a script trains."""

import io
from typing import Any

import numpy as np
import pytest

from paceline.run import UNKNOWN, Steps
from paceline.torch.run._live import LiveLine, Progress, line_of


def steps(num_steps: int, **columns: Any) -> Steps:
    """Return steps of 50 ms forward and 50 ms backward, unless said otherwise."""
    zero = {name: np.zeros(num_steps) for name in Steps._fields}
    given = {name: np.full(num_steps, value) for name, value in columns.items()}
    return Steps(**{**zero, "forward_s": zero["forward_s"] + 0.05,
                    "backward_s": zero["forward_s"] + 0.05,
                    "num_microbatches": np.ones(num_steps, dtype=np.int32), **given})  # fmt: skip


def progress(num_left: int | None = None, **columns: Any) -> Progress:
    return Progress(40, steps(20, **columns), num_left, elapsed_s=75.2)


@pytest.mark.parametrize(
    ("now", "line"),
    [
        (
            progress(num_examples=8),
            "paceline: step 40, 100 ms per step, 80 examples/s on rank 0, 0% of the time waiting, "
            "1 min 15 s so far",
        ),
        (
            progress(num_left=600, num_examples=UNKNOWN, num_microbatches=2, data_s=0.1),
            "paceline: step 40, 200 ms per step, 50% of the time waiting, "
            "1 min 0 s left in this epoch",
        ),
        (
            progress(num_left=30, num_examples=8, collective_s=[0.0, 0.2] * 10),
            "paceline: step 40, 200 ms per step, 40 examples/s on rank 0, 50% of the time waiting, "
            "5 s to 7 s left in this epoch",
        ),
    ],
)
def test_the_line_says_pace_waiting_and_what_is_left(now: Progress, line: str) -> None:
    assert line_of(now) == line


def test_the_cost_so_far_is_told_where_the_price_is_known() -> None:
    line = line_of(progress(num_examples=8), dollars_per_h=2 * 4.5)
    assert line == f"{line_of(progress(num_examples=8))}, $0.19 so far"


@pytest.mark.parametrize(
    ("is_terminal", "every_s", "begin", "end"),
    [(True, 1.0, "\r\x1b[K", "\r\r\x1b[Kepoch 1\n"), (False, 10.0, "", "\nepoch 1\n")],
)
def test_a_terminal_shows_one_line_and_a_file_keeps_all(
    is_terminal: bool, every_s: float, begin: str, end: str
) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: is_terminal  # type: ignore[method-assign]
    live = LiveLine(stream)
    now = progress(num_examples=8)
    live.show(Progress(1, steps(0), None, 0.0))  # Nothing to say yet.
    live.make_way_for(stream)
    live.show(now)
    stream.write("epoch 1\n")
    live.clear()
    assert (live.every_s, stream.getvalue()) == (every_s, f"{begin}{line_of(now)}{end}")
