"""A rank that is stopped, leaves or dies is named by the others, in every mode."""

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import distributed as dist
from torch import nn

from paceline import ScheduledDataParallel
from paceline.comm import WireProblem, plan_ddp, plan_p3
from paceline.errors import TransferError
from paceline.testing import run_ranks
from paceline.torch.comm import _control
from paceline.torch.comm._candidates import Candidate
from paceline.torch.ranks import _roll_call

NUM_STEPS = 8
KINDS: dict[str, dict[str, Any]] = {
    "whole": {"choose": plan_p3},
    "sharded": {"choose": plan_p3, "sharded": True},
    "plain": {"choose": "simulated"},
}


def buckets(problem: WireProblem, _planner: object) -> list[Candidate]:
    return [Candidate(plan_ddp(problem), 1.0, 25)]


def wrapped(kind: str) -> ScheduledDataParallel:
    """Return a model that has trained until its plan was kept."""
    torch.manual_seed(0)
    bare = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9)
    with ExitStack() as stack:
        if kind == "plain":
            stack.enter_context(patch.object(_control, "candidates", buckets))
        model = ScheduledDataParallel(bare, optimizer, num_measure_steps=2, **KINDS[kind])
        for _ in range(NUM_STEPS):
            step(model)
    return model


def step(model: ScheduledDataParallel) -> None:
    model(torch.ones(4, 6)).square().mean().backward()
    model.step()


def error_of(model: ScheduledDataParallel, *, then: object = None) -> str:
    """Train in a `with` block until it fails."""
    with pytest.raises((TransferError, OSError)) as caught, model:  # noqa: PT012
        step(model)
        model.flush()
        raise OSError(then)
    return f"{type(caught.value).__name__}: {caught.value}"


def lose_rank_2(rank: int, folder: str) -> None:
    """Rank 2 is stopped and goes on; then it leaves with an error; then it dies in every mode."""
    found: dict[str, str] = {}
    with patch.object(_roll_call, "PATIENCE_S", 2.0):
        pids: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(pids, os.getpid())
        model = wrapped("whole")
        if rank == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        found["stopped"] = error_of(model)
        # Rank 2 goes on once both others have their errors: before, it could still answer one.
        if rank == 1:
            Path(folder, "told").open("w").close()
        if rank == 0:
            Path(folder, "told").open().close()
            os.kill(pids[2], signal.SIGCONT)
        model = wrapped("sharded")
        if rank == 2:
            with pytest.raises(OSError, match="disk"), model:
                raise OSError("no room on the disk")
        else:
            found["left"] = error_of(model)
        models = {kind: wrapped(kind) for kind in KINDS}
        modes = [str(model._control.mode) for model in models.values()]
        if rank == 2:
            os._exit(0)
        found |= {kind: error_of(model) for kind, model in models.items()}
    Path(folder, f"{rank}.json").write_text(json.dumps([modes, found]), encoding="utf-8")


def test_the_rank_that_is_stopped_has_left_or_is_dead_is_named_in_every_mode(
    tmp_path: Path,
) -> None:
    os.mkfifo(tmp_path / "told")  # Opening one end waits for the other.
    run_ranks(lose_rank_2, 3, str(tmp_path), timeout_s=4)
    for rank in (0, 1):
        modes, found = json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8"))
        assert modes == ["overlapped", "overlapped", "plain"]
        assert all(text.startswith(f"TransferError: rank {rank}: ") for text in found.values())
        assert "rank 2 has left with OSError" in found["left"]
        for name in ("stopped", *KINDS):
            assert "rank 2 does not answer: stopped, dead or cut off" in found[name]
