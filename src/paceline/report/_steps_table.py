"""Steps of all ranks -> seconds by class, and the few numbers per step that figures show."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from paceline.run import UNKNOWN, Steps

# What a second of a rank may be spent on, in the order in which shares are stacked.
CLASSES = ("forward", "backward", "optimizer", "other", "data", "waiting", "wire")
COMPUTE = (0, 1)
DATA, WAITING, WIRE = 4, 5, 6


class StepsTable(NamedTuple):
    """What all ranks did in each step.

    Attributes:
        seconds: By class, rank and step. Shape `(len(CLASSES), num_ranks, num_steps)`.
        examples: Of all ranks, per step. Shape `(num_steps,)`.
        elements: Positions of the inputs of all ranks, per step; padding included.
        padding: Positions that hold padding, per step; NaN where no rank could tell.
        num_warmup: Steps at the begin that no share counts.
    """

    seconds: NDArray[np.float32]
    examples: NDArray[np.int64]
    elements: NDArray[np.int64]
    padding: NDArray[np.float64]
    num_warmup: int

    @property
    def num_ranks(self) -> int:
        return self.seconds.shape[1]

    @property
    def num_steps(self) -> int:
        return self.seconds.shape[2]

    @property
    def step_s(self) -> NDArray[np.float64]:
        """Seconds of each step, the mean over ranks. Shape `(num_steps,)`."""
        return self.seconds.sum(axis=0).mean(axis=0, dtype=np.float64)

    @property
    def steady_step_s(self) -> NDArray[np.float64]:
        """Seconds of each step after the warm-up."""
        return self.step_s[self.num_warmup :]

    @property
    def steady_shares(self) -> NDArray[np.float64]:
        """Share of each rank's time by class, after the warm-up. Shape `(classes, num_ranks)`."""
        total = self.seconds[..., self.num_warmup :].sum(axis=2, dtype=np.float64)
        return total / np.maximum(total.sum(axis=0), np.finfo(float).tiny)

    @property
    def imbalance(self) -> NDArray[np.float64]:
        """Compute of the slowest rank over the mean rank, per step; 1 is perfect."""
        load = self.seconds[list(COMPUTE)].sum(axis=0, dtype=np.float64)
        mean = load.mean(axis=0)
        return np.divide(load.max(axis=0), mean, out=np.ones_like(mean), where=mean > 0)

    @property
    def padding_share(self) -> NDArray[np.float64]:
        """Padding over all positions, per step; NaN where it is not known."""
        unknown = np.full(self.num_steps, np.nan)
        return np.divide(self.padding, self.elements, out=unknown, where=self.elements > 0)


def steps_table(steps: Sequence[Steps], *, num_warmup: int) -> StepsTable:
    """Sum up the steps of all ranks, which must have the same number of them.

    All ranks leave a collective together, so the rank that stays in it for the shortest time came
    last: its stay is the wire, what others stay longer is waiting. No clock is compared.
    """
    columns = Steps(*(np.stack(column) for column in zip(*steps, strict=True)))
    wire_s = np.broadcast_to(columns.collective_s.min(axis=0), columns.collective_s.shape)
    seconds = np.stack(
        [
            columns.forward_s,
            columns.backward_s,
            columns.optimizer_s,
            columns.between_s + columns.loss_s + columns.after_s,
            columns.data_s,
            columns.collective_s - wire_s,
            wire_s,
        ]
    )
    padding = np.where(columns.num_padding == UNKNOWN, np.nan, columns.num_padding)
    return StepsTable(
        seconds=seconds,
        examples=columns.num_examples.sum(axis=0),
        elements=columns.num_elements.sum(axis=0),
        padding=padding.sum(axis=0),
        num_warmup=min(num_warmup, seconds.shape[2] - 1),
    )
