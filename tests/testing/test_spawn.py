"""How ranks start, and that none outlives its caller. What they share is in tests/distributed."""

import json
import os
import signal
import subprocess
import sys
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed as dist

from paceline.testing import run_ranks
from paceline.testing._fork_server import start_server

ROOT = Path(__file__).parents[2]
NAMES = ("PACELINE_SET", "PACELINE_UNSET")
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="forks and /proc are Linux's")


def describe(rank: int, out: str) -> None:
    found = {
        "environment": [os.environ.get(name) for name in NAMES],
        "folder": os.getcwd(),
        "path": sys.path[0],
        "num_threads": torch.get_num_threads(),
        "parent": os.getppid(),
    }
    Path(out, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def described(out: Path, **options: Any) -> dict[str, Any]:
    run_ranks(describe, 1, str(out), **options)
    found: dict[str, Any] = json.loads((out / "0.json").read_text(encoding="utf-8"))
    return found


@needs_proc
def test_forked_ranks_have_what_their_caller_has_at_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = set()
    for place, unset in (("one", "here"), ("two", None)):
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        monkeypatch.syspath_prepend(str(tmp_path / place))
        monkeypatch.setenv(NAMES[0], place)
        if unset is None:
            monkeypatch.delenv(NAMES[1])
        else:
            monkeypatch.setenv(NAMES[1], unset)
        found = described(tmp_path)
        assert found["environment"] == [place, unset]
        assert found["folder"] == found["path"] == str(tmp_path / place)
        assert found["num_threads"] == 1
        servers.add(found["parent"])
    assert len(servers) == 1
    assert servers != {os.getpid()}


@needs_proc
def test_the_server_forks_with_one_thread(tmp_path: Path) -> None:
    server = described(tmp_path)["parent"]
    assert len(os.listdir(f"/proc/{server}/task")) == 1


def test_a_fresh_rank_is_a_child_of_its_caller(tmp_path: Path) -> None:
    assert described(tmp_path, fresh=True)["parent"] == os.getpid()


def test_where_no_server_can_start_ranks_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr(forkserver, "ensure_running", refuse)
    assert start_server.__wrapped__() is False


def wait_for_rank_1(rank: int) -> None:
    os.write(1, f"{os.getpid()}\n".encode())
    if rank == 1:
        signal.pause()
    dist.barrier()


@needs_proc
def test_ranks_and_their_server_end_with_a_caller_that_is_killed() -> None:
    code = (
        "from paceline.testing import run_ranks\n"
        "from tests.testing.test_spawn import wait_for_rank_1\n"
        "run_ranks(wait_for_rank_1, 2)"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        pids = {int(caller.stdout.readline()) for _ in range(2)}
        caller.kill()
        # Ranks and server hold the other end, so this returns when the last of them has ended.
        assert caller.stdout.read() == b""
    assert caller.pid not in pids
