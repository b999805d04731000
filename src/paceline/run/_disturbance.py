"""By how much passes took longer than their work says: on one rank, and on all at once."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Disturbance:
    """Logarithms of measured over expected seconds, divided into three parts that add up.

    What disturbs all ranks of a step at once, such as another program on their machine, makes no
    rank wait. Drawn for each rank by itself it would. So it is told apart, as in an analysis of
    variance with random effects [1].

    Attributes:
        pace: What lasts, of each rank. Shape `(num_ranks, 1)`.
        shared: What a step has on all ranks. Shape `(num_steps,)`.
        own: What one rank has in one step. Shape `(num_ranks, num_steps)`.
        mean: Mean of the measured ratios, which drawn ones keep.

    References:
        [1] S. Searle, G. Casella and C. McCulloch, "Variance components", Wiley 1992, section 4.3.
    """

    pace: Array
    shared: Array
    own: Array
    mean: float

    @classmethod
    def of(cls, ratio: Array) -> Self:
        """Divide measured over expected seconds, shape `(num_ranks, num_steps)`."""
        num_ranks, num_steps = ratio.shape
        log = np.log(np.maximum(ratio, 1e-12))
        pace = log.mean(axis=1, keepdims=True)
        rest, mean = log - pace, float(ratio.mean())
        if num_ranks == 1:  # Nothing tells the two apart.
            return cls(pace, np.zeros(num_steps), rest, mean)
        shared = rest.mean(axis=0)
        own = rest - shared
        # A mean over few ranks holds a part of what each has of its own: that part goes back.
        variance_own = float((own**2).sum()) / ((num_ranks - 1) * max(num_steps - 1, 1))
        variance = float(shared.var())
        kept = max(1 - variance_own / num_ranks / variance, 0.0) if variance else 0.0
        return cls(pace, np.sqrt(kept) * shared, np.sqrt(num_ranks / (num_ranks - 1)) * own, mean)

    def drawn(
        self, picked: tuple[NDArray[np.int64], NDArray[np.int64]], random: np.random.Generator
    ) -> Array:
        """Return the ratios of `picked` ranks and steps; each drawn step is of one measured step.

        Args:
            picked: Rank and step of each draw, shapes that broadcast to `(num_ranks, num_drawn)`.
            random: Picks the steps whose shared part is taken.
        """
        rank, step = picked
        shared = self.shared[random.integers(len(self.shared), size=step.shape[1])]
        ratio = np.exp(self.pace[rank, 0] + self.own[rank, step] + shared)
        everywhere = np.exp(self.pace + self.own).mean() * np.exp(self.shared).mean()
        return np.asarray(ratio * (self.mean / everywhere))
