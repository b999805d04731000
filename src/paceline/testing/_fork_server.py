"""One process that has imported torch and forks the ranks of `run_ranks`."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver

# The first optimizer that is made imports torch._dynamo. What starts threads, a first operation of
# torch, is left to the ranks.
PRELOAD = [
    "torch", "torch._dynamo", "paceline.torch", "paceline.testing", "paceline.testing._preload",
]  # fmt: skip


@cache
def start_server() -> bool:
    """Start the server of this process, once; it ends with this process.

    Returns:
        False if its socket cannot be made, for example where TMPDIR is a very long path.
    """
    try:
        with deaf_to_interrupts(), _same_imports():
            forkserver.set_forkserver_preload(PRELOAD)
            forkserver.ensure_running()
    except OSError:
        return False
    # Its imports take seconds. Ctrl-C can end this wait, as it could not while ranks start.
    first = multiprocessing.get_context("forkserver").Process(target=_do_nothing)
    first.start()
    first.join()
    return True


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Ignore Ctrl-C in this process, and until they listen again in those that it starts."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        yield
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def _same_imports() -> Iterator[None]:
    """Have the server import from where this process does; before Python 3.13 it does not ask."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(map(os.path.abspath, sys.path))
    try:
        yield
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before


def end_with_caller() -> None:
    """End this process with the one that asked for it, whose child it is not if it was forked."""
    threading.Thread(target=_wait_for_caller, name="watch-caller", daemon=True).start()


def _wait_for_caller() -> None:
    caller = multiprocessing.parent_process()
    assert caller is not None
    caller.join()
    os.kill(os.getpid(), signal.SIGKILL)


def _do_nothing() -> None:
    """Run in a process that is forked once the server has its imports."""
