"""Try promising plans in turns on live steps, and keep the one that is measured fastest."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from paceline.torch.comm._candidates import LEAST_GAIN, Candidate

NUM_ROUNDS = 3
NUM_UNTIMED = 2
# Who is this much slower than the fastest in one round does not come to the next.
SLOW = 1.05


@dataclass(slots=True)
class PlanTrial:
    """Which plan runs next, and how long its steps took.

    At least one of the plans must wait for all gradients, as DDP's do.

    Every plan gets a turn of two steps that are not timed, since the first still waits for
    what the plan before left on the wire and DistributedDataParallel rebuilds its buckets
    in the second, and `num_steps` that are; there are three rounds of turns.
    All ranks go through the same turns; `agree` takes rank 0's times, so all keep the same.

    Attributes:
        candidates: The plans, the most promising first.
        num_steps: Timed steps per turn.
        times_s: Seconds of each timed step, per candidate.
    """

    candidates: Sequence[Candidate]
    num_steps: int
    times_s: list[list[float]] = field(init=False)
    _in_race: list[int] = field(init=False)
    _turn: int = 0
    _step: int = 0
    _round: int = 0

    def __post_init__(self) -> None:
        self.times_s = [[] for _ in self.candidates]
        self._in_race = list(range(len(self.candidates)))

    @property
    def current(self) -> Candidate:
        """The plan whose turn it is."""
        return self.candidates[self._in_race[self._turn]]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be compared."""
        return len(self._in_race) == 1 or self._round == NUM_ROUNDS

    def note(self, step_s: float) -> bool:
        """Take the time of one step; tell whether a round has ended and ranks are to `agree`."""
        if self._step >= NUM_UNTIMED:
            self.times_s[self._in_race[self._turn]].append(step_s)
        self._step += 1
        if self._step < NUM_UNTIMED + self.num_steps:
            return False
        self._step = 0
        self._turn = (self._turn + 1) % len(self._in_race)
        return self._turn == 0

    def medians_s(self) -> list[float]:
        """Return the median step of each plan, `inf` for one that was not timed."""
        return [float(np.median(times)) if times else np.inf for times in self.times_s]

    def agree(self, medians_s: Sequence[float]) -> None:
        """End a round by rank 0's medians: whoever is slow is out."""
        limit_s = SLOW * min(medians_s[index] for index in self._in_race)
        self._in_race = [index for index in self._in_race if medians_s[index] <= limit_s]
        self._turn = 0
        self._round += 1

    def keep_waiting(self) -> None:
        """Leave out the plans that need the next forward pass; the round begins anew."""
        waiting = [i for i, one in enumerate(self.candidates) if not one.overlaps]
        self._in_race = [index for index in self._in_race if index in waiting] or waiting
        self._turn = self._step = 0

    def winner(self, medians_s: Sequence[float], *, overlapping: bool = True) -> Candidate:
        """Return the fastest by `medians_s`, by its predicted time where that is `inf`.

        One that overlaps must be 1 % faster than all that wait.
        """
        scored = [
            (median_s if median_s < np.inf else one.predicted_s, one)
            for median_s, one in zip(medians_s, self.candidates, strict=True)
        ]
        waiting_s, waiting = min(
            (pair for pair in scored if not pair[1].overlaps), key=lambda pair: pair[0]
        )
        ahead = [
            pair
            for pair in scored
            if overlapping and pair[1].overlaps and pair[0] < (1 - LEAST_GAIN) * waiting_s
        ]
        return min(ahead, key=lambda pair: pair[0], default=(waiting_s, waiting))[1]
