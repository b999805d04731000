"""Write what a rank recorded: steps in chunks, and the spans of a few of them."""

from typing import Any

import numpy as np

from paceline.run import RunFolder, Steps
from paceline.timeline import Timeline

STEPS_PER_CHUNK = 1000
# Steps whose spans are kept: the one in detail and ten more, after the one whose operations are
# counted.
TRACED = range(2, 13)


class Chunks:
    """Steps of one rank on their way to its folder; a chunk that is not full is written as it is.

    Args:
        folder: The run's folder.
        rank: Whose steps.
    """

    def __init__(self, folder: RunFolder, rank: int) -> None:
        self._folder, self._rank = folder, rank
        self._number, self._traced = 0, False
        self._steps: list[Steps] = []
        self._spans: list[Timeline] = []

    def add(self, steps: Steps, spans: Timeline) -> None:
        """Take the steps that follow the last ones."""
        self._steps.append(steps)
        in_trace = (spans.step >= TRACED.start) & (spans.step < TRACED.stop)
        if in_trace.any():
            self._spans.append(spans.select(in_trace))
            self._traced = False

    @property
    def held(self) -> Steps:
        """The steps that are in no full chunk yet: early in a run, all of them."""
        return Steps(*map(np.concatenate, zip(*self._steps, strict=True)))

    @property
    def is_full(self) -> bool:
        """Whether a chunk could be closed."""
        return sum(len(steps.begin_s) for steps in self._steps) >= STEPS_PER_CHUNK

    def write(self) -> None:
        """Write what was added; each file is replaced as a whole."""
        if not self._steps:
            return
        steps = self.held
        num_full, rest = divmod(len(steps.begin_s), STEPS_PER_CHUNK)
        for place in range(num_full + bool(rest)):
            chunk = _chunk_of(steps, place)
            self._folder.write_steps(self._rank, self._number + place, chunk)
        left = _chunk_of(steps, num_full)
        self._number, self._steps = self._number + num_full, [left]
        if self._spans and not self._traced:
            self._folder.write_trace(self._rank, Timeline.merge(self._spans))
            self._traced = True


def _chunk_of(steps: Steps, place: int) -> Steps:
    rows = slice(place * STEPS_PER_CHUNK, (place + 1) * STEPS_PER_CHUNK)
    columns: Any = (column[rows] for column in steps)
    return Steps(*columns)
