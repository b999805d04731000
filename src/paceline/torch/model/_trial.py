"""Live trials: candidates take turns on real steps; what is kept was measured to be faster."""

from collections.abc import Collection, Sequence

import numpy as np

# Turns of one and the same way differ by up to 1 % in the median on shared cores
# (docs/overlap.md), so a smaller gain may be chance.
MIN_GAIN = 0.0125


class Trial:
    """Which candidate runs next, how long its steps took, and which one is kept.

    Every candidate has one turn per round: steps that are not timed, because they may still
    wait for the turn before, then steps that are. The order of turns rotates from round to
    round. The plain way is kept unless another is at least 1.25 % faster in the median over all
    timed steps, and faster in most of the rounds.

    Ranks that must decide alike take the same turns and pass rank 0's medians to `end_round`
    and `winner`.

    Args:
        num_candidates: Candidates are numbers; 0 is the plain way, unless `winner` is told.
        num_rounds: Rounds that count.
        num_timed: Timed steps per turn.
        num_untimed: Steps before those.
        num_warm_rounds: Rounds before those that count, with caches still cold.
        drop_above: A candidate whose median is this many times the best one has no turn in the
            next round.

    Examples:
        >>> trial = Trial(2, num_rounds=3)
        >>> while not trial.is_over:
        ...     if trial.note((1.0, 0.9)[trial.current]):
        ...         trial.end_round()
        >>> trial.winner(), trial.explain(1)
        (1, 'measured 900 ms against 1000 ms plain per step, faster in 3 of 3 rounds')
    """

    def __init__(
        self,
        num_candidates: int,
        *,
        num_rounds: int,
        num_timed: int = 1,
        num_untimed: int = 0,
        num_warm_rounds: int = 0,
        drop_above: float = np.inf,
    ) -> None:
        self.steps_per_turn = num_untimed + num_timed
        self._num_untimed, self._drop_above = num_untimed, drop_above
        self._num_rounds, self._num_warm_rounds = num_rounds + num_warm_rounds, num_warm_rounds
        self._in_race = list(range(num_candidates))
        self._times_s: list[list[float]] = [[] for _ in self._in_race]
        self._rounds_s: list[Sequence[float]] = []
        self._round = self._turn = self._step = 0

    @property
    def current(self) -> int:
        """The candidate whose turn it is."""
        return self._in_race[(self._round + self._turn) % len(self._in_race)]

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to be compared."""
        return len(self._in_race) == 1 or self._round == self._num_rounds

    def note(self, step_s: float) -> bool:
        """Take the time of one step; tell whether a round has ended, so call `end_round`."""
        if self._step >= self._num_untimed and self._round >= self._num_warm_rounds:
            self._times_s[self.current].append(step_s)
        self._step = (self._step + 1) % self.steps_per_turn
        self._turn += not self._step
        return self._turn == len(self._in_race)

    def medians_s(self) -> list[float]:
        """Return the median timed step of each candidate, `inf` for one that was not timed."""
        return [_median(times) for times in self._times_s]

    def end_round(self, shared_s: Sequence[float] | None = None) -> None:
        """End a round; a candidate that is slow is out.

        Args:
            shared_s: Rank 0's `medians_s`, where ranks must agree. A round is then won by the
                candidate that was ahead when it ended.
        """
        if self._round >= self._num_warm_rounds:
            self._rounds_s.append(self._last_turns_s() if shared_s is None else shared_s)
        medians_s = self.medians_s() if shared_s is None else shared_s
        limit_s = self._drop_above * min(medians_s[index] for index in self._in_race)
        self._in_race = [index for index in self._in_race if not medians_s[index] > limit_s]
        self._round, self._turn = self._round + 1, 0

    def only(self, candidates: Collection[int]) -> None:
        """Give turns to none but these from now on; the round begins anew."""
        left = [index for index in self._in_race if index in candidates]
        self._in_race = left or list(candidates)
        self._turn = self._step = 0

    def winner(
        self, medians_s: Sequence[float] | None = None, *, plain: Collection[int] = (0,)
    ) -> int:
        """Return the candidate to keep: a plain one, unless another is measured to be faster.

        Args:
            medians_s: Seconds per step; unset for what this process measured.
            plain: Candidates that need no gain; the fastest of them stands for the plain way.
        """
        seconds = self.medians_s() if medians_s is None else medians_s
        best_plain = min(plain, key=seconds.__getitem__)
        numbers = range(len(seconds))
        faster = [index for index in numbers if self.beats(index, best_plain, seconds)]
        return min(faster, key=seconds.__getitem__, default=best_plain)

    def beats(self, candidate: int, plain: int, medians_s: Sequence[float]) -> bool:
        """Tell whether it is faster by the least gain and in most rounds, if there were any."""
        is_faster = medians_s[candidate] <= (1 - MIN_GAIN) * medians_s[plain]
        num_rounds = len(self._rounds_s)
        return is_faster and (not num_rounds or 2 * self._num_won(candidate, plain) > num_rounds)

    def explain(self, candidate: int, *, plain: int = 0, per: str = "step") -> str:
        """Say in words what was measured."""
        medians_s = self.medians_s()
        return (
            f"measured {medians_s[candidate] * 1e3:.4g} ms against {medians_s[plain] * 1e3:.4g} ms "
            f"plain per {per}, faster in {self._num_won(candidate, plain)} of "
            f"{len(self._rounds_s)} rounds"
        )

    def _num_won(self, candidate: int, plain: int) -> int:
        return sum(seconds[candidate] < seconds[plain] for seconds in self._rounds_s)

    def _last_turns_s(self) -> list[float]:
        num_timed = self.steps_per_turn - self._num_untimed
        is_in = set(self._in_race)
        return [
            _median(times[-num_timed:]) if index in is_in else np.inf
            for index, times in enumerate(self._times_s)
        ]


def _median(times: Sequence[float]) -> float:
    return float(np.median(times)) if times else np.inf
