"""A recorded run -> seconds by class, and the few numbers per step that figures show."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.run import Run

Array = NDArray[np.float64]
# What a second of a rank may be spent on, in the order in which shares are stacked, and the classes
# of the recorded grid that each one sums up.
PARTS = {
    "forward": ("forward", "loss"),
    "backward": ("backward",),
    "optimizer": ("optimizer",),
    "other": ("between", "after"),
    "data": ("data",),
    "waiting": ("waiting",),
    "wire": ("wire",),
}
CLASSES = tuple(PARTS)
FORWARD, BACKWARD, WAITING, WIRE = (
    CLASSES.index(name) for name in ("forward", "backward", "waiting", "wire")
)


class StepsTable(NamedTuple):
    """What all ranks did in each step after the warm-up.

    Attributes:
        seconds: By class, rank and step. Shape `(len(CLASSES), num_ranks, num_steps)`.
        step_s: Seconds of each step, the mean over ranks. Shape `(num_steps,)`, as the next three.
        examples: Of all ranks; NaN where unknown.
        elements: Positions of the inputs of all ranks, padding included; NaN where unknown.
        padding: Positions that hold padding; NaN where a rank could not tell.
        num_warm_up: Steps before, which are not in the table.
        is_joint: Whether the ranks meet in a collective.
    """

    seconds: Array
    step_s: Array
    examples: Array
    elements: Array
    padding: Array
    num_warm_up: int
    is_joint: bool

    @property
    def num_ranks(self) -> int:
        """Ranks."""
        return int(self.seconds.shape[1])

    @property
    def num_steps(self) -> int:
        """Steps after the warm-up."""
        return int(self.seconds.shape[2])

    @property
    def shares(self) -> Array:
        """Share of each rank's time by class. Shape `(len(CLASSES), num_ranks)`."""
        total_s = self.seconds.sum(axis=2)
        return np.asarray(total_s / np.maximum(total_s.sum(axis=0), np.finfo(float).tiny))

    @property
    def computing(self) -> float:
        """Share of the ranks' time in the passes and the update."""
        return float(self.shares[: CLASSES.index("other")].sum(axis=0).mean())

    @property
    def imbalance(self) -> Array:
        """Compute of the slowest rank over the mean rank, per step; 1 is perfect."""
        load_s = self.seconds[FORWARD] + self.seconds[BACKWARD]
        mean_s = load_s.mean(axis=0)
        even: Array = np.ones_like(mean_s)
        np.divide(load_s.max(axis=0), mean_s, out=even, where=mean_s > 0)
        return even

    @property
    def padding_share(self) -> Array:
        """Padding over all positions, per step; NaN where it is not known."""
        share = np.full(self.num_steps, np.nan)
        np.divide(self.padding, self.elements, out=share, where=self.elements > 0)
        return share


def steps_table(run: Run) -> StepsTable:
    """Sum up the steps of all ranks."""
    grid = run.grid()
    seconds = [sum(grid.seconds[name] for name in names) for names in PARTS.values()]
    return StepsTable(
        seconds=np.stack(seconds),
        step_s=grid.step_s,
        examples=grid.num_examples.sum(axis=0),
        elements=grid.num_elements.sum(axis=0),
        padding=grid.num_padding.sum(axis=0),
        num_warm_up=len(run.warm_up[0].begin_s),
        is_joint=grid.is_joint,
    )
