"""Run the measured steps again with one thing changed: what a change would have gained."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from paceline.run.causes._grid import Grid

Array = NDArray[np.float64]


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
