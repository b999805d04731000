"""Say whom this rank waits for when a step does not end, and end the job if that is asked for."""

import faulthandler
import logging
import os
import signal
import threading
from time import monotonic

from paceline.torch.guard._board import Board
from paceline.torch.guard._diagnosis import awaited
from paceline.torch.guard._progress import PHASES, Progress

LOGGER = logging.getLogger("paceline.guard")
# How long the training thread may take to leave the block once it is interrupted.
GRACE_S = 5.0
# "Temporary failure" of sysexits.h: worth another try.
EXIT_CODE = 75


class Watchdog:
    """A thread that watches how long the present step of this rank takes.

    Args:
        progress: Where this rank is.
        board: Where the others are; None in a single process.
        rank: This rank.
        patience_s: Seconds of one step after which it logs, once per step.
        abort_s: Seconds of one step after which it ends the job; None for never.

    Attributes:
        verdict: Why it ends the job; empty if it does not.
    """

    def __init__(
        self,
        progress: Progress,
        board: Board | None,
        rank: int,
        *,
        patience_s: float,
        abort_s: float | None,
    ) -> None:
        self._progress, self._board, self._rank = progress, board, rank
        self._patience_s, self._abort_s = patience_s, abort_s
        self._beat_s = beat_of(patience_s)
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._told_of_s = 0.0
        self.verdict = ""
        self._trains_in_main = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._run, daemon=True, name="paceline-guard")

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; nothing is logged or interrupted once this has returned."""
        with self._lock:
            self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(self._beat_s):
            began_s = self._progress.step_began_s
            waited_s = monotonic() - began_s
            if self._board is not None:
                self._board.watch(wanted=waited_s > self._patience_s / 2)
            is_settled = self._board is None or self._board.is_settled or self._board.failure
            if waited_s > self._patience_s and is_settled:
                self._tell(began_s, waited_s)

    def _tell(self, began_s: float, waited_s: float) -> None:
        text = self._diagnosis(waited_s)
        with self._lock:
            if self._stop.is_set() or self._progress.step_began_s != began_s:
                return
            if self._told_of_s != began_s:
                self._told_of_s = began_s
                LOGGER.warning(text)
            if self._abort_s is None or waited_s < self._abort_s:
                return
            self.verdict = f"{text}; ended after abort_s ({self._abort_s:g} s)"
            LOGGER.error(self.verdict)
            self._interrupt()
        if not self._stop.wait(GRACE_S):
            self._exit()

    def _diagnosis(self, waited_s: float) -> str:
        place, _ = self._progress.now
        here = (
            f"rank {self._rank} has waited {waited_s:.1f} s for the end of step "
            f"{place.step + 1} ({PHASES[place.phase]})"
        )
        return here if self._board is None else f"{here}; {awaited(self._board, place)}"

    def _interrupt(self) -> None:
        """Raise KeyboardInterrupt in the training thread, if Python gets to run there.

        A thread that waits in a collective of gloo runs no Python code, and gloo cannot end
        the wait from outside.
        """
        is_default = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._trains_in_main and is_default:
            main = threading.main_thread().ident
            assert main is not None
            signal.pthread_kill(main, signal.SIGINT)

    def _exit(self) -> None:
        """End the process, as the last resort; says where each thread stood."""
        os.write(2, f"paceline.guard: {self.verdict}\n".encode())
        faulthandler.dump_traceback(2)
        os._exit(EXIT_CODE)


def beat_of(patience_s: float) -> float:
    """Return the seconds between two looks: one, or a tenth of a short patience."""
    return min(1.0, patience_s / 10)
