"""Try promising plans in turns on live steps, and keep the one that is measured fastest."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paceline.torch.comm._candidates import Candidate
from paceline.torch.model import Trial

NUM_ROUNDS = 3
# The first step still waits for what the plan before left on the wire, and
# DistributedDataParallel rebuilds its buckets in the second.
NUM_UNTIMED = 2
# A plan that is this much slower than the fastest has no turn in the next round.
SLOW = 1.05


@dataclass(slots=True)
class Choice:
    """What was planned on the last measurement, and what is kept.

    Attributes:
        order: Parameters as the tensors of a plan: as the forward pass needs them.
        gets_all: Whether all parameters got a gradient in every measured step, on all ranks.
        bound_s: Seconds that no schedule beats, on what was measured.
        tried: All plans with their measured medians, `inf` if untimed.
        chosen: The plan that is kept; None while measuring or trying.
    """

    order: list[int]
    gets_all: bool = False
    bound_s: float = 0.0
    tried: list[tuple[Candidate, float]] = field(default_factory=list)
    chosen: Candidate | None = None


class PlanTrial:
    """A `Trial` of plans, in which the plans that wait for all gradients are the plain way.

    All ranks go through the same turns; `agree` takes rank 0's times, so all keep the same.

    Args:
        candidates: The plans, the most promising first. At least one of them must wait for all
            gradients, as DDP's do.
        num_steps: Timed steps per turn.
    """

    def __init__(self, candidates: Sequence[Candidate], num_steps: int) -> None:
        self.candidates = candidates
        self._waiting = [i for i, one in enumerate(candidates) if not one.overlaps]
        self._trial = Trial(
            len(candidates),
            num_rounds=NUM_ROUNDS,
            num_timed=num_steps,
            num_untimed=NUM_UNTIMED,
            drop_above=SLOW,
        )

    @property
    def current(self) -> Candidate:
        """The plan whose turn it is."""
        return self.candidates[self._trial.current]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be compared."""
        return self._trial.is_over

    def note(self, step_s: float) -> bool:
        """Take the time of one step; tell whether a round has ended and ranks are to `agree`."""
        return self._trial.note(step_s)

    def medians_s(self) -> list[float]:
        """Return the median step of each plan, `inf` for one that was not timed."""
        return self._trial.medians_s()

    def agree(self, medians_s: Sequence[float]) -> None:
        """End a round by rank 0's medians: a plan that is slow is out."""
        self._trial.end_round(medians_s)

    def keep_waiting(self) -> None:
        """Leave out the plans that need the next forward pass; the round begins anew."""
        self._trial.only(self._waiting)

    def winner(self, medians_s: Sequence[float], *, overlapping: bool = True) -> Candidate:
        """Return the fastest by `medians_s`, by its predicted time where that is `inf`.

        A plan that overlaps must beat all that wait, as in every `Trial`.
        """
        seconds = [
            median_s if median_s < np.inf else one.predicted_s
            for median_s, one in zip(medians_s, self.candidates, strict=True)
        ]
        plain = self._waiting
        if not overlapping:
            return self.candidates[min(plain, key=seconds.__getitem__)]
        return self.candidates[self._trial.winner(seconds, plain=plain)]
