"""Turn the spans of whole steps, and what was counted in each, into `Steps`."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.run import UNKNOWN, Steps
from paceline.timeline import Timeline

# As `paceline.torch.measure` names its spans, and the column that each is summed in.
COLUMN_OF = {
    "between steps": "between_s",
    "forward": "forward_s",
    "loss": "loss_s",
    "backward": "backward_s",
    "all-reduce": "collective_s",
    "after backward": "after_s",
    "optimizer": "optimizer_s",
}


class Counted(NamedTuple):
    """What was counted in one step, or in the inputs of one forward pass.

    Attributes:
        waited_s: Seconds in which the loop waited for its loader.
        num_microbatches: Forward passes.
        num_examples: Of the inputs, like what follows; `UNKNOWN` if they do not tell.
        num_elements: Positions, padding included.
        num_padding: Those that hold padding.
    """

    waited_s: float = 0.0
    num_microbatches: int = 0
    num_examples: int = 0
    num_elements: int = 0
    num_padding: int = 0

    def plus(self, other: "Counted") -> "Counted":
        """Add up; what one of the two does not know, the sum does not."""
        waited_s = self.waited_s + other.waited_s
        pairs = zip(self[1:], other[1:], strict=True)
        return Counted(waited_s, *(UNKNOWN if UNKNOWN in pair else sum(pair) for pair in pairs))


def steps_of(spans: Timeline, counted: list[Counted], first_step: int) -> Steps:
    """Sum up whole steps.

    Args:
        spans: Of one rank, in order; each step has at least one.
        counted: One for each step.
        first_step: Number of the step that `counted` begins with.
    """
    num_steps, num_names = len(counted), len(spans.names)
    row = spans.step - first_step
    cell = row * num_names + spans.name
    seconds = np.bincount(cell, spans.duration_s, num_steps * num_names)
    columns = dict(zip(spans.names, seconds.reshape(num_steps, num_names).T, strict=True))
    waited_s, *whole = np.array(counted, dtype=np.float64).reshape(num_steps, -1).T
    # On a GPU the host may wait while the device still has work: the device did not wait then.
    data_s = np.minimum(waited_s, columns["between steps"])
    columns["between steps"] = columns["between steps"] - data_s
    times = {COLUMN_OF[name]: column.astype(np.float32) for name, column in columns.items()}
    return Steps(
        begin_s=spans.start_s[np.searchsorted(row, np.arange(num_steps))],
        arrival_s=_arrivals(spans, row, num_steps),
        data_s=data_s.astype(np.float32),
        **times,
        num_microbatches=whole[0].astype(np.int32),
        num_examples=whole[1].astype(np.int64),
        num_elements=whole[2].astype(np.int64),
        num_padding=whole[3].astype(np.int64),
    )


def _arrivals(spans: Timeline, row: NDArray[np.int32], num_steps: int) -> NDArray[np.float64]:
    """Return when the last collective of each step began; spans are in order, so the last wins."""
    arrival_s = np.full(num_steps, np.nan)
    joint = np.flatnonzero(spans.collective >= 0)
    arrival_s[row[joint]] = spans.start_s[joint]
    return arrival_s
