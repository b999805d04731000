"""Steps of all ranks side by side: what each second of rank time was spent on.

Nobody leaves a collective before its last rank has joined it, and all leave together. So the rank
that stood in it for the shortest time came last: its stay is the wire, and what the others stood
longer is waiting for it. That needs no common clock.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
CLASSES = (
    "data", "between", "forward", "loss", "backward", "waiting", "wire", "after", "optimizer"
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Grid:
    """Columns of all ranks, each of shape `(num_ranks, num_steps)`; counts are NaN where unknown.

    Attributes:
        seconds: Rank time of each class in `CLASSES`; they add up to the step on each rank.
        num_microbatches: Forward passes of each step.
        num_examples: Examples.
        num_elements: Positions, padding included.
        num_padding: Positions that hold padding.
        is_joint: Whether the ranks meet in a collective in every step.
    """

    seconds: dict[str, Array]
    num_microbatches: Array
    num_examples: Array
    num_elements: Array
    num_padding: Array
    is_joint: bool

    @property
    def num_ranks(self) -> int:
        """Ranks."""
        return len(self.num_microbatches)

    @property
    def num_steps(self) -> int:
        """Steps without warm-up."""
        return len(self.step_s)

    @property
    def compute_s(self) -> Array:
        """Seconds of forward pass, loss and backward pass."""
        return self.seconds["forward"] + self.seconds["loss"] + self.seconds["backward"]

    @property
    def passes_s(self) -> Array:
        """Seconds of the passes in which a gradient could be sent. Shape `(num_steps,)`."""
        passes_s = self.seconds["forward"] + self.seconds["backward"]
        return np.asarray(passes_s.min(axis=0), dtype=np.float64)

    @property
    def outside_s(self) -> Array:
        """Seconds outside of passes, loader and collective, from one collective to the next.

        What follows the collective of a step delays the collective of the next one.
        """
        behind = self.seconds["after"] + self.seconds["optimizer"]
        if self.is_joint:
            behind = np.concatenate([behind[:, :1], behind[:, :-1]], axis=1)
        return self.seconds["between"] + behind

    @property
    def local_s(self) -> Array:
        """Seconds of a rank on its own, from one collective to its arrival at the next."""
        return self.seconds["data"] + self.outside_s + self.compute_s

    @property
    def wire_s(self) -> Array:
        """Seconds of the collective with all ranks there. Shape `(num_steps,)`."""
        return np.asarray(self.seconds["wire"][0])

    @property
    def step_s(self) -> Array:
        """Measured seconds of each step, mean over ranks. Shape `(num_steps,)`."""
        whole: Array = sum(self.seconds.values(), np.zeros(self.num_microbatches.shape))
        return np.asarray(whole.mean(axis=0), dtype=np.float64)

    def shares(self) -> dict[str, float]:
        """Return the share of rank time of each class; they add up to 1."""
        total_s = float(self.step_s.sum()) * self.num_ranks or 1.0
        return {name: float(spent.sum()) / total_s for name, spent in self.seconds.items()}
