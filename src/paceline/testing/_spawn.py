"""Run a function on several ranks of this machine, and leave none behind."""

import gc
import os
import signal
import sys
import tempfile
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
from paceline.testing._fork_server import (
    deaf_to_interrupts,
    end_with_caller,
    start_server,
    take_environment,
)

POLL_S = 0.1
NOTE = "failed"


def run_ranks(
    function: Callable[..., None],
    num_ranks: int,
    *args: Any,
    timeout_s: float = 120.0,
    while_waiting: Callable[[], None] = lambda: None,
    enter: Callable[[int], None] | None = None,
    fresh: bool = sys.platform != "linux",
) -> None:
    """Run `function(rank, *args)` on `num_ranks` gloo ranks with one thread each.

    The ranks meet through a file on loopback, in a default process group that is
    there when `function` starts. For real jobs use torchrun; this is for the demo,
    tests and benchmarks. Whatever ends this call, also Ctrl-C, ends all ranks.

    Ranks are forked by a server that has imported torch, which this process starts at its
    first call and which ends with it. They have the environment, folder and `sys.path` of
    this call, but the standard streams and the hash seed of the server, and they end
    without `atexit`. Where that matters, or no server can be started, they are `fresh`.

    Args:
        function: Importable by name; its arguments must be picklable.
        num_ranks: At least 1.
        *args: Passed on.
        timeout_s: How long one collective may take before it is an error.
        while_waiting: Called about ten times a second meanwhile; what it raises ends the ranks.
        enter: Called with the rank in its process before the group is made, for example to
            move to another network; must be picklable.
        fresh: Whether each rank is a new interpreter, which imports torch for 2 to 4 s;
            the default only where forking is not safe, so not on Linux.

    Raises:
        ValueError: If `num_ranks` is below 1.
        RankFailedError: If a rank raised or was killed; names it, with its traceback.
    """
    if num_ranks < 1:
        raise ValueError(f"num_ranks must be at least 1, got {num_ranks}")
    with tempfile.TemporaryDirectory(prefix="paceline-") as folder:
        store = str(Path(folder) / "store")
        context = _start((function, num_ranks, store, timeout_s, args, enter), num_ranks, fresh)
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


def _start(rank_args: tuple[Any, ...], num_ranks: int, fresh: bool) -> SpawnContext:
    """Start the ranks deaf to Ctrl-C until they are up, so that only this process reports it."""
    method = "spawn" if fresh or not start_server() else "forkserver"
    environment = dict(os.environ)
    with deaf_to_interrupts():
        context: SpawnContext = start_processes(
            _rank_main, (environment, *rank_args), num_ranks, join=False, start_method=method
        )
    return context


def _first_failure(context: SpawnContext, note: Path) -> str:
    """Say which rank is to blame: the others failed at the connection that it closed."""
    for rank, process in enumerate(context.processes):
        if process.exitcode not in (0, 1, -signal.SIGTERM):  # Raised and stopped ranks end so.
            return f"rank {rank} died: exit code {process.exitcode}"
    return note.read_text(encoding="utf-8")


def _rank_main(
    rank: int,
    environment: dict[str, str],
    function: Callable[..., None],
    num_ranks: int,
    store: str,
    timeout_s: float,
    args: tuple[Any, ...],
    enter: Callable[[int], None] | None,
) -> None:
    take_environment(environment)
    end_with_caller()
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
