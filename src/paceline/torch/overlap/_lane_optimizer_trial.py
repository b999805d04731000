"""Find out on live steps whether updating beside the next step pays."""

from collections.abc import Callable

from paceline.torch.model import compared

NUM_ROUNDS, NUM_UNTIMED, NUM_TIMED = 5, 1, 4


class LaneTrial:
    """Plain and deferred steps take turns; the order changes from round to round.

    In each turn the first step is not timed, as it may still wait for the turn before.
    """

    def __init__(self) -> None:
        self._seconds: list[list[float]] = [[], []]
        self._turn = self._step = 0
        self._start_s = 0.0

    @property
    def defers(self) -> bool:
        """Whether the next step is to be deferred."""
        round_number, place = divmod(self._turn, 2)
        return bool((round_number + place) % 2)

    def note(self, now_s: Callable[[], float]) -> bool:
        """Note the end of a step, and tell whether all turns are over; `now_s` is asked rarely."""
        self._step += 1
        if self._step == NUM_UNTIMED:
            self._start_s = now_s()
        elif self._step == NUM_UNTIMED + NUM_TIMED:
            self._seconds[self.defers].append((now_s() - self._start_s) / NUM_TIMED)
            self._turn, self._step = self._turn + 1, 0
        return self._turn == 2 * NUM_ROUNDS

    def verdict(self) -> tuple[bool, str]:
        """Return whether to defer from now on, and why."""
        plain_s, deferred_s = self._seconds
        return compared(deferred_s, plain_s, "step")
