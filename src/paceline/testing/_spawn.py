"""Run a function on several ranks of this machine, and leave none behind."""

import gc
import os
import signal
import tempfile
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist
from torch.multiprocessing.spawn import (
    ProcessExitedException,
    ProcessRaisedException,
    SpawnContext,
    start_processes,
)

from paceline.errors import RankFailedError

POLL_S = 0.1
NOTE = "failed"


def run_ranks(
    function: Callable[..., None],
    num_ranks: int,
    *args: Any,
    timeout_s: float = 120.0,
    while_waiting: Callable[[], None] = lambda: None,
    enter: Callable[[int], None] | None = None,
) -> None:
    """Run `function(rank, *args)` on `num_ranks` gloo ranks with one thread each.

    The ranks meet through a file on loopback, in a default process group that is
    there when `function` starts. For real jobs use torchrun; this is for the demo,
    tests and benchmarks. Whatever ends this call, also Ctrl-C, ends all ranks.

    Args:
        function: Importable by name; its arguments must be picklable.
        num_ranks: At least 1.
        *args: Passed on.
        timeout_s: How long one collective may take before it is an error.
        while_waiting: Called about ten times a second meanwhile; what it raises ends the ranks.
        enter: Called with the rank in its process before the group is made, for example to
            move to another network; must be picklable.

    Raises:
        ValueError: If `num_ranks` is below 1.
        RankFailedError: If a rank raised or was killed; names it, with its traceback.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks must be at least 1, got {num_ranks}")
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
        spawn_args = (function, num_ranks, str(Path(folder) / "store"), timeout_s, args, enter)
        context = _start(spawn_args, num_ranks)
        try:
            while not context.join(timeout=POLL_S):
                while_waiting()
        except ProcessExitedException as error:
            raise RankFailedError(f"rank {error.error_index} died: {error}") from None
        except ProcessRaisedException:
            raise RankFailedError(_first_failure(context, Path(folder) / NOTE)) from None
        finally:
            for process in context.processes:
                process.kill()
                process.join()


def _start(spawn_args: tuple[Any, ...], num_ranks: int) -> SpawnContext:
    """Start the ranks deaf to Ctrl-C until they are up, so that only this process reports it."""
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main else None
    try:
        context: SpawnContext = start_processes(_rank_main, spawn_args, num_ranks, join=False)
    finally:
        if in_main:
            signal.signal(signal.SIGINT, handler)
    return context


def _first_failure(context: SpawnContext, note: Path) -> str:
    """Say which rank is to blame: the others failed at the connection that it closed."""
    for rank, process in enumerate(context.processes):
        if process.exitcode not in (0, 1, -signal.SIGTERM):  # Raised and stopped ranks end so.
            return f"rank {rank} died: exit code {process.exitcode}"
    return note.read_text(encoding="utf-8")


def _rank_main(
    rank: int,
    function: Callable[..., None],
    num_ranks: int,
    store: str,
    timeout_s: float,
    args: tuple[Any, ...],
    enter: Callable[[int], None] | None,
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if enter is not None:
        enter(rank)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{store}",
            rank=rank,
            world_size=num_ranks,
            timeout=timedelta(seconds=timeout_s),
        )
        function(rank, *args)
    except Exception:
        # Written while the connections still stand, so before another rank can fail at them.
        note = Path(store).with_name(NOTE)
        with suppress(FileExistsError), note.open("x", encoding="utf-8") as file:
            file.write(f"rank {rank} failed:\n{traceback.format_exc()}")
        raise
    finally:
        # Wrapped models form cycles that hold the group; left to the interpreter's shutdown,
        # gloo's threads outlive what they run in and abort the process.
        gc.collect()
        if dist.is_initialized():
            dist.destroy_process_group()
        gc.collect()
