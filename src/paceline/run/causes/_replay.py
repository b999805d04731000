"""Run the measured steps again with one thing changed: what a change would have gained."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.run.causes._grid import Grid

Array = NDArray[np.float64]
NUM_RESAMPLES, NUM_BLOCKS, SEED = 400, 50, 20261121
# Ends of the interval that holds 95 % of the resamples.
ENDS = (0.025, 0.975)


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """The steps as they were.

    Attributes:
        local_s: Seconds of each rank from one collective to its arrival at the next, shape
            `(num_ranks, num_steps)`.
        wire_s: Seconds of the collective, shape `(num_steps,)`.
        is_joint: Whether ranks wait for each other.
    """

    local_s: Array
    wire_s: Array
    is_joint: bool

    @classmethod
    def of(cls, grid: Grid) -> "Replay":
        """Return the measured steps."""
        wire_s = grid.wire_s if grid.is_joint else grid.seconds["wire"].mean(axis=0)
        return cls(grid.local_s, wire_s, grid.is_joint)

    def steps_s(self, *, without_s: Array | float = 0.0, wire_s: Array | None = None) -> Array:
        """Simulate the steps.

        Args:
            without_s: Seconds that fall away, of each rank and step.
            wire_s: Seconds of the collective instead of the measured ones.

        Returns:
            Seconds of each step, shape `(num_steps,)`.
        """
        local_s = np.maximum(self.local_s - without_s, 0.0)
        slowest_s = local_s.max(axis=0) if self.is_joint else local_s.mean(axis=0)
        return np.asarray(slowest_s + (self.wire_s if wire_s is None else wire_s))


def gain_interval(before_s: Array, after_s: Array) -> tuple[float, float]:
    """Return the ends of the 95 % interval of the share of time that a change saves.

    Resamples stretches of consecutive steps, since neighbours resemble each other, with a fixed
    seed. Both arrays hold the seconds of the same steps, shape `(num_steps,)`.

    Examples:
        >>> low, high = gain_interval(np.full(100, 2.0), np.full(100, 1.5))
        >>> round(low, 6), round(high, 6)
        (0.25, 0.25)
    """
    before, after = resampled_sums(before_s, after_s)
    return interval_of(1 - after / before)


def interval_of(resampled: Array) -> tuple[float, float]:
    """Return the ends of the interval that holds 95 % of the resampled values."""
    low, high = np.quantile(resampled, ENDS).tolist()
    return low, high


def resampled_sums(*columns_s: Array) -> list[Array]:
    """Return sums of resampled stretches of steps, the same stretches for all columns.

    Each result has shape `(num_resamples,)`.
    """
    num_steps = len(columns_s[0])
    starts = np.unique(np.linspace(0, num_steps, min(num_steps, NUM_BLOCKS) + 1)[:-1].astype(int))
    picks = np.random.default_rng(SEED).integers(len(starts), size=(NUM_RESAMPLES, len(starts)))
    return [np.add.reduceat(column, starts)[picks].sum(axis=1) for column in columns_s]
