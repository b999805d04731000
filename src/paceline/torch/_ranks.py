"""Run a function on several ranks of this machine, and leave none behind."""

import os
import signal
import tempfile
import threading
from collections.abc import Callable
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


def run_ranks(
    function: Callable[..., None],
    num_ranks: int,
    *args: Any,
    timeout_s: float = 120.0,
    while_waiting: Callable[[], None] = lambda: None,
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
        while_waiting: Called about ten times a second meanwhile.

    Raises:
        ValueError: If `num_ranks` is below 1.
        RankFailedError: If a rank raised or was killed; names it, with its traceback.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks must be at least 1, got {num_ranks}")
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
        spawn_args = (function, num_ranks, str(Path(folder) / "store"), timeout_s, args)
        context = _start(spawn_args, num_ranks)
        try:
            while not context.join(timeout=POLL_S):
                while_waiting()
        except ProcessRaisedException as error:
            raise RankFailedError(f"rank {error.error_index} failed:\n{error.msg}") from None
        except ProcessExitedException as error:
            raise RankFailedError(f"rank {error.error_index} died: {error}") from None
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


def _rank_main(
    rank: int,
    function: Callable[..., None],
    num_ranks: int,
    store: str,
    timeout_s: float,
    args: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=timeout_s),
    )
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()
