"""Finish what must be written when torch elastic ends this rank, even inside a collective."""

import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

# Python runs its handlers between two instructions of the main thread, so one that waits in a
# collective never runs them. Torch elastic kills 30 s after it has asked.
GRACE_S = 2.0


def finish_on_sigterm(finish: Callable[[], None]) -> None:
    """Call `finish` when this process is asked to end, then end it as it would have ended.

    A script that sets a handler of its own replaces this one. Processes that it forks are as if
    this had not been called.
    """
    owner = os.getpid()

    def on_sigterm(number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        finish()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(owner, number)

    def forget() -> None:
        if signal.getsignal(signal.SIGTERM) is on_sigterm:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, on_sigterm)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    os.register_at_fork(after_in_child=forget)
    watch = threading.Thread(
        target=_finish_if_stuck, args=(reader, on_sigterm, finish), name="paceline-end", daemon=True
    )
    watch.start()


def _finish_if_stuck(reader: int, handler: object, finish: Callable[[], None]) -> None:
    """Wait for the signal; if its handler did not end this process soon, do it here."""
    while signal.SIGTERM not in os.read(reader, 64):
        pass
    time.sleep(GRACE_S)
    if signal.getsignal(signal.SIGTERM) is handler:
        _finish_and_end(finish)


def _finish_and_end(finish: Callable[[], None]) -> NoReturn:
    try:
        finish()
    finally:
        os._exit(128 + signal.SIGTERM)
